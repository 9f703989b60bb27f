"""Recompute the data card of `instruction-data.json`: families, groups, known tokens, lengths, openings, likeness, and the plot.

The numbers stand in README.md between two markers; nobody edits them by hand. Chapter 7, the course's own data.

Write them and the plot:    python make_data_card.py
Only compare them:          python make_data_card.py --check        (exit code 1 if README.md is stale)
"""

import re
import sys
from collections import Counter
from pathlib import Path
from statistics import mean, median, quantiles

from instruction_data_checks import FOLDER, GROUPS, SPLITS, load_data, load_families, load_verifiable_test, split
from make_instruction_data import OPEN, VERIFIABLE, load_sources, verifiable_entry
from previous_chapters import COLORS, OneLineParser, use_course_style

README = FOLDER / "README.md"
PLOT = FOLDER / "figures" / "data-lengths.svg"
BEGIN, END = "<!-- data card: begin -->", "<!-- data card: end -->"
THRESHOLD = 0.75  # a held-out item more similar than this to one of training counts as leaked
SENTENCES = ("passive", "past_tense", "question", "grammar", "sentiment", "last_word")  # families whose inputs are sentences


def normal(text: str) -> str:
    """Lower case, no punctuation, single spaces: how texts are compared."""
    return " ".join(re.sub(r"[^\w\s]", " ", text.lower()).split())


def item_text(item: list, is_open: bool) -> str:
    """Input and answer of an item; of an open one the instruction too. Plain instructions repeat, so they are left out elsewhere."""
    return "\n".join(item[:3] if is_open else item[:2])


