"""The explanatory drawings of chapter 2. Each function returns a matplotlib figure; the notebook shows it with alt text."""

import matplotlib.pyplot as plt
from matplotlib.patches import FancyBboxPatch, Rectangle
from plot_style import COLORS

GRAY = "#666666"


def blank(width: float, height: float, title: str) -> tuple[plt.Figure, plt.Axes]:
    """A figure without axes whose units are inches, so that boxes and letters keep their proportions."""
    fig, ax = plt.subplots(figsize=(width, height))
    ax.set(xlim=(0, width), ylim=(0, height - 0.3), title=title)
    ax.axis("off")
    return fig, ax


def box(ax: plt.Axes, x: float, y: float, width: float, height: float, text: str, color: str, **font) -> None:
    """A rounded box with its text in the middle; the color fills it lightly."""
    style = FancyBboxPatch((x, y), width, height, boxstyle="round,pad=0.02", facecolor=color + "33", edgecolor=color, linewidth=1.2)
    ax.add_patch(style)
    ax.text(x + width / 2, y + height / 2, text, ha="center", va="center", **{"fontsize": 9, **font})


def arrow(ax: plt.Axes, start: tuple[float, float], end: tuple[float, float], color: str = GRAY) -> None:
    ax.annotate("", end, start, arrowprops={"arrowstyle": "-|>", "color": color, "linewidth": 1.2, "shrinkA": 0, "shrinkB": 0})


def pipeline() -> plt.Figure:
    """Where data preparation stands: this chapter's five stages above, the chapters that use them below."""
    fig, ax = blank(6.5, 2.9, "This chapter turns a text file into what a GPT can read")
    stages = [
        ("text", "Nell sang.", "2.2"),
        ("tokens", "N|ell| sang|.", "2.2, 2.5"),
        ("token ids", "45 695\n25889 13", "2.3-2.5"),
        ("windows", "inputs and\ntargets", "2.6"),
        ("vectors", "one row of\nnumbers each", "2.7, 2.8"),
    ]
    for i, (name, example, section) in enumerate(stages):
        x = 0.06 + 1.3 * i
        box(ax, x, 1.25, 1.0, 0.85, f"{name}\n\n", COLORS["blue"], fontweight="bold")
        ax.text(x + 0.5, 1.55, example, ha="center", va="center", fontsize=9)
        ax.text(x + 0.5, 2.2, section, ha="center", fontsize=9, color=GRAY)
        if i:
            arrow(ax, (x - 0.26, 1.67), (x - 0.04, 1.67))
    later = [("attention", "chapter 3"), ("the GPT model", "chapter 4"), ("pretraining", "chapter 5"), ("fine-tuning", "chapters 6, 7")]
    for i, (name, chapter) in enumerate(later):
        x = 5.16 - 1.6 * i
        box(ax, x, 0.12, 1.2, 0.6, f"{name}\n{chapter}", COLORS["orange"])
        if i:
            arrow(ax, (x + 1.56, 0.42), (x + 1.24, 0.42))
    arrow(ax, (5.76, 1.21), (5.76, 0.76))
    return fig


def merges(rows: list[list[str]], new_tokens: list[str]) -> plt.Figure:
    """Byte-pair encoding of one phrase: a row of boxes for the bytes and one after each merge; what a merge made is orange."""
    width = 6.5 / (2.2 + sum(map(len, rows[0])))  # of one character; the labels on the left take two
    fig, ax = blank(6.5, 0.55 * len(rows) + 0.45, "Each merge joins two boxes wherever they stand side by side")
    for number, row in enumerate(rows):
        y, x = 0.55 * (len(rows) - 1 - number) + 0.1, 2.1 * width
        label = f"merge {number}" if number else "bytes"
        ax.text(0.05, y + 0.17, label, va="center", fontsize=9, color=GRAY)
        for token in row:
            color = COLORS["orange"] if number and token == new_tokens[number - 1] else COLORS["blue"]
            box(ax, x + 0.04, y, len(token) * width - 0.08, 0.34, token.replace(" ", "\u2423"), color)
            x += len(token) * width
    return fig


def lookup_table(weight, token_id: int) -> plt.Figure:
    """An embedding layer as a table of numbers: the row of `token_id` is copied out."""
    rows, columns = weight.shape
    fig, ax = blank(6.5, 3.0, f"An embedding layer hands out row {token_id} for token id {token_id}")
    for row in range(rows):
        y = 2.1 - 0.38 * row
        chosen = row == token_id
        ax.text(2.0, y + 0.17, f"id {row}", ha="right", va="center", fontsize=9, fontweight="bold" if chosen else "normal")
        for column in range(columns):
            color = COLORS["orange"] + "66" if chosen else "#EEEEEE"
            ax.add_patch(Rectangle((2.1 + 0.62 * column, y), 0.6, 0.34, facecolor=color, edgecolor="white"))
            ax.text(2.4 + 0.62 * column, y + 0.17, f"{weight[row, column]:.2f}", ha="center", va="center", fontsize=9)
    middle = 2.1 - 0.38 * token_id + 0.17
    box(ax, 0.1, middle - 0.2, 0.9, 0.4, f"id {token_id}", COLORS["blue"])
    arrow(ax, (1.05, middle), (1.5, middle))
    arrow(ax, (2.15 + 0.62 * columns, middle), (2.5 + 0.62 * columns, middle))
    ax.text(2.55 + 0.62 * columns, middle, f"its vector:\n{columns} numbers", va="center", fontsize=9)
    caption = f"weight table ({rows}, {columns}): trained like every other parameter"
    ax.text(2.1 + 0.31 * columns, -0.05, caption, ha="center", fontsize=9, color=GRAY)
    return fig


def window_strides(num_tokens: int, max_length: int, strides: list[int]) -> plt.Figure:
    """Bars for the windows of each stride over the same tokens; orange marks what is never an input."""
    fig, axes = plt.subplots(1, len(strides), figsize=(6.5, 3.2), sharex=True, sharey=True)
    for ax, stride in zip(axes, strides):
        starts = range(0, num_tokens - max_length, stride)
        covered = {start + i for start in starts for i in range(max_length)}
        for row, start in enumerate(starts):
            ax.add_patch(Rectangle((start, row + 0.1), max_length, 0.8, facecolor=COLORS["blue"] + "66", edgecolor=COLORS["blue"]))
        for position in range(num_tokens - 1):
            if position not in covered:
                ax.add_patch(Rectangle((position, -0.9), 1, 0.8, facecolor=COLORS["orange"], edgecolor="white"))
        words = {-1: "overlap", 0: "exact cover", 1: "gaps"}[(stride > max_length) - (stride < max_length)]
        ax.set_title(f"stride {stride}: {words}", fontsize=10)
        ax.set(xlim=(0, num_tokens), ylim=(-1.1, len(range(0, num_tokens - max_length, min(strides))) + 0.3), xlabel="token position")
        ax.invert_yaxis()
    axes[0].set(ylabel="window", yticks=[])
    return fig
