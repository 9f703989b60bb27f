"""Recompute the data card of `instruction-data.json`: counts, lengths, openings, similarity of the splits, and the plot.

The numbers stand in README.md between two markers; nobody edits them by hand. Chapter 7, the course's own data.

Write them and the plot:    python make_data_card.py
Only compare them:          python make_data_card.py --check        (exit code 1 if README.md is stale)
"""

import argparse
import re
import sys
from collections import Counter
from pathlib import Path
from statistics import mean, median, quantiles

from instruction_data_checks import DATA_FILE, FAMILIES_FILE, FOLDER, SPLITS, load_data, load_families, question_of, split, summary

README = FOLDER / "README.md"
PLOT = FOLDER / "figures" / "data-lengths.svg"
BEGIN, END = "<!-- data card: begin -->", "<!-- data card: end -->"
THRESHOLD = 0.75  # a test or validation question more similar than this to one of the training set counts as leaked


def normal(text: str) -> str:
    """Lower case, no punctuation, single spaces: how texts are compared."""
    return " ".join(re.sub(r"[^\w\s]", " ", text.lower()).split())


def opening(entry: dict) -> str:
    """The first three words of an instruction, in lower case, without punctuation."""
    return " ".join(normal(entry["instruction"]).split()[:3])


def nearest(texts: list[str], others: list[str]) -> list[tuple[float, int]]:
    """For each text the cosine similarity to the nearest of the others, and its position there.

    Compares character 1-, 2- and 3-grams weighted by TF-IDF, on texts in lower case without punctuation.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer  # imported where it is used: it takes a second

    vectors = TfidfVectorizer(analyzer="char", ngram_range=(1, 3)).fit_transform([normal(text) for text in [*texts, *others]])
    similarity = (vectors[: len(texts)] @ vectors[len(texts) :].T).toarray()  # rows have length 1, so this is the cosine
    best = similarity.argmax(axis=1)
    return [(float(row[column]), int(column)) for row, column in zip(similarity, best)]


def table(header: tuple, rows: list[tuple]) -> list[str]:
    """Markdown lines of a table; all columns but the first stand right."""
    lines = [header, ("---", *["---:"] * (len(header) - 1)), *rows]
    return ["| " + " | ".join(str(cell) for cell in line) + " |" for line in lines]


def length_rows(data: list[dict]) -> list[tuple]:
    """Shortest, median, mean, longest in words of each field; inputs that are empty are left out."""
    rows = []
    for field in ("instruction", "input", "output"):
        lengths = [len(entry[field].split()) for entry in data if entry[field]]
        rows.append((field, min(lengths), f"{median(lengths):g}", f"{mean(lengths):.1f}", max(lengths)))
    return rows


def middle_half(data: list[dict], field: str) -> str:
    """The lengths between which the middle half of the entries lie, as "6 to 10"."""
    low, _, high = quantiles([len(entry[field].split()) for entry in data], n=4, method="inclusive")
    return f"{low:.0f} to {high:.0f}"


def quote(entry: dict) -> str:
    """A question in one line of markdown."""
    text = " / ".join(filter(None, (entry["instruction"], entry["input"]))).replace("\n", " ").replace("|", "\\|").replace("_", "\\_")
    return f"*{text}*"


def card(data: list[dict], families: list[dict]) -> str:
    """Return the data card's computed part as markdown."""
    rows = summary(data, families)
    total = ("total", *(sum(column) for column in list(zip(*rows))[1:]))
    empty = sum(not entry["input"] for entry in data)
    openings = Counter(map(opening, data)).most_common(20)
    train, test, val = split(data)
    held_out = test + val
    found = nearest(list(map(question_of, held_out)), list(map(question_of, train)))
    similarity, mine, other = max((value, i, column) for i, (value, column) in enumerate(found))
    alone = max(nearest([entry["instruction"] for entry in held_out], [entry["instruction"] for entry in train]))[0]
    characters = sum(len(text) for entry in data for text in entry.values())
    lines = [
        f"{len(data):,} entries, {characters:,} characters; splits by position: train {SPLITS['train']}, test {SPLITS['test']}, "
        f"validation {SPLITS['val']}. The input is empty in {empty} entries ({empty / len(data):.0%}).",
        "",
        "**Families.** \"Verified\" counts the entries whose answer a program proves.",
        "",
        *table(("family", "entries", "verified", "train", "test", "validation"), [*rows, total]),
        "",
        "**Lengths in words.**",
        "",
        *table(("field", "shortest", "median", "mean", "longest"), length_rows(data)),
        "",
        f"![Histograms: most instructions have {middle_half(data, 'instruction')} words, most outputs {middle_half(data, 'output')}; "
        f"few are much longer.](figures/{PLOT.name})",
        "",
        f"**Likeness of the splits.** Greatest cosine similarity of a test or validation question to a training question, on character "
        f"1-3-grams weighted by TF-IDF: {similarity:.2f} (allowed: below {THRESHOLD}), between",
        "",
        f"- held out: {quote(held_out[mine])}",
        f"- training: {quote(train[other])}",
        "",
        f"Instructions alone, without their inputs: at most {alone:.2f}.",
        "",
        f"**Openings.** {len(set(map(opening, data)))} different openings of three words; the 20 most frequent:",
        "",
        *table(("opening", "entries", "share"), [(words, count, f"{count / len(data):.1%}") for words, count in openings]),
    ]
    return "\n".join(lines)