def nearest(texts: list[str], others: list[str]) -> list[tuple[float, int]]:
    """For each text the cosine similarity to the nearest of the others, and its position there.

    Compares character 1-, 2- and 3-grams weighted by TF-IDF, on texts in lower case without punctuation.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer  # imported where it is used: it takes a second

    vectors = TfidfVectorizer(analyzer="char", ngram_range=(1, 3)).fit_transform([normal(text) for text in [*texts, *others]])
    similarity = (vectors[: len(texts)] @ vectors[len(texts) :].T).toarray()  # rows have length 1, so this is the cosine
    best = similarity.argmax(axis=1)
    return [(float(row[column]), int(column)) for row, column in zip(similarity, best)]


def compared(sources: dict) -> dict[str, tuple[list[str], list[str]]]:
    """{family: (held-out texts, training texts)} of the families of sentences, and of all open families together."""
    groups = {family: ([family], False) for family in SENTENCES} | {"open": (list(OPEN), True)}
    return {
        name: tuple([item_text(item, is_open) for family in families for item in sources[family][part]] for part in ("held_out", "train"))
        for name, (families, is_open) in groups.items()
    }


def table(header: tuple, rows: list[tuple]) -> list[str]:
    """Markdown lines of a table; cells with numbers stand right."""
    right = [all(re.match(r"[\d,.]+%?$|$", str(row[column])) for row in rows) for column in range(len(header))]
    lines = [header, tuple("---:" if number else "---" for number in right), *rows]
    return ["| " + " | ".join(str(cell) for cell in line) + " |" for line in lines]


def family_rows(sources: dict, families: list[dict], test: list[dict]) -> list[tuple]:
    """Family, how it is checked, an example, entries by split and group."""
    counts = Counter((part, row["family"]) for part, rows in zip(SPLITS, split(families)) for row in rows)
    counts.update((entry["group"], entry["family"]) for entry in test)
    rows = []
    for family in (*VERIFIABLE, *OPEN):
        source = sources[family]
        if family in OPEN:
            kind, (instruction, asked, output) = "", source["train"][0]
        else:
            entry = verifiable_entry(source, source["train"][0], source["phrasings"][0])
            kind, instruction, asked, output = source["check"], entry["instruction"], entry["input"], entry["output"]
        example = " / ".join(filter(None, (instruction, asked, f"**{output}**"))).replace("\n", " / ").replace("|", "\\|")
        rows.append((family, kind, example, *(counts[part, family] or "" for part in (*SPLITS, *GROUPS))))
    return rows


def known_rows(families: list[dict], test: list[dict]) -> list[tuple]:
    """Verifiable entries by split and group, and how many of them are known."""
    parts = dict(zip(SPLITS, split(families))) | {group: [entry for entry in test if entry["group"] == group] for group in GROUPS}
    checked = {name: [row["known"] for row in rows if row["check"]] for name, rows in parts.items()}
    return [(name, len(flags), sum(flags), f"{sum(flags) / len(flags):.0%}") for name, flags in checked.items()]


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


def likeness_lines(sources: dict) -> list[str]:
    """What is most alike in training and held-out items."""
    rows = []
    for name, (texts, others) in compared(sources).items():
        (similarity, other), text = max(zip(nearest(texts, others), texts))
        pair = (" / ".join(piece for piece in each.split("\n") if piece) for each in (text, others[other]))
        rows.append((name, f"{similarity:.2f}", *(piece if len(piece) < 70 else piece[:67] + "..." for piece in pair)))
    return table(("family", "similarity", "held out", "training"), rows)


def card(sources: dict, data: list[dict], families: list[dict], test: list[dict]) -> str:
    """Return the data card's computed part as markdown."""
    empty = sum(not entry["input"] for entry in data)
    several = sum("\n" in entry["output"] or len(re.findall(r"[.!?](?:\s|$)", entry["output"])) > 1 for entry in data)
    openings = Counter(" ".join(normal(entry["instruction"]).split()[:3]) for entry in data)
    rows = family_rows(sources, families, test)
    total = ("total", "", "", *(sum(number or 0 for number in column) for column in list(zip(*rows))[3:]))
    lines = [
        f"{len(data):,} entries, {sum(len(text) for entry in data for text in entry.values()):,} characters; splits by position: "
        f"train {SPLITS['train']}, test {SPLITS['test']}, validation {SPLITS['val']}. The input is empty in {empty} entries "
        f"({empty / len(data):.0%}); {several} outputs have several sentences or lines.",
        "",
        "**Families**, with the first item of each; the answer is in bold. The last three columns are the groups of the verifiable test.",
        "",
        *table(("family", "check", "example", *SPLITS, *GROUPS), [*rows, total]),
        "",
        "**Known to `gpt2-mini`**: verifiable entries all of whose tokens it has met, apart from those of phrasing and labels.",
        "",
        *table(("part", "verifiable", "known", "share"), known_rows(families, test)),
        "",
        "**Lengths in words.**",
        "",
        *table(("field", "shortest", "median", "mean", "longest"), length_rows(data)),
        "",
        f"![Histograms: most instructions have {middle_half(data, 'instruction')} words, most outputs {middle_half(data, 'output')}; "
        f"few are much longer.](figures/{PLOT.name})",
        "",
        f"**Likeness.** Greatest cosine similarity of a held-out item to a training item of its family, on character 1-3-grams weighted "
        f"by TF-IDF, instructions left out in the families that repeat them (allowed: below {THRESHOLD}):",
        "",
        *likeness_lines(sources),
        "",
        f"**Openings.** {len(openings)} different openings of three words; the ten most frequent:",
        "",
        *table(("opening", "entries", "share"), [(words, n, f"{n / len(data):.1%}") for words, n in openings.most_common(10)]),
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
    fig.suptitle("Instructions are one plain sentence; many outputs are a word, some a paragraph", x=0.02, ha="left", fontsize=11)
    path.parent.mkdir(exist_ok=True)
    fig.savefig(path, metadata={"Date": None})
    plt.close(fig)


def main(argv: list[str] | None = None) -> int:
    """Command line; see the top of the file."""
    parser = OneLineParser("Write or check the data card in README.md.")
    parser.add_argument("--check", action="store_true", help="only compare; exit code 1 if README.md is stale")
    parser.add_argument("--readme", type=Path, default=README, help="file with the markers")
    args = parser.parse_args(argv)
    try:
        data = load_data()
        text = args.readme.read_text(encoding="utf-8")
        new = between_markers(text, card(load_sources(), data, load_families(), load_verifiable_test()))
    except OSError as error:
        parser.error(f"cannot read {args.readme}: {error.strerror}")
    except ValueError as error:
        parser.error(str(error))
    if args.check:
        print("the data card is current" if new == text else f"{args.readme.name} is stale; write it with: python make_data_card.py")
        return 0 if new == text else 1
    args.readme.write_text(new, encoding="utf-8", newline="\n")
    draw(data, PLOT if args.readme == README else args.readme.parent / PLOT.name)
    return 0


if __name__ == "__main__":
    sys.exit(main())
