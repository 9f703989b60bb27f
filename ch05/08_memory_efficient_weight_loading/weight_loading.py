"""Seven ways to bring saved weights into a GPT, from the plain one to those that need hardly more memory than the weights.

Each way is a function of a folder with `gpt-config.json` and `model.pth` (or `model_parameters/`, one file for each tensor, or
safetensors files with an index) that returns the loaded model in eval mode; `plain_init` loads nothing and is there to compare
with. The notebook memory-efficient-state-dict.ipynb builds and measures them.

Run it:  python weight_loading.py --n_layers 4
"""

import sys
import tempfile
from pathlib import Path

import torch
import torch.nn as nn
from memory_tools import MeasuringFailed, measure
from model_files import (
    ShapesOnly,
    check_pytorch,
    check_state_dict,
    load_weights,
    map_tensors,
    own_tensors,
    read_config,
    save_model,
    save_shards,
    shape_only,
    shard_files,
    with_second_names,
)
from previous_chapters import GPTModel, MultiHeadAttention, OneLineParser, int_at_least, pick_device, tie_weights

# ---- models without numbers -----------------------------------------------------------------------------------------

def new_model(cfg: dict) -> nn.Module:
    """Return a GPTModel; with cfg["tied"], head and embedding are one tensor, as in GPT-2. Section 2."""
    model = GPTModel(cfg)
    return tie_weights(model) if cfg.get("tied") else model


def model_on_meta(folder: str | Path = ".") -> nn.Module:
    """Return the model with shapes and no numbers: it takes no memory and no time for random draws. Section 5."""
    with torch.device("meta"), ShapesOnly():
        return new_model(read_config(folder))


def rebuild_buffers(model: nn.Module) -> nn.Module:
    """Make the causal masks anew, on the device of the weights: no file holds them (they are not persistent). Section 5."""
    for module in model.modules():
        if isinstance(module, MultiHeadAttention):
            ones = torch.ones_like(module.mask, device=module.W_query.weight.device)
            module.mask = ones.triu(diagonal=1)
    return model


def repair(model: nn.Module, folder: str | Path = ".") -> nn.Module:
    """Give a model that began on meta what no file holds: its masks, and one tensor where two names share one. Section 5."""
    rebuild_buffers(model)
    return tie_weights(model) if read_config(folder).get("tied") else model


# ---- the ways -------------------------------------------------------------------------------------------------------

def plain_init(folder: str | Path = ".", device: str | torch.device = "cpu") -> nn.Module:
    """Random weights, no file: what the model alone costs. Section 2."""
    model = new_model(read_config(folder))
    return model.to(device).eval()


def baseline(folder: str | Path = ".", device: str | torch.device = "cpu") -> nn.Module:
    """The way of chapter 5: build the model, read the state dict onto the same device, copy. Two full sets. Section 3."""
    model = new_model(read_config(folder)).to(device)
    state_dict = load_weights(Path(folder) / "model.pth", device)
    check_state_dict(model, state_dict)
    model.load_state_dict(state_dict)
    return model.eval()


def load_on_cpu_then_move(folder: str | Path = ".", device: str | torch.device = "cpu") -> nn.Module:
    """Both sets on the CPU, then the finished model moves: the GPU holds one set only. Section 3."""
    model = baseline(folder, "cpu")
    return model.to(device)


def load_sequentially(folder: str | Path = ".", device: str | torch.device = "cpu") -> nn.Module:
    """The model on the device, the state dict on the CPU, copied tensor by tensor. Section 4."""
    model = new_model(read_config(folder)).to(device)
    state_dict = load_weights(Path(folder) / "model.pth", "cpu")
    check_state_dict(model, state_dict)
    for name, tensor in model.state_dict().items():
        tensor.copy_(state_dict[name])
    return model.eval()


def load_sequentially_with_meta(folder: str | Path = ".", device: str | torch.device = "cpu") -> nn.Module:
    """Empty tensors straight on the device, then the state dict on that device too, tensor by tensor. Section 5."""
    model = repair(model_on_meta(folder).to_empty(device=device), folder)
    state_dict = load_weights(Path(folder) / "model.pth", device)
    check_state_dict(model, state_dict)
    for name, tensor in model.state_dict().items():
        tensor.copy_(state_dict[name])
    return model.eval()


def best_practices(folder: str | Path = ".", device: str | torch.device = "cpu") -> nn.Module:
    """Map the file instead of reading it, and let the model take the mapped tensors over. One set. Section 6."""
    check_pytorch()
    model = model_on_meta(folder)
    state_dict = load_weights(Path(folder) / "model.pth", "cpu", mmap=True)
    check_state_dict(model, state_dict)
    model.load_state_dict(state_dict, assign=True)
    return repair(model, folder).to(device).eval()


