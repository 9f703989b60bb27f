"""The diagrams of converting-gpt-to-llama2.ipynb.

    from figures_llama2 import block_comparison, pairing_diagram, rotating_hands
    show(block_comparison(), alt="...")
"""

import matplotlib.pyplot as plt
from drawing import SOFT, canvas
from previous_chapters import COLORS


def box(ax, x: float, y: float, text: str, color: str, width: float = 2.1, height: float = 0.36) -> None:
    """A filled rectangle with centered text; x and y are its center."""
    ax.add_patch(plt.Rectangle((x - width / 2, y - height / 2), width, height, facecolor=SOFT[color], edgecolor="black", linewidth=0.8))
    ax.text(x, y, text, ha="center", va="center", fontsize=10)


def arrow(ax, start, end) -> None:
    ax.annotate("", xy=end, xytext=start, arrowprops={"arrowstyle": "-|>", "color": "black", "linewidth": 1.2, "shrinkA": 0, "shrinkB": 0})


def column(ax, x: float, title: str, parts) -> None:
    """One model from bottom to top; parts: (text, color) or "plus", which closes a shortcut that began two boxes below."""
    ax.text(x, 5.35, title, ha="center", fontsize=12, weight="bold")
    y, below, branch = 0.35, None, None
    for part in parts:
        if part == "plus":
            ax.add_patch(plt.Circle((x, y), 0.12, facecolor="white", edgecolor="black", linewidth=1))
            ax.text(x, y, "+", ha="center", va="center", fontsize=12)
            ax.plot([x, x - 1.3, x - 1.3], [branch, branch, y], color="black", linewidth=1.2)
            arrow(ax, (x - 1.3, y), (x - 0.12, y))
            half, branch = 0.12, None
        else:
            text, color, opens = part
            half = 0.18
            if opens:
                branch = below + (y - half - below) / 2
            box(ax, x, y, text, color)
        if below is not None:
            arrow(ax, (x, below), (x, y - half))
        below, y = y + half, y + 0.56
    arrow(ax, (x, below), (x, below + 0.18))


def block_comparison() -> plt.Figure:
    """GPT-2 and Llama 2 side by side: what a token's vector passes; orange marks the parts that change."""
    fig, ax = canvas(6.5, 5.7)
    column(ax, 1.75, "GPT-2", [
        ("token embedding", "gray", False), ("+ position embedding", "orange", False),
        ("LayerNorm", "orange", True), ("attention, dropout", "orange", False), "plus",
        ("LayerNorm", "orange", True), ("GELU feed-forward", "orange", False), "plus",
        ("final LayerNorm, head", "orange", False),
    ])
    column(ax, 5.0, "Llama 2", [
        ("token embedding", "gray", False), ("(nothing added)", "gray", False),
        ("RMSNorm", "green", True), ("attention with RoPE", "green", False), "plus",
        ("RMSNorm", "green", True), ("SwiGLU feed-forward", "green", False), "plus",
        ("final RMSNorm, head", "green", False),
    ])
    return fig


def pairing_diagram() -> plt.Figure:
    """Which of the eight numbers of a head turn together, in the two layouts."""
    fig, ax = canvas(6.5, 2.6)
    colors = [COLORS[name] for name in ("blue", "orange", "green", "purple")]
    layouts = [(1.75, "adjacent pairs (Meta's files)", [0, 0, 1, 1, 2, 2, 3, 3]), (0.35, "split halves (this course)", [0, 1, 2, 3] * 2)]
    for y, title, pairs in layouts:
        ax.text(0.3, y + 0.62, title, fontsize=11)
        for i, pair in enumerate(pairs):
            x = 0.3 + 0.66 * i
            ax.add_patch(plt.Rectangle((x, y), 0.56, 0.4, facecolor=colors[pair], edgecolor="black", linewidth=0.8))
            ink = "white" if pair in (0, 2) else "black"
            ax.text(x + 0.28, y + 0.2, f"x{i}", ha="center", va="center", fontsize=11, color=ink, weight="bold")
    ax.text(6.0, 1.95, "pair i:\n2i, 2i+1", fontsize=9, ha="center", va="center")
    ax.text(6.0, 0.55, "pair i:\ni, i+4", fontsize=9, ha="center", va="center")
    return fig


def rotating_hands(cos, sin, num_positions: int = 6) -> plt.Figure:
    """The direction of each pair at the first positions: one row a pair, one column a position.

    cos, sin: (context_length, head_dim) tables with two equal halves.
    """
    num_pairs = cos.shape[1] // 2
    fig, axes = plt.subplots(num_pairs, num_positions, figsize=(6.5, 1.05 * num_pairs + 0.5))
    for pair in range(num_pairs):
        for position in range(num_positions):
            ax, x, y = axes[pair, position], cos[position, pair].item(), sin[position, pair].item()
            ax.add_patch(plt.Circle((0, 0), 1, fill=False, edgecolor="#BBBBBB"))
            ax.annotate("", xy=(x, y), xytext=(0, 0), arrowprops={"arrowstyle": "-|>", "color": COLORS["blue"], "linewidth": 2})
            ax.set(xlim=(-1.15, 1.15), ylim=(-1.15, 1.15), xticks=[], yticks=[], aspect="equal")
            ax.spines[:].set_visible(False)
            if pair == 0:
                ax.set_title(f"position {position}", fontsize=9, loc="center")
        axes[pair, 0].set_ylabel(f"pair {pair}", fontsize=9)
    fig.suptitle("Every pair is a clock hand: the first pair is fast, the last nearly stands still", fontsize=11, x=0.02, ha="left")
    return fig
