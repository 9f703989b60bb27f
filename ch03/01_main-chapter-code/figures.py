"""The five diagrams of chapter 3, drawn as SVG files.

Run it:  python figures.py --output figures
"""

import argparse
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.patches import FancyBboxPatch

SKY, ORANGE, GREEN, PURPLE, YELLOW, GRAY = "#BFE1F4", "#F7DDA8", "#A9DCCB", "#EBCBDD", "#F8F2A6", "#E6E6E6"
WORDS = ["Nell", "sang", "while", "she", "rowed"]


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


def arrow(ax, start: tuple, end: tuple, width: float = 1.0, color: str = "black", curve: float = 0.0) -> None:
    """An arrow between two points; `width` in points, `curve` bends it."""
    style = {"arrowstyle": "-|>", "lw": width, "color": color, "shrinkA": 0, "shrinkB": 0, "connectionstyle": f"arc3,rad={curve}"}
    ax.annotate("", xy=end, xytext=start, arrowprops=style)


def label(ax, x: float, y: float, text: str, size: float = 10, **kwargs) -> None:
    ax.text(x, y, text, ha=kwargs.pop("ha", "center"), va=kwargs.pop("va", "center"), fontsize=size, linespacing=1.35, **kwargs)


def roadmap() -> plt.Figure:
    """The four variants and what each adds."""
    fig, ax = canvas(8.4, 2.5)
    steps = [
        ("1  Simplified", "similarity of vectors\ndecides the weights", SKY, "section 3.3"),
        ("2  Self-attention", "+ trainable queries,\nkeys and values", ORANGE, "section 3.4"),
        ("3  Causal", "+ mask over the future\n+ dropout, batches", GREEN, "section 3.5"),
        ("4  Multi-head", "+ several heads, each\nwith its own view", PURPLE, "section 3.6"),
    ]
    for i, (name, text, color, section) in enumerate(steps):
        x = 1.5 + 20.8 * i
        box(ax, x, 7, 18, 12, "", color)
        label(ax, x + 9, 16, name, 12, weight="bold")
        label(ax, x + 9, 10.8, text)
        label(ax, x + 9, 4.6, section, 10, color="#333333")
        if i:
            arrow(ax, (x - 2.7, 13), (x - 0.1, 13), 1.6)
    label(ax, 42, 22.2, "Each variant adds something to the one before it", 12, weight="bold")
    return fig


def bottleneck() -> plt.Figure:
    """An encoder-decoder RNN squeezes the input into one state; attention looks at all states."""
    fig, ax = canvas(8.4, 4.4)
    for left, title in ((1.5, "RNN: one state carries everything"), (43.5, "RNN with attention: look at every state")):
        label(ax, left + 19.5, 41.5, title, 12, weight="bold")
        for i, word in enumerate(["the", "clock", "is", "fast"]):
            label(ax, left + 3.5 + 8 * i, 3, word, 10.5)
            box(ax, left + 0.5 + 8 * i, 7, 6, 5, f"state {i + 1}", SKY, 9)
            arrow(ax, (left + 3.5 + 8 * i, 4.6), (left + 3.5 + 8 * i, 6.9))
            if i:
                arrow(ax, (left - 1.5 + 8 * i, 9.5), (left + 0.4 + 8 * i, 9.5))
        box(ax, left + 13, 31, 14, 5, "decoder", ORANGE, 11)
        label(ax, left + 30, 33.5, "next word of\nthe translation", 9.5, ha="left")
        arrow(ax, (left + 27.1, 33.5), (left + 29.7, 33.5))
    box(ax, 15.5, 20, 12, 4.6, "last state only", YELLOW, 10)
    arrow(ax, (29, 12.1), (23, 19.9), 1.4)
    arrow(ax, (21.5, 24.7), (21.5, 30.9), 1.4)
    box(ax, 55, 21, 17, 4.6, "weighted sum of states", YELLOW, 10)
    for i, (width, weight) in enumerate([(0.8, "0.1"), (2.6, "0.5"), (0.8, "0.1"), (1.8, "0.3")]):
        x = 47 + 8 * i
        arrow(ax, (x, 12.1), (58 + 3.6 * i, 20.9), width, "#0072B2")
        label(ax, (49.5, 56, 62.9, 71.2)[i], 15.2, weight, 9.5, color="#0072B2", ha="right" if i < 3 else "left")
    arrow(ax, (63.5, 25.7), (63.5, 30.9), 1.4)
    return fig


def one_query() -> plt.Figure:
    """From one query to its context vector in three steps."""
    fig, ax = canvas(8.4, 4.7)
    steps = [
        (36, "x  (input vectors)"),
        (24.5, "1  scores:\ndot product with\nthe query"),
        (14, "2  weights:\nsoftmax,\nsum is 1"),
        (3.2, "3  context vector:\nweighted sum of\nthe input vectors"),
    ]
    for y, text in steps:
        label(ax, 1, y + 2.5, text, 10, ha="left")
    scores, weights = ["0.78", "0.24", "0.04", "0.67", "0.25"], ["0.28", "0.16", "0.13", "0.25", "0.17"]
    for i, word in enumerate(WORDS):
        x = 21 + 12.6 * i
        query = word == "she"
        box(ax, x, 36, 10, 5, word, ORANGE if query else SKY, 11, "bold" if query else "normal")
        box(ax, x, 24.5, 10, 5, scores[i], GRAY, 11)
        box(ax, x, 14, 10, 5, weights[i], YELLOW, 11)
        arrow(ax, (x + 5, 35.9), (x + 5, 29.7))
        if not query:
            arrow(ax, (63.8, 35.9), (x + 5 + (-1.8 if word == "rowed" else 1.8), 29.7), 1.0, "#D55E00")
        arrow(ax, (x + 5, 24.4), (x + 5, 19.2))
        arrow(ax, (x + 5, 13.9), (51.2 + 0.9 * (i - 2), 8.4), 12 * float(weights[i]), "#0072B2")
    label(ax, 63.8, 44, "query", 10.5, weight="bold")
    box(ax, 39.2, 3.2, 24, 5, "context vector of “she”", GREEN, 11)
    return fig


