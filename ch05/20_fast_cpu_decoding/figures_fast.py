"""Figures of fast-cpu-decoding.ipynb; each function returns a matplotlib figure."""

import matplotlib.pyplot as plt
from previous_chapters import COLORS

OURS, OTHERS = "blue", "orange"


def ladder(speeds: dict[str, float], limits: dict[str, float], title: str) -> plt.Figure:
    """Bars of tokens a second, the programs of others in another color; limits: name of a rung -> what the memory allows it."""
    fig, ax = plt.subplots(figsize=(6.5, 0.42 * len(speeds) + 1.0))
    colors = [COLORS[OTHERS] if name.startswith(("Hugging", "llama")) else COLORS[OURS] for name in speeds]
    ax.barh(list(speeds), list(speeds.values()), color=colors)
    for place, (name, speed) in enumerate(speeds.items()):
        if name in limits:
            ax.plot([limits[name]] * 2, [place - 0.4, place + 0.4], color=COLORS["black"], linewidth=2)
        ax.text(speed, place, f" {speed:.0f}", va="center", fontsize=9)
    ax.invert_yaxis()
    ax.set(xlabel="tokens a second; black strokes: what the memory allows", title=title)
    return fig


def side_by_side() -> plt.Figure:
    """Two ways to put a matrix into memory: one row behind the other, and 16 rows side by side."""
    fig, axes = plt.subplots(1, 2, figsize=(6.5, 2.5))
    row_colors = [COLORS[name] for name in ("blue", "orange", "green", "red")]
    for ax, title, order in (
        (axes[0], "row by row", [(row, column) for row in range(4) for column in range(6)]),
        (axes[1], "rows side by side", [(row, column) for column in range(6) for row in range(4)]),
    ):
        for place, (row, column) in enumerate(order):
            x, y = place % 8, 2 - place // 8
            ax.add_patch(plt.Rectangle((x, y), 0.94, 0.9, facecolor=row_colors[row], alpha=0.5))
            ax.text(x + 0.47, y + 0.45, f"{row},{column}", ha="center", va="center", fontsize=9)
        ax.set(xlim=(-0.1, 8.1), ylim=(-0.3, 3.1), title=title)
        ax.axis("off")
    return fig


def seconds_by_part(parts: dict[str, float]) -> plt.Figure:
    """One bar of milliseconds, cut into its parts."""
    fig, ax = plt.subplots(figsize=(6.5, 1.7))
    left = 0.0
    for (name, milliseconds), color in zip(parts.items(), ("green", "orange", "red"), strict=True):
        ax.barh([0], [milliseconds], left=left, color=COLORS[color], label=name)
        left += milliseconds
    ax.set(yticks=[], xlabel="milliseconds for one token", title="Most of a token's time is not the reading of weights")
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.45), ncol=3)
    return fig
