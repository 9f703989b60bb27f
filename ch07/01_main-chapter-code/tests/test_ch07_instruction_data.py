"""The instruction data and the preference data keep their rules, and each rule sees the fault it was made for."""

import json
import re
from collections import Counter
from functools import cache
from pathlib import Path

import data_rules
import instruction_data_checks as checks
import make_data_card
import pytest

FOLDER = Path(checks.__file__).resolve().parent
PREFERENCE_FILE = FOLDER.parent / "04_preference-tuning-with-dpo" / "instruction-data-with-preference.json"
TONES_FILE = FOLDER / "tests" / "preference-tones.txt"  # + courteous, - curt: noted when the rewrites were written


@cache
def stored():
    """The real files: entries, families, preferences, tones."""
    tones = "".join(TONES_FILE.read_text(encoding="utf-8").split())
    preferences = json.loads(PREFERENCE_FILE.read_text(encoding="utf-8")) if PREFERENCE_FILE.exists() else None
    return checks.load_data(), checks.load_families(), preferences, tones


@pytest.fixture
def data():
    return [dict(entry) for entry in stored()[0]]


@pytest.fixture
def families():
    return [dict(row) for row in stored()[1]]


@pytest.fixture
def preferences():
    if stored()[2] is None:
        pytest.skip("this folder was copied alone; the preferences lie in the folder 04 beside it")
    return [dict(pair) for pair in stored()[2]]


def must_see(faults, *words):
    """Assert that one fault names all the words."""
    assert any(all(word in fault for word in words) for fault in faults), (words, faults[:5])


def place(families, family, part, kind=None):
    """Position of the first entry of a family in a split."""
    for number, row in enumerate(families):
        if row["family"] == family and data_rules.split_of(number) == part and (kind is None or row["check"]["kind"] == kind):
            return number
    raise LookupError(family)


# ---- the real data ----


def test_the_data_has_no_fault(data, families):
    assert data_rules.find_faults(data, families) == []


def test_the_preferences_have_no_fault(data, preferences):
    assert data_rules.find_preference_faults(data, preferences, stored()[3]) == []


def test_counts_and_splits_are_the_published_ones(data, families):
    assert len(data) == len(families) == 1100
    assert [len(part) for part in checks.split(data)] == [935, 110, 55]
    assert sum(row["check"] is not None for row in families) == 460
    sizes = Counter(row["family"] for row in families)
    assert len(sizes) == 22 and set(sizes.values()) == {40, 60}
    for part, (large, small) in zip(checks.split(families), ((51, 34), (6, 4), (3, 2))):
        held = Counter(row["family"] for row in part)
        assert all(held[family] == (large if size == 60 else small) for family, size in sizes.items())


def test_the_first_validation_item_is_short(data):
    entry = data[1045]
    assert len(checks.question_of(entry).split()) <= 20 and len(entry["output"].split()) <= 10


def test_files_are_utf_8_with_unix_line_ends_and_one_newline_at_the_end():
    for path in filter(Path.exists, (checks.DATA_FILE, checks.FAMILIES_FILE, PREFERENCE_FILE)):
        raw = path.read_bytes()
        assert raw.endswith(b"]\n") and b"\r" not in raw and b"\\u" not in raw and not raw.startswith(b"\xef\xbb\xbf"), path.name


def test_the_split_refuses_another_number_of_entries(data):
    with pytest.raises(ValueError, match="1099 entries.*1100"):
        checks.split(data[1:])


def test_the_data_card_in_the_readme_is_current(capsys):
    assert make_data_card.main(["--check"]) == 0, capsys.readouterr().out


def test_a_stale_data_card_is_seen_and_mended(tmp_path, capsys):
    readme = tmp_path / "README.md"
    text = make_data_card.README.read_text(encoding="utf-8")
    readme.write_text(re.sub(r"1,100 entries, (?=\d)", "1,099 entries, ", text), encoding="utf-8")
    assert make_data_card.main(["--check", "--readme", str(readme)]) == 1
    assert make_data_card.main(["--readme", str(readme)]) == 0
    assert readme.read_text(encoding="utf-8") == make_data_card.README.read_text(encoding="utf-8")
    assert (tmp_path / "data-lengths.svg").read_text(encoding="utf-8").count("<svg") == 1


def test_a_readme_without_markers_is_one_line_and_exit_code_2(tmp_path, capsys):
    (tmp_path / "README.md").write_text("# empty\n", encoding="utf-8")
    with pytest.raises(SystemExit) as ended:
        make_data_card.main(["--readme", str(tmp_path / "README.md")])
    assert ended.value.code == 2 and capsys.readouterr().err.count("\n") == 1