def between_markers(text: str, new: str) -> str:
    """Return the text with what stands between the two markers replaced; ValueError if they are missing."""
    head, begin, rest = text.partition(BEGIN)
    old, end, tail = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{README.name} has no lines '{BEGIN}' and '{END}'")
    return f"{head}{BEGIN}\n\n{new}\n\n{END}{tail}"


def draw(data: list[dict], path: Path) -> None:
    """Draw how long instructions and outputs are, as an SVG whose bytes do not depend on the day."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from previous_chapters import COLORS, use_course_style

    use_course_style()
    plt.rcParams["svg.hashsalt"] = "instruction-data"
    fig, axes = plt.subplots(1, 2, sharey=True)
    for ax, field, color in zip(axes, ("instruction", "output"), (COLORS["blue"], COLORS["orange"])):
        lengths = [len(entry[field].split()) for entry in data]
        ax.hist(lengths, bins=[n + 0.5 for n in range(max(lengths) + 1)], color=color, edgecolor="white", linewidth=0.5)
        middle = median(lengths)
        ax.axvline(middle, color=COLORS["black"], linestyle="--", linewidth=1)
        ax.text(middle + 0.8, ax.get_ylim()[1] * 0.92, f"median {middle:g}", fontsize=9)
        ax.set(xlabel=f"words in the {field}", ylabel="entries" if field == "instruction" else "")
    fig.suptitle("Most instructions and outputs are one short sentence", x=0.02, ha="left", fontsize=11)
    path.parent.mkdir(exist_ok=True)
    fig.savefig(path, metadata={"Date": None})
    plt.close(fig)


def main(argv: list[str] | None = None) -> int:
    """Command line; see the top of the file."""
    parser = argparse.ArgumentParser(description="Write or check the data card in README.md.", allow_abbrev=False)
    parser.add_argument("--check", action="store_true", help="only compare; exit code 1 if README.md is stale")
    parser.add_argument("--data", default=str(DATA_FILE), help="instruction data (default: %(default)s)")
    parser.add_argument("--families", default=str(FAMILIES_FILE), help="families and checks (default: %(default)s)")
    parser.add_argument("--readme", default=str(README), help="file with the markers (default: %(default)s)")
    parser.error = lambda message: parser.exit(2, f"{parser.prog}: error: {message}\n")
    args = parser.parse_args(argv)
    readme = Path(args.readme)
    try:
        data, families = load_data(args.data), load_families(args.families)
        text = readme.read_text(encoding="utf-8")
        new = between_markers(text, card(data, families))
    except OSError as error:
        parser.error(f"cannot read {readme}: {error.strerror}")
    except ValueError as error:
        parser.error(str(error))
    if args.check:
        print("the data card is current" if new == text else f"{readme.name} is stale; write it with: python make_data_card.py")
        return 0 if new == text else 1
    readme.write_text(new, encoding="utf-8", newline="\n")
    draw(data, PLOT if readme == README else readme.parent / PLOT.name)
    print(re.search(r"Greatest cosine.*?, between", new, re.S).group())
    return 0


if __name__ == "__main__":
    sys.exit(main())
