"""What the drawings of this folder's notebooks share: an empty canvas and soft fill colors."""

import matplotlib.pyplot as plt

SOFT = {"blue": "#CFE3F2", "orange": "#FBE6BF", "green": "#C7EBDD", "red": "#F6D5C2", "gray": "#EEEEEE"}


def canvas(width: float, height: float) -> tuple[plt.Figure, plt.Axes]:
    """An empty drawing whose units are inches."""
    fig = plt.figure(figsize=(width, height), layout="none")
    ax = fig.add_axes((0, 0, 1, 1))
    ax.set(xlim=(0, width), ylim=(0, height))
    ax.axis("off")
    return fig, ax
