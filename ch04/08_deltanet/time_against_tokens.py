"""How does the time grow with the text? Full attention against gated DeltaNet, in chunks and token by token, on one thread.

Counted is processor time, so that other programs on the machine disturb little.

Run it:  python time_against_tokens.py        half a minute; it writes time-against-tokens.json and time-against-tokens.png
"""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from gated_deltanet import GatedDeltaNet, GatedMultiHeadAttention
from previous_chapters import OneLineParser, int_at_least, interleaved, processor_name, use_course_style

HEAD_DIM, REPEATS = 64, 20
FULL, CHUNKS, STEPS = "full attention", "DeltaNet, chunks", "DeltaNet, token by token"


def processor_seconds(function: Callable) -> tuple[None, float]:
    """(None, the processor time that a call took)."""
    started = time.process_time()
    with torch.inference_mode():
        function()
    return None, time.process_time() - started


def layers(emb_dim: int, context_length: int) -> dict[str, torch.nn.Module]:
    """The three ways to read a text, as one layer each, random weights."""
    heads = emb_dim // HEAD_DIM
    made = {
        FULL: GatedMultiHeadAttention(emb_dim, emb_dim, context_length, 0.0, heads),
        CHUNKS: GatedDeltaNet(emb_dim, emb_dim, 0.0, heads),
        STEPS: GatedDeltaNet(emb_dim, emb_dim, 0.0, heads),
    }
    made[STEPS].chunk_size = 1
    return made


def whole_text(layer: torch.nn.Module, x: torch.Tensor) -> Callable:
    """A function that times the reading of the text x (1, num_tokens, emb_dim)."""
    return lambda: processor_seconds(lambda: layer(x))


def next_token(layer: torch.nn.Module, x: torch.Tensor) -> Callable:
    """A function that times one more token after the text x (1, num_tokens, emb_dim): the least of REPEATS in a row."""
    layer.reset_cache()
    with torch.inference_mode():
        layer(x, use_cache=True)

    def run() -> tuple[None, float]:
        return None, min(processor_seconds(lambda: layer(x[:, -1:], use_cache=True))[1] for _ in range(REPEATS))

    return run


def measure(tokens: list[int], emb_dim: int, rounds: int) -> dict:
    """The least of `rounds` processor times in seconds: a whole text of each length, and one more token after it."""
    log = {"processor": processor_name(), "torch": torch.__version__, "emb_dim": emb_dim, "head_dim": HEAD_DIM, "tokens": tokens}
    log |= {"read": {}, "next": {}}
    for num_tokens in tokens:
        x, made = torch.randn(1, num_tokens, emb_dim), layers(emb_dim, num_tokens + REPEATS * rounds)
        read = {name: whole_text(layer, x) for name, layer in made.items()}
        following = {name: next_token(made[name], x) for name in (FULL, CHUNKS)}
        for part, runs in (("read", read), ("next", following)):
            for name, seconds in interleaved(runs, rounds)[1].items():
                log[part].setdefault(name, []).append(min(seconds))
    return log


def draw(log: dict, output: Path):
    """Save both times against the tokens of the text; returns the figure."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    use_course_style()
    fig, axes = plt.subplots(1, 2, figsize=(8, 3.4))
    titles = {"read": "Reading a text", "next": "One more token after it"}
    for ax, (part, title) in zip(axes, titles.items()):
        for (name, seconds), mark in zip(log[part].items(), "os^"):
            ax.semilogx(log["tokens"], [1000 * one for one in seconds], marker=mark, markersize=4, base=2, label=name)
        ax.set(xlabel="tokens of the text", ylabel="milliseconds, one layer", title=title)
    axes[0].set_yscale("log")
    axes[0].legend()
    axes[1].set_ylim(bottom=0)
    fig.savefig(output)
    plt.close(fig)
    return fig


def rows_of(log: dict) -> list[str]:
    """The log as lines of a Markdown table, each time as a multiple of DeltaNet's in chunks at the fewest tokens."""
    rows = ["| tokens | " + " | ".join([*log["read"], *(f"next token: {name.split(',')[0]}" for name in log["next"])]) + " |"]
    rows.append("|---" * (1 + len(log["read"]) + len(log["next"])) + "|")
    for number, num_tokens in enumerate(log["tokens"]):
        read = [seconds[number] / log["read"][CHUNKS][0] for seconds in log["read"].values()]
        following = [seconds[number] / log["next"][CHUNKS][0] for seconds in log["next"].values()]
        rows.append(f"| {num_tokens:,} | " + " | ".join(f"{ratio:.1f}" for ratio in read + following) + " |")
    return rows


def main(argv: list[str] | None = None) -> int:
    """Command line of this file; returns 0, or exits with code 2 and one line on bad input."""
    parser = OneLineParser("Time one layer of full attention and of gated DeltaNet against the length of the text, on one CPU thread.")
    parser.add_argument("--tokens", type=int_at_least(1), nargs="+", default=[128, 256, 512, 1024, 2048, 4096], help="lengths of the text")
    parser.add_argument("--emb_dim", type=int_at_least(HEAD_DIM), default=256, help=f"width of the layer, a multiple of {HEAD_DIM}")
    parser.add_argument("--rounds", type=int_at_least(1), default=7, help="measurements of each kind; the least one counts")
    parser.add_argument("--seed", type=int, default=123, help="random seed of weights and inputs")
    parser.add_argument("--log", type=Path, default=Path("time-against-tokens.json"), help="file of the result")
    parser.add_argument("--figure", type=Path, default=Path("time-against-tokens.png"), help="file of the plot")
    args = parser.parse_args(argv)
    for path in (args.log, args.figure):
        if not path.parent.is_dir():
            parser.error(f"no such folder: {path.parent}")
    if args.emb_dim % HEAD_DIM:
        parser.error(f"--emb_dim {args.emb_dim} is not divisible by {HEAD_DIM}")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(args.seed)
    log = measure(sorted(args.tokens), args.emb_dim, args.rounds)
    torch.set_num_threads(threads)
    args.log.write_text(json.dumps(log, indent=1) + "\n", encoding="utf-8")
    draw(log, args.figure)
    print("\n".join(rows_of(log)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
