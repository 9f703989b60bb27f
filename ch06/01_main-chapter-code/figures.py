"""The three diagrams of chapter 6, drawn as SVG files.

Run it:  python figures.py --output figures
"""

import argparse
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.patches import FancyBboxPatch, Rectangle

SKY, ORANGE, GREEN, PURPLE, YELLOW, GRAY = "#BFE1F4", "#F7DDA8", "#A9DCCB", "#EBCBDD", "#F8F2A6", "#E6E6E6"


def canvas(width: float, height: float) -> tuple:
    """An empty drawing; one unit of its axes is one tenth of an inch."""
    fig = plt.figure(figsize=(width, height), facecolor="white")
    ax = fig.add_axes((0, 0, 1, 1))
    ax.set(xlim=(0, 10 * width), ylim=(0, 10 * height))
    ax.axis("off")
    return fig, ax


def box(ax, x: float, y: float, w: float, h: float, text: str, color: str = GRAY, size: float = 10, weight: str = "normal") -> None:
    """A rounded box with its lower left corner at (x, y)."""
    shape = FancyBboxPatch((x, y), w, h, boxstyle="round,pad=0,rounding_size=0.8", facecolor=color, edgecolor="black", linewidth=0.8)
    ax.add_patch(shape)
    ax.text(x + w / 2, y + h / 2, text, ha="center", va="center", fontsize=size, weight=weight, linespacing=1.35)


def arrow(ax, start: tuple, end: tuple) -> None:
    """An arrow between two points."""
    ax.annotate("", xy=end, xytext=start, arrowprops={"arrowstyle": "-|>", "lw": 1.3, "color": "black", "shrinkA": 0, "shrinkB": 0})


def label(ax, x: float, y: float, text: str, size: float = 10, **kwargs) -> None:
    ax.text(x, y, text, ha=kwargs.pop("ha", "center"), va=kwargs.pop("va", "center"), fontsize=size, linespacing=1.35, **kwargs)


def overview() -> plt.Figure:
    """The chapter's steps and the functions that each builds."""
    fig, ax = canvas(8.6, 2.3)
    steps = [
        ("Messages", "create_balanced_\ndataset,\nrandom_split", GRAY, "6.2"),
        ("Batches", "SpamDataset", SKY, "6.3"),
        ("Pretrained\nGPT", "load_weights_\ninto_gpt", PURPLE, "6.4"),
        ("New head", "last_token_\nlogits", ORANGE, "6.5"),
        ("Training", "calc_loss_batch,\ntrain_classifier_\nsimple", YELLOW, "6.6, 6.7"),
        ("Spam or not", "spam_probability,\nclassify_review", GREEN, "6.8"),
    ]
    for i, (name, text, color, section) in enumerate(steps):
        x = 0.5 + 14.4 * i
        box(ax, x, 5, 12.8, 12.4, "", color)
        label(ax, x + 6.4, 14.6, name, 11, weight="bold")
        label(ax, x + 6.4, 8.6, text, 8)
        label(ax, x + 6.4, 3, f"section {section}", 9, color="#333333")
        if i:
            arrow(ax, (x - 1.7, 11), (x - 0.1, 11))
    label(ax, 43, 20.5, "From labeled messages to a program that decides", 12, weight="bold")
    return fig


def heads() -> plt.Figure:
    """The same blocks under the head of a language model and under that of a classifier."""
    fig, ax = canvas(7.6, 4.4)
    columns = [
        (2, "Language model (chapters 4 and 5)", "head: 192 to 50,257", "50,257 scores:\nwhich token comes next?", GRAY, GRAY),
        (41, "Classifier (this chapter)", "new head: 192 to 2", "2 scores:\nspam or not spam?", GREEN, GREEN),
    ]
    for x, title, head, answer, head_color, top_color in columns:
        label(ax, x + 15, 42.3, title, 11, weight="bold")
        parts = [("token and position embeddings", GRAY), ("blocks 1 to 5", GRAY), ("block 6", top_color), ("final norm", top_color)]
        for i, (text, color) in enumerate([*parts, (head, head_color)]):
            y = 1 + 6.6 * i
            box(ax, x, y, 30, 4.6, text, color)
            arrow(ax, (x + 15, y + 4.7), (x + 15, y + 6.5))
        label(ax, x + 15, 36.4, answer, 10)
    arrow(ax, (32.6, 5.6), (40.4, 5.6))
    label(ax, 36.5, 8.6, "same\nweights", 9)
    label(ax, 72.2, 20.9, "trained", 9, ha="left", rotation=90)
    label(ax, 72.2, 5.6, "frozen", 9, ha="left", rotation=90)
    return fig


def causal() -> plt.Figure:
    """Which tokens each position of a padded message sees."""
    fig, ax = canvas(7.6, 3.5)
    tokens = ["Win", "a", "free", "prize", "<pad>", "<pad>"]
    for row in range(len(tokens)):
        y = 24 - 4 * row
        padding = row > 3
        label(ax, 15, y + 2, tokens[row], 10, ha="right", color="#777777" if padding else "black")
        for column in range(len(tokens)):
            color = "white" if column > row else (GRAY if padding or column > 3 else (GREEN if row == 3 else SKY))
            ax.add_patch(Rectangle((16 + 7 * column, y), 7, 4, facecolor=color, edgecolor="black", linewidth=0.8))
        notes = {0: "sees the first token only", 3: "sees the whole message: read here", 5: "sees padding too: depends on its amount"}
        label(ax, 59, y + 2, notes.get(row, ""), 9, ha="left", weight="bold" if row == 3 else "normal")
    for column, token in enumerate(tokens):
        label(ax, 19.5 + 7 * column, 29.6, token, 9, color="#777777" if column > 3 else "black")
    label(ax, 37, 32.8, "looks at", 10, weight="bold")
    label(ax, 3.5, 16, "position of", 10, weight="bold", rotation=90)
    return fig


FIGURES = {"overview": overview, "heads": heads, "causal": causal}


def main(argv: list[str] | None = None) -> int:
    """Write every diagram; returns 0, or exits with code 2 and one line if the folder cannot be written."""
    parser = argparse.ArgumentParser(description="Draw the diagrams of chapter 6 as SVG files.", allow_abbrev=False)
    parser.add_argument("--output", type=Path, default=Path(__file__).resolve().parent / "figures", help="folder to write to")
    parser.add_argument("--format", choices=["svg", "png"], default="svg", help="file type")
    args = parser.parse_args(argv)
    plt.rcParams.update({"svg.hashsalt": "chapter 6"})
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
