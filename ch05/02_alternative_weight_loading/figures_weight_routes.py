"""The drawings of the three notebooks: the routes from a published file to our model, and where each tensor goes."""

import matplotlib.pyplot as plt
from matplotlib.patches import FancyArrowPatch, Rectangle
from previous_chapters import COLORS

# (GPT-2's name, our name, what happens on the way)
IN_A_BLOCK = [
    ("ln_1", "norm1", "as it is"),
    ("attn.c_attn", "att.W_query\natt.W_key\natt.W_value", "split in three, transposed"),
    ("attn.c_proj", "att.out_proj", "transposed"),
    ("ln_2", "norm2", "as it is"),
    ("mlp.c_fc", "ff.layers.0", "transposed"),
    ("mlp.c_proj", "ff.layers.2", "transposed"),
]
AROUND = [("wte", "tok_emb\nout_head", "used twice"), ("wpe", "pos_emb", "as it is"), ("ln_f", "final_norm", "as it is")]
WAY_COLORS = {"as it is": "blue", "transposed": "orange", "split in three, transposed": "red", "used twice": "green"}


def box(ax: plt.Axes, center: tuple, size: tuple, text: str, color: str = "white", **style) -> None:
    """A rectangle with a text in its middle."""
    (x, y), (width, height) = center, size
    ax.add_patch(Rectangle((x - width / 2, y - height / 2), width, height, facecolor=color, edgecolor="black"))
    ax.text(x, y, text, ha="center", va="center", **{"fontsize": 9, **style})


def arrow(ax: plt.Axes, start: tuple, end: tuple, color: str = "black", **style) -> None:
    """A straight arrow."""
    ax.add_patch(FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=11, color=color, shrinkA=0, shrinkB=0, **style))


def bare(ax: plt.Axes, width: float, height: float, title: str, bottom: float = 0) -> None:
    """No axes, fixed limits, a title."""
    ax.set(xlim=(0, width), ylim=(bottom, height), title=title)
    ax.axis("off")


def draw_routes() -> plt.Figure:
    """Three ways from the published file to our model, one row each, with the station in between."""
    fig, ax = plt.subplots()
    bare(ax, 13, 6.5, "Three routes, one model")
    rows = {
        5.2: ("1", "convert_weights.py", "a state dict with\nour names, in a file"),
        3.1: ("2", "transformers", "a GPT2Model\nin memory"),
        1.0: ("3", "safetensors", "a flat dictionary with\nGPT-2's names"),
    }
    box(ax, (1.5, 3.1), (2.6, 1.7), "published\nweights", COLORS["sky"])
    box(ax, (11.6, 3.1), (2.4, 1.7), "our\nGPTModel", COLORS["orange"])
    for y, (number, tool, station) in rows.items():
        box(ax, (6.6, y), (3.7, 1.4), station)
        arrow(ax, (2.8, 3.1 + 0.25 * (y - 3.1)), (4.75, y))
        arrow(ax, (8.45, y), (10.4, 3.1 + 0.25 * (y - 3.1)))
        ax.text(6.6, y + 0.78, f"route {number}: {tool}", ha="center", va="bottom", fontsize=9, fontweight="bold")
    return fig


def draw_module_map() -> plt.Figure:
    """GPT-2's names on the left, ours on the right, an arrow for each layer in the color of what happens to its matrix."""
    fig, axes = plt.subplots(1, 2, figsize=(7.2, 3.6), width_ratios=(1, 1))
    for ax, rows, title in ((axes[0], IN_A_BLOCK, "In every block"), (axes[1], AROUND, "Around the blocks, once")):
        bare(ax, 10, 9.4, title)
        heights = [1 + 0.55 * name.count("\n") for _, name, _ in rows]
        y = 9.2
        for (theirs, ours, way), height in zip(rows, heights):
            y -= height / 2
            box(ax, (1.8, y), (3.4, 0.85), theirs, family="monospace")
            box(ax, (8.1, y), (3.7, height - 0.15), ours, family="monospace")
            arrow(ax, (3.5, y), (6.25, y), COLORS[WAY_COLORS[way]], linewidth=2)
            y -= height / 2 + 0.28
    for number, (way, color) in enumerate(WAY_COLORS.items()):
        y = 3.3 - 0.75 * number
        axes[1].plot([0.4, 1.9], [y, y], color=COLORS[color], linewidth=3)
        axes[1].text(2.3, y, way, va="center", fontsize=9)
    return fig


