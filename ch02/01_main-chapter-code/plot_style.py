"""One look for every figure of the course: a palette that color-blind readers can tell apart, white ground, 9-point labels.

    from plot_style import COLORS, show, use_course_style

    use_course_style()
    fig, ax = plt.subplots()
    ax.plot(losses, color=COLORS["blue"])
    show(fig, alt="Training loss falls from 10.8 to 0.4 in ten epochs.")
"""

import base64
import io

# Drawing libraries are imported where they are used: scripts that borrow anything from the same module start without them.

# The eight colors of Masataka Okabe and Kei Ito, "Color Universal Design" (2008).
COLORS = {
    "blue": "#0072B2", "orange": "#E69F00", "green": "#009E73", "red": "#D55E00",
    "purple": "#CC79A7", "sky": "#56B4E9", "yellow": "#F0E442", "black": "#000000",
}  # fmt: skip


def use_course_style() -> None:
    """Set matplotlib's defaults for the figures that follow."""
    import matplotlib.pyplot as plt

    sizes = {"axes.titlesize": 11, "axes.labelsize": 10, "xtick.labelsize": 9, "ytick.labelsize": 9, "legend.fontsize": 9}
    figure = {"figure.figsize": (6.5, 3.2), "figure.dpi": 100, "figure.facecolor": "white", "figure.constrained_layout.use": True}
    plain = {"axes.spines.top": False, "axes.spines.right": False, "axes.titlelocation": "left", "legend.frameon": False}
    colors = {"axes.prop_cycle": plt.cycler(color=list(COLORS.values())), "image.cmap": "cividis"}
    plt.rcParams.update({**figure, **plain, **sizes, **colors})


def show(fig, alt: str) -> None:
    """Display a matplotlib figure with a description that screen readers speak, then close it."""
    import matplotlib.pyplot as plt
    from IPython.display import display
    from PIL import Image

    if not alt.strip():
        raise ValueError("a figure needs alt text: one sentence saying what it shows")
    drawn, packed = io.BytesIO(), io.BytesIO()
    fig.savefig(drawn, format="png", bbox_inches="tight")
    Image.open(drawn).convert("RGB").quantize(256).save(packed, format="png", optimize=True)  # a palette: less than half the bytes
    picture = base64.b64encode(packed.getvalue()).decode("ascii")
    display({"image/png": picture, "text/plain": repr(fig)}, metadata={"image/png": {"alt": alt}}, raw=True)
    plt.close(fig)
