"""Draw the memory of the KV cache against the length of the text, for several numbers of key-value heads.

Run it:  python plot_memory_estimates_gqa.py --output kv_bytes_vs_context_length.pdf
"""

import argparse
import sys
from pathlib import Path

from memory_estimator_gqa import DTYPE_BYTES, calc_kv_bytes_total
from previous_chapters import OneLineParser, int_at_least, use_course_style

CONTEXT_LENGTHS = [2**power for power in range(7, 18)]  # 128 to 131,072 tokens


def plot_parser(description: str) -> OneLineParser:
    """The options that every plot of memory shares; the defaults are a model of about 7 billion parameters. Folder 04 of chapter 4."""
    parser = OneLineParser(description)
    parser.add_argument("--emb_dim", type=int_at_least(1), default=4096, help="width of the model")
    parser.add_argument("--n_heads", type=int_at_least(1), default=32, help="attention heads, a divisor of emb_dim")
    parser.add_argument("--n_layers", type=int_at_least(1), default=32, help="layers")
    parser.add_argument("--batch_size", type=int_at_least(1), default=1, help="texts at a time")
    parser.add_argument("--dtype", choices=DTYPE_BYTES, default="bf16", help="number type of the cache")
    parser.add_argument("--output", type=Path, default=Path("kv_bytes_vs_context_length.pdf"), help="file to write (pdf, svg, png)")
    return parser


def plot_bytes(lines: dict[str, list[float]], contexts: list[int], title: str, output: Path):
    """Save one line of bytes a name against the tokens of the text, both axes logarithmic; returns the figure. Folder 04 of chapter 4.

    ValueError for a folder that is not there and for a kind of file that cannot be written.
    """
    import matplotlib

    matplotlib.use("Agg")  # files only: no display is needed
    import matplotlib.pyplot as plt

    if not output.parent.is_dir():
        raise ValueError(f"no such folder: {output.parent}")
    use_course_style()
    fig, ax = plt.subplots(figsize=(6.5, 3.6))
    for (name, values), mark in zip(lines.items(), "os^Dv<>p" * 4):
        ax.loglog(contexts, values, marker=mark, markersize=4, base=2, label=name)
    ax.set_yscale("log", base=10)
    ax.set(xlabel="tokens in the cache", ylabel="bytes", title=title)
    ax.legend()
    fig.savefig(output, metadata={"Date": None} if output.suffix == ".svg" else None)
    plt.close(fig)
    return fig


def plot_abs_kv_vs_context_multi_groups(
    emb_dim: int = 4096, n_heads: int = 32, n_layers: int = 32, batch_size: int = 1, dtype: str = "bf16",
    output: str | Path = "kv_bytes_vs_context_length.pdf",
):  # fmt: skip
    """Save the plot of MHA, GQA with each power of two in between, and MQA; returns the figure. Folder 04 of chapter 4."""
    groups, sizes = [n_heads], (emb_dim, n_heads)
    while groups[-1] % 2 == 0:
        groups.append(groups[-1] // 2)
    lines = {}
    for heads in groups if groups[-1] == 1 else [*groups, 1]:
        kind = "MHA" if heads == n_heads else "MQA" if heads == 1 else "GQA"
        line = [calc_kv_bytes_total(batch_size, n, *sizes, heads, n_layers, DTYPE_BYTES[dtype]) for n in CONTEXT_LENGTHS]
        lines[f"{kind}: {heads} key-value head{'s' * (heads > 1)}"] = line
    title = f"KV cache: {n_layers} layers, {n_heads} heads of {emb_dim // n_heads}, {dtype}, batch {batch_size}"
    return plot_bytes(lines, CONTEXT_LENGTHS, title, Path(output))


def run_plot(parser: argparse.ArgumentParser, draw, argv: list[str] | None) -> int:
    """Parse argv, call draw with the options, say what was written; exits with code 2 and one line on bad input. Folder 04 of chapter 4."""
    args = parser.parse_args(argv)
    try:
        draw(**vars(args))
    except (ValueError, OSError) as error:
        parser.error(str(error))
    print(f"wrote {args.output}")
    return 0


def main(argv: list[str] | None = None) -> int:
    """Command line of this file; returns 0, or exits with code 2 and one line on bad input."""
    parser = plot_parser("Plot the memory of the KV cache against the text's length, for MHA, GQA and MQA.")
    return run_plot(parser, plot_abs_kv_vs_context_multi_groups, argv)


if __name__ == "__main__":
    sys.exit(main())