def draw_file_layout(entries: list[tuple], header_bytes: int) -> plt.Figure:
    """The first bytes of a safetensors file as a strip: length, header, data of the first tensors.

    entries: (name, first byte, last byte + 1) of the tensors to draw, counted from the start of the data.
    """
    fig, ax = plt.subplots(figsize=(6.8, 2.3))
    bare(ax, 14, 4.1, "Eight bytes, a table, then bare numbers", bottom=0.4)
    box(ax, (0.75, 2.3), (1.3, 1.1), "8 bytes", COLORS["yellow"])
    box(ax, (2.75, 2.3), (2.7, 1.1), "header\n(JSON)", COLORS["sky"])
    starts = ["0", "8"]
    left = 4.1
    for name, first, _ in entries:
        box(ax, (left + 1.35, 2.3), (2.7, 1.1), name.replace(".", ".\n", 2).replace(".\n", ".", 1), COLORS["orange"])
        starts.append(f"{8 + header_bytes + first:,}")
        left += 2.7
    ax.text(left + 0.3, 2.3, "...", ha="left", va="center", fontsize=12)
    for x, start in zip([0.1, 1.4, *[4.1 + 2.7 * place for place in range(len(entries))]], starts):
        ax.text(x, 1.6, start, ha="left", va="top", fontsize=9)
    ax.text(0.1, 0.85, "byte at which each part begins", ha="left", va="top", fontsize=9, style="italic")
    arrow(ax, (0.75, 2.9), (2.75, 2.9), connectionstyle="arc3,rad=-0.5")
    ax.text(1.75, 3.55, "says how long", ha="center", va="bottom", fontsize=9)
    arrow(ax, (3.2, 2.9), (5.45, 2.9), connectionstyle="arc3,rad=-0.35")
    ax.text(4.4, 3.4, "says what and where", ha="left", va="bottom", fontsize=9)
    return fig


def draw_split(width: int = 3) -> plt.Figure:
    """GPT-2's c_attn of a toy width with its cells numbered, and the three transposed matrices that our layers want."""
    fig, ax = plt.subplots(figsize=(6.8, 2.1))
    bare(ax, 17.5, 5.5, "One wide matrix becomes three, each turned over its diagonal", bottom=1.2)
    parts = (("W_query", "sky"), ("W_key", "orange"), ("W_value", "green"))
    cell, above, below = 0.62, {"ha": "center", "va": "bottom", "family": "monospace"}, {"ha": "center", "va": "top"}
    for part, (name, color) in enumerate(parts):
        for row in range(width):
            for column in range(width):
                number = 3 * width * row + width * part + column + 1
                x, y = 0.6 + cell * (width * part + column), 4.2 - cell * row
                box(ax, (x, y), (cell, cell), str(number), COLORS[color])
                x = 8.9 + 2.95 * part + cell * row  # transposed: row and column change places
                y = 4.2 - cell * column
                box(ax, (x, y), (cell, cell), str(number), COLORS[color])
        ax.text(8.9 + 2.95 * part + cell * (width - 1) / 2, 4.75, name, fontsize=9, **above)
    ax.text(0.6 + cell * (3 * width - 1) / 2, 4.75, "attn.c_attn.weight", fontsize=9, **above)
    ax.text(0.6 + cell * (3 * width - 1) / 2, 2.35, "one row for each input,\none column for each output", fontsize=9, **below)
    ax.text(8.9 + 2.95 + cell * (width - 1) / 2, 2.35, "one row for each output,\none column for each input", fontsize=9, **below)
    arrow(ax, (6.5, 3.6), (8.2, 3.6))
    return fig
