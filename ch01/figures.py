"""Draw the figures of this chapter as SVG files into `figures/`, and hold the published numbers that they show.

Run it:  python figures.py
"""

import argparse
import sys
from pathlib import Path

import matplotlib.pyplot as plt

# The palette of the whole course (ch02/01_main-chapter-code/plot_style.py), and paler shades to fill boxes with.
COLORS = {"blue": "#0072B2", "orange": "#E69F00", "green": "#009E73", "red": "#D55E00", "purple": "#CC79A7", "black": "#000000"}
SOFT = {"blue": "#CFE3F2", "orange": "#FBE6BF", "green": "#C7EBDD", "red": "#F6D5C2", "gray": "#EEEEEE", "white": "#FFFFFF"}

# What SmolLM2-135M-Instruct says may follow, in percent (a test asks the model again).
PROMPT = "The tide comes in twice a"
NEXT_TOKENS = {"day": 33.9, "year": 26.0, "decade": 17.7, "century": 7.9, "week": 3.8, "month": 3.3, "minute": 1.1, "night": 1.0}
# The likeliest token at each step, and its probability in percent.
LOOP_PROMPT = "The sun rises in the"
LOOP = [(" sky", 41), (",", 54), (" casting", 15), (" a", 66), (" golden", 52), (" glow", 87)]

# (name, parameters, training tokens, where the label stands); the sources are in the table of section 1.5.
MODELS = [
    ("GPT-3", 175e9, 300e9, "left"),
    ("Gopher", 280e9, 300e9, "right"),
    ("Chinchilla", 70e9, 1.4e12, "below left"),
    ("Llama 2 7B", 7e9, 2e12, "left"),
    ("Llama 2 70B", 70e9, 2e12, "right"),
    ("Llama 3.1 8B", 8e9, 15e12, "left"),
    ("Llama 3.1 405B", 405e9, 15.6e12, "left"),
    ("DeepSeek-V3", 671e9, 14.8e12, "right"),
    ("SmolLM2 135M", 135e6, 2e12, "below"),
    ("Gemma 3 270M", 268e6, 6e12, "right"),
    ("gpt2-mini (ours)", 12_368_064, 9_799_680, "right"),
    ("story model (ours)", 28_920_832, 50_688, "right"),
]
TOKENS_PER_PARAMETER = 20  # Hoffmann et al. 2022

# (corpus, billions of tokens, percent of the tokens drawn in training): Brown et al. 2020, table 2.2.
GPT3_DATA = [
    ("Common Crawl, filtered", 410, 60),
    ("WebText2", 19, 22),
    ("Books1", 12, 8),
    ("Books2", 55, 8),
    ("Wikipedia", 3, 3),
]
GPT3_TRAINING_TOKENS = 300  # billions


def canvas(width: float, height: float) -> tuple[plt.Figure, plt.Axes]:
    """An empty drawing whose units are inches, so that 10-point text takes the same room in every diagram."""
    fig = plt.figure(figsize=(width, height))
    ax = fig.add_axes((0, 0, 1, 1))
    ax.set(xlim=(0, width), ylim=(0, height))
    ax.axis("off")
    return fig, ax


def box(ax: plt.Axes, x: float, y: float, width: float, height: float, text: str, color: str = "gray", size: float = 10) -> None:
    """A filled rectangle with centered text; x and y are its center."""
    ax.add_patch(plt.Rectangle((x - width / 2, y - height / 2), width, height, facecolor=SOFT[color], edgecolor="black", linewidth=0.8))
    ax.text(x, y, text, ha="center", va="center", fontsize=size)


def arrow(ax: plt.Axes, *points: tuple[float, float], color: str = "black") -> None:
    """A line through the points with an arrow head at its end."""
    for start, end in zip(points[:-2], points[1:-1]):
        ax.plot(*zip(start, end), color=color, linewidth=1.4)
    style = {"arrowstyle": "-|>", "color": color, "linewidth": 1.4, "shrinkA": 0, "shrinkB": 0}
    ax.annotate("", xy=points[-1], xytext=points[-2], arrowprops=style)


def plain_axes(ax: plt.Axes) -> None:
    ax.spines[["top", "right"]].set_visible(False)