def query_key_value() -> plt.Figure:
    """Three projections of the same input and where each is used."""
    fig, ax = canvas(8.4, 3.7)
    box(ax, 2, 14.5, 13, 7, "x\n(5, 4)", SKY, 11)
    rows = [(27, "W_query", "queries\n(5, 3)", ORANGE), (14.5, "W_key", "keys\n(5, 3)", ORANGE), (2, "W_value", "values\n(5, 3)", GREEN)]
    for y, name, result, color in rows:
        box(ax, 22, y + 1, 11, 5, name, GRAY, 10.5)
        box(ax, 39, y, 11, 7, result, color, 10.5)
        arrow(ax, (15.1, 18), (21.9, y + 3.5))
        arrow(ax, (33.1, y + 3.5), (38.9, y + 3.5))
    box(ax, 56, 20.5, 11, 7.5, "weights\n(5, 5)", YELLOW, 10.5)
    arrow(ax, (50.1, 30.5), (55.9, 25.5))
    arrow(ax, (50.1, 18), (55.9, 22.5))
    label(ax, 61.5, 31.4, "dot products,\nscale, softmax", 9.5)
    box(ax, 70, 8, 12, 7, "context\nvectors\n(5, 3)", PURPLE, 10)
    arrow(ax, (64, 20.4), (72.5, 15.1))
    arrow(ax, (50.1, 5.5), (69.9, 10))
    label(ax, 60, 4.6, "weighted sum of the values", 9.5)
    return fig


def split_heads() -> plt.Figure:
    """Columns of one projection become heads, work apart, and are joined again."""
    fig, ax = canvas(8.4, 3.9)
    tops = [SKY, ORANGE]

    def grid(x: float, y: float, colors: list, cell: float = 2.6) -> None:
        for row in range(3):
            for column, color in enumerate(colors):
                ax.add_patch(plt.Rectangle((x + cell * column, y + cell * row), cell, cell, facecolor=color, edgecolor="black", lw=0.7))

    grid(2, 16, [tops[0], tops[0], tops[1], tops[1]])
    label(ax, 7.2, 27.5, "W(x)\n(b, 3, 4)", 10)
    for y, color, name in ((25, tops[0], "head 0"), (6, tops[1], "head 1")):
        grid(24, y, [color, color])
        label(ax, 26.6, y - 2, f"{name}  (3, 2)", 9.5)
        arrow(ax, (13, 20), (23, y + 4), 1.3)
        box(ax, 36, y + 0.9, 13, 6, "attention\nof its own", GRAY, 9.5)
        arrow(ax, (29.8, y + 4), (35.8, y + 4), 1.3)
        arrow(ax, (49.1, y + 4), (56.4, 20), 1.3)
    grid(57, 16, [tops[0], tops[0], tops[1], tops[1]])
    label(ax, 62.2, 27.5, "merged\n(b, 3, 4)", 10)
    arrow(ax, (67.6, 20), (70.4, 20), 1.3)
    box(ax, 70.6, 16.8, 11.5, 6.4, "out_proj\nmixes heads", PURPLE, 9.5)
    label(ax, 16, 36.5, "split: view, transpose", 10.5, weight="bold")
    label(ax, 42.5, 36.5, "one batched product", 10.5, weight="bold")
    label(ax, 67, 36.5, "merge: transpose, reshape", 10.5, weight="bold")
    return fig


FIGURES = {
    "roadmap": roadmap,
    "bottleneck": bottleneck,
    "one-query": one_query,
    "query-key-value": query_key_value,
    "split-heads": split_heads,
}


def main(argv: list[str] | None = None) -> int:
    """Draw all diagrams; returns 0, or exits with code 2 and one line if the folder cannot be written."""
    parser = argparse.ArgumentParser(description="Draw the diagrams of chapter 3.", allow_abbrev=False)
    beside = Path(__file__).resolve().parent / "figures"
    parser.add_argument("--output", default=str(beside), help="folder (default: figures beside this file)")
    parser.add_argument("--format", default="svg", choices=["svg", "png"], help="file format (default: svg)")
    args = parser.parse_args(argv)
    plt.rcParams.update({"svg.hashsalt": "ch03", "font.family": "DejaVu Sans"})
    metadata = {"Date": None} if args.format == "svg" else None  # the same file on every run
    try:
        Path(args.output).mkdir(parents=True, exist_ok=True)
        for name, draw in FIGURES.items():
            fig = draw()
            fig.savefig(Path(args.output) / f"{name}.{args.format}", metadata=metadata, dpi=100)
            plt.close(fig)
    except OSError as error:
        parser.exit(2, f"cannot write to {args.output}: {error.strerror}\n")
    print(f"wrote {len(FIGURES)} figures")
    return 0


if __name__ == "__main__":
    sys.exit(main())
