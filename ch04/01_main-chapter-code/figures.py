"""Draw the explanatory diagrams of this chapter as SVG files into `figures/`.

Run it:  python figures.py
"""

import argparse
import sys
from pathlib import Path

import matplotlib.pyplot as plt
from previous_chapters import COLORS, use_course_style

SOFT = {"blue": "#CFE3F2", "orange": "#FBE6BF", "green": "#C7EBDD", "red": "#F6D5C2", "gray": "#EEEEEE"}


def canvas(width: float, height: float) -> tuple[plt.Figure, plt.Axes]:
    """An empty drawing whose units are inches, so that 10-point text takes the same room in every diagram."""
    fig = plt.figure(figsize=(width, height))
    ax = fig.add_axes((0, 0, 1, 1))
    ax.set(xlim=(0, width), ylim=(0, height))
    ax.axis("off")
    return fig, ax


def box(ax: plt.Axes, x: float, y: float, width: float, height: float, text: str, color: str = "gray") -> None:
    """A filled rectangle with centered text; x and y are its center."""
    ax.add_patch(plt.Rectangle((x - width / 2, y - height / 2), width, height, facecolor=SOFT[color], edgecolor="black", linewidth=0.8))
    ax.text(x, y, text, ha="center", va="center", fontsize=10)


def arrow(ax: plt.Axes, *points: tuple[float, float], color: str = "black") -> None:
    """A line through the points with an arrow head at its end."""
    for start, end in zip(points[:-2], points[1:-1]):
        ax.plot(*zip(start, end), color=color, linewidth=1.4)
    style = {"arrowstyle": "-|>", "color": color, "linewidth": 1.4, "shrinkA": 0, "shrinkB": 0}
    ax.annotate("", xy=points[-1], xytext=points[-2], arrowprops=style)


def plus(ax: plt.Axes, x: float, y: float) -> None:
    ax.add_patch(plt.Circle((x, y), 0.11, facecolor="white", edgecolor="black", linewidth=1))
    ax.text(x, y, "+", ha="center", va="center", fontsize=12)


def gpt_overview() -> plt.Figure:
    """The whole model from text to logits, with the shape after each part."""
    fig, ax = canvas(6.6, 6.2)
    parts = [
        ("text:  Every boat came home", "gray", ""),
        ("tokenizer (chapter 2)", "gray", "token ids: (b, num_tokens)"),
        ("token embedding + position embedding", "blue", "(b, num_tokens, emb_dim)"),
        ("dropout", "gray", "(b, num_tokens, emb_dim)"),
        ("transformer block 1", "green", "(b, num_tokens, emb_dim)"),
        ("transformer blocks 2 to n_layers", "green", "(b, num_tokens, emb_dim)"),
        ("final layer norm", "orange", "(b, num_tokens, emb_dim)"),
        ("output head (linear layer)", "blue", "logits: (b, num_tokens, vocab_size)"),
    ]
    for i, (text, color, shape) in enumerate(parts):
        y = 0.4 + 0.77 * i
        box(ax, 1.9, y, 3.6, 0.46, text, color)
        if i:
            arrow(ax, (1.9, y - 0.54), (1.9, y - 0.23))
        ax.text(3.85, y, shape, va="center", fontsize=10)
    return fig


def norm_axes() -> plt.Figure:
    """Which numbers share one mean: a row (layer norm) or a column (batch norm)."""
    fig, ax = canvas(6.6, 2.5)
    for left, title, inside in [
        (0.9, "layer norm: one mean per token", lambda row, column: row == 1),
        (4.2, "batch norm: one mean per feature", lambda row, column: column == 2),
    ]:
        ax.text(left + 1.0, 2.25, title, ha="center", fontsize=10.5)
        for row in range(4):
            for column in range(5):
                color = SOFT["orange"] if inside(row, column) else "white"
                corner = (left + 0.4 * column, 1.6 - 0.36 * row)
                ax.add_patch(plt.Rectangle(corner, 0.4, 0.36, facecolor=color, edgecolor="black", linewidth=0.8))
        for row in range(4):
            ax.text(left - 0.08, 1.78 - 0.36 * row, f"token {row + 1}", ha="right", va="center", fontsize=9)
        ax.text(left + 1.0, 0.3, "features (emb_dim numbers)", ha="center", va="center", fontsize=9)
    return fig


