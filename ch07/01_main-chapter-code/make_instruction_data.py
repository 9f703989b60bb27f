"""Make the instruction data from what was written: phrasings and items, one file a family, in `data-sources/`.

A verifiable family has five phrasings ("Rewrite the sentence in the passive voice.") and items [input, answer, further
accepted answers ...]; an open one has whole entries [instruction, input, output]. This program only deals: phrasings to
items in turn, items to splits (40 of a family to training, 5 of its held-out items to test, 2 to validation, 20 to
`instruction-verifiable-test.json`), each split shuffled by a fixed seed. Chapter 7, the course's own data.

Write all files:    python make_instruction_data.py
Only compare:       python make_instruction_data.py --check        (exit code 1 if a file is stale)
"""

import json
import random
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from instruction_data_checks import DATA_FILE, FAMILIES_FILE, FIELDS, FOLDER, GROUPS, SPLITS, VERIFIABLE_TEST_FILE, question_of
from instruction_data_verifiers import VERIFIERS, plain
from previous_chapters import MODELS_DIR, OneLineParser, gpt2_tokenizer, load_pretrained_gpt, read_text

SOURCES = FOLDER / "data-sources"
PREFERENCE_FILE = FOLDER.parent / "04_preference-tuning-with-dpo" / "instruction-data-with-preference.json"
VERIFIABLE = (
    "passive", "past_tense", "question", "grammar", "spelling", "opposites", "plurals", "translation", "capitals", "category",
    "sentiment", "part_of_speech", "uppercase", "last_word", "larger_number", "sort_numbers", "arithmetic",
)  # fmt: skip
OPEN = {  # train, test, validation
    "rewriting": (39, 4, 3), "writing": (51, 5, 4), "lists": (38, 4, 3), "steps": (38, 4, 3), "json_table": (34, 3, 3),
    "refusal": (18, 2, 2), "unknown": (19, 2, 1), "clarify": (18, 1, 2),
}  # fmt: skip
FAMILIES = (*VERIFIABLE, *OPEN)
TRAIN, TEST, VAL, UNSEEN, SEEN = 40, 5, 2, 20, 6  # items of each verifiable family
SEED = 123


# ---- sources ----


def load_json(path: Path):
    """Read a JSON file; ValueError with one line if it cannot be read."""
    try:
        return json.loads(read_text(path))
    except ValueError as error:
        raise ValueError(str(error) if str(error).startswith("cannot read") else f"{path.name} is not a JSON file: {error}") from None


def sizes(family: str) -> tuple[int, int]:
    """How many items of a family are for training, and how many are held out."""
    return (OPEN[family][0], sum(OPEN[family][1:])) if family in OPEN else (TRAIN, TEST + VAL + UNSEEN)


def load_source(folder: Path, family: str) -> dict:
    """Read one family; ValueError names what is wrong with its form."""
    source = load_json(folder / f"{family}.json")
    found = len(source["train"]), len(source["held_out"])
    if found != sizes(family):
        raise ValueError(f"{family}.json has {found[0]} + {found[1]} items instead of {sizes(family)[0]} + {sizes(family)[1]}")
    if family in OPEN:
        return source
    if source.get("check") not in VERIFIERS or len(set(source["phrasings"])) != 5:
        raise ValueError(f"{family}.json needs five phrasings and a check among {', '.join(VERIFIERS)}")
    return source


def load_sources(folder: Path = SOURCES) -> dict[str, dict]:
    """Read all families, {family: source}."""
    return {family: load_source(folder, family) for family in FAMILIES}


# ---- entries ----


def words_in(asked: str | list[str]) -> tuple[str, ...]:
    """The one or two pieces of an item's input."""
    return (asked,) if isinstance(asked, str) else tuple(asked)


def verifiable_entry(source: dict, item: list, phrasing: str) -> dict:
    """Ask an item in one of its family's phrasings; a phrasing with braces holds the input, another leaves it in the field `input`."""
    asked, answer, *others = item
    pieces = words_in(asked)
    inside = "{" in phrasing
    case = source.get("case", False)
    accept = {plain(text, case): text for text in reversed([answer, *others])}  # "don't" is "do not"
    check = {"kind": source["check"], "accept": [*accept.values()][::-1]} | ({"case": True} if case else {})
    return {
        "instruction": phrasing.format(*pieces) if inside else phrasing,
        "input": "" if inside else ", ".join(pieces),
        "output": source["sentence"].format(input=asked, answer=answer) if "sentence" in source else answer,
        "family": source["family"],
        "check": check,
    }


