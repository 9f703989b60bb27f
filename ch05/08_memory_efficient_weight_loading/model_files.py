"""Files of weights, read and written with every damage as one clear line: state dicts, and safetensors files with an index.

Also the names of shared tensors, and the shapes of tensors without their numbers. Plumbing of this folder; the ways of loading
are in weight_loading.py, and the notebook says which section uses what.
"""

import inspect
import json
import pickle
import shutil
from pathlib import Path

import torch
import torch.nn as nn
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch.overrides import TorchFunctionMode

INDEX = "model.safetensors.index.json"


def save_model(model: nn.Module, cfg: dict, folder: str | Path) -> None:
    """Write the configuration and the state dict into a folder. Raises OSError if the disk has no room. Section 1."""
    needed = sum(tensor.nbytes for tensor in model.state_dict().values())
    free = shutil.disk_usage(folder).free
    if free < needed + 2**20:
        raise OSError(f"the weights take {needed:,} bytes, but {folder} has only {free:,} left")
    (Path(folder) / "gpt-config.json").write_text(json.dumps(cfg), encoding="utf-8")
    torch.save(model.state_dict(), Path(folder) / "model.pth")


def read_config(folder: str | Path) -> dict:
    """Return the configuration that `save_model` wrote. Raises FileNotFoundError, or ValueError if it is not JSON. Section 1."""
    path = Path(folder) / "gpt-config.json"
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist: write it and the weights with save_model")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        raise ValueError(f"{path} is damaged: it is not JSON") from None


def check_pytorch() -> None:
    """Raise RuntimeError if this PyTorch is too old for mapped files and for taking tensors over. Section 6."""
    arguments = [*inspect.signature(torch.load).parameters, *inspect.signature(nn.Module.load_state_dict).parameters]
    if "mmap" not in arguments or "assign" not in arguments:
        raise RuntimeError(f"mmap and assign need PyTorch 2.1 or newer, this is {torch.__version__}: use load_individual_weights")


def load_weights(path: str | Path, device: str | torch.device = "cpu", mmap: bool = False):
    """torch.load for weights, every damage as one line: FileNotFoundError, or ValueError for a truncated file. Section 3."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path} does not exist")
    try:
        return torch.load(path, map_location=device, weights_only=True, **({"mmap": True} if mmap else {}))
    except (RuntimeError, EOFError, OSError, ValueError, pickle.UnpicklingError) as error:
        if isinstance(error, torch.cuda.OutOfMemoryError) or "allocate" in str(error):
            raise  # the file is good, the memory too small
        raise ValueError(f"{path} is truncated or damaged: write or download it again") from None


def shape_only(path: str | Path) -> torch.Tensor:
    """Return a tensor on meta with the shape of the one in a file, which is mapped where this PyTorch can, else read. Section 7."""
    return torch.empty_like(load_weights(path, mmap="mmap" in inspect.signature(torch.load).parameters), device="meta")


def check_state_dict(model: nn.Module, state_dict: dict) -> None:
    """Raise ValueError, with one line, if names or shapes of the weights are not those of the model. Section 3.

    Also if the file has two different tensors where the model shares one: the second would silently overwrite the first.
    """
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    given = {name: tuple(getattr(tensor, "shape", ())) for name, tensor in state_dict.items()}  # a checkpoint holds more than tensors
    for name in sorted(wanted.keys() | given.keys()):
        if wanted.get(name) != given.get(name):
            raise ValueError(f"{name}: the model has {wanted.get(name, 'none')}, the file {given.get(name, 'none')}")
    for name, first in shared_names(model).items():
        tensor, other = state_dict[name], state_dict[first]
        if tensor.data_ptr() != other.data_ptr() and not torch.equal(tensor, other):
            raise ValueError(f"{name}: the model shares it with {first}, the file has other numbers there")


# ---- models without numbers -----------------------------------------------------------------------------------------

class ShapesOnly(TorchFunctionMode):
    """While it is on, random draws and `triu` leave a tensor as it is, for building on meta, where no number can change.

    PyTorch would do nothing either, but in Python code that first loads its compiler: 80 MB and more than a second.
    """

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if getattr(func, "__module__", None) == "torch.nn.init" or func is torch.Tensor.triu:
            return args[0] if args else kwargs["tensor"]
        return func(*args, **(kwargs or {}))


# ---- tensors with two names -----------------------------------------------------------------------------------------

def shared_names(model: nn.Module) -> dict[str, str]:
    """Return {second name: first name} of all parameters that a model uses under two names. Section 8."""
    first, shared = {}, {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if first.setdefault(id(parameter), name) != name:
            shared[name] = first[id(parameter)]
    return shared


def own_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return the state dict without second names: what has to be stored, each tensor once. Section 8."""
    shared = shared_names(model)
    return {name: tensor for name, tensor in model.state_dict().items() if name not in shared}


def with_second_names(model: nn.Module, tensors: dict) -> dict[str, torch.Tensor]:
    """Return the tensors of a file that holds each once, with the second names added that the model uses. Section 8."""
    return tensors | {name: tensors[first] for name, first in shared_names(model).items() if first in tensors and name not in tensors}


# ---- safetensors ----------------------------------------------------------------------------------------------------

def save_shards(model: nn.Module, folder: str | Path = ".", max_bytes: int = 2**26) -> list[str]:
    """Write safetensors files of at most max_bytes, or one tensor, and the index that says which tensor is where. Section 8."""
    shards, room = [], 0
    for name, tensor in own_tensors(model).items():
        if tensor.nbytes > room:
            shards, room = [*shards, {}], max_bytes
        shards[-1][name], room = tensor, room - tensor.nbytes
    files = [f"model-{number:05}-of-{len(shards):05}.safetensors" for number in range(1, len(shards) + 1)]
    for file, shard in zip(files, shards, strict=True):
        save_file(shard, Path(folder) / file)
    weight_map = {name: file for file, shard in zip(files, shards, strict=True) for name in shard}
    total = sum(tensor.nbytes for shard in shards for tensor in shard.values())
    (Path(folder) / INDEX).write_text(json.dumps({"metadata": {"total_size": total}, "weight_map": weight_map}), encoding="utf-8")
    return files


def shard_files(folder: str | Path) -> list[Path]:
    """Return the files that the index names. Raises FileNotFoundError if one is missing, ValueError for a damaged index. Section 8."""
    index = Path(folder) / INDEX
    if not index.is_file():
        raise FileNotFoundError(f"{index} does not exist")
    try:
        files = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, LookupError, AttributeError, TypeError):
        raise ValueError(f"{index} is damaged: it is no index of tensors") from None
    missing = [name for name in files if not (Path(folder) / name).is_file()]
    if missing:
        raise FileNotFoundError(f"{Path(folder) / missing[0]} does not exist, one of {len(files)} files that {index.name} names")
    return [Path(folder) / name for name in files]


def map_tensors(path: str | Path, device: str | torch.device = "cpu") -> dict[str, torch.Tensor]:
    """Return the tensors of a safetensors file by name, on the CPU mapped and not yet read. ValueError if it is damaged. Section 8."""
    try:
        with safe_open(path, framework="pt", device=str(device)) as file:
            return {name: file.get_tensor(name) for name in file.keys()}
    except (SafetensorError, OSError):
        raise ValueError(f"{path} is truncated or damaged: write or download it again") from None
