"""The drawings and plots of appendix A. Each function returns a matplotlib figure; the notebooks show it with alt text."""

import matplotlib.pyplot as plt
import torch
from matplotlib.patches import FancyBboxPatch
from previous_chapters import COLORS

GRAY = "#666666"
CLASSES = [("sails", COLORS["blue"], "o"), ("stays", COLORS["red"], "s")]


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


def draw_days(ax: plt.Axes, X: torch.Tensor, y: torch.Tensor) -> None:
    """The days as points, wind to the right and waves upward, colored and shaped by their label."""
    for label, (name, color, marker) in enumerate(CLASSES):
        points = X[y == label]
        look = {"s": 70, "color": color, "marker": marker, "edgecolor": "white", "zorder": 3}
        ax.scatter(points[:, 0], points[:, 1], label=f"{label}: ferry {name}", **look)
    ax.set(xlabel="wind, compared with the average day", ylabel="waves, compared with it", xlim=(-3, 3), ylim=(-3, 3))
    ax.legend(loc="upper left")


def days(X: torch.Tensor, y: torch.Tensor) -> plt.Figure:
    """The five training days."""
    fig, ax = plt.subplots(figsize=(5, 3.6))
    draw_days(ax, X, y)
    ax.set_title("Five days at the harbor")
    return fig


def border(model: torch.nn.Module, X: torch.Tensor, y: torch.Tensor, title: str) -> plt.Figure:
    """The days over the probability of class 1 that the model gives to every place of the map."""
    line = torch.linspace(-3, 3, 61)
    grid = torch.cartesian_prod(line, line)
    with torch.no_grad():
        stays = torch.softmax(model(grid), dim=1)[:, 1].reshape(61, 61).T
    fig, ax = plt.subplots(figsize=(5.4, 3.6))
    image = ax.contourf(line, line, stays, levels=[i / 10 for i in range(11)], cmap="cividis", alpha=0.75)
    ax.contour(line, line, stays, levels=[0.5], colors=[COLORS["black"]], linewidths=1.5)
    fig.colorbar(image, ax=ax, label="probability that the ferry stays")
    draw_days(ax, X, y)
    ax.set_title(title)
    return fig


def graph() -> plt.Figure:
    """The logistic unit as a computation graph: forward above, the slopes of the way back below."""
    fig, ax = blank(6.8, 2.6, "Forward, each station makes a number; backward, slopes are multiplied")
    stations = [(0.05, "weight w\n0.8"), (1.5, "z = x·w + b\n0.76"), (3.15, "a = sigmoid(z)\n0.681"), (4.95, "loss = -log(a)\n0.384")]
    widths = [1.0, 1.2, 1.3, 1.35]
    for (x, text), width in zip(stations, widths):
        box(ax, x, 1.05, width, 0.6, text, COLORS["blue"])
    for (x, _), width, (following, _), slope in zip(stations, widths, stations[1:], ("1.2", "0.217", "-1.468")):
        arrow(ax, (x + width + 0.05, 1.45), (following - 0.05, 1.45))
        arrow(ax, (following - 0.05, 1.2), (x + width + 0.05, 1.2), COLORS["red"])
        ax.text((x + width + following) / 2, 0.8, slope, ha="center", fontsize=9, color=COLORS["red"])
    ax.text(1.53, 1.85, "input x = 1.2, bias b = -0.2", fontsize=9, color=GRAY)
    ax.text(4.97, 1.85, "the answer was y = 1", fontsize=9, color=GRAY)
    ax.text(3.4, 0.35, "slope of the loss in w: 1.2 · 0.217 · (-1.468) = -0.382", ha="center", fontsize=10, color=COLORS["red"])
    return fig


def layers(sizes: list[int], names: list[str]) -> plt.Figure:
    """A network as columns of units; columns with more units than fit are cut in the middle."""
    fig, ax = blank(6.5, 3.2, "Every unit of a layer looks at all numbers of the layer before")
    columns = []
    for i, (size, name) in enumerate(zip(sizes, names)):
        shown = min(size, 7)
        heights = [1.55 + 0.3 * (row - (shown - 1) / 2) for row in range(shown)]
        columns.append([(0.8 + 1.65 * i, height) for height in heights])
        ax.text(0.8 + 1.65 * i, 0.1, f"{name}\n{size}", ha="center", fontsize=9)
    for left, right in zip(columns, columns[1:]):
        for start in left:
            for end in right:
                ax.plot(*zip(start, end), color=GRAY, linewidth=0.3, zorder=1)
    for i, (column, size) in enumerate(zip(columns, sizes)):
        for row, (x, y) in enumerate(column):
            hidden = size > 7 and row == 3
            ax.scatter(x, y, s=110, color="white" if hidden else list(COLORS.values())[i], zorder=2)
            if hidden:
                ax.text(x, y, "⋮", ha="center", va="center", fontsize=12, zorder=3)
    return fig


def averaging() -> plt.Figure:
    """Data-parallel training: equal copies, different points, averaged gradients."""
    fig, ax = blank(6.8, 3.1, "Two processes, one step: different points, averaged gradients, equal weights")
    processes = [("process 0", "points 2, 1", COLORS["blue"]), ("process 1", "points 0, 3", COLORS["orange"])]
    for row, (name, points, color) in enumerate(processes):
        y = 1.7 - 1.25 * row
        steps = [f"{name}\nweights W", points, "its own\ngradients", "average of\nboth", "weights W'"]
        for i, text in enumerate(steps):
            box(ax, 0.05 + 1.36 * i, y, 1.05, 0.7, text, COLORS["green"] if i == 3 else color)
            if i:
                arrow(ax, (1.36 * i - 0.22, y + 0.35), (1.36 * i + 0.01, y + 0.35))
    arrow(ax, (4.66, 1.66), (4.66, 1.2), COLORS["green"])
    arrow(ax, (4.66, 1.2), (4.66, 1.66), COLORS["green"])
    ax.text(4.78, 1.42, "all-reduce", fontsize=9, va="center", color=COLORS["green"])
    return fig
