"""Diagrams of the two Gemma 3 notebooks; each function returns a matplotlib figure."""

import matplotlib.pyplot as plt
from previous_chapters import COLORS

SOFT = {"blue": "#CFE3F2", "orange": "#FBE6BF", "green": "#C7EBDD", "red": "#F6D5C2", "gray": "#EEEEEE"}


def canvas(width: float, height: float) -> tuple[plt.Figure, plt.Axes]:
    """An empty drawing whose units are inches."""
    fig = plt.figure(figsize=(width, height), layout="none")
    ax = fig.add_axes((0, 0, 1, 1))
    ax.set(xlim=(0, width), ylim=(0, height))
    ax.axis("off")
    return fig, ax


def cell(ax: plt.Axes, x: float, y: float, width: float, height: float, text: str, color: str, size: float = 9.5) -> None:
    """A filled rectangle with centered text; x and y are its lower left corner."""
    ax.add_patch(plt.Rectangle((x, y), width, height, facecolor=SOFT[color], edgecolor="black", linewidth=0.8))
    ax.text(x + width / 2, y + height / 2, text, ha="center", va="center", fontsize=size)


def arrow(ax: plt.Axes, start: tuple, end: tuple) -> None:
    """A thin arrow."""
    ax.annotate("", xy=end, xytext=start, arrowprops={"arrowstyle": "-|>", "linewidth": 0.9, "shrinkA": 0, "shrinkB": 0})


def block_column(ax: plt.Axes, x: float, title: str, parts: list[tuple[str, str]]) -> None:
    """A block as a column of parts, bottom to top; a part named "+" ends a shortcut that began after the last one."""
    y = begin = 0.45
    ax.text(x + 0.85, 0.1, title, ha="center", fontsize=10.5)
    top = 0.45 + sum(0.42 if name == "+" else 0.38 for name, _ in parts)
    ax.plot([x + 0.85, x + 0.85], [0.3, top + 0.1], color="black", linewidth=0.9, zorder=0)
    for name, color in parts:
        if name == "+":
            ax.plot([x + 0.85, x + 2.0, x + 2.0], [begin - 0.07, begin - 0.07, y + 0.13], color="black", linewidth=0.9)
            arrow(ax, (x + 2.0, y + 0.13), (x + 0.98, y + 0.13))
            ax.add_patch(plt.Circle((x + 0.85, y + 0.13), 0.13, facecolor="white", edgecolor="black", linewidth=0.9))
            ax.text(x + 0.85, y + 0.12, "+", ha="center", va="center", fontsize=11)
            y += 0.42
            begin = y
        else:
            cell(ax, x, y, 1.7, 0.3, name, color)
            y += 0.38


def blocks() -> plt.Figure:
    """A block of Llama beside a block of Gemma 3."""
    fig, ax = canvas(6.6, 3.95)
    llama = [("RMSNorm", "orange"), ("attention", "blue"), ("+", ""), ("RMSNorm", "orange"), ("feed-forward", "green"), ("+", "")]
    block_column(ax, 0.7, "Llama: two norms", llama)
    gemma = [
        ("input norm", "orange"), ("attention", "blue"), ("post-attention norm", "red"), ("+", ""),
        ("pre-feed-forward norm", "orange"), ("feed-forward", "green"), ("post-feed-forward norm", "red"), ("+", ""),
    ]
    block_column(ax, 3.9, "Gemma 3: four norms", gemma)
    return fig


def layers(layer_types: list[str]) -> plt.Figure:
    """The layers of the model in a row, sliding and full ones in two colors."""
    fig, ax = canvas(6.6, 1.0)
    width = 6.2 / len(layer_types)
    for i, kind in enumerate(layer_types):
        cell(ax, 0.2 + width * i, 0.4, width, 0.4, str(i), "blue" if kind == "sliding_attention" else "red", 9)
    ax.text(0.2, 0.12, "blue: sliding window, RoPE base 10,000        red: full attention, RoPE base 1,000,000", fontsize=9.5)
    return fig


def q4_k_super_block() -> plt.Figure:
    """The 144 bytes of a Q4_K super-block: two scales, twelve bytes of small scales, 128 bytes of nibbles."""
    fig, ax = canvas(6.6, 2.75)
    cell(ax, 0.15, 1.95, 0.75, 0.45, "d", "orange")
    cell(ax, 0.9, 1.95, 0.75, 0.45, "dmin", "orange")
    cell(ax, 1.65, 1.95, 1.6, 0.45, "8 scales, 8 mins", "red")
    for i in range(4):
        cell(ax, 3.25 + 0.8 * i, 1.95, 0.8, 0.45, f"{32 * i}-{32 * i + 31}", "blue", 9)
    for x, text in ((0.15, "2 + 2 bytes"), (1.65, "12 bytes, 6 bits each"), (3.25, "128 bytes of two 4-bit numbers each")):
        ax.text(x, 2.48, text, fontsize=9.5)
    ax.plot([3.25, 0.9], [1.95, 1.3], color="black", linewidth=0.8)
    ax.plot([4.05, 5.7], [1.95, 1.3], color="black", linewidth=0.8)
    ax.text(0.15, 1.5, "the first 32 bytes:", fontsize=9.5)
    cell(ax, 0.9, 0.85, 2.4, 0.45, "32 low halves", "green")
    cell(ax, 3.3, 0.85, 2.4, 0.45, "32 high halves", "gray")
    ax.text(2.1, 0.75, "group 0: weights 0 to 31", ha="center", va="top", fontsize=9.5)
    ax.text(4.5, 0.75, "group 1: weights 32 to 63", ha="center", va="top", fontsize=9.5)
    ax.text(0.15, 0.18, "weight of group g  =  (d x scale[g]) x number  -  (dmin x min[g])", fontsize=10.5, color=COLORS["black"])
    return fig


def cache_sketch(window: int = 4, num_tokens: int = 9) -> plt.Figure:
    """What a full and a sliding layer keep after num_tokens tokens, and what one more token reads."""
    fig, ax = canvas(6.6, 1.75)
    for y, label, kept in ((1.1, "full layer", num_tokens), (0.35, "sliding layer", window - 1)):
        ax.text(0.1, y + 0.17, label, va="center", fontsize=10)
        for i in range(num_tokens):
            color = "blue" if i >= num_tokens - kept else "gray"
            cell(ax, 1.35 + 0.45 * i, y, 0.45, 0.35, str(i) if color == "blue" else "", color, 9)
        cell(ax, 1.4 + 0.45 * num_tokens, y, 0.45, 0.35, str(num_tokens), "orange", 9)
    ax.text(1.35, 1.55, "blue: kept keys and values", fontsize=9.5)
    ax.text(4.4, 1.55, "orange: the new token", fontsize=9.5)
    ax.text(1.35, 0.1, f"window {window}: the new token and the {window - 1} before it", fontsize=9.5)
    return fig
