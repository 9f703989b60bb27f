"""Draw the memory of the KV cache against the length of the text for several mixes of layers, and who sees whom.

Run it:  python plot_memory_estimates_swa.py --output kv_bytes_vs_context_length.pdf --patterns patterns.pdf
"""

import sys
from pathlib import Path

from gpt_with_kv_mha import visible
from memory_estimator_swa import estimate_totals
from previous_chapters import COLORS, CONTEXT_LENGTHS, int_at_least, plot_bytes, plot_parser, run_plot, use_course_style

RATIOS = ("0:1", "1:1", "5:1", "1:0")


def plot_swa_bytes(
    emb_dim: int = 4096, n_heads: int = 32, n_layers: int = 32, batch_size: int = 1, dtype: str = "bf16",
    output: str | Path = "kv_bytes_vs_context_length.pdf", sliding_window_size: int = 1024, patterns: str | Path | None = None,
):  # fmt: skip
    """Save one line of bytes for each ratio of sliding to full layers, and the patterns if asked for; returns the figure."""
    if patterns is not None:
        plot_attention_patterns(Path(patterns))
    lines = {}
    for ratio in RATIOS:
        found = [
            estimate_totals(n, sliding_window_size, emb_dim, n_heads, n_layers, None, batch_size, dtype, ratio) for n in CONTEXT_LENGTHS
        ]
        lines[f"{ratio}: {found[0]['n_swa_layers']} sliding, {found[0]['n_full_layers']} full"] = [one["total_swa"] for one in found]
    title = (
        f"KV cache: {n_layers} layers, window {sliding_window_size}, {n_heads} heads of {emb_dim // n_heads}, {dtype}, batch {batch_size}"
    )
    return plot_bytes(lines, CONTEXT_LENGTHS, title, Path(output))


def plot_attention_patterns(output: Path, num_tokens: int = 12, window: int = 4):
    """Save which keys each query sees in a full and in a sliding layer; returns the figure. ValueError for a missing folder."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.colors import ListedColormap

    if not output.parent.is_dir():
        raise ValueError(f"no such folder: {output.parent}")
    use_course_style()
    fig, axes = plt.subplots(1, 2, figsize=(6.5, 3.2), sharey=True)
    for ax, title, size in zip(axes, ("full layer", f"sliding layer, window {window}"), (None, window)):
        ax.imshow(visible(num_tokens, num_tokens, size), cmap=ListedColormap(["white", COLORS["blue"]]), vmin=0, vmax=1)
        ax.set(title=title, xlabel="position of the key")
    axes[0].set_ylabel("position of the query")
    fig.savefig(output)
    plt.close(fig)
    return fig


def main(argv: list[str] | None = None) -> int:
    """Command line of this file; returns 0, or exits with code 2 and one line on bad input."""
    parser = plot_parser("Plot the memory of the KV cache against the text's length, for mixes of sliding and full layers.")
    parser.add_argument("--sliding_window_size", type=int_at_least(1), default=1024, help="tokens that a sliding layer keeps")
    parser.add_argument("--patterns", type=Path, help="also draw who sees whom, to this file")
    return run_plot(parser, plot_swa_bytes, argv)


if __name__ == "__main__":
    sys.exit(main())
