"""The six diagrams of chapter 5, drawn as SVG files.

Run it:  python figures.py --output figures
"""

import argparse
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.patches import FancyBboxPatch

SKY, ORANGE, GREEN, YELLOW, GRAY = "#BFE1F4", "#F7DDA8", "#A9DCCB", "#F8F2A6", "#E6E6E6"
BLUE, RED = "#0072B2", "#D55E00"


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


def arrow(ax, start: tuple, end: tuple, curve: float = 0.0, color: str = "black") -> None:
    """An arrow between two points; `curve` bends it."""
    style = {"arrowstyle": "-|>", "lw": 1.3, "color": color, "shrinkA": 0, "shrinkB": 0, "connectionstyle": f"arc3,rad={curve}"}
    ax.annotate("", xy=end, xytext=start, arrowprops=style)


def label(ax, x: float, y: float, text: str, size: float = 10, **kwargs) -> None:
    ax.text(x, y, text, ha=kwargs.pop("ha", "center"), va=kwargs.pop("va", "center"), fontsize=size, linespacing=1.35, **kwargs)


def loop() -> plt.Figure:
    """One round of text generation."""
    fig, ax = canvas(8.6, 3.3)
    boxes = [
        (1, "text", "Nell looked at", GRAY),
        (18.2, "token ids", "(1, num_tokens)", SKY),
        (35.4, "GPT", "29 million weights", ORANGE),
        (52.6, "logits, last position", "(1, vocab_size)", SKY),
        (69.8, "next id", "argmax, or a draw", GREEN),
    ]
    for i, (x, name, text, color) in enumerate(boxes):
        box(ax, x, 13, 15, 9, f"{name}\n{text}", color, 9)
        if i:
            arrow(ax, (x - 2.1, 17.5), (x - 0.1, 17.5))
    ax.plot([77.3, 77.3, 25.7], [13, 6.5, 6.5], color="black", linewidth=1.3)
    arrow(ax, (25.7, 6.5), (25.7, 12.9))
    label(ax, 51.5, 4.2, "append the new id and begin again", 10)
    arrow(ax, (20.5, 13), (8.5, 6.2))
    label(ax, 8.5, 4.2, "at the end: ids to text", 10)
    label(ax, 43, 27.5, "Each round adds one token; the model itself never changes", 12, weight="bold")
    return fig


def aim() -> plt.Figure:
    """What training should do to the probability of the target token."""
    fig, axes = plt.subplots(1, 2, figsize=(8.6, 2.9), layout="constrained", sharey=True)
    words = ["tide", "bell", "boat", "hat", "hen"]
    titles = ("Before: the target is one of many", "After: the target stands out")
    for ax, title, values in zip(axes, titles, ([0.21, 0.18, 0.2, 0.22, 0.19], [0.1, 0.76, 0.07, 0.03, 0.04])):
        ax.bar(words, values, color=["#BBBBBB", RED, "#BBBBBB", "#BBBBBB", "#BBBBBB"])
        ax.set_title(title, loc="left", fontsize=11)
        ax.set_ylim(0, 1)
        ax.spines[["top", "right"]].set_visible(False)
        ax.annotate("target", (1, values[1]), xytext=(0, 4), textcoords="offset points", ha="center", fontsize=9.5, color=RED)
    axes[0].set_ylabel("probability")
    return fig


def recipe() -> plt.Figure:
    """The six steps from logits to the loss."""
    fig, ax = canvas(8.6, 2.6)
    steps = [
        ("1 logits", "(2, 3, V)", SKY),
        ("2 softmax", "(2, 3, V)", SKY),
        ("3 pick the\ntargets", "(2, 3)", ORANGE),
        ("4 logarithm", "(2, 3)", ORANGE),
        ("5 mean", "one number", GREEN),
        ("6 minus", "the loss", GREEN),
    ]
    for i, (name, shape, color) in enumerate(steps):
        x = 1 + 14.3 * i
        box(ax, x, 8, 12, 9, name, color, 10)
        label(ax, x + 6, 5.3, shape, 9.5, color="#333333")
        if i:
            arrow(ax, (x - 2.2, 12.5), (x - 0.1, 12.5))
    label(ax, 43, 22, "Cross-entropy in six steps; PyTorch's cross_entropy does all of them", 12, weight="bold")
    return fig