def next_token() -> plt.Figure:
    """The likeliest next tokens after one prompt, and what all others get together."""
    fig, ax = plt.subplots(figsize=(6.6, 3.4), layout="constrained")
    names = [*NEXT_TOKENS, "any other of 49,144 tokens"]
    values = [*NEXT_TOKENS.values(), 100 - sum(NEXT_TOKENS.values())]
    ax.barh(names[::-1], values[::-1], color=[COLORS["orange"]] + [COLORS["blue"]] * len(NEXT_TOKENS))
    for i, value in enumerate(values[::-1]):
        ax.text(value + 0.4, i, f"{value:.1f}%", va="center", fontsize=9)
    ax.set(xlabel="probability of being next (percent)", xlim=(0, 40))
    ax.set_title(f"“{PROMPT} ...”", loc="left", fontsize=11)
    plain_axes(ax)
    return fig


def nested() -> plt.Figure:
    """Four circles of ideas, one inside the other, each with an example."""
    fig, ax = canvas(6.6, 3.45)
    rings = [
        ("artificial intelligence", "a chess program that follows written rules", "gray"),
        ("machine learning", "a spam filter that learns the weight of each word", "orange"),
        ("deep learning: many layers", "a network that finds faces in photographs", "green"),
        ("large language models", "GPT, Llama, Gemma; the models of this course", "blue"),
    ]
    for i, (name, example, color) in enumerate(rings):
        left, bottom = 0.15 + 0.28 * i, 0.12
        width, height = 6.3 - 0.56 * i, 3.2 - 0.78 * i
        ax.add_patch(plt.Rectangle((left, bottom + 0.06 * i), width, height, facecolor=SOFT[color], edgecolor="black", linewidth=0.8))
        top = bottom + 0.06 * i + height
        ax.text(left + 0.15, top - 0.22, name, fontsize=10.5, fontweight="bold", va="center")
        ax.text(left + 0.15, top - 0.5, example, fontsize=9.5, va="center")
    return fig


def stages() -> plt.Figure:
    """From text to a model in use, with the chapter that builds each stage."""
    fig, ax = canvas(7.2, 4.5)
    top, middle, low = 4.0, 2.55, 0.85
    for x, text, color in [
        (0.85, "text\nweb, books, code", "gray"),
        (2.65, "tokens\nchapter 2", "gray"),
        (4.55, "pretraining\nchapter 5", "blue"),
        (6.35, "base model:\ncontinues texts", "green"),
    ]:
        box(ax, x, top, 1.5, 0.7, text, color)
    for start, end in [(1.6, 1.9), (3.4, 3.8), (5.3, 5.6)]:
        arrow(ax, (start, top), (end, top))
    box(ax, 2.65, middle, 1.5, 0.7, "empty model\nchapters 3 and 4", "gray")
    arrow(ax, (3.4, middle), (4.55, middle), (4.55, top - 0.35))
    box(ax, 5.75, middle, 1.75, 0.7, "fine-tuning:\nclassify, chapter 6", "blue")
    arrow(ax, (6.0, top - 0.35), (6.0, middle + 0.35))
    arrow(ax, (6.9, top - 0.35), (6.9, 1.65), (0.75, 1.65), (0.75, low + 0.4))
    for i, (text, color) in enumerate([
        ("fine-tuning:\ninstructions\nchapter 7", "blue"),
        ("preferences\nchapter 7", "blue"),
        ("reinforcement\nlearning\n(read only)", "white"),
        ("assistant:\nanswers\nrequests", "green"),
        ("evaluation\nand use\nchapter 7", "orange"),
    ]):  # fmt: skip
        box(ax, 0.75 + 1.4 * i, low, 1.15, 0.8, text, color)
        if i:
            arrow(ax, (0.75 + 1.4 * i - 0.82, low), (0.75 + 1.4 * i - 0.58, low))
    arrow(ax, (6.35, low - 0.4), (6.35, 0.12), (0.75, 0.12), (0.75, low - 0.4), color=COLORS["red"])
    ax.text(3.55, 0.26, "what goes wrong in use becomes new data", ha="center", va="center", fontsize=9, color=COLORS["red"])
    return fig


