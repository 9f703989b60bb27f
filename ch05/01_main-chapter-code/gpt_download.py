"""Get published GPT-2 weights as (settings, params): from this repository, from OpenAI's files, or from Hugging Face's file.

Plumbing of chapter 5, section 5.5. Two routes of equal standing end in the same nested dictionary of NumPy arrays: OpenAI's
TensorFlow checkpoint, and model.safetensors, which needs no TensorFlow. A complete copy on the disk costs no request.

Run it:  python gpt_download.py --model_size 124M --models_dir gpt2        (500 MB; `mini` needs no network)
"""

import importlib.util
import json
import os
import re
import sys
from pathlib import Path

import numpy as np
import safetensors
from download import DiskError, DownloadError, download_file, file_hash, file_problem
from previous_chapters import GPT2_FILE_SHA256, OneLineParser

MODELS_DIR = Path(__file__).resolve().parent / "gpt2"
MIRRORS = ["https://openaipublic.blob.core.windows.net/gpt-2/models", "https://storage.googleapis.com/gpt-2/models"]
HUGGING_FACE = "https://huggingface.co/openai-community"
MINI = "ch05/03_bonus_pretraining_on_gutenberg/gpt2-mini"
SAME = {"n_vocab": 50257, "n_ctx": 1024}
SIZES = {
    "124M": {**SAME, "n_embd": 768, "n_head": 12, "n_layer": 12},
    "355M": {**SAME, "n_embd": 1024, "n_head": 16, "n_layer": 24},
    "774M": {**SAME, "n_embd": 1280, "n_head": 20, "n_layer": 36},
    "1558M": {**SAME, "n_embd": 1600, "n_head": 25, "n_layer": 48},
}
HUGGING_FACE_NAMES = {"124M": "gpt2", "355M": "gpt2-medium", "774M": "gpt2-large", "1558M": "gpt2-xl"}
DATA_FILE = "model.ckpt.data-00000-of-00001"
TF_FILES = ["checkpoint", "encoder.json", "hparams.json", DATA_FILE, "model.ckpt.index", "model.ckpt.meta", "vocab.bpe"]
KNOWN_BYTES = {
    "124M": {"checkpoint": 77, "hparams.json": 90, "model.ckpt.index": 5_215, "model.ckpt.meta": 471_155},
    "355M": {"checkpoint": 77, "hparams.json": 91, "model.ckpt.index": 10_399, "model.ckpt.meta": 926_519},
}
TOKENIZER_BYTES = {"encoder.json": 1_042_301, "vocab.bpe": 456_318}  # the same in every size


def size_name(model_size: str) -> str:
    """Return "124M" for "124M" and for "gpt2-small (124M)". Raises ValueError for an unknown size."""
    in_parentheses = re.search(r"\(([^()]*)\)$", model_size)
    name = in_parentheses[1] if in_parentheses else model_size
    if name != "mini" and name not in SIZES:
        raise ValueError(f"unknown model size {model_size!r} (known: mini, {', '.join(SIZES)})")
    return name


def download_and_load_gpt2(model_size: str, models_dir: str | Path, source: str = "auto", offline: bool = False) -> tuple[dict, dict]:
    """Return (settings, params) of a GPT-2, downloading it to models_dir/model_size unless it is there.

    settings: n_vocab, n_ctx, n_embd, n_head, n_layer. params: wte, wpe, g, b and the list blocks, float32 arrays, matrices stored
    as (in, out). `source` is "tensorflow", "safetensors", or "auto": what is on the disk, else the first that can be had.
    Raises ValueError for an unknown size or unusable files, DownloadError when the files cannot be had; each in one line.
    """
    size = size_name(model_size)
    if size == "mini":
        folder = find_mini(models_dir)
        settings = read_settings(folder / "config.json")
        return settings, load_gpt2_params_from_safetensors(folder / "model.safetensors", settings)
    folder = Path(models_dir) / size
    routes = [route for route in ("safetensors", "tensorflow") if source in (route, "auto")]
    for route in routes:
        if not missing_files(folder, size, route):
            return load_route(folder, size, route)
    if offline:
        raise ValueError(f"offline, and GPT-2 {size} is not complete in {folder}: {why_incomplete(folder, size, routes)}")
    if source == "auto":  # OpenAI's own files first, but only where they can be read
        routes = ["tensorflow", "safetensors"] if importlib.util.find_spec("tensorflow") else ["safetensors"]
    faults = []
    for route in routes:
        try:
            for name, known in route_files(size, route).items():
                sources = addresses(size, name)
                download_file(sources[0], folder / name, sources[1:], **known)
        except DiskError:
            raise
        except DownloadError as error:
            faults.append(str(error))
        else:
            loaded = load_fresh(folder, size, route)
            record_hashes(folder, list(route_files(size, route)))
            return loaded
    raise DownloadError(" -- ".join(faults))


