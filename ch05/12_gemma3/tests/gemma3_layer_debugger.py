"""Where does an implementation of Gemma 3 first differ from Hugging Face's? Compares the output of every layer.

    python tests/gemma3_layer_debugger.py                                          # a tiny random model, about ten seconds
    python tests/gemma3_layer_debugger.py --notebook standalone-gemma3-plus-kvcache.ipynb
    python tests/gemma3_layer_debugger.py --checkpoint FOLDER_OR_GGUF_FILE         # with real weights
    python tests/gemma3_layer_debugger.py --details                                # also what happens inside the layers

The definitions come from a notebook of this folder, so edit a class there, run this, and see in which layer the numbers part.
Exit code: 0 if all agree, 1 if not.
"""

import argparse
import ast
import contextlib
import json
import sys
from importlib.machinery import PathFinder
from pathlib import Path

import torch

FOLDER = Path(__file__).resolve().parents[1]
NOTEBOOK = "standalone-gemma3.ipynb"


class FolderFinder:
    """Tells Python's import where the modules of the notebooks' folder lie."""

    @staticmethod
    def find_spec(name, path=None, target=None):
        return None if path else PathFinder.find_spec(name, [str(FOLDER)])


@contextlib.contextmanager
def folder_imports():
    """Within this, `import gemma3_weights` finds the modules of the notebooks' folder, as it does in a notebook there."""
    sys.meta_path.append(FolderFinder)
    try:
        yield
    finally:
        sys.meta_path.remove(FolderFinder)


def tiny_debug_config() -> dict:
    """Sizes small enough for a second, with both kinds of layers, shared keys and values, and a window shorter than the text."""
    sliding, full = "sliding_attention", "full_attention"
    return {
        "vocab_size": 257, "context_length": 64, "emb_dim": 64, "n_heads": 4, "n_layers": 4, "hidden_dim": 128, "head_dim": 16,
        "qk_norm": True, "n_kv_groups": 2, "rope_base": 1_000_000.0, "rope_local_base": 10_000.0, "sliding_window": 8,
        "layer_types": [sliding, sliding, sliding, full], "query_pre_attn_scalar": 20, "dtype": torch.float32,
    }  # fmt: skip


def is_definition(node: ast.stmt) -> bool:
    """An import, a class, a function, or a constant such as SLIDING, FULL = ... or GEMMA3_CONFIG_270M = {...}."""
    if isinstance(node, ast.Assign):
        targets = node.targets[0].elts if isinstance(node.targets[0], ast.Tuple) else node.targets[:1]
        return all(isinstance(target, ast.Name) and target.id.isupper() for target in targets)
    return isinstance(node, ast.Import | ast.ImportFrom | ast.ClassDef | ast.FunctionDef)


def load_notebook_defs(nb_name: str = NOTEBOOK) -> dict:
    """Name -> what a notebook of this folder defines under it, without running its experiments. FileNotFoundError if there is none."""
    path = FOLDER / nb_name
    if not path.is_file():
        raise FileNotFoundError(f"there is no notebook {nb_name} in {FOLDER.name}")
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    nodes = [node for cell in cells if cell["cell_type"] == "code" for node in ast.parse("".join(cell["source"])).body]
    names = {"__name__": "notebook"}
    with folder_imports():
        exec(compile(ast.Module(body=list(filter(is_definition, nodes)), type_ignores=[]), nb_name, "exec"), names)
    return names