def dealt(source: dict, items: list, generator: random.Random) -> list[dict]:
    """Ask each item, the phrasings in turn in a shuffled order."""
    phrasings = generator.sample(source["phrasings"], 5)
    return [verifiable_entry(source, item, phrasings[i % 5]) for i, item in enumerate(items)]


def family_entries(source: dict, generator: random.Random) -> dict[str, list[dict]]:
    """The entries of one family by split, {"train": [...], "test": ..., "val": ..., "unseen": ..., "seen": ...}, in source order."""
    held_out = source["held_out"]
    if source["family"] in OPEN:
        num_train, num_test, _ = OPEN[source["family"]]
        entries = [dict(zip(FIELDS, item), family=source["family"], check=None) for item in [*source["train"], *held_out]]
        test, val = num_train, num_train + num_test
        return {"train": entries[:test], "test": entries[test:val], "val": entries[val:], "unseen": [], "seen": []}
    parts = {"train": source["train"], "test": held_out[:TEST], "val": held_out[TEST : TEST + VAL], "unseen": held_out[TEST + VAL :]}
    made = {name: dealt(source, items, generator) for name, items in parts.items()}
    made["seen"] = []
    for i in generator.sample(range(TRAIN), SEEN):  # the words were tuned on, the exact question was not
        forms = [verifiable_entry(source, source["train"][i], phrasing) for phrasing in source["phrasings"]]
        made["seen"].append(generator.choice([form for form in forms if question_of(form) != question_of(made["train"][i])]))
    return made


def rephrased(folder: Path) -> list[dict]:
    """The questions that are asked in other words than the data's phrasings."""
    entries = load_json(folder / "generalize.json")
    return [picked(entry, (*FIELDS, "family", "check")) for entry in entries]


def make_entries(sources: dict[str, dict], folder: Path) -> dict[str, list[dict]]:
    """All entries by split, each split shuffled; validation begins with a short one of the family passive."""
    by_family = {family: family_entries(source, random.Random(f"{SEED} {family}")) for family, source in sources.items()}
    splits = {name: [entry for made in by_family.values() for entry in made[name]] for name in ("train", "test", "val", "unseen", "seen")}
    for name in SPLITS:
        random.Random(f"{SEED} {name}").shuffle(splits[name])
    first = min((entry for entry in splits["val"] if entry["family"] == "passive"), key=lambda entry: len(question_of(entry)))
    splits["val"].remove(first)
    splits["val"].insert(0, first)
    splits["rephrased"] = rephrased(folder)
    if {name: len(splits[name]) for name in SPLITS} != SPLITS:
        raise ValueError(f"the splits have {[len(splits[name]) for name in SPLITS]} entries instead of {list(SPLITS.values())}")
    return splits


# ---- what gpt2-mini knows ----


def tokens_of(entry: dict, tokenizer) -> set[int]:
    """The tokens of an entry's three fields."""
    return {token for field in FIELDS for token in tokenizer.encode(entry[field])}


def known_tokens(tokenizer) -> set[int]:
    """The tokens that gpt2-mini has met: one that never occurred in its training kept the embedding row that all such tokens share."""
    rows = [row.tobytes() for row in load_pretrained_gpt({}, "mini", MODELS_DIR)[0].tok_emb.weight.detach().numpy()]  # vocab_size of them
    ((shared, _),) = Counter(rows).most_common(1)
    return {number for number, row in enumerate(rows) if row != shared}