def addresses(size: str, name: str) -> list[str]:
    """Return where a file can be fetched, in the order to try."""
    if name == "model.safetensors":
        return [f"{HUGGING_FACE}/{HUGGING_FACE_NAMES[size]}/resolve/main/{name}"]
    return [f"{mirror}/{size}/{name}" for mirror in MIRRORS]


def route_files(size: str, route: str) -> dict:
    """Return the files of a route, each with what is known of it: {name: {"size": bytes or None, "sha256": text or None}}."""
    if route == "safetensors":
        return {"model.safetensors": {}}
    floats = sum(int(np.prod(shape)) for shape in tensor_shapes(SIZES[size]).values())
    bytes_of = {**TOKENIZER_BYTES, DATA_FILE: 4 * floats, **KNOWN_BYTES.get(size, {})}
    return {name: {"size": bytes_of.get(name), "sha256": GPT2_FILE_SHA256.get(name)} for name in TF_FILES}


def missing_files(folder: Path, size: str, route: str) -> dict:
    """Return {name: problem} for the files of a route that are absent or of the wrong size."""
    problems = {name: file_problem(folder / name, known.get("size")) for name, known in route_files(size, route).items()}
    return {name: problem for name, problem in problems.items() if problem}


def why_incomplete(folder: Path, size: str, routes: list) -> str:
    """Say what is missing, in the route of which most is there."""
    best = min((missing_files(folder, size, route) for route in routes), key=lambda missing: list(missing.values()).count("missing"))
    return "; ".join(f"{name}: {problem}" for name, problem in best.items())


def record_hashes(folder: Path, names: list) -> None:
    """Write SHA256SUMS, in the format of `sha256sum`, so that --verify_only can tell whether a file has changed since."""
    lines = [f"{file_hash(folder / name)}  {name}\n" for name in names]
    (folder / "SHA256SUMS").write_text("".join(lines), encoding="utf-8")


def load_route(folder: Path, size: str, route: str) -> tuple[dict, dict]:
    """Return (settings, params) from complete files on the disk."""
    if route == "safetensors":
        return dict(SIZES[size]), load_gpt2_params_from_safetensors(folder / "model.safetensors", SIZES[size])
    settings = read_settings(folder / "hparams.json")
    return settings, load_gpt2_params_from_tf_ckpt(folder / "model.ckpt", settings)


def load_fresh(folder: Path, size: str, route: str) -> tuple[dict, dict]:
    """Load what has just been downloaded; a model.safetensors that cannot be loaded goes, since nothing is known of its bytes."""
    try:
        return load_route(folder, size, route)
    except ValueError:
        (folder / "model.safetensors").unlink(missing_ok=True)
        raise


def find_mini(models_dir: str | Path) -> Path:
    """Return the folder of the pretrained gpt2-mini. Raises ValueError that says where to get it."""
    named = os.environ.get("LLM_COURSE_WEIGHTS")
    places = [Path(named), Path(named) / "gpt2-mini"] if named else []
    here = Path(__file__).resolve().parent
    places += [Path(models_dir) / "mini", here / "gpt2-mini", here.parent / "gpt2-mini"]
    places += [folder / MINI for folder in (here, *here.parents)]
    for place in places:
        if (place / "model.safetensors").is_file() and (place / "config.json").is_file():
            return place
    looked = f"LLM_COURSE_WEIGHTS={named}" if named else "LLM_COURSE_WEIGHTS is not set"
    raise ValueError(
        f"gpt2-mini is not on this machine ({looked}): get the folder {MINI} of the course repository, with model.safetensors and "
        f"config.json, and put it beside the folder {here.name} or set LLM_COURSE_WEIGHTS to its path; or choose --model_size 124M, "
        "which is downloaded"
    )


