"""The diagram of appendix-E.ipynb: what full fine-tuning changes in one linear layer, and what an adapter adds to it."""

import matplotlib.pyplot as plt
from matplotlib.patches import Polygon, Rectangle

FROZEN, TRAINED = "#E6E6E6", "#F7DDA8"


def matrix(ax: plt.Axes, x: float, y: float, width: float, height: float, text: str, color: str) -> None:
    """A rectangle with its lower left corner at (x, y); what is trained is hatched, too."""
    hatch = "///" if color == TRAINED else None
    ax.add_patch(Rectangle((x, y), width, height, facecolor=color, edgecolor="black", linewidth=0.8))
    ax.add_patch(Rectangle((x, y), width, height, fill=False, edgecolor="#C98A1B", linewidth=0, hatch=hatch, alpha=0.5))
    box = {"facecolor": color, "lw": 0, "pad": 1}
    ax.text(x + width / 2, y + height / 2, text, ha="center", va="center", fontsize=9.5, linespacing=1.4, bbox=box)


def arrow(ax: plt.Axes, start: tuple, end: tuple) -> None:
    style = {"arrowstyle": "-|>", "lw": 1.2, "color": "black", "shrinkA": 0, "shrinkB": 0}
    ax.annotate("", xy=end, xytext=start, arrowprops=style)


def funnel(ax: plt.Axes, x: float, low: float, wide_end: float, narrow_end: float, text: str) -> None:
    """A thin matrix drawn by its widths: wide_end at the bottom, narrow_end at the top, or the other way around."""
    corners = [(x - wide_end / 2, low), (x + wide_end / 2, low), (x + narrow_end / 2, low + 9), (x - narrow_end / 2, low + 9)]
    ax.add_patch(Polygon(corners, facecolor=TRAINED, edgecolor="black", linewidth=0.8))
    ax.add_patch(Polygon(corners, fill=False, edgecolor="#C98A1B", linewidth=0, hatch="///", alpha=0.5))
    ax.text(x, low + 4.5, text, ha="center", va="center", fontsize=9.5, linespacing=1.4, bbox={"facecolor": TRAINED, "lw": 0, "pad": 1})


def draw_adapter() -> plt.Figure:
    """Two panels, inputs at the bottom: one changed matrix on the left, a frozen matrix beside A and B on the right."""
    fig, (left, right) = plt.subplots(1, 2, figsize=(8.2, 4.0), width_ratios=[1, 1.45])
    for ax, width in ((left, 40), (right, 58)):
        ax.set(xlim=(0, width), ylim=(0, 50))
        ax.axis("off")

    left.set_title("Full fine-tuning: all of W changes")
    matrix(left, 9, 14, 22, 20, "W + ΔW\n768 x 768\n589,824 trained", TRAINED)
    arrow(left, (20, 6), (20, 13.7))
    left.text(20, 3.5, "x: 768 numbers for each token", ha="center", va="center", fontsize=9.5)
    arrow(left, (20, 34.3), (20, 42))
    left.text(20, 45, "output: 768", ha="center", va="center", fontsize=9.5)

    right.set_title("LoRA: W stays, A and B are trained")
    matrix(right, 2, 14, 22, 20, "W\n768 x 768\nfrozen", FROZEN)
    funnel(right, 43, 14, 22, 10, "A\n768 x 16")
    funnel(right, 43, 25, 10, 22, "B\n16 x 768")
    right.text(49, 24, "16 numbers", ha="left", va="center", fontsize=9)
    right.text(28, 3.5, "x: 768 numbers for each token", ha="center", va="center", fontsize=9.5)
    arrow(right, (24, 6), (13, 13.7))
    arrow(right, (32, 6), (43, 13.7))
    arrow(right, (13, 34.3), (26, 40))
    arrow(right, (43, 34.3), (30, 40))
    right.text(28, 41, "+", ha="center", va="center", fontsize=14, weight="bold")
    arrow(right, (28, 42.8), (28, 46.5))
    right.text(28, 48.5, "output: 768", ha="center", va="center", fontsize=9.5)
    right.text(45, 9.5, "24,576 trained", ha="left", va="center", fontsize=9.5)
    return fig