def attention() -> plt.Figure:
    """From which words one word takes how much; weights made up for the picture."""
    fig, ax = canvas(7.2, 2.3)
    words = ["The", "boat", "would", "not", "move", "because", "it", "was", "full"]
    places = [0.5 + 0.76 * i for i in range(len(words))]
    weights = [0.05, 0.55, 0.03, 0.04, 0.18, 0.06, 0.09]
    for i, (word, x) in enumerate(zip(words, places)):
        color, weight = ("#AAAAAA" if i > 6 else "black"), ("bold" if i == 6 else None)
        ax.text(x, 0.75, word, ha="center", va="center", fontsize=11, color=color, fontweight=weight)
    for x, weight in zip(places[:6], weights):
        style = {"arrowstyle": "-", "connectionstyle": "arc3,rad=0.35", "color": COLORS["blue"], "alpha": 0.75}
        ax.annotate("", xy=(x, 0.95), xytext=(places[6], 0.95), arrowprops={**style, "linewidth": 12 * weight + 0.5})
    for x, weight in zip(places, weights):
        ax.text(x, 0.42, f"{weight:.2f}", ha="center", va="center", fontsize=9.5, color=COLORS["blue"])
    ax.text(0.5 * (places[7] + places[8]), 0.42, "not yet read", ha="center", va="center", fontsize=9, color="#777777")
    ax.text(3.6, 0.1, "how much “it” takes from each word (together 1)", ha="center", va="center", fontsize=9.5)
    return fig


def grid(ax: plt.Axes, left: float, top: float, seen, rows: list[str], columns: list[str], color: str) -> None:
    """A table of who sees whom; `seen(row, column)` fills a cell. Cells are 0.24 wide and high."""
    size = 0.24
    for r, row in enumerate(rows):
        ax.text(left - 0.06, top - size * (r + 0.5), row, ha="right", va="center", fontsize=9)
        for c in range(len(columns)):
            corner, fill = (left + size * c, top - size * (r + 1)), SOFT[color if seen(r, c) else "white"]
            ax.add_patch(plt.Rectangle(corner, size, size, facecolor=fill, edgecolor="black", linewidth=0.7))
    for c, column in enumerate(columns):
        ax.text(left + size * (c + 0.5), top + 0.06, column, ha="center", va="bottom", rotation=90, fontsize=9)


def architectures() -> plt.Figure:
    """Three families of transformers by who sees whom: encoder-only, decoder-only, encoder-decoder."""
    fig, ax = canvas(7.2, 3.7)
    english, german = ["The", "boat", "came", "home"], ["Das", "Boot", "kam", "heim"]
    masked = ["The", "[?]", "came", "home"]
    for x, title, family in [
        (1.15, "encoder-only", "BERT, 2018"),
        (3.2, "decoder-only", "GPT, 2018, and nearly all LLMs"),
        (5.7, "encoder-decoder", "the transformer of 2017, T5"),
    ]:
        ax.text(x, 3.5, title, ha="center", fontsize=10.5, fontweight="bold")
        ax.text(x, 3.28, family, ha="center", fontsize=9)
    grid(ax, 0.7, 2.5, lambda row, column: True, masked, masked, "orange")
    grid(ax, 2.8, 2.5, lambda row, column: column <= row, english, english, "blue")
    grid(ax, 4.6, 2.5, lambda row, column: True, german, german, "orange")
    grid(ax, 4.6, 1.4, lambda row, column: True, english, [""] * 4, "green")
    grid(ax, 5.8, 1.4, lambda row, column: column <= row, [""] * 4, english, "blue")
    for x, y, text in [
        (1.15, 1.0, "guesses a hidden word\nfrom both sides:\n[?] is “boat”"),
        (3.15, 1.0, "guesses the next word\nfrom the left:\n“The boat came ...”"),
        (6.45, 2.25, "reads a whole text,\nwrites another\nfrom the left"),
    ]:
        ax.text(x, y, text, ha="center", va="center", fontsize=9)
    ax.text(3.6, 0.15, "A colored cell: the word of this row may look at the word of this column.", ha="center", va="center", fontsize=9.5)
    return fig


def loop() -> plt.Figure:
    """The text grows by one token a step; each step reads everything so far."""
    fig, ax = canvas(7.2, 3.1)
    ax.text(0.15, 2.9, "the model reads ...", fontsize=10, va="center")
    ax.text(7.05, 2.9, "... and appends the likeliest token", fontsize=10, va="center", ha="right")
    text = LOOP_PROMPT
    for i, (token, percent) in enumerate(LOOP):
        y = 2.5 - 0.44 * i
        ax.add_patch(plt.Rectangle((0.15, y - 0.15), 4.55, 0.3, facecolor=SOFT["gray"], edgecolor="black", linewidth=0.8))
        ax.text(0.25, y, text, fontsize=9.5, va="center")
        arrow(ax, (4.75, y), (5.15, y))
        box(ax, 5.75, y, 1.1, 0.3, token.strip(), "orange", 9.5)
        ax.text(6.45, y, f"{percent}%", fontsize=9.5, va="center")
        if i:
            arrow(ax, (5.75, y + 0.29), (5.75, y + 0.22), (4.0, y + 0.22), (4.0, y + 0.15), color=COLORS["red"])
        text += token
    return fig