def feed_forward() -> plt.Figure:
    """The width of one token's vector on its way through the feed-forward network."""
    fig, ax = canvas(6.6, 2.9)
    bars = [("input", 0.5, "blue", "768"), ("expanded", 2.0, "green", "3,072"),
            ("after GELU", 2.0, "green", "3,072"), ("output", 0.5, "blue", "768")]  # fmt: skip
    steps = ["linear layer:\nexpand", "GELU, number\nby number", "linear layer:\ncontract"]
    for i, (name, height, color, numbers) in enumerate(bars):
        x = 0.6 + 1.8 * i
        ax.add_patch(plt.Rectangle((x - 0.16, 1.6 - height / 2), 0.32, height, facecolor=SOFT[color], edgecolor="black", linewidth=0.8))
        ax.text(x, 2.75, name, ha="center", va="center", fontsize=10)
        ax.text(x, 0.27, f"{numbers}\nnumbers", ha="center", va="center", fontsize=9.5)
        if i:
            arrow(ax, (x - 1.6, 1.6), (x - 0.2, 1.6))
            ax.text(x - 0.9, 1.98, steps[i - 1], ha="center", va="center", fontsize=9.5)
    return fig


def shortcuts() -> plt.Figure:
    """The way of the gradient from the loss back to the first layer, without and with shortcuts."""
    fig, ax = canvas(6.6, 3.7)
    for y, title in [(3.0, "without shortcuts"), (1.0, "with shortcuts")]:
        ax.text(0.1, y + 0.55, title, ha="left", va="center", fontsize=10.5)
        box(ax, 6.15, y, 0.6, 0.4, "loss", "red")
        for i in range(4):
            x = 0.75 + 1.4 * i
            box(ax, x, y, 0.8, 0.4, f"layer {i + 1}", "green")
            if title == "with shortcuts":
                plus(ax, x + 0.68, y)
                ax.plot([x - 0.55, x - 0.55, x + 0.68, x + 0.68], [y, y + 0.33, y + 0.33, y + 0.11], color="black", linewidth=1)
            ax.plot([x + 0.4, x + (0.57 if title == "with shortcuts" else 1.0)], [y, y], color="black", linewidth=1)
            if title == "with shortcuts":
                ax.plot([x + 0.79, x + 1.0], [y, y], color="black", linewidth=1)
        ax.plot([0.05, 0.35], [y, y], color="black", linewidth=1)
    for i in range(4):  # the gradient, thinner with each layer it passes
        style = {"arrowstyle": "-|>", "color": COLORS["red"], "shrinkA": 0, "shrinkB": 0}
        start = 6.1 - 1.4 * i
        for y, width in [(2.55, 5 * 0.5**i), (0.55, 5)]:
            ax.annotate("", xy=(start - 1.2, y), xytext=(start, y), arrowprops={**style, "linewidth": width})
    ax.text(6.5, 2.2, "gradient", ha="right", va="center", fontsize=9.5, color=COLORS["red"])
    ax.text(6.5, 0.2, "gradient", ha="right", va="center", fontsize=9.5, color=COLORS["red"])
    return fig