def mark_known(splits: dict[str, list[dict]]) -> None:
    """Add `known` to each verifiable entry: gpt2-mini has met all its tokens, apart from phrasing and labels.

    These are the tokens that stand in four or more of the family's 40 training entries: whoever tunes on them meets them there.
    """
    tokenizer = gpt2_tokenizer()
    met = known_tokens(tokenizer)
    often = {family: Counter() for family in VERIFIABLE}
    for entry in splits["train"]:
        if entry["check"]:
            often[entry["family"]].update(tokens_of(entry, tokenizer))
    for entry in (entry for part in splits.values() for entry in part if entry["check"]):
        counts = often[entry["family"]]
        entry["known"] = all(token in met or counts[token] >= 4 for token in tokens_of(entry, tokenizer))


# ---- files ----


def picked(entry: dict, keys: tuple) -> dict:
    """Those of the keys that the entry has, with their values, in this order."""
    return {key: entry[key] for key in keys if key in entry}


def one_a_line(rows: list) -> str:
    """JSON with one element of the list on each line."""
    return "[\n" + ",\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n]\n"


def with_preferences(sources: dict, entries: list[dict], folder: Path) -> list[dict]:
    """The entries with `chosen` and `rejected`: one is the output, the other its rewrite, politer or ruder."""
    rewrites = {}
    for family, source in sources.items():
        lines = load_json(folder / "preferences" / f"{family}.json")
        items = source["train"] + source["held_out"][: TEST + VAL if family in VERIFIABLE else None]
        if len(lines) != len(items) or any(tone not in ("polite", "rude") for tone, _ in lines):
            raise ValueError(f"preferences/{family}.json needs a line for each of {len(items)} items, polite or rude")
        for item, line in zip(items, lines):
            forms = [item[:2]] if family in OPEN else [list(map(verifiable_entry(source, item, p).get, ("instruction", "input")))
                                                        for p in source["phrasings"]]  # fmt: skip
            rewrites |= {(family, *form): line for form in forms}
    pairs = []
    for entry in entries:
        tone, text = rewrites[entry["family"], entry["instruction"], entry["input"]]
        sides = {"chosen": text, "rejected": entry["output"]} if tone == "polite" else {"chosen": entry["output"], "rejected": text}
        pairs.append(picked(entry, FIELDS) | sides)
    return pairs


def make_files(folder: Path, output_dir: Path, preferences: Path | None) -> Iterator[tuple[Path, str]]:
    """Yield (path, text) of each file."""
    sources = load_sources(folder)
    splits = make_entries(sources, folder)
    mark_known(splits)
    entries = [entry for name in SPLITS for entry in splits[name]]
    yield output_dir / DATA_FILE.name, json.dumps([picked(entry, FIELDS) for entry in entries], ensure_ascii=False, indent=1) + "\n"
    yield output_dir / FAMILIES_FILE.name, one_a_line([picked(entry, ("family", "check", "known")) for entry in entries])
    test = [
        {**picked(entry, FIELDS), "group": group, **picked(entry, ("family", "check", "known"))}
        for group in GROUPS
        for entry in splits[group]
    ]
    yield output_dir / VERIFIABLE_TEST_FILE.name, one_a_line(test)
    if preferences:
        yield preferences, json.dumps(with_preferences(sources, entries, folder), ensure_ascii=False, indent=1) + "\n"


def main(argv: list[str] | None = None) -> int:
    """Command line; see the top of the file."""
    parser = OneLineParser("Make the instruction data from data-sources/.")
    parser.add_argument("--check", action="store_true", help="only compare; exit code 1 if a stored file differs")
    parser.add_argument("--sources", type=Path, default=SOURCES, help="folder of the families")
    parser.add_argument("--output_dir", type=Path, default=FOLDER, help="folder of the files that are written")
    parser.add_argument(
        "--preferences",
        type=Path,
        help=f"also write the preference data, for example to ../{PREFERENCE_FILE.parent.name}/{PREFERENCE_FILE.name}",
    )
    args = parser.parse_args(argv)
    stale = []
    try:
        for path, text in make_files(args.sources, args.output_dir, args.preferences):
            if not args.check:
                path.write_text(text, encoding="utf-8", newline="\n")
            elif not path.is_file() or path.read_text(encoding="utf-8") != text:
                stale.append(path.name)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    if args.check:
        print(f"stale: {', '.join(stale)}; write with: python make_instruction_data.py" if stale else "the data is what data-sources/ says")
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