def random_parameters(model, seed: int = 123) -> None:
    """Random weights, norms included: with norms of zero or one, a norm left out would not show."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3 if parameter.dim() == 1 else 0.1)


def build_gemma3_pair(import_notebook_defs: dict, cfg: dict, hf_checkpoint=None):
    """(our model, Hugging Face's) in eval mode with the same weights.

    hf_checkpoint: None for random weights in the sizes of cfg; a folder with a Gemma 3 text model in Hugging Face's format, or
    the GGUF file of Gemma 3 270M, whose sizes then replace those of cfg.
    """
    with folder_imports():
        from gemma3_reference import gemma3_class, hf_config, hugging_face_twin
        from gemma3_weights import GemmaNames, load_weights_into_gemma
        from llama import read_gguf
    reference_class = gemma3_class()
    if hf_checkpoint is None:
        theirs = reference_class(hf_config(cfg)).eval()
        random_parameters(theirs)
        params = theirs.state_dict()
    elif Path(hf_checkpoint).is_dir():
        theirs = reference_class.from_pretrained(hf_checkpoint, local_files_only=True, dtype=torch.float32, attn_implementation="eager")
        theirs, params = theirs.eval(), theirs.state_dict()
        cfg = config_of(theirs.config)
    else:
        params = GemmaNames(read_gguf(hf_checkpoint)[1])
        cfg = {**import_notebook_defs["GEMMA3_CONFIG_270M"], "dtype": torch.float32}
        theirs = hugging_face_twin(cfg, params)
    ours = import_notebook_defs["Gemma3Model"](cfg).eval()
    load_weights_into_gemma(ours, cfg, params)
    return ours, theirs


def config_of(config) -> dict:
    """Hugging Face's configuration in our keys."""
    full, local = (config.rope_parameters[kind] for kind in ("full_attention", "sliding_attention"))
    cfg = {
        "vocab_size": config.vocab_size, "context_length": config.max_position_embeddings, "emb_dim": config.hidden_size,
        "n_heads": config.num_attention_heads, "n_layers": config.num_hidden_layers, "hidden_dim": config.intermediate_size,
        "head_dim": config.head_dim, "qk_norm": True, "n_kv_groups": config.num_key_value_heads, "rope_base": full["rope_theta"],
        "rope_local_base": local["rope_theta"], "sliding_window": config.sliding_window, "layer_types": config.layer_types,
        "query_pre_attn_scalar": config.query_pre_attn_scalar, "dtype": torch.float32, "tied": config.tie_word_embeddings,
    }  # fmt: skip
    if full["rope_type"] == "linear":  # every rotation slowed alike: none turns a million times
        cfg["rope_freq"] = {"factor": full["factor"], "low_freq_factor": 1e6, "high_freq_factor": 2e6,
                            "original_context_length": config.max_position_embeddings}  # fmt: skip
    return cfg


def outputs_of(model, modules: dict, input_ids: torch.Tensor) -> dict:
    """Name -> what each of the modules returned while the model read the ids (the first tensor, if it returned several)."""
    seen, hooks = {}, []
    for name, module in modules.items():
        def keep(module, inputs, output, name=name):
            seen[name] = (output[0] if isinstance(output, tuple) else output).detach()

        hooks.append(module.register_forward_hook(keep))
    with torch.no_grad():
        model(input_ids)
    for hook in hooks:
        hook.remove()
    return seen


def layer_modules(ours, hf_model) -> dict:
    """Name -> (our module, theirs), in the order in which they run."""
    pairs = {f"layer {i} ({block.attn_type.split('_')[0]})": (block, hf_model.model.layers[i]) for i, block in enumerate(ours.blocks)}
    return {**pairs, "final norm": (ours.final_norm, hf_model.model.norm), "logits": (ours.out_head, hf_model.lm_head)}


def layerwise_differences(ours, hf_model, input_ids, rtol=1e-5, atol=1e-5, modules=layer_modules) -> list[dict]:
    """One dict for each layer: name, shapes, max_diff, mean_diff, equal (within atol + rtol x the value)."""
    pairs = modules(ours, hf_model)
    mine = outputs_of(ours, {name: pair[0] for name, pair in pairs.items()}, input_ids)
    reference = outputs_of(hf_model, {name: pair[1] for name, pair in pairs.items()}, input_ids)
    rows = []
    for name in pairs:
        a, b = mine[name], reference[name]
        row = {"name": name, "shape": tuple(a.shape), "hf_shape": tuple(b.shape), "max_diff": float("inf"), "mean_diff": float("inf")}
        if a.numel() == b.numel():
            difference = (a.float() - b.float().reshape(a.shape)).abs()
            row |= {"max_diff": float(difference.max()), "mean_diff": float(difference.mean())}
        row["equal"] = a.numel() == b.numel() and torch.allclose(a.float(), b.float().reshape(a.shape), rtol=rtol, atol=atol)
        rows.append(row)
    return rows


def format_report(differences: list[dict]) -> str:
    """A line for each layer, and one that names the first that differs."""
    width = max(len(row["name"]) for row in differences)
    lines = [f"{'':{width}}  largest difference   mean"]
    for row in differences:
        mark = "ok" if row["equal"] else "DIFFERS"
        shapes = "" if row["shape"] == row["hf_shape"] else f"  shapes {row['shape']} and {row['hf_shape']}"
        lines.append(f"{row['name']:{width}}  {row['max_diff']:18.2e}   {row['mean_diff']:.2e}  {mark}{shapes}")
    wrong = [row["name"] for row in differences if not row["equal"]]
    return "\n".join([*lines, f"first difference: {wrong[0]}" if wrong else "all agree"])


def parse(argv=None) -> argparse.Namespace:
    """The options of both debuggers."""
    parser = argparse.ArgumentParser(description="Compare a Gemma 3 of this folder with Hugging Face's, layer by layer.")
    parser.add_argument("--notebook", default=NOTEBOOK, help="notebook whose definitions are tested (default: %(default)s)")
    parser.add_argument("--checkpoint", help="folder of a Gemma 3 text model, or a GGUF file of Gemma 3 270M (default: random weights)")
    parser.add_argument("--rtol", type=float, default=1e-5, help="relative tolerance (default: %(default)s)")
    parser.add_argument("--atol", type=float, default=1e-5, help="absolute tolerance (default: %(default)s)")
    parser.add_argument("--details", action="store_true", help="also compare what happens inside each layer")
    args = parser.parse_args(argv)
    if not (FOLDER / args.notebook).is_file():
        parser.error(f"--notebook {args.notebook}: there is no such notebook in {FOLDER.name}")
    if args.checkpoint and not Path(args.checkpoint).exists():
        parser.error(f"--checkpoint {args.checkpoint}: no such file or folder")
    if args.rtol < 0 or args.atol < 0:
        parser.error("--rtol and --atol must be 0 or more")
    return args


def run(args: argparse.Namespace, modules=layer_modules) -> int:
    """Print the report of one comparison; 0 if all agree."""
    ours, theirs = build_gemma3_pair(load_notebook_defs(args.notebook), tiny_debug_config(), args.checkpoint)
    torch.manual_seed(123)
    input_ids = torch.randint(ours.cfg["vocab_size"], (1, 24))  # three windows of the tiny model
    differences = layerwise_differences(ours, theirs, input_ids, args.rtol, args.atol, modules)
    print(format_report(differences))
    return 0 if all(row["equal"] for row in differences) else 1


def main(argv=None) -> int:
    args = parse(argv)
    if args.details:
        from gemma3_layer_debugger_detailed import detailed_modules

        return run(args, detailed_modules)
    return run(args)


if __name__ == "__main__":
    sys.exit(main())