def windows() -> plt.Figure:
    """From a row of tokens to windows, targets and batches (context of four instead of 128)."""
    fig, ax = canvas(8.6, 4.0)
    label(ax, 43, 37.5, "Windows of the text; targets are one token later (here: context 4)", 12, weight="bold")
    tokens = ["So", "the", "town", "lived", "by", "the", "hand", "and", "the", "bell", ".", "They", "ate"]
    colors = [SKY] * 4 + [ORANGE] * 4 + [GREEN] * 4
    for i, token in enumerate(tokens):
        box(ax, 2 + 6.4 * i, 29, 6, 4, token, colors[i] if i < 12 else GRAY, 9.5)
    label(ax, 43, 27, "stride = context: the windows touch and do not overlap", 9.5, color="#333333")
    for row, (start, color) in enumerate(((0, SKY), (4, ORANGE))):
        y = 17 - 6 * row
        for i in range(4):
            box(ax, 14 + 6.4 * i, y, 6, 4, tokens[start + i], color, 9.5)
            box(ax, 52 + 6.4 * i, y, 6, 4, tokens[start + i + 1], color, 9.5)
    label(ax, 26.6, 23, "inputs (2, 4)", 10, weight="bold")
    label(ax, 64.6, 23, "targets (2, 4)", 10, weight="bold")
    label(ax, 6.5, 16, "one batch:\ntwo windows", 10)
    arrow(ax, (41, 16), (51, 16))
    label(ax, 46, 18, "shift by 1", 9.5)
    label(ax, 43, 5.5, "training: order shuffled each epoch, last smaller batch dropped", 10)
    label(ax, 43, 2.5, "validation: always in order, no batch dropped", 10)
    return fig


def step() -> plt.Figure:
    """One training step as a circle of five boxes."""
    fig, ax = canvas(8.6, 3.6)
    label(ax, 43, 33.5, "One training step: four lines of code", 12, weight="bold")
    box(ax, 2, 18, 14, 8, "next batch\n(4, 128) ids", GRAY)
    box(ax, 22, 18, 17, 8, "forward\nlogits, then the loss", SKY)
    box(ax, 45, 18, 17, 8, "loss.backward()\na gradient per weight", ORANGE)
    box(ax, 68, 18, 16, 8, "optimizer.step()\nmove the weights", GREEN)
    box(ax, 45, 5, 17, 8, "zero_grad()\nempty the gradients", YELLOW)
    for start, end in (((16.1, 22), (21.9, 22)), ((39.1, 22), (44.9, 22)), ((62.1, 22), (67.9, 22))):
        arrow(ax, start, end)
    ax.plot([76, 76], [17.9, 9], color="black", linewidth=1.3)
    arrow(ax, (76, 9), (62.1, 9))
    ax.plot([44.9, 9], [9, 9], color="black", linewidth=1.3)
    arrow(ax, (9, 9), (9, 17.9))
    label(ax, 25, 6.8, "until the epoch ends", 9.5, color="#333333")
    return fig


def fused() -> plt.Figure:
    """c_attn cut into three parts; each is transposed and becomes the weight of one projection."""
    fig, ax = canvas(8.6, 3.7)
    label(ax, 43, 34.5, "One wide matrix of GPT-2 becomes three matrices of ours", 12, weight="bold")
    names = (("queries", "W_query", SKY), ("keys", "W_key", ORANGE), ("values", "W_value", GREEN))
    for i, (name, _, color) in enumerate(names):
        box(ax, 2 + 12 * i, 14, 12, 9, name, color, 10)
    label(ax, 20, 25.5, "c_attn/w: n_embd rows, 3 * n_embd columns", 10)
    label(ax, 20, 11, "(inputs, outputs)", 9.5, color="#333333")
    label(ax, 46, 20.5, "cut into thirds,\ntranspose each", 10)
    arrow(ax, (39, 17.5), (53, 17.5))
    for i, (_, ours, color) in enumerate(names):
        box(ax, 57, 22.5 - 8.5 * i, 11, 7.5, ours, color, 10)
        label(ax, 77, 26.2 - 8.5 * i, "(n_embd, n_embd)\n(outputs, inputs)", 9.5, color="#333333")
    return fig


FIGURES = {"loop": loop, "aim": aim, "recipe": recipe, "windows": windows, "step": step, "fused": fused}


def main(argv: list[str] | None = None) -> int:
    """Draw all figures; returns 0, or exits with code 2 and one line if the folder cannot be written."""
    parser = argparse.ArgumentParser(description="Draw the diagrams of chapter 5 as SVG.", allow_abbrev=False)
    beside = Path(__file__).resolve().parent / "figures"
    parser.add_argument("--output", default=str(beside), help="folder for the SVG files (default: figures beside this file)")
    folder = Path(parser.parse_args(argv).output)
    plt.rcParams.update({"svg.hashsalt": "chapter 5", "svg.fonttype": "path", "font.size": 10})
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, draw in FIGURES.items():
            fig = draw()
            fig.savefig(folder / f"{name}.svg", metadata={"Date": None})
            plt.close(fig)
    except OSError as error:
        parser.exit(2, f"cannot write to {folder}: {error.strerror}\n")
    print(f"{len(FIGURES)} figures in {folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
