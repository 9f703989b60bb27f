"""How much a language model loses with fewer bits for each weight: two models, several ways of rounding, text held out.

    python quantization_experiment.py --output my-quantization.json                       # 10 to 20 minutes on one core
    python quantization_experiment.py --models gpt2-mini --output my-quantization.json    # 2 to 3 minutes

gpt2-mini is shipped in float16; all its matrices are quantized, and it reads text of its own kind that was held out from its
training. SmolLM2's linear layers arrive with 4 bits a weight already (Q4_1), so it starts there: they are quantized once more,
the embedding stays as the file has it, and it reads the course's own story, which no model has been trained on. Losses are
means over the tokens, in nats, in windows of 256 tokens. quantization.json is such a log; quantization.ipynb draws it.
"""

import json
import os
import platform
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from gguf_reader import find_smollm2, read_gguf
from llama import load_smollm2
from previous_chapters import (
    MODELS_DIR,
    STORY_FILE,
    OneLineParser,
    find_mini,
    gpt2_tokenizer,
    int_at_least,
    load_pretrained_gpt,
    pick_device,
    read_text,
)
from quantize import gguf_bits, quantize_matrices, round_trip, round_trip_gguf, stored_bits
from torch import nn
from tqdm import tqdm

WINDOW = 256
MOST_BITS = {"gpt2-mini": 8, "smollm2": 4}  # a model that has 4 bits a weight gains nothing from more
GGUF_KINDS = ("Q8_0", "Q5_1", "Q5_0", "Q4_1", "Q4_0")


@torch.inference_mode()
def token_losses(model: nn.Module, token_ids: torch.Tensor, window: int = WINDOW) -> torch.Tensor:
    """Loss in nats of each token of a text (num_tokens) but the first, cut into whole windows: (rows * window).

    ValueError for a text shorter than one window.
    """
    rows = (len(token_ids) - 1) // window
    if rows < 1:
        raise ValueError(f"{len(token_ids)} tokens are less than a window of {window} and its next token")
    inputs = token_ids[: rows * window].reshape(rows, window)  # (rows, window)
    targets = token_ids[1 : rows * window + 1].reshape(rows, window)  # (rows, window)
    return torch.cat([F.cross_entropy(model(row[None])[0], target, reduction="none") for row, target in zip(inputs, targets, strict=True)])


def load_mini():
    """(gpt2-mini with head and embedding as one matrix, its matrices, bits of all else, ids of the text, the text's name)."""
    model, _ = load_pretrained_gpt({}, "mini", MODELS_DIR)
    model.out_head.weight = model.tok_emb.weight
    matrices = {name: parameter for name, parameter in model.named_parameters() if parameter.dim() == 2}
    others = sum(parameter.numel() for parameter in model.parameters() if parameter.dim() != 2)
    path = find_mini(MODELS_DIR) / "held-out-generated.txt"
    ids = gpt2_tokenizer().encode(read_text(path), allowed_special={"<|endoftext|>"})
    return model, matrices, 16 * others, ids, path.name


def load_smollm2_matrices():
    """(SmolLM2, the matrices of its linear layers, bits of all else in its file, ids of the text, the text's name)."""
    model, tokenizer = load_smollm2()
    matrices = {name: parameter for name, parameter in model.named_parameters() if name.startswith("trf_blocks") and parameter.dim() == 2}
    others = sum(8 * size for kind, _, _, size in read_gguf(find_smollm2())[1].table.values() if kind != "Q4_1")
    return model, matrices, others, tokenizer.encode(read_text(STORY_FILE)), STORY_FILE.name


LOADERS = {"gpt2-mini": load_mini, "smollm2": load_smollm2_matrices}


def ways_for(name: str, wanted: list[int]) -> list[tuple]:
    """(name of the way, bits of a whole number, bits a weight in storage, function of a matrix), the untouched model first."""
    ways = [("float16", 16, 16.0, None) if name == "gpt2-mini" else ("Q4_1, as shipped", 4, gguf_bits("Q4_1"), None)]
    for bits in [bits for bits in wanted if bits <= MOST_BITS[name]]:
        for way, with_minimum in (("symmetric", False), ("with minimum", True)):
            ways.append((way, bits, stored_bits(bits, with_minimum), lambda w, b=bits, m=with_minimum: round_trip(w, b, m)))
    if name == "gpt2-mini":
        kinds = [kind for kind in GGUF_KINDS if int(kind[1]) in wanted]
        ways += [(kind, int(kind[1]), gguf_bits(kind), lambda w, k=kind: round_trip_gguf(w, k)) for kind in kinds]
    return ways