def test_tone_can_be_told_from_the_words_alone(preferences):
    """What DPO is to learn is in the texts: a linear classifier tells courteous from curt rewrites it has not seen."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import cross_val_score
    from sklearn.pipeline import make_pipeline

    rewrites = [pair["rejected"] if pair["chosen"] == pair["output"] else pair["chosen"] for pair in preferences]
    added = [" ".join(w for w in re.findall(r"[\w']+|[!?]", r) if w not in p["output"].split()) for r, p in zip(rewrites, preferences)]
    vectors = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, token_pattern=r"[\w']+|[!?]")
    found = cross_val_score(make_pipeline(vectors, LogisticRegression(C=10)), added, [tone == "+" for tone in stored()[3]], cv=5)
    assert found.mean() > 0.8
    friendly = [tone for text, tone in zip(added, stored()[3]) if re.search(r"\b(?:glad|pleasure|happy to|thank you|lovely)\b", text)]
    assert len(friendly) > 50 and friendly.count("+") > 0.9 * len(friendly)  # and not the other way round


def test_every_rewrite_still_passes_its_verifier(preferences, families):
    wrong = []
    for number, (pair, row) in enumerate(zip(preferences, families)):
        for side in ("chosen", "rejected"):
            if row["check"] is not None and not checks.verify(row["check"], pair[side], checks.question_of(pair)):
                wrong.append((number, side, pair[side]))
    assert wrong == []


# ---- planted faults of the data ----


def test_many_faults_at_once_are_all_named(data, families):
    wrong = place(families, "unit_conversion", "test")
    data[wrong]["output"] = "It is 12345.6."
    data[40] = dict(data[20])
    data[1060] = dict(data[21])
    data[100]["output"] = "The cart  is being pulled."
    data[101]["output"] = "The word is 'cart."
    for number, row in enumerate(families):
        if row["family"] == "tense" and data_rules.split_of(number) == "test":
            row["family"] = "grammar"
    faults = data_rules.find_faults(data, families)
    must_see(faults, "wrong answer", f"entry {wrong} (test)")
    must_see(faults, "duplicate", "entry 40 (train) repeats entry 20 (train)")
    must_see(faults, "leak", "entry 1060 (val)", "entry 21 (train)")
    must_see(faults, "double space", "entry 100 (train)")
    must_see(faults, "unbalanced quotes", "entry 101 (train)")
    must_see(faults, "missing family", "tense is not in test")
    assert not any(f"entry {number} (" in fault for fault in faults for number in (41, 99, 500, 936))


def test_a_repeated_question_is_seen_whatever_its_punctuation(data, families):
    data[500] = dict(data[20], instruction=data[20]["instruction"].upper().replace(".", "!"))
    must_see(data_rules.duplicate_faults(data, families), "duplicate", "entry 500 (train)", "entry 20 (train)")


def test_a_repeated_question_in_the_validation_split_is_a_duplicate_and_a_leak(data, families):
    data[1060] = dict(data[20])
    must_see(data_rules.duplicate_faults(data, families), "duplicate", "entry 1060 (val)", "entry 20 (train)")
    must_see(data_rules.leak_faults(data, families), "leak", "entry 1060 (val)", "1.00")


@pytest.mark.parametrize(
    "taught, asked",
    [
        ("Convert 12 miles of road to kilometers.", "Convert 35 miles of road to kilometers."),
        ("Which river flows through Vienna?", "Which river flows through Prague?"),
        ("How many letters does the word 'gondola' have?", "How many letters does the word 'iceberg' have?"),
    ],
)
def test_a_template_with_another_number_name_or_word_is_seen(data, families, taught, asked):
    data[30] = {"instruction": taught, "input": "", "output": data[30]["output"]}
    data[1000] = {"instruction": asked, "input": "", "output": data[1000]["output"]}
    must_see(data_rules.shared_faults(data, families), "shared template", "entry 1000 (test)", "entry 30 (train)")


def test_a_template_with_another_number_in_the_input_is_seen(data, families):
    data[30] = dict(data[30], instruction="Turn the length into feet.", input="The rope is 12 meters long.")
    data[1060] = dict(data[1060], instruction="Turn the length into feet.", input="The rope is 4.5 meters long.")
    faults = list(data_rules.shared_faults(data, families))
    must_see(faults, "shared template", "entry 1060 (val)", "entry 30 (train)")
    must_see(faults, "shared instruction", "entry 1060 (val)", "entry 30 (train)")


@pytest.mark.parametrize(
    "number, other, where",
    [(940, 30, "entry 30 (train)"), (1050, 30, "entry 30 (train)"), (1050, 940, "entry 940 (test)")],
)
def test_a_lightly_reworded_question_is_seen(data, families, number, other, where):
    data[other] = {"instruction": "Explain in one sentence why leaves change their color in autumn.", "input": "", "output": "x"}
    data[number] = {"instruction": "Please explain in a single sentence why leaves change color in autumn.", "input": "", "output": "x"}
    must_see(data_rules.leak_faults(data, families), "leak", f"entry {number} (", where)


def test_the_similarity_equals_a_sum_over_counted_pieces():
    """An independent count: n-grams by hand, weights ln((1 + n) / (1 + df)) + 1, cosine."""
    import math

    texts = ["Name the capital!", "Name a capital", "Sort the list."]
    clean = [" ".join("".join(c for c in t.lower() if c.isalnum() or c == " ").split()) for t in texts]
    grams = [Counter(t[i : i + n] for n in (1, 2, 3) for i in range(len(t) - n + 1)) for t in clean]
    weight = {g: math.log(4 / (1 + sum(g in c for c in grams))) + 1 for c in grams for g in c}

    def cosine(a, b):
        dot = sum(a[g] * b[g] * weight[g] ** 2 for g in a)
        return dot / math.sqrt(sum((a[g] * weight[g]) ** 2 for g in a) * sum((b[g] * weight[g]) ** 2 for g in b))

    ((similarity, best),) = make_data_card.nearest(texts[:1], texts[1:])
    assert best == 0 and similarity == pytest.approx(cosine(grams[0], grams[1]))


@pytest.mark.parametrize("family", ["arithmetic", "unit_conversion", "counting"])
def test_a_wrong_result_is_seen(data, families, family):
    number = place(families, family, "train")
    last = re.findall(r"\d+", data[number]["output"])[-1]
    data[number]["output"] = str(int(last) + 1).join(data[number]["output"].rsplit(last, 1))
    must_see(data_rules.answer_faults(data, families), "wrong answer", f"entry {number} (train)")


def test_a_check_about_something_else_than_the_question_is_seen(data, families):
    number = place(families, "capitals", "train")
    families[number]["check"] = dict(families[number]["check"], country="Samoa")
    must_see(data_rules.check_faults(data, families), "check", f"entry {number} (train)", "Samoa")
    number = place(families, "counting", "test")
    families[number]["check"] = dict(families[number]["check"], text="another text")
    must_see(data_rules.check_faults(data, families), "check", f"entry {number} (test)", "another text")


@pytest.mark.parametrize("field, text", [("output", ""), ("output", "  "), ("instruction", "")])
def test_an_empty_field_is_seen(data, families, field, text):
    data[77][field] = text
    assert data_rules.find_faults(data, families) == [f"empty {field}: entry 77 (train)"]


def test_a_missing_field_a_wrong_type_and_a_missing_entry_are_seen(data, families):
    data[3].pop("input")
    must_see(data_rules.find_faults(data, families), "schema", "entry 3 (train)")
    must_see(data_rules.find_faults(data[4:], families[3:]), "count", "1096 entries")
    must_see(data_rules.find_faults(data[4:], families[3:]), "1097 families for 1096 entries")


@pytest.mark.parametrize("part", ["test", "val"])
def test_a_family_missing_from_a_split_is_seen(data, families, part):
    for number, row in enumerate(families):
        if row["family"] == "idioms" and data_rules.split_of(number) == part:
            row["family"] = "rewriting"
    must_see(data_rules.family_faults(data, families), "missing family", "idioms", part)


def test_too_few_verifiable_entries_are_seen(data, families):
    for row in families[:200]:
        row["check"] = None
    must_see(data_rules.family_faults(data, families), "verifiable: only")


@pytest.mark.parametrize(
    "text, fault",
    [
        ("The sum  is 12.", "double space"),
        ("The sum is 12. ", "space at the end"),
        ("The answer is \"twelve.", "unbalanced quotes"),
        ("The answer is 'twelve.", "unbalanced quotes"),
        ("The answer is twelve'.", "unbalanced quotes"),
        ("The answer (twelve is right.", "unbalanced brackets"),
        ("The answer )twelve( is right.", "unbalanced brackets"),
        ("The answer is “twelve” today.", "curly quote"),
        ("The answer is twelve for everyone", "final punctuation"),
        ("The answer , of course, is twelve.", "space before a mark"),
        ("The answer\u00a0is twelve.", "strange character"),
        ("Write to ann.lee@example.org for the answer.", "private"),
        ("Look it up at www.example.org today.", "private"),
        ("Call 555-010-4477 for the whole answer.", "private"),
        ("That is a stupid thing to ask.", "rude word"),
        (" ".join(["word"] * 61), "length"),
    ],
)
def test_each_fault_of_typing_or_content_is_named(data, families, text, fault):
    number = place(families, "explanations", "test")
    data[number]["output"] = text
    rules = data_rules.hygiene_faults, data_rules.content_faults, data_rules.length_faults
    must_see([line for rule in rules for line in rule(data, families)], fault, f"entry {number} (test)")


@pytest.mark.parametrize(
    "text",
    [
        "Don't wake the dogs' owner; it's 'late'.",
        "She said \"It's late\" (twice).",
        "Bear Takes a Bath in Children's Pool",
        "red, green, blue, yellow, black",
        "Rain taps on the roof;\nthe old cat opens one eye",
        "He asked, \"Who is there?\"",
    ],
)
def test_good_typing_is_not_blamed(text):
    assert list(data_rules.text_faults(text)) == []
    assert not data_rules.is_sentence(text) or re.search(r"[.!?][\"')]*$", text)


def test_a_worn_opening_is_seen(data, families):
    for number in range(45):
        data[number]["instruction"] = f"What is the {data[number]['instruction']}"
    must_see(data_rules.opening_faults(data, families), "opening", "begin with 'what is the'")


def test_too_many_inputs_and_long_instructions_are_seen(data, families):
    for entry in data[:400]:
        entry["input"] = entry["input"] or "text"
    data[5]["instruction"] = " ".join(["word"] * 26) + "."
    must_see(data_rules.length_faults(data, families), "input: empty in")
    must_see(data_rules.length_faults(data, families), "entry 5 (train), instruction has 26 words")


# ---- planted faults of the preferences ----


def planted(preferences, number, **fields):
    preferences[number].update(fields)
    return data_rules.find_preference_faults(stored()[0], preferences, stored()[3])


@pytest.mark.parametrize("number", [0, 1, 2, 3, 500, 940, 1099])
def test_a_swapped_preference_is_seen(preferences, number):
    pair = preferences[number]
    faults = planted(preferences, number, chosen=pair["rejected"], rejected=pair["chosen"])
    must_see(faults, f"preference {number}: swapped")


def test_equal_sides_and_two_rewrites_are_seen(preferences):
    output = preferences[9]["output"]
    must_see(planted(preferences, 9, chosen=output, rejected=output), "preference 9: not exactly one")
    must_see(planted(preferences, 9, chosen="Well, " + output, rejected="So what? " + output), "preference 9: not exactly one")


def rewritten(preferences, number, text):
    side = "rejected" if preferences[number]["chosen"] == preferences[number]["output"] else "chosen"
    return planted(preferences, number, **{side: text})


def test_a_rewrite_without_its_facts_is_seen(preferences):
    number = next(i for i, p in enumerate(preferences) if re.fullmatch(r"The [a-z ]+ is \d+\.", p["output"]))
    output = preferences[number]["output"]
    must_see(rewritten(preferences, number, re.sub(r"\d+", "high", output)), f"preference {number}: lost number")
    number = next(i for i, p in enumerate(preferences) if re.fullmatch(r"The [a-z ]+ is '\w+'\.", p["output"]))
    must_see(rewritten(preferences, number, "Look it up in a dictionary."), f"preference {number}: lost quoted piece")
    number = next(i for i, row in enumerate(stored()[1]) if row["family"] == "explanations")
    must_see(rewritten(preferences, number, "Everybody knows that one."), f"preference {number}: lost words")


def test_a_rewrite_that_rambles_is_seen(preferences):
    output = preferences[12]["output"]
    must_see(rewritten(preferences, 12, output + " Well" + ", well" * 21 + "."), "preference 12: too long")


def test_another_order_and_a_missing_pair_are_seen(data, preferences):
    preferences[7], preferences[8] = preferences[8], preferences[7]
    must_see(planted(preferences, 0), "order: preference 7")
    assert data_rules.find_preference_faults(data, preferences[:-1], stored()[3]) == ["count: 1100 entries, 1099 preferences, 1100 tones"]


def test_one_sided_preferences_are_seen(preferences):
    for pair in preferences[:300]:
        rewrite = pair["rejected"] if pair["chosen"] == pair["output"] else pair["chosen"]
        pair.update(chosen=rewrite, rejected=pair["output"])
    must_see(planted(preferences, 0), "balance")