def read_settings(path: Path) -> dict:
    """Return the settings in OpenAI's hparams.json or in Hugging Face's config.json. Raises ValueError in one line."""
    other_names = {"n_vocab": "vocab_size", "n_ctx": "n_positions"}
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        settings = {key: raw.get(key, raw.get(other_names.get(key))) for key in SIZES["124M"]}
    except (OSError, ValueError, AttributeError) as error:
        raise ValueError(f"{path} cannot be read as settings: {str(error).splitlines()[0]}") from None
    unusable = [key for key, value in settings.items() if type(value) is not int or value < 1]
    if unusable:
        raise ValueError(f"{path} has no whole number above 0 for {', '.join(unusable)}")
    return settings


def tensor_shapes(settings: dict) -> dict:
    """Return {name: shape} of every tensor of a GPT-2, by OpenAI's names without their first part, "model/"."""
    d, wide = settings["n_embd"], 4 * settings["n_embd"]
    shapes = {"wte": (settings["n_vocab"], d), "wpe": (settings["n_ctx"], d), "ln_f/g": (d,), "ln_f/b": (d,)}
    layers = {"attn/c_attn": (d, 3 * d), "attn/c_proj": (d, d), "mlp/c_fc": (d, wide), "mlp/c_proj": (wide, d)}
    for number in range(settings["n_layer"]):
        for norm in ("ln_1", "ln_2"):
            shapes |= {f"h{number}/{norm}/g": (d,), f"h{number}/{norm}/b": (d,)}
        for layer, shape in layers.items():
            shapes |= {f"h{number}/{layer}/w": shape, f"h{number}/{layer}/b": shape[1:]}
    return shapes


def check_shapes(found: dict, settings: dict, path: Path) -> None:
    """Raise ValueError, naming tensor and shapes, unless a file holds exactly the tensors of these settings."""
    expected = tensor_shapes(settings)
    for name, shape in expected.items():
        if name not in found:
            raise ValueError(f"{path} lacks the tensor {name}")
        if tuple(found[name]) != shape:
            raise ValueError(f"{path}: tensor {name} has shape {tuple(found[name])}, the settings ask for {shape}")
    unknown = [name for name in found if name not in expected]
    if unknown:
        raise ValueError(f"{path} holds {len(unknown)} tensors that the settings have no place for, such as {unknown[0]}")


def to_tree(arrays: dict, n_layer: int) -> dict:
    """Turn {"h0/attn/c_attn/w": array, ...} into params["blocks"][0]["attn"]["c_attn"]["w"], and "ln_f/g" into params["g"]."""
    params = {"blocks": [{} for _ in range(n_layer)]}
    for name, array in arrays.items():
        first, *path = name.split("/")
        branch = params["blocks"][int(first[1:])] if re.fullmatch(r"h\d+", first) else params
        *groups, leaf = path or [first]
        for group in groups:
            branch = branch.setdefault(group, {})
        branch[leaf] = array
    return params