def scale() -> plt.Figure:
    """Parameters against training tokens of published models and of this course's own."""
    fig, ax = plt.subplots(figsize=(7.2, 4.4), layout="constrained")
    line = [1e6, 2e12]
    sides = {"right": ((7, 0), "left"), "left": ((-7, 0), "right"), "below": ((0, -11), "center"), "below left": ((-6, -6), "right")}
    ax.plot(line, [TOKENS_PER_PARAMETER * n for n in line], color="#888888", linestyle="--", linewidth=1)
    ax.text(6e8, 4e9, "20 tokens a parameter", rotation=20, fontsize=9, color="#555555", ha="center")
    for name, parameters, tokens, side in MODELS:
        ours = "ours" in name
        ax.scatter(parameters, tokens, s=40, color=COLORS["red" if ours else "blue"], marker="s" if ours else "o", zorder=3)
        offset, align = sides[side]
        ax.annotate(name, (parameters, tokens), xytext=offset, textcoords="offset points", ha=align, va="center", fontsize=9)
    ax.set(xscale="log", yscale="log", xlim=(3e6, 9e12), ylim=(1e4, 1e14), xlabel="parameters", ylabel="tokens read in training")
    ax.set_title("Newer models read far more for their size", loc="left", fontsize=11)
    plain_axes(ax)
    return fig


def data_mixture() -> plt.Figure:
    """GPT-3's corpora: their share of the tokens on hand, and of those drawn in training."""
    fig, ax = plt.subplots(figsize=(6.6, 3.3), layout="constrained")
    total = sum(tokens for _, tokens, _ in GPT3_DATA)
    for i, (name, tokens, weight) in enumerate(GPT3_DATA[::-1]):
        for offset, value, color in [(0.2, 100 * tokens / total, "orange"), (-0.2, weight, "blue")]:
            ax.barh(i + offset, value, height=0.36, color=COLORS[color])
            ax.text(value + 0.8, i + offset, f"{value:.0f}%" if value >= 1 else f"{value:.1f}%", va="center", fontsize=9)
    ax.set_yticks(range(len(GPT3_DATA)), [name for name, *_ in GPT3_DATA[::-1]])
    ax.set(xlabel="percent", xlim=(0, 95))
    ax.legend(["share of the tokens on hand", "share of the tokens drawn"], loc="lower right", fontsize=9, frameon=False)
    ax.set_title("GPT-3: small, good corpora are drawn more often", loc="left", fontsize=11)
    plain_axes(ax)
    return fig


FIGURES = {
    "next-token": next_token,
    "nested": nested,
    "stages": stages,
    "attention": attention,
    "architectures": architectures,
    "data-mixture": data_mixture,
    "scale": scale,
    "loop": loop,
}


def main(argv: list[str] | None = None) -> int:
    """Write every figure; returns 0, or exits with code 2 and one line if the folder cannot be written."""
    parser = argparse.ArgumentParser(description="Draw the figures of chapter 1.", allow_abbrev=False)
    parser.add_argument(
        "--output",
        type=Path,
        default=Path(__file__).resolve().parent / "figures",
        metavar="DIR",
        help="folder to write to (default: figures)",
    )
    parser.add_argument("--format", choices=["svg", "png"], default="svg", help="file type (default: %(default)s)")
    args = parser.parse_args(argv)
    plt.rcParams.update({"svg.hashsalt": "chapter 1", "xtick.labelsize": 9, "ytick.labelsize": 9})
    try:
        args.output.mkdir(parents=True, exist_ok=True)
        for name, draw in FIGURES.items():
            fig = draw()
            metadata = {"Date": None} if args.format == "svg" else None  # the same bytes on every run
            fig.savefig(args.output / f"{name}.{args.format}", facecolor="white", metadata=metadata, dpi=100)
            plt.close(fig)
    except OSError as error:
        parser.exit(2, f"{parser.prog}: error: cannot write to {args.output}: {error.strerror}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
