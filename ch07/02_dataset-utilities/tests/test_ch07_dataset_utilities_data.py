"""The 200 examples and their second outputs: schema, hygiene, planted pairs, other voice, apart from the chapter's data.

Every rule is a function that returns a list of complaints, and every rule is also run on data with a planted fault.
"""

import copy
import json
import re
import statistics
from pathlib import Path

import pytest
from instructions import DATA_FILE
from second_outputs import is_passive
from sklearn.feature_extraction.text import TfidfVectorizer

FOLDER = Path(__file__).resolve().parent.parent
THRESHOLD = 0.75
FIELDS = ["instruction", "input", "output"]


@pytest.fixture(scope="module")
def examples():
    return json.loads((FOLDER / "instruction-examples.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def modified():
    return json.loads((FOLDER / "instruction-examples-modified.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def readme():
    return (FOLDER / "README.md").read_text(encoding="utf-8")


# ---- the rules ----


def normalized(text):
    return re.sub(r"[^\w\s]", "", text.lower())


def masked(text):
    text = re.sub(r"\d+(?:[.,]\d+)*", "0", text)
    text = re.sub(r"\"[^\"]*\"|(?<!\w)'[^']*'(?!\w)", "X", text)
    return re.sub(r"(?<=[^.!?:\n] )[A-Z][\w']*", "X", text).lower()


def similarities(rows, columns=None):
    """Cosine similarities of character 1-3-gram TF-IDF vectors, fitted on all the texts."""
    rows, columns = [normalized(t) for t in rows], [normalized(t) for t in columns or []]
    vectorizer = TfidfVectorizer(analyzer="char", ngram_range=(1, 3)).fit(rows + columns)
    vectors = vectorizer.transform(rows)
    return (vectors @ (vectorizer.transform(columns) if columns else vectors).T).toarray()


def pairs_found(data, threshold=THRESHOLD):
    matrix = similarities([entry["instruction"] for entry in data])
    return {(i, j): matrix[i, j] for j in range(len(data)) for i in range(j) if matrix[i, j] >= threshold}


def schema_faults(data, fields):
    faults = [] if len(data) == 200 else [f"{len(data)} entries"]
    for i, entry in enumerate(data):
        if list(entry) != fields or not all(isinstance(value, str) for value in entry.values()):
            faults.append(f"{i}: fields {list(entry)}")
        elif not all(entry[field] for field in fields if field != "input"):
            faults.append(f"{i}: an empty field")
    seen = {}
    for i, entry in enumerate(data):
        first = seen.setdefault((entry.get("instruction"), entry.get("input")), i)
        if first != i:
            faults.append(f"{i}: repeats {first}")
    return faults


def hygiene_faults(data, free_ends=()):
    faults = []
    for i, entry in enumerate(data):
        for field, text in entry.items():
            if text != text.strip() or re.search(r"\s\s|[\t\n\r]", text) or not text.isascii():
                faults.append(f"{i} {field}: white space or a character beyond ASCII")
            if text.count('"') % 2 or text.count("(") != text.count(")"):
                faults.append(f"{i} {field}: unbalanced quotes or parentheses")
            if field.startswith("output") and not re.fullmatch(r"[A-Z].*[.?]", text):
                faults.append(f"{i} {field}: not a sentence")
            if len(text.split()) > (14 if field == "instruction" else 22):
                faults.append(f"{i} {field}: too long")
        if entry["instruction"][-1] not in ".?" and i not in free_ends:
            faults.append(f"{i}: the instruction ends without . or ?")
    return faults


def voice_faults(data):
    faults = []
    for i, entry in enumerate(data):
        first, second = entry["output"], entry["output_2"]
        if not second.strip() or normalized(first) == normalized(second):
            faults.append(f"{i}: output_2 is empty or a copy")
        elif is_passive(first) == is_passive(second):
            faults.append(f"{i}: the voice is the same")
        if sorted(re.findall(r"\d+", first)) != sorted(re.findall(r"\d+", second)):
            faults.append(f"{i}: other numbers")
        names = [set(re.findall(r"(?<=[a-z,:] )[A-Z][a-z]+", text)) for text in (first, second)]
        if not all(name in second for name in names[0]) or not all(name in first for name in names[1]):
            faults.append(f"{i}: other names")
    return faults


def opening_faults(data, share=0.04):
    openings = {}
    for i, entry in enumerate(data):
        openings.setdefault(" ".join(normalized(entry["instruction"]).split()[:3]), []).append(i)
    return [f"{opening!r} opens {len(found)}" for opening, found in openings.items() if len(found) > share * len(data)]


def leaks(data, others):
    """Entries of `data` that share an instruction, a masked template, or most of their characters with `others`."""
    texts, other_texts = ([f"{entry['instruction']}\n{entry['input']}" for entry in entries] for entries in (data, others))
    instructions = {normalized(entry["instruction"]) for entry in others}
    templates = {masked(text) for text in other_texts}
    closest = similarities(texts, other_texts).max(axis=1)
    faults = []
    for i, (entry, text) in enumerate(zip(data, texts)):
        if normalized(entry["instruction"]) in instructions:
            faults.append(f"{i}: same instruction")
        if masked(text) in templates:
            faults.append(f"{i}: same template")
        if closest[i] >= THRESHOLD:
            faults.append(f"{i}: similarity {closest[i]:.3f}")
    return faults


def pair_tables(readme):
    """The two tables of pairs on the page: [(i, j, kind, first, second, similarity)] above and below the threshold."""
    line = re.compile(r"^\| (\d+), (\d+) \| (.+?) \| (.+?) \| (.+?) \| ([\d.]+) \|$", re.MULTILINE)
    rows = [(int(i), int(j), kind, first, second, float(value)) for i, j, kind, first, second, value in line.findall(readme)]
    return [row for row in rows if row[5] >= THRESHOLD], [row for row in rows if row[5] < THRESHOLD]


def table_faults(data, rows):
    matrix = similarities([entry["instruction"] for entry in data])
    faults = []
    for i, j, kind, first, second, value in rows:
        if (data[i]["instruction"], data[j]["instruction"]) != (first, second):
            faults.append(f"{i}, {j}: other instructions")
        if abs(matrix[i, j] - value) > 0.0006:
            faults.append(f"{i}, {j}: {matrix[i, j]:.3f} instead of {value}")
    return faults


# ---- the data obey them ----


def test_schema_and_counts(examples, modified):
    assert schema_faults(examples, FIELDS) == []
    assert schema_faults(modified, FIELDS + ["output_2"]) == []
    assert 50 <= sum(bool(entry["input"]) for entry in examples) <= 70


def test_hygiene(examples, modified, readme):
    free = {i for row in pair_tables(readme)[0] if "final punctuation" in row[2] for i in row[:2]}
    assert len(free) == 2 and hygiene_faults(modified, free) == []
    assert opening_faults(examples) == []


def test_modified_is_examples_with_a_second_output(examples, modified):
    assert [{field: entry[field] for field in FIELDS} for entry in modified] == examples


def test_each_second_output_is_in_the_other_voice(modified):
    assert voice_faults(modified) == []


def test_the_planted_pairs_are_found_and_no_others(examples, readme):
    above, _ = pair_tables(readme)
    assert len(above) == 20 and table_faults(examples, above) == []
    assert set(pairs_found(examples)) == {row[:2] for row in above}


def test_pairs_keep_away_from_the_threshold(examples):
    """A few entries more or less, or another version of scikit-learn, must not change what the lesson shows."""
    values = similarities([entry["instruction"] for entry in examples])
    assert not ((values > THRESHOLD - 0.04) & (values < THRESHOLD + 0.02)).any()


def test_paraphrases_and_the_ends_of_the_chain_are_missed(examples, readme):
    above, below = pair_tables(readme)
    assert [row[2] for row in below] == ["the ends of the chain", "same meaning, other words", "same meaning, other words"]
    assert table_faults(examples, below) == []
    (first, middle), (again, last) = [row[:2] for row in above if row[2] == "chain"]
    assert middle == again and below[0][:2] == (first, last)
    triple = [row[:2] for row in above if row[2] == "triple"]
    assert len(triple) == 3 and len({i for pair in triple for i in pair}) == 3


def test_equal_instructions_have_other_inputs(examples, readme):
    rows = [row for row in pair_tables(readme)[0] if row[2].startswith("same instruction")]
    assert len(rows) == 2
    for i, j, *_ in rows:
        assert examples[i]["instruction"] == examples[j]["instruction"] and examples[i]["input"] != examples[j]["input"]


def test_planted_pairs_are_spread_over_the_file(readme):
    rows = [row for rows in pair_tables(readme) for row in rows]
    assert min(j - i for i, j, *_ in rows) >= 9
    assert {i // 50 for row in rows for i in row[:2]} == {0, 1, 2, 3}


def test_data_card_states_the_true_numbers(examples, modified, readme):
    tasks = re.findall(r"^\| [\w ]+ \| [^|]+ \| (\d+) \| (\d+) \| ([\d ]+) \|$", readme, re.MULTILINE)
    positions = [[int(i) for i in row[2].split()] for row in tasks]
    assert sorted(i for row in positions for i in row) == list(range(200))
    for (count, with_input, _), row in zip(tasks, positions):
        assert (int(count), int(with_input)) == (len(row), sum(bool(examples[i]["input"]) for i in row))
    for field in FIELDS + ["output_2"]:
        texts = [entry[field] for entry in modified if entry[field]]
        words, characters = [len(text.split()) for text in texts], [len(text) for text in texts]
        sizes = [f"{f(lengths):g}" for lengths in (words, characters) for f in (min, statistics.median, max)]
        assert f"| `{field}` | {len(texts)} | {' | '.join(sizes)} |" in readme
    inputs, passive = sum(bool(entry["input"]) for entry in examples), sum(is_passive(e["output"]) for e in examples)
    assert f"{inputs} of the 200 entries have one, which is {inputs / 2:g} %" in readme
    assert f"active in {200 - passive} entries and passive in {passive};" in readme
    planted = {row[:2] for rows in pair_tables(readme) for row in rows}
    matrix = similarities([entry["instruction"] for entry in examples])
    highest = max(matrix[i, j] for j in range(200) for i in range(j) if (i, j) not in planted)
    assert f"for two entries that are not in one planted group it is {highest:.2f}." in readme


def test_nothing_is_shared_with_the_chapter_data(examples, readme):
    chapter = json.loads(DATA_FILE.read_text(encoding="utf-8"))
    assert leaks(examples, chapter) == []
    texts, others = ([f"{entry['instruction']}\n{entry['input']}" for entry in entries] for entries in (examples, chapter))
    assert f"(the highest is {similarities(texts, others).max():.2f})" in readme


# ---- and each rule catches a planted fault ----


def changed(data, i, **fields):
    data = copy.deepcopy(data)
    data[i].update(fields)
    return data


def test_schema_rule_sees_a_missing_entry_an_extra_field_an_empty_output_and_a_repeat(examples):
    assert schema_faults(examples[:-1], FIELDS) == ["199 entries"]
    assert schema_faults(changed(examples, 5, note="x"), FIELDS) == [f"5: fields {FIELDS + ['note']}"]
    assert schema_faults(changed(examples, 5, output=""), FIELDS) == ["5: an empty field"]
    assert schema_faults(changed(examples, 5, **examples[2]), FIELDS) == ["5: repeats 2"]


@pytest.mark.parametrize(
    "fields, complaint",
    [
        ({"output": "Two  spaces stand here."}, "0 output: white space or a character beyond ASCII"),
        ({"output": "The sign says \u201cstop\u201d."}, "0 output: white space or a character beyond ASCII"),
        ({"output": 'The sign says "stop.'}, "0 output: unbalanced quotes or parentheses"),
        ({"output": "The sign says stop"}, "0 output: not a sentence"),
        ({"instruction": "Name a tool"}, "0: the instruction ends without . or ?"),
        ({"instruction": "Name " + "very " * 13 + "good tools."}, "0 instruction: too long"),
    ],
)
def test_hygiene_rule_sees_a_slip(examples, fields, complaint):
    assert hygiene_faults(changed(examples, 0, **fields)[:1]) == [complaint]


def test_opening_rule_sees_a_template(examples):
    data = examples[:191] + [{"instruction": f"Name a use for a {thing}."} for thing in "pot pan cup jug mug can tin box bag".split()]
    assert opening_faults(data) == ["'name a use' opens 9"]


@pytest.mark.parametrize(
    "first, second, complaint",
    [
        ("Bees make honey.", "", "output_2 is empty or a copy"),
        ("Bees make honey.", "bees make honey!", "output_2 is empty or a copy"),
        ("Bees make honey.", "Honey comes from bees.", "the voice is the same"),
        ("Honey is made by bees.", "By bees, honey is often made.", "the voice is the same"),
        ("Bees make 3 jars.", "In all, 4 jars are made by bees.", "other numbers"),
        ("The pump was repaired by Ravi.", "Ana repaired the pump.", "other names"),
    ],
)
def test_voice_rule_sees_copies_and_changed_facts(first, second, complaint):
    assert voice_faults([{"output": first, "output_2": second}]) == [f"0: {complaint}"]


def test_an_unplanned_near_duplicate_is_found(examples):
    near = examples[0]["instruction"].replace("?", " then?").replace(".", " now.")
    assert (0, 3) in pairs_found(changed(examples, 3, instruction=near))


def test_table_rule_sees_a_wrong_value_and_a_wrong_position(examples, readme):
    i, j, kind, first, second, value = pair_tables(readme)[0][2]
    assert len(table_faults(examples, [(i, j, kind, first, second, value - 0.01)])) == 1
    assert "other instructions" in table_faults(examples, [(i + 1, j, kind, first, second, value)])[0]


def test_leak_rule_sees_a_shared_instruction_a_template_and_a_variant(examples):
    others = [
        {"instruction": "Name two herbs that suit Oslo.", "input": ""},
        {"instruction": "Choose the better hat.", "input": "a straw hat; a felt hat; both of them are new"},
    ]
    assert leaks(examples, others) == []
    assert "4: same template" in leaks(changed(examples, 4, instruction="Name two herbs that suit Bergen.", input=""), others)
    assert "4: same instruction" in leaks(changed(examples, 4, instruction="Choose the better hat.", input="a cap, a hood"), others)
    variant = changed(examples, 4, instruction="Choose the best hat.", input="a straw hat; a felt hat; both of them are old")
    assert [fault[:13] for fault in leaks(variant, others)] == ["4: similarity"]