def load_gpt2_params_from_tf_ckpt(ckpt_path: str | Path, settings: dict) -> dict:
    """Return the params in OpenAI's TensorFlow checkpoint; ckpt_path ends in model.ckpt. The only user of TensorFlow.

    Raises ValueError, in one line, without TensorFlow and for files that are damaged or do not fit the settings.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # errors only
    try:
        import tensorflow as tf
    except ImportError:
        raise ValueError("reading this checkpoint needs TensorFlow: pip install tensorflow, or use --source safetensors") from None
    try:
        reader = tf.train.load_checkpoint(str(ckpt_path))
        stored = {name: shape for name, shape in reader.get_variable_to_shape_map().items() if name.startswith("model/")}
        # Matrices are stored as (1, in, out): GPT-2 computed them as convolutions of width 1.
        shapes = {name.removeprefix("model/"): shape[1:] if len(shape) == 3 and shape[0] == 1 else shape for name, shape in stored.items()}
        check_shapes(shapes, settings, Path(ckpt_path))
        arrays = {name: reader.get_tensor(f"model/{name}").reshape(shape).astype(np.float32, copy=False) for name, shape in shapes.items()}
    except (tf.errors.OpError, RuntimeError, LookupError) as error:
        raise ValueError(f"{ckpt_path} is damaged or no checkpoint: {str(error).splitlines()[0]}") from None
    return to_tree(arrays, settings["n_layer"])


def our_name(name: str) -> str | None:
    """Return OpenAI's name of a tensor in Hugging Face's file; None for what is no weight: the causal masks and a tied head."""
    name = name.removeprefix("transformer.")
    if name == "lm_head.weight" or re.fullmatch(r"h\.\d+\.attn\.(bias|masked_bias)", name):
        return None
    *path, kind = name.split(".")
    if path in (["wte"], ["wpe"]):
        return path[0]
    leaf = {"bias": "b", "weight": "g" if path[-1:] in (["ln_1"], ["ln_2"], ["ln_f"]) else "w"}.get(kind, kind)
    return re.sub(r"^h/", "h", "/".join([*path, leaf]))


def load_gpt2_params_from_safetensors(path: str | Path, settings: dict) -> dict:
    """Return the params in Hugging Face's model.safetensors, the same tree as from the checkpoint; float16 becomes float32.

    Raises ValueError, in one line, for a file that is damaged or does not fit the settings.
    """
    try:
        with safetensors.safe_open(path, framework="np") as file:
            names = {our_name(name): name for name in file.keys()}
            heads = [name for name in file.keys() if name.endswith("lm_head.weight")]
            names.pop(None, None)
            check_shapes({name: file.get_slice(theirs).get_shape() for name, theirs in names.items()}, settings, Path(path))
            arrays = {name: file.get_tensor(theirs).astype(np.float32, copy=False) for name, theirs in names.items()}
            untied = [name for name in heads if not np.array_equal(file.get_tensor(name).astype(np.float32), arrays["wte"])]
    except (safetensors.SafetensorError, OSError, TypeError) as error:
        raise ValueError(f"{path} is damaged or no safetensors file of float weights: {str(error).splitlines()[0]}") from None
    if untied:
        raise ValueError(f"{path}: {untied[0]} differs from the token embedding; GPT-2 uses one matrix for both")
    return to_tree(arrays, settings["n_layer"])


def verify(model_size: str, models_dir: str | Path, source: str = "auto") -> tuple[dict, dict]:
    """Return (settings, params) after comparing every file on the disk with all that is known of it; makes no request."""
    size = size_name(model_size)
    folder = Path(models_dir) / size
    if size != "mini" and (folder / "SHA256SUMS").is_file():
        for line in (folder / "SHA256SUMS").read_text(encoding="utf-8").splitlines():
            recorded, name = line.split(maxsplit=1)
            problem = file_problem(folder / name, hashes={"sha256": recorded})
            if problem:
                raise ValueError(f"{folder / name}: {problem}; delete it and run this again without --verify_only")
    return download_and_load_gpt2(model_size, models_dir, source, offline=True)


def main(argv: list[str] | None = None) -> int:
    """Command line of this file; returns 0, or exits with code 2 and one line on bad input."""
    parser = OneLineParser("Download GPT-2's weights unless they are there, and check that they load.")
    parser.add_argument("--model_size", default="mini", help=f"mini, {', '.join(SIZES)}")
    parser.add_argument("--models_dir", default=str(MODELS_DIR), help="folder for the downloaded files")
    parser.add_argument("--source", choices=["auto", "tensorflow", "safetensors"], default="auto", help="which of the two file formats")
    parser.add_argument("--verify_only", action="store_true", help="check what is there, download nothing")
    args = parser.parse_args(argv)
    try:
        load = verify if args.verify_only else download_and_load_gpt2
        settings, _ = load(args.model_size, args.models_dir, args.source)
    except (ValueError, OSError) as error:
        parser.error(" ".join(str(error).split()))
    except KeyboardInterrupt:
        parser.exit(130, "stopped; the same command goes on from there\n")
    parameters = sum(int(np.prod(shape)) for shape in tensor_shapes(settings).values())
    print(f"GPT-2 {args.model_size} is complete: {parameters:,} parameters, {settings}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