def save_individual_weights(model: nn.Module, folder: str | Path = ".") -> None:
    """Write each tensor of the model into a file of its own, model_parameters/NAME.pt. Section 7."""
    target = Path(folder) / "model_parameters"
    target.mkdir(exist_ok=True)
    for name, tensor in own_tensors(model).items():
        torch.save(tensor, target / f"{name}.pt")


def load_individual_weights(folder: str | Path = ".", device: str | torch.device = "cpu") -> nn.Module:
    """Empty tensors on the device, filled from one small file after the other: one set and one tensor. Section 7."""
    files = Path(folder) / "model_parameters"
    model = repair(model_on_meta(folder).to_empty(device=device), folder)
    tensors = own_tensors(model)
    unused = {path.stem for path in files.glob("*.pt")} - tensors.keys()
    if unused:
        raise ValueError(f"{min(unused)}: the model has none, but {files} holds a file")
    shapes = {name: shape_only(files / f"{name}.pt") for name in tensors}  # all files are checked before the first copy
    check_state_dict(model, with_second_names(model, shapes))
    for name, tensor in tensors.items():
        tensor.copy_(load_weights(files / f"{name}.pt", "cpu"))
    return model.eval()


def load_shards(folder: str | Path = ".", device: str | torch.device = "cpu") -> nn.Module:
    """The form of published models: safetensors files with an index, mapped one after the other and taken over. Section 8."""
    model, tensors = model_on_meta(folder), {}
    for path in shard_files(folder):
        tensors |= map_tensors(path, device)
    tensors = with_second_names(model, tensors)
    check_state_dict(model, tensors)
    model.load_state_dict(tensors, assign=True)
    return repair(model, folder).eval()


ROUTES = {
    "2 random weights only": plain_init,
    "3 state dict on the device": baseline,
    "3b on the CPU, then moved": load_on_cpu_then_move,
    "4 tensor by tensor": load_sequentially,
    "5 meta, to_empty": load_sequentially_with_meta,
    "6 meta, mmap, assign": best_practices,
    "7 one file per tensor": load_individual_weights,
    "8 safetensors, assign": load_shards,
}


# ---- command line ---------------------------------------------------------------------------------------------------

def print_table(measured: dict, model_bytes: int) -> None:
    """Print {route: Measurement} as a table: peak memory of the process and of the GPU, beside the model's own bytes. Section 9."""
    print(f"{'route':<28}{'peak GiB':>9}{'x model':>9}{'private x':>11}{'GPU GiB':>9}{'seconds':>9}")
    for route, found in measured.items():
        private = "-" if found.private is None else f"{found.private / model_bytes:.2f}"
        gpu = "-" if found.gpu is None else f"{found.gpu / 2**30:.2f}"
        print(f"{route:<28}{found.peak / 2**30:>9.2f}{found.peak / model_bytes:>9.2f}{private:>11}{gpu:>9}{found.seconds:>9.1f}")


def main(argv: list[str] | None = None) -> int:
    """Command line of this file; returns 0, or exits with code 2 and one line on bad input."""
    parser = OneLineParser("Save a GPT with random weights in a temporary folder and measure every way of loading it.")
    parser.add_argument("--emb_dim", type=int_at_least(1), default=768, help="width")
    parser.add_argument("--n_layers", type=int_at_least(1), default=8, help="transformer blocks")
    parser.add_argument("--n_heads", type=int_at_least(1), default=12, help="attention heads")
    parser.add_argument("--vocab_size", type=int_at_least(1), default=8192, help="vocabulary (GPT-2: 50257)")
    parser.add_argument("--context_length", type=int_at_least(1), default=256, help="longest text")
    parser.add_argument("--seed", type=int, default=123, help="random seed of the weights")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps")
    args = parser.parse_args(argv)
    sizes = {key: getattr(args, key) for key in ("vocab_size", "context_length", "emb_dim", "n_heads", "n_layers")}
    cfg = {**sizes, "drop_rate": 0.0, "qkv_bias": True}
    try:
        device = pick_device(args.device)
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            torch.manual_seed(args.seed)
            model = GPTModel(cfg)
            save_model(model, cfg, folder)
            save_individual_weights(model, folder)
            save_shards(model, folder)
            model_bytes = sum(parameter.nbytes for parameter in model.parameters())
            print(f"the model's own bytes: {model_bytes / 2**30:.2f} GiB, largest tensor: "
                  f"{max(parameter.nbytes for parameter in model.parameters()) / 2**30:.2f} GiB")
            del model
            print_table({name: measure(route, folder, str(device)) for name, route in ROUTES.items()}, model_bytes)
    except (ValueError, OSError, MeasuringFailed) as error:
        parser.error(str(error))
    return 0


if __name__ == "__main__":
    sys.exit(main())
