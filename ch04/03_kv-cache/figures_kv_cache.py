"""The diagrams of kv-cache.ipynb, drawn with matplotlib.

    from figures_kv_cache import draw_cached_step, draw_passes, draw_visible_keys
"""

import matplotlib.pyplot as plt
import torch
from matplotlib.colors import ListedColormap
from previous_chapters import COLORS


def draw_passes(prompt_tokens: int, new_tokens: int) -> plt.Figure:
    """For each pass through the model, the tokens that it computes: without a cache on the left, with one on the right."""
    fig, axes = plt.subplots(1, 2, figsize=(6.5, 2.6), sharey=True)
    total = prompt_tokens + new_tokens - 1  # the last new token is never read
    for ax, cached in zip(axes, (False, True)):
        count = 0
        for step in range(new_tokens):
            for token in range(prompt_tokens + step):
                again = step > 0 and token < prompt_tokens + step - 1
                if cached and again:
                    continue
                color = COLORS["orange"] if again else COLORS["blue"]
                ax.add_patch(plt.Rectangle((token + 0.55, step + 0.55), 0.9, 0.9, facecolor=color))
                count += 1
        ax.set(xlim=(0.4, total + 0.6), ylim=(new_tokens + 0.6, 0.4), xlabel="position of the token", aspect="equal")
        ax.set_title(f"{'with' if cached else 'without'} a cache: {count} tokens")
        ax.set_xticks(range(1, total + 1), range(1, total + 1))
    axes[0].set_ylabel("pass")
    axes[0].set_yticks(range(1, new_tokens + 1))
    return fig


def draw_cached_step(cached: int = 4) -> plt.Figure:
    """One decoding step in one layer: a single new token, its query against all keys, its key and value added to the cache."""
    fig, ax = plt.subplots(figsize=(6.5, 2.7))
    ax.set(xlim=(-1.9, cached + 2.2), ylim=(-0.3, 3.2))
    ax.axis("off")
    for row, (letter, color, name) in enumerate((("v", "green", "cache_v"), ("k", "orange", "cache_k"))):
        ax.text(-0.2, row + 0.4, name, ha="right", va="center", fontsize=10)
        for token in range(cached + 1):
            new = token == cached
            box = plt.Rectangle((token, row), 0.8, 0.8, facecolor=COLORS[color], alpha=1.0 if new else 0.35, edgecolor="black")
            ax.add_patch(box)
            ax.text(token + 0.4, row + 0.4, f"{letter}{token + 1}", ha="center", va="center", fontsize=10)
    ax.add_patch(plt.Rectangle((cached, 2.3), 0.8, 0.8, facecolor=COLORS["sky"], edgecolor="black"))
    ax.text(cached + 0.4, 2.7, f"q{cached + 1}", ha="center", va="center", fontsize=10)
    ax.text(cached + 0.95, 2.7, "query of the\nnew token", va="center", fontsize=9)
    ax.text(cached + 0.95, 0.9, "computed in\nthis step", va="center", fontsize=9)
    for token in range(cached + 1):
        ax.plot([cached + 0.4, token + 0.4], [2.3, 1.8], color=COLORS["black"], linewidth=0.8)
    return fig


def draw_visible_keys(masks: dict[str, torch.Tensor]) -> plt.Figure:
    """One panel a mask: masks[title] is bool (num_tokens, num_keys), True = the query of this row sees the key of this column."""
    fig, axes = plt.subplots(1, len(masks), figsize=(6.5, 2.8))
    for ax, (title, allowed) in zip(axes, masks.items()):
        ax.imshow(allowed, cmap=ListedColormap(["white", COLORS["blue"]]), vmin=0, vmax=1)
        ax.set(title=title, xlabel="position of the key", ylabel="position of the query")
        ax.set_xticks([i - 0.5 for i in range(1, allowed.shape[1])], minor=True)
        ax.set_yticks([i - 0.5 for i in range(1, allowed.shape[0])], minor=True)
        ax.grid(which="minor", color="gray", linewidth=0.4)
        ax.tick_params(which="minor", length=0)
    return fig
