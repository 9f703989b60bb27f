"""Diagrams of standalone-llama32.ipynb; each function returns a matplotlib figure."""

import matplotlib.pyplot as plt
from drawing import SOFT, canvas
from previous_chapters import COLORS


def cell(ax: plt.Axes, x: float, y: float, width: float, height: float, text: str, color: str, size: float = 9.5) -> None:
    """A filled rectangle with centered text; x and y are its lower left corner."""
    ax.add_patch(plt.Rectangle((x, y), width, height, facecolor=SOFT[color], edgecolor="black", linewidth=0.8))
    ax.text(x + width / 2, y + height / 2, text, ha="center", va="center", fontsize=size)


def file_layout() -> plt.Figure:
    """The four parts of a GGUF file, one after the other."""
    fig, ax = canvas(6.6, 1.75)
    parts = [
        (1.15, "header", "gray", "24 bytes:\nGGUF, version,\ntwo counts"),
        (1.75, "metadata", "blue", "key, type, value:\nsizes, vocabulary,\nchat template"),
        (1.5, "tensor table", "orange", "name, shape,\ntype, place"),
        (1.9, "weights", "green", "blocks of bytes, each\ntensor at a multiple\nof 32 bytes"),
    ]
    x = 0.15
    for width, name, color, below in parts:
        cell(ax, x, 1.0, width, 0.45, name, color, 10.5)
        ax.text(x + width / 2, 0.9, below, ha="center", va="top", fontsize=9.5)
        x += width
    return fig


def q4_1_block() -> plt.Figure:
    """The 20 bytes of a Q4_1 block, and one of its bytes as two weights."""
    fig, ax = canvas(6.6, 2.5)
    cell(ax, 0.2, 1.75, 0.62, 0.45, "scale", "orange")
    cell(ax, 0.82, 1.75, 0.85, 0.45, "minimum", "orange")
    for i in range(16):
        cell(ax, 1.67 + 0.295 * i, 1.75, 0.295, 0.45, str(i), "blue", 9)
    ax.text(0.2, 2.28, "4 bytes: two float16", fontsize=9.5)
    ax.text(1.75, 2.28, "16 bytes, each with two numbers from 0 to 15", fontsize=9.5)
    ax.plot([1.67 + 0.295 * 5, 2.3], [1.75, 1.2], color="black", linewidth=0.8)
    ax.plot([1.67 + 0.295 * 6, 4.7], [1.75, 1.2], color="black", linewidth=0.8)
    cell(ax, 2.3, 0.75, 1.2, 0.45, "high 4 bits", "red")
    cell(ax, 3.5, 0.75, 1.2, 0.45, "low 4 bits", "green")
    ax.text(0.2, 0.97, "byte number 5, enlarged:", va="center", fontsize=9.5)
    ax.text(2.9, 0.65, "weight 16 + 5\nof the block", ha="center", va="top", fontsize=9.5)
    ax.text(4.1, 0.65, "weight 5\nof the block", ha="center", va="top", fontsize=9.5)
    ax.text(4.85, 0.97, "weight = scale x number\n             + minimum", va="center", fontsize=9.5)
    return fig


def pair_order() -> plt.Figure:
    """Rows of one head of 8 numbers: partners side by side in the file, half a head apart in the model."""
    fig, ax = canvas(6.6, 2.45)
    names = [COLORS["blue"], COLORS["orange"], COLORS["green"], COLORS["purple"]]
    file_order, model_order = [0, 4, 1, 5, 2, 6, 3, 7], list(range(8))
    for y, order, label in ((1.7, file_order, "in the file"), (0.35, model_order, "in the model")):
        ax.text(0.15, y + 0.2, label, va="center", fontsize=10.5)
        for place, row in enumerate(order):
            x = 1.45 + 0.6 * place
            ax.add_patch(plt.Rectangle((x, y), 0.6, 0.42, facecolor=names[row % 4], alpha=0.45, edgecolor="black", linewidth=0.8))
            ax.text(x + 0.3, y + 0.21, f"row {row}", ha="center", va="center", fontsize=9.5)
    for place, row in enumerate(file_order):
        start, end = (1.75 + 0.6 * place, 1.7), (1.75 + 0.6 * row, 0.77)
        style = {"arrowstyle": "-|>", "color": names[row % 4], "linewidth": 1.3, "shrinkA": 0, "shrinkB": 0}
        ax.annotate("", xy=end, xytext=start, arrowprops=style)
    ax.text(1.45, 2.2, "equal colors: the two partners of one rotation", fontsize=9.5)
    return fig


def query_groups(num_heads: int = 9, num_kv_groups: int = 3) -> plt.Figure:
    """Which query heads share which key and value head."""
    fig, ax = canvas(6.6, 1.8)
    colors, group_size = ["blue", "orange", "green", "red"], num_heads // num_kv_groups
    width = 5.2 / num_heads
    ax.text(0.1, 1.4, "query heads", va="center", fontsize=10)
    ax.text(0.1, 0.4, "key and\nvalue heads", va="center", fontsize=10)
    for head in range(num_heads):
        group = head // group_size
        cell(ax, 1.2 + width * head + 0.04, 1.2, width - 0.08, 0.4, str(head), colors[group % 4])
        middle = 1.2 + width * (group + 0.5) * group_size
        ax.plot([1.2 + width * (head + 0.5), middle], [1.2, 0.6], color="black", linewidth=0.8)
    for group in range(num_kv_groups):
        left = 1.2 + width * group * group_size
        cell(ax, left + 0.3, 0.2, width * group_size - 0.6, 0.4, f"group {group}", colors[group % 4])
    return fig


def super_block() -> plt.Figure:
    """The 144 bytes of a Q4_K super-block (not to scale), and how one weight comes out of them."""
    fig, ax = canvas(6.6, 3.1)
    parts = [(0.62, "scale", "orange", "2 bytes"), (0.85, "minimum", "orange", "2 bytes"), (1.45, "8 + 8 small", "green", "12 bytes")]
    x = 0.2
    for width, name, color, size in parts:
        cell(ax, x, 2.2, width, 0.45, name, color)
        ax.text(x + width / 2, 2.75, size, ha="center", fontsize=9.5)
        x += width
    for group in range(8):
        cell(ax, x + 0.41 * group, 2.2, 0.41, 0.45, str(group), "blue", 9)
    ax.text(x + 1.64, 2.75, "128 bytes: 8 groups of 32 weights, 4 bits each", ha="center", fontsize=9.5)
    ax.text(0.2, 1.8, "2 + 2 + 12 + 128 = 144 bytes for 256 weights: 144 x 8 / 256 = 4.5 bits a weight", fontsize=9.5)
    ax.text(0.2, 1.35, "One weight of group 5:", fontsize=9.5)
    pieces = [
        (0.62, "scale", "orange"), (0.3, "x", None), (0.95, "small scale", "green"), (0.3, "x", None), (0.35, "q", "blue"),
        (0.35, "-", None), (0.85, "minimum", "orange"), (0.3, "x", None), (1.25, "small minimum", "green"),
    ]
    x = 0.2
    for width, name, color in pieces:
        if color is None:
            ax.text(x + width / 2, 0.97, name, ha="center", va="center", fontsize=10.5)
        else:
            cell(ax, x, 0.75, width, 0.45, name, color)
        x += width
    ax.text(0.2, 0.42, "orange: float16, one for all 256 weights     green: 6 bits, one for each group", fontsize=9.5)
    ax.text(0.2, 0.15, "blue: 4 bits, one for each weight", fontsize=9.5)
    return fig