def measure(name: str, bits_wanted: list[int], max_tokens: int, device: torch.device) -> dict:
    """Loss, bytes and error of one model in every way; the matrices get their own weights back before each."""
    model, matrices, other_bits, ids, text = LOADERS[name]()
    token_ids = torch.tensor(ids[: max_tokens + 1], device=device)
    model = model.to(device)
    original = {key: matrix.detach().clone() for key, matrix in matrices.items()}
    weights = sum(matrix.numel() for matrix in matrices.values())
    runs, first = [], None
    for way, bits, stored, function in tqdm(ways_for(name, bits_wanted), desc=name):
        for key, matrix in matrices.items():
            matrix.data.copy_(original[key])
        error = 0.0 if function is None else quantize_matrices(matrices, function)
        losses = token_losses(model, token_ids).double().cpu()  # (num_losses)
        first = losses if first is None else first
        above = losses - first  # paired: the same tokens before and after
        runs.append({
            "way": way, "bits": bits, "bits_per_weight": stored, "bytes": round((weights * stored + other_bits) / 8),
            "relative_error": round(error, 5), "loss": round(losses.mean().item(), 4), "above": round(above.mean().item(), 4),
            "standard_error": round((above.std() / len(above) ** 0.5).item(), 4),
        })
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return {"text": text, "tokens": len(first), "parameters": parameters, "quantized": weights, "runs": runs}


def command_line() -> OneLineParser:
    parser = OneLineParser("Measure the loss of gpt2-mini and SmolLM2 with fewer bits for each weight.")
    parser.add_argument("--models", nargs="+", choices=tuple(LOADERS), default=list(LOADERS), help="which models to measure")
    parser.add_argument("--bits", nargs="+", type=int, choices=range(2, 9), default=[8, 6, 5, 4, 3, 2], help="bits of the whole numbers")
    parser.add_argument("--max_tokens", type=int_at_least(WINDOW), default=8192, help="how much of each text to read, in tokens")
    parser.add_argument("--output", required=True, help="JSON file for the log")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda", "mps"), default="auto", help="where to compute")
    return parser


def print_table(name: str, result: dict) -> None:
    """One line for each way."""
    print(f"{name}, {result['quantized']:,} of {result['parameters']:,} weights quantized, {result['tokens']:,} tokens of {result['text']}")
    for run in result["runs"]:
        size = f"{run['bits_per_weight']:5.2f} bits a weight, {run['bytes'] / 1e6:6.2f} MB"
        loss = f"loss {run['loss']:.4f}, {run['above']:+.4f} +- {run['standard_error']:.4f}"
        print(f"  {run['bits']:2} bits, {run['way']:17} {size}   {loss}")


def main(argv=None) -> None:
    """Measure, write the log, print a table."""
    parser = command_line()
    args = parser.parse_args(argv)
    output = Path(args.output)
    if output.is_dir() or not output.parent.is_dir():
        parser.error(f"--output {output} is a folder, or its folder does not exist")
    try:
        device = pick_device(args.device)
        found = {name: measure(name, list(dict.fromkeys(args.bits)), args.max_tokens, device) for name in dict.fromkeys(args.models)}
    except (OSError, ValueError, ImportError) as error:
        parser.error(str(error))
    log = {"window": WINDOW, "device": str(device), "machine": platform.machine(), "torch": torch.__version__, "models": found}
    temporary = output.with_name(output.name + ".tmp")
    temporary.write_text(json.dumps(log, indent=1) + "\n", encoding="utf-8")
    os.replace(temporary, output)
    for name, result in found.items():
        print_table(name, result)
    print(f"wrote {output}")


if __name__ == "__main__":
    sys.exit(main())
