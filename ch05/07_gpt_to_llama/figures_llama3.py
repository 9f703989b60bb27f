"""The explanatory diagrams of converting-llama2-to-llama3.ipynb, drawn with matplotlib.

    from figures_llama3 import draw_blocks, draw_family, draw_head_sharing
"""

import matplotlib.pyplot as plt
from drawing import SOFT, canvas
from previous_chapters import COLORS


def box(ax: plt.Axes, x: float, y: float, width: float, height: float, text: str, color: str) -> None:
    """A filled rectangle with centered text; x and y are its center."""
    ax.add_patch(plt.Rectangle((x - width / 2, y - height / 2), width, height, facecolor=SOFT[color], edgecolor="black", linewidth=0.8))
    ax.text(x, y, text, ha="center", va="center", fontsize=9)


def draw_head_sharing(num_heads: int = 6, groups: tuple[int, ...] = (6, 2, 1)) -> plt.Figure:
    """Query heads above, key and value heads below, a line from each query head to the pair that it reads."""
    fig, ax = canvas(6.5, 2.5)
    names = {num_heads: "multi-head", 1: "multi-query"}
    for column, num_kv_groups in enumerate(groups):
        left = 0.55 + 2.0 * column
        step, group_size = 1.75 / num_heads, num_heads // num_kv_groups
        ax.text(left + 0.87, 2.3, names.get(num_kv_groups, "grouped-query"), ha="center", fontsize=10.5)
        for head in range(num_heads):
            group = head // group_size
            x = left + step * (head + 0.5)
            center = left + step * group_size * (group + 0.5)
            ax.plot([x, center], [1.62, 0.98], color=COLORS["black"], linewidth=0.9)
            box(ax, x, 1.8, 0.8 * step, 0.36, f"q{head}", "blue")
            if head % group_size == 0:
                box(ax, center, 0.8, 0.8 * step, 0.36, f"k{group}", "orange")
                box(ax, center, 0.44, 0.8 * step, 0.36, f"v{group}", "green")
        plural = "s" if num_kv_groups > 1 else ""
        ax.text(left + 0.87, 0.08, f"{num_kv_groups} pair{plural} to remember", ha="center", fontsize=9)
    return fig


def draw_family() -> plt.Figure:
    """From Llama 2 to Llama 3.2, and under each arrow what changed."""
    fig, ax = canvas(6.5, 2.0)
    models = ["Llama 2 7B\n2023", "Llama 3 8B\nApril 2024", "Llama 3.1 8B\nJuly 2024", "Llama 3.2 1B\nSeptember 2024"]
    contexts = ["4,096 tokens", "8,192 tokens", "131,072 tokens", "131,072 tokens"]
    changes = [
        "grouped queries,\nbase 500,000,\n128,256 tokens,\nwider feed-forward",
        "slow rotations\nslowed 8 times",
        "narrower, fewer\nblocks, tied head,\nslowed 32 times",
    ]
    for i, (name, context) in enumerate(zip(models, contexts, strict=True)):
        x = 0.7 + 1.7 * i
        box(ax, x, 1.6, 1.3, 0.6, name, "blue")
        ax.text(x, 1.08, context, ha="center", fontsize=9)
        if i:
            style = {"arrowstyle": "-|>", "color": COLORS["red"], "linewidth": 1.4, "shrinkA": 0, "shrinkB": 0}
            ax.annotate("", xy=(x - 0.67, 1.6), xytext=(x - 1.03, 1.6), arrowprops=style)
            ax.plot([x - 0.85, x - 0.85], [0.9, 1.53], color=COLORS["red"], linewidth=0.8, linestyle=":")
            ax.text(x - 0.85, 0.82, changes[i - 1], ha="center", va="top", fontsize=9, color=COLORS["red"])
    return fig


def draw_blocks() -> plt.Figure:
    """The transformer blocks of GPT-2, Llama 2 and Llama 3 from bottom to top; green: new against the block to the left."""
    fig, ax = canvas(6.5, 3.7)
    blocks = {
        "GPT-2": ["LayerNorm", "multi-head attention,\ndropout", "LayerNorm", "GELU\nfeed-forward"],
        "Llama 2": ["RMSNorm", "multi-head attention,\nRoPE", "RMSNorm", "SwiGLU\nfeed-forward"],
        "Llama 3": ["RMSNorm", "grouped-query\nattention, RoPE", "RMSNorm", "SwiGLU\nfeed-forward"],
    }
    heights, style = [0.6, 1.15, 2.15, 2.7], {"arrowstyle": "-|>", "color": "black", "linewidth": 1.1, "shrinkA": 0, "shrinkB": 0}
    left = None
    for column, (name, parts) in enumerate(blocks.items()):
        x = 1.2 + 2.15 * column
        ax.text(x, 3.52, name, ha="center", fontsize=10.5)
        ax.plot([x, x], [0.05, 3.3], color="black", linewidth=1.1, zorder=0)
        ax.annotate("", xy=(x, 3.42), xytext=(x, 3.2), arrowprops=style)
        for place, (part, y) in enumerate(zip(parts, heights, strict=True)):
            box(ax, x, y, 1.6, 0.3 if "\n" not in part else 0.42, part, "green" if left and left[place] != part else "gray")
        for start, plus in ((0.22, 1.62), (1.86, 3.12)):
            ax.plot([x, x - 0.95, x - 0.95], [start, start, plus], color="black", linewidth=1.1)
            ax.annotate("", xy=(x - 0.1, plus), xytext=(x - 0.95, plus), arrowprops=style)
            ax.add_patch(plt.Circle((x, plus), 0.1, facecolor="white", edgecolor="black", linewidth=1))
            ax.text(x, plus, "+", ha="center", va="center", fontsize=10)
        left = parts
    return fig