def transformer_block() -> plt.Figure:
    """The main path as one straight line with the halves of a block as branches: pre-norm beside post-norm."""
    fig, ax = canvas(6.6, 6.0)
    work = [("attention", "blue"), ("feed-forward", "green")]
    for x, title in [(0.5, "pre-norm (GPT-2, this chapter)"), (3.8, "post-norm (2017, for comparison)")]:
        pre = x < 1
        ax.text(x - 0.3, 5.8, title, ha="left", fontsize=11)
        ax.text(x, 0.1, "x", ha="center", fontsize=11)
        ax.plot([x, x], [0.3, 5.35], color=COLORS["red"], linewidth=3, zorder=0)
        arrow(ax, (x, 5.3), (x, 5.65), color=COLORS["red"])
        for half, (name, color) in enumerate(work):
            fork = 0.55 + 2.5 * half
            branch = [(name, color), ("dropout", "gray")]
            if pre:
                branch.insert(0, (f"layer norm {half + 1}", "orange"))
            top = fork + 0.55 * len(branch)
            ax.plot([x, x + 1.6, x + 1.6], [fork, fork, fork + 0.2], color="black", linewidth=1.4)
            for i, (text, fill) in enumerate(branch):
                y = fork + 0.36 + 0.55 * i
                arrow(ax, (x + 1.6, y - 0.36), (x + 1.6, y - 0.19))
                box(ax, x + 1.6, y, 1.4, 0.38, text, fill)
            arrow(ax, (x + 1.6, top), (x + 1.6, top + 0.3), (x + 0.11, top + 0.3))
            plus(ax, x, top + 0.3)
            if not pre:
                box(ax, x, top + 0.75, 1.2, 0.38, f"layer norm {half + 1}", "orange")
    ax.text(0.32, 2.8, "main path", rotation=90, ha="right", va="center", fontsize=9, color=COLORS["red"])
    return fig


def generation_loop() -> plt.Figure:
    """One step of greedy generation and the way back to the start."""
    fig, ax = canvas(6.6, 2.6)
    ids, crop = "ids\n(b, num_tokens)", "1 keep the last\ncontext_size ids"
    steps = [ids, crop, "2 model: logits\n(b, n, vocab_size)", "3 last position,\n4 argmax: (b, 1)"]
    for i, text in enumerate(steps):
        box(ax, 0.85 + 1.63 * i, 1.8, 1.4, 0.66, text, ["gray", "orange", "green", "blue"][i])
        if i:
            arrow(ax, (0.85 + 1.63 * i - 0.93, 1.8), (0.85 + 1.63 * i - 0.7, 1.8))
    arrow(ax, (5.74, 1.47), (5.74, 0.8), (0.85, 0.8), (0.85, 1.47), color=COLORS["red"])
    ax.text(3.3, 0.55, "5 append the new id; repeat max_new_tokens times", ha="center", va="center", fontsize=10, color=COLORS["red"])
    return fig


FIGURES = {
    "gpt-overview": gpt_overview,
    "norm-axes": norm_axes,
    "feed-forward": feed_forward,
    "shortcuts": shortcuts,
    "transformer-block": transformer_block,
    "generation-loop": generation_loop,
}


def main(argv: list[str] | None = None) -> int:
    """Write every diagram; returns 0, or exits with code 2 and one line if the folder cannot be written."""
    parser = argparse.ArgumentParser(description="Draw the diagrams of chapter 4 as SVG files.", allow_abbrev=False)
    parser.add_argument("--output", type=Path, default=Path(__file__).resolve().parent / "figures", help="folder to write to")
    parser.add_argument("--format", choices=["svg", "png"], default="svg", help="file type")
    args = parser.parse_args(argv)
    use_course_style()
    plt.rcParams.update({"svg.hashsalt": "chapter 4", "figure.constrained_layout.use": False})
    try:
        args.output.mkdir(parents=True, exist_ok=True)
        for name, draw in FIGURES.items():
            fig = draw()
            metadata = {"Date": None} if args.format == "svg" else None  # the same bytes on every run
            fig.savefig(args.output / f"{name}.{args.format}", bbox_inches="tight", metadata=metadata)
            plt.close(fig)
    except OSError as error:
        parser.exit(2, f"{parser.prog}: error: cannot write to {args.output}: {error.strerror}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
