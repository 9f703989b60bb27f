"""The three diagrams of chapter 7, drawn as SVG files.

Run it:  python figures.py --output figures
"""

import argparse
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.patches import FancyBboxPatch, Rectangle

SKY, ORANGE, GREEN, PURPLE, YELLOW, GRAY = "#BFE1F4", "#F7DDA8", "#A9DCCB", "#EBCBDD", "#F8F2A6", "#E6E6E6"


def canvas(width: float, height: float) -> tuple:
    """An empty drawing; one unit of its axes is one tenth of an inch."""
    fig = plt.figure(figsize=(width, height), facecolor="white")
    ax = fig.add_axes((0, 0, 1, 1))
    ax.set(xlim=(0, 10 * width), ylim=(0, 10 * height))
    ax.axis("off")
    return fig, ax


def box(ax, x: float, y: float, w: float, h: float, text: str, color: str = GRAY, size: float = 10, weight: str = "normal") -> None:
    """A rounded box with its lower left corner at (x, y)."""
    shape = FancyBboxPatch((x, y), w, h, boxstyle="round,pad=0,rounding_size=0.8", facecolor=color, edgecolor="black", linewidth=0.8)
    ax.add_patch(shape)
    ax.text(x + w / 2, y + h / 2, text, ha="center", va="center", fontsize=size, weight=weight, linespacing=1.35)


def arrow(ax, start: tuple, end: tuple) -> None:
    """An arrow between two points."""
    ax.annotate("", xy=end, xytext=start, arrowprops={"arrowstyle": "-|>", "lw": 1.3, "color": "black", "shrinkA": 0, "shrinkB": 0})


def label(ax, x: float, y: float, text: str, size: float = 10, **kwargs) -> None:
    ax.text(x, y, text, ha=kwargs.pop("ha", "center"), va=kwargs.pop("va", "center"), fontsize=size, linespacing=1.35, **kwargs)


def overview() -> plt.Figure:
    """The chapter's steps and the functions that each builds."""
    fig, ax = canvas(8.6, 2.3)
    steps = [
        ("Entries", "format_input,\nsplit_data", GRAY, "7.2"),
        ("Batches", "InstructionDataset,\ncustom_collate_fn", SKY, "7.3, 7.4"),
        ("Pretrained\nGPT", "extract_response", PURPLE, "7.5"),
        ("Training", "calc_answer_loss,\ntrain_on_answers", YELLOW, "7.6"),
        ("Answers", "answer_entries", GREEN, "7.7"),
        ("Scores", "verify, a judge", ORANGE, "7.7, 7.8"),
    ]
    for i, (name, text, color, section) in enumerate(steps):
        x = 0.5 + 14.4 * i
        box(ax, x, 5, 12.8, 12.4, "", color)
        label(ax, x + 6.4, 14.2, name, 11, weight="bold")
        label(ax, x + 6.4, 8.4, text, 8)
        label(ax, x + 6.4, 3, f"section {section}", 9, color="#333333")
        if i:
            arrow(ax, (x - 1.7, 11), (x - 0.1, 11))
    label(ax, 43, 20.5, "From written examples to a model that answers", 12, weight="bold")
    return fig


def masks() -> plt.Figure:
    """Inputs and targets of two entries of unlike length: which targets count."""
    fig, ax = canvas(8.6, 3.9)
    rows = [
        (["Opposite", "of", '"hot"', "?", "Resp:", "cold"], 1, 28),
        (["Plural", "of", '"ox"', "?", "Resp:", "ox", "en"], 2, 9),
    ]
    width, left = 9.2, 11.6
    label(ax, 43, 36.8, "Only the answer and its end are targets", 12, weight="bold")
    for ids, answer, top in rows:
        ended = [*ids, "<end>", *["<pad>"] * (7 - len(ids))]
        prompt = len(ids) - answer
        for name, tokens, y in (("inputs", ended[:-1], top), ("targets", ended[1:], top - 7)):
            label(ax, left - 1.2, y + 2.2, name, 10, ha="right", weight="bold")
            for column, token in enumerate(tokens):
                place = column + (name == "targets")  # where the token stands in the text
                color = GRAY if place < prompt else GREEN if place < len(ids) else ORANGE if place == len(ids) else "white"
                ignored = name == "targets" and (place < prompt or place > len(ids))
                x = left + width * column
                ax.add_patch(Rectangle((x, y), width, 4.6, facecolor="white" if ignored else color, edgecolor="black", linewidth=0.8))
                label(ax, x + width / 2, y + 2.3, "\u2212100" if ignored else token, 9, color="#999999" if ignored else "black")
    for i, (text, color) in enumerate((("prompt", GRAY), ("answer", GREEN), ("end token", ORANGE), ("ignored", "white"))):
        x = 77.3
        ax.add_patch(Rectangle((x, 27 - 5 * i), 2.4, 2.4, facecolor=color, edgecolor="black", linewidth=0.8))
        label(ax, x + 3, 28.2 - 5 * i, text, 8, ha="left")
    return fig


def learned() -> plt.Figure:
    """Three things that tuning can teach, each with a question that tests it."""
    fig, ax = canvas(8.6, 2.9)
    label(ax, 43, 27, "Three things that tuning can teach, and how to tell them apart", 12, weight="bold")
    columns = [
        ("Form", "answers, ends,\nin the shape asked for", "any question:\nis the answer one word,\none sentence, one list?", SKY),
        ("Recall", "knows by heart\nwhat it was shown", "words seen in training,\nasked in another phrasing", YELLOW),
        ("Rule", "does the task\nwith anything", "words that training\nnever showed", GREEN),
    ]
    for i, (name, meaning, test, color) in enumerate(columns):
        x = 1 + 29 * i
        box(ax, x, 3, 26, 20.5, "", color)
        label(ax, x + 13, 20.8, name, 12, weight="bold")
        label(ax, x + 13, 16, meaning, 10)
        label(ax, x + 13, 11.7, "tested by", 9, color="#333333", style="italic")
        label(ax, x + 13, 7.2, test, 9)
        if i:
            arrow(ax, (x - 2.9, 13), (x - 0.1, 13))
    return fig


FIGURES = {"overview": overview, "masks": masks, "learned": learned}


def main(argv: list[str] | None = None) -> int:
    """Write every diagram; returns 0, or exits with code 2 and one line if the folder cannot be written."""
    parser = argparse.ArgumentParser(description="Draw the diagrams of chapter 7 as SVG files.", allow_abbrev=False)
    parser.add_argument("--output", type=Path, default=Path(__file__).resolve().parent / "figures", help="folder to write to")
    parser.add_argument("--format", choices=["svg", "png"], default="svg", help="file type")
    args = parser.parse_args(argv)
    plt.rcParams.update({"svg.hashsalt": "chapter 7"})
    try:
        args.output.mkdir(parents=True, exist_ok=True)
        for name, draw in FIGURES.items():
            fig = draw()
            metadata = {"Date": None} if args.format == "svg" else None  # the same bytes on every run
            fig.savefig(args.output / f"{name}.{args.format}", bbox_inches="tight", metadata=metadata)
            plt.close(fig)
    except OSError as error:
        parser.exit(2, f"{parser.prog}: error: cannot write to {args.output}: {error.strerror}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
