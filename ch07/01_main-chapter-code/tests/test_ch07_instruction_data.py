"""The instruction data keeps its rules, and each rule sees the fault it was made for; what the builder makes is what is stored."""

import copy
import json
import re
from functools import cache
from pathlib import Path

import data_rules
import instruction_data_checks as checks
import make_data_card
import make_instruction_data
import pytest
from previous_chapters import MODELS_DIR, find_mini, gpt2_tokenizer

FOLDER = Path(checks.__file__).resolve().parent
PREAMBLE = "Below is an instruction that describes a task. Write a response that appropriately completes the request."


@cache
def stored():
    """The real files."""
    sources, folder = make_instruction_data.load_sources(), make_instruction_data.SOURCES / "preferences"
    preferences = {family: make_instruction_data.load_json(folder / f"{family}.json") for family in sources}
    return {
        "sources": sources,
        "preferences": preferences,
        "data": checks.load_data(),
        "families": checks.load_families(),
        "test": checks.load_verifiable_test(),
    }


@pytest.fixture
def book():
    return copy.deepcopy(stored())


def must_see(faults, *words):
    """Assert that one fault names all the words."""
    faults = list(faults)
    assert any(all(word in fault for word in words) for fault in faults), (words, faults[:5])


def place(book, family, part):
    """Position of the first entry of a family in a split."""
    return next(n for n, row in enumerate(book["families"]) if row["family"] == family and data_rules.split_of(n) == part)


# ---- the real data ----


def test_the_data_has_no_fault():
    assert data_rules.find_faults(stored()) == []


def test_the_stored_files_are_what_the_builder_makes(capsys):
    assert make_instruction_data.main(["--check"]) == 0, capsys.readouterr().out


def test_counts_of_splits_and_groups(book):
    assert [len(part) for part in checks.split(book["data"])] == [935, 110, 55]
    assert sum(row["check"] is not None for row in book["families"]) == 799
    groups = [entry["group"] for entry in book["test"]]
    assert {group: groups.count(group) for group in checks.GROUPS} == {"unseen": 340, "seen": 102, "rephrased": 40}


def test_questions_of_the_group_seen_ask_training_items_in_another_phrasing(book):
    trained = {entry["output"]: checks.question_of(entry) for entry in book["data"][:935]}
    questions = {checks.question_of(entry) for entry in book["data"]}
    for entry in (entry for entry in book["test"] if entry["group"] == "seen"):
        assert entry["output"] in trained and checks.question_of(entry) not in questions, entry


def test_the_first_validation_item_leaves_room_for_its_answer_in_120_tokens(book):
    entry = book["data"][1045]
    prompt = f"{PREAMBLE}\n\n### Instruction:\n{entry['instruction']}"
    prompt += f"\n\n### Input:\n{entry['input']}" if entry["input"] else ""
    length = len(gpt2_tokenizer().encode(f"{prompt}\n\n### Response:\n{entry['output']}"))
    assert book["families"][1045]["check"] and length <= 85  # 35 tokens are left for another answer


def test_known_entries_are_made_of_tokens_that_the_small_model_has_met(book):
    try:
        find_mini(MODELS_DIR)
    except ValueError:
        pytest.skip("the weights of gpt2-mini are not here")
    tokenizer = gpt2_tokenizer()
    met = make_instruction_data.known_tokens(tokenizer)
    assert len(met) == 13_191
    flags = [row["known"] for row in [*book["families"], *book["test"]] if row["check"]]
    assert 0.3 < sum(flags) / len(flags) < 0.6
    for entry in (entry for entry in book["test"] if entry["family"] == "last_word" and entry["group"] == "unseen"):
        assert entry["known"] == met.issuperset(tokenizer.encode(entry["output"])) or not entry["known"]


def test_files_are_utf_8_with_unix_line_ends_and_one_newline_at_the_end():
    for path in (checks.DATA_FILE, checks.FAMILIES_FILE, checks.VERIFIABLE_TEST_FILE, *make_instruction_data.SOURCES.rglob("*.json")):
        raw = path.read_bytes()
        assert raw.endswith(b"]\n") or raw.endswith(b"}\n"), path.name
        assert b"\r" not in raw and b"\\u" not in raw and not raw.startswith(b"\xef\xbb\xbf"), path.name


# ---- the builder ----


def sources_with(tmp_path, **changed):
    """A folder of sources in which some families are replaced; None leaves one out."""
    for path in make_instruction_data.SOURCES.glob("*.json"):
        if changed.get(path.stem, True) is not None:
            source = changed.get(path.stem) or path.read_text(encoding="utf-8")
            (tmp_path / path.name).write_text(source if isinstance(source, str) else json.dumps(source), encoding="utf-8")
    return tmp_path


BROKEN = [
    ({"capitals": None}, "cannot read .*capitals.json"),
    ({"capitals": "{"}, "capitals.json is not a JSON file"),
    ({"capitals": {"train": [], "held_out": []}}, r"capitals.json has 0 \+ 0 items instead of 40 \+ 27"),
    ({"writing": {"train": [["a", "", "b"]], "held_out": []}}, r"writing.json has 1 \+ 0 items instead of 51 \+ 9"),
]


@pytest.mark.parametrize("changed, message", BROKEN)
def test_a_broken_source_is_one_line_and_exit_code_2(tmp_path, capsys, changed, message):
    with pytest.raises(SystemExit) as ended:
        make_instruction_data.main(["--sources", str(sources_with(tmp_path, **changed)), "--output_dir", str(tmp_path)])
    said = capsys.readouterr().err
    assert ended.value.code == 2 and said.count("\n") == 1 and re.search(message, said)


def test_four_phrasings_or_an_unknown_check_are_refused(tmp_path, book):
    source = book["sources"]["capitals"]
    for changed in (dict(source, phrasings=source["phrasings"][:4]), dict(source, check="guess")):
        with pytest.raises(ValueError, match="capitals.json needs five phrasings and a check"):
            make_instruction_data.load_sources(sources_with(tmp_path, capitals=changed))


def test_a_changed_item_makes_the_stored_files_stale(tmp_path, capsys, book):
    source = book["sources"]["capitals"]
    source["train"][0] = ["Atlantis", "Poseidonis"]
    assert make_instruction_data.main(["--check", "--sources", str(sources_with(tmp_path, capitals=source))]) == 1
    assert "stale: instruction-data.json, instruction-data-families.json" in capsys.readouterr().out


def test_an_item_is_asked_inside_or_beside_its_phrasing():
    source = {"family": "x", "check": "word", "sentence": "The capital of {input} is {answer}."}
    entry = make_instruction_data.verifiable_entry(source, ["France", "Paris"], "What is the capital of {}?")
    assert (entry["instruction"], entry["input"], entry["output"]) == (
        "What is the capital of France?",
        "",
        "The capital of France is Paris.",
    )
    assert entry["check"] == {"kind": "word", "accept": ["Paris"]}
    beside = make_instruction_data.verifiable_entry(source, ["France", "Paris"], "Name the capital.")
    assert (beside["instruction"], beside["input"]) == ("Name the capital.", "France")
    two = make_instruction_data.verifiable_entry({"family": "x", "check": "number"}, [["4", "9"], "9"], "Which is larger, {0} or {1}?")
    assert two["instruction"] == "Which is larger, 4 or 9?" and two["output"] == "9"


def test_accepted_answers_that_the_verifier_takes_for_one_are_listed_once():
    item = ["He don't.", "He doesn't.", "He does not.", "He did not."]
    entry = make_instruction_data.verifiable_entry({"family": "x", "check": "text"}, item, "Correct it.")
    assert entry["check"]["accept"] == ["He doesn't.", "He did not."]


# ---- planted faults ----


def test_a_missing_entry_a_missing_field_and_an_empty_output_are_seen(book):
    book["data"].pop()
    must_see(data_rules.find_faults(book), "count: 1099 entries")
    book = copy.deepcopy(stored())
    book["data"][3].pop("input")
    book["data"][4]["output"] = " "
    book["families"][5]["check"] = None
    faults = data_rules.find_faults(book)
    must_see(faults, "schema: entry 3")
    must_see(faults, "empty: entry 4")
    must_see(faults, "schema: family 5" if stored()["families"][5]["check"] else "entry 3")


@pytest.mark.parametrize("part", ["train", "test", "val", "unseen", "seen"])
def test_a_family_that_is_too_rare_in_a_split_is_seen(book, part):
    if part in checks.SPLITS:
        book["families"][place(book, "passive", part)]["family"] = "question"
    else:
        next(entry for entry in book["test"] if entry["group"] == part and entry["family"] == "passive")["family"] = "question"
    must_see(data_rules.family_faults(book), f"passive is in {part}")
    must_see(data_rules.family_faults(book), f"question is in {part}")


@pytest.mark.parametrize(
    "text, fault",
    [
        ("The sum  is 12.", "double space"),
        ("The sum is 12. ", "space at the end"),
        ('The answer is "twelve.', "unbalanced quotes"),
        ("The answer (twelve is right.", "unbalanced quotes or brackets"),
        ("The answer is \u201ctwelve\u201d today.", "curly quote"),
        ("The answer , of course, is twelve.", "space before a mark"),
        ("The answer\u00a0is twelve.", "strange character"),
        ("Write to ann.lee@example.org for the answer.", "private"),
        ("Look it up at www.example.org today.", "private"),
        ("Call 555-010-4477 for the whole answer.", "private"),
        ("That is a stupid thing to ask.", "rude word"),
        (" ".join(["word"] * 61), "length"),
    ],
)
def test_each_fault_of_typing_or_content_is_named(book, text, fault):
    number = place(book, "writing", "test")
    book["data"][number]["output"] = text
    must_see(data_rules.typing_faults(book), fault, f"entry {number} (test, writing)")


@pytest.mark.parametrize("text", ["Don't wake the dogs' owner.", 'She said "It\'s late" (twice).', '{"a": 1}', "- a\n- b", "1. a\n2. b"])
def test_good_typing_is_not_blamed(text):
    assert list(data_rules.text_faults(text)) == []


def test_a_repeated_question_is_seen_whatever_its_punctuation(book):
    book["data"][500] = dict(book["data"][20], instruction=book["data"][20]["instruction"].upper().replace(".", "!"))
    must_see(data_rules.duplicate_faults(book), "duplicate: entry 500 (train", "entry 20 (train")
    book["test"][3].update({field: book["data"][1000][field] for field in checks.FIELDS})
    must_see(data_rules.duplicate_faults(book), "duplicate: verifiable test 3", "entry 1000 (test")


def test_a_phrasing_that_is_used_too_often_or_is_none_of_the_five_is_seen(book):
    number = place(book, "capitals", "train")
    book["data"][number]["instruction"] = "Kindly name the seat of government of Peru."
    must_see(data_rules.phrasing_faults(book), f"entry {number} is in none of the phrasings of capitals")
    first = book["sources"]["capitals"]["phrasings"][0]
    for number, row in enumerate(book["families"][:935]):
        if row["family"] == "capitals":
            book["data"][number]["instruction"] = first.format(f"Country{number}")
    must_see(data_rules.phrasing_faults(book), f"{first!r} stands 40 times in train")


@pytest.mark.parametrize(
    "family, trained, asked",
    [
        ("passive", ["The cook burned the soup.", "x"], ["A cook bought a carrot.", "y"]),
        ("past_tense", ["He runs home.", "x"], ["The dog ran along a river.", "y"]),
        ("question", ["Leaves fell.", "x"], ["A leaf is green.", "y"]),
        ("sentiment", ["The bigger room smelled.", "negative"], ["A big smile.", "positive"]),
        ("translation", [["carrot", "Spanish"], "zanahoria"], [["carrots", "French"], "carottes"]),
        ("opposites", ["hot", "cold"], ["cold", "warm"]),
    ],
)
def test_a_held_out_word_that_training_has_in_another_form_is_seen(book, family, trained, asked):
    book["sources"][family]["train"][4], book["sources"][family]["held_out"][9] = trained, asked
    must_see(data_rules.word_faults(book), f"shared word: {family} held out 9")


def test_the_same_sum_the_other_way_around_is_seen(book):
    book["sources"]["arithmetic"]["train"][2], book["sources"]["arithmetic"]["held_out"][3] = ["83 + 9", "92"], ["9 plus 83", "92"]
    book["sources"]["larger_number"]["train"][2], book["sources"]["larger_number"]["held_out"][3] = [["4", "9"], "9"], [["9", "4"], "9"]
    must_see(data_rules.repeat_faults(book), "repeated item: arithmetic")
    must_see(data_rules.repeat_faults(book), "repeated item: larger_number")
    book["sources"]["arithmetic"]["held_out"][3] = ["83 - 9", "74"]
    assert not any("arithmetic" in fault for fault in data_rules.repeat_faults(book))


def test_a_lightly_changed_sentence_or_open_task_is_seen(book):
    book["sources"]["passive"]["train"][0] = ["The old cook burned the onion soup.", "The onion soup was burned by the old cook."]
    book["sources"]["passive"]["held_out"][5] = ["The old cook burned the onion soups.", "The onion soups were burned by the old cook."]
    must_see(data_rules.leak_faults(book), "leak: passive held out 5")
    source = book["sources"]["writing"]
    source["held_out"][2] = [source["train"][7][0].replace("a ", "an old "), "", source["train"][7][2]]
    must_see(data_rules.leak_faults(book), "leak: open held out")


def test_the_similarity_equals_a_sum_over_counted_pieces():
    """An independent count: n-grams by hand, weights ln((1 + n) / (1 + df)) + 1, cosine."""
    import math
    from collections import Counter

    texts = ["Name the capital!", "Name a capital", "Sort the list."]
    clean = [" ".join("".join(c for c in t.lower() if c.isalnum() or c == " ").split()) for t in texts]
    grams = [Counter(t[i : i + n] for n in (1, 2, 3) for i in range(len(t) - n + 1)) for t in clean]
    weight = {g: math.log(4 / (1 + sum(g in c for c in grams))) + 1 for c in grams for g in c}

    def cosine(a, b):
        dot = sum(a[g] * b[g] * weight[g] ** 2 for g in a)
        return dot / math.sqrt(sum((a[g] * weight[g]) ** 2 for g in a) * sum((b[g] * weight[g]) ** 2 for g in b))

    ((similarity, best),) = make_data_card.nearest(texts[:1], texts[1:])
    assert best == 0 and similarity == pytest.approx(cosine(grams[0], grams[1]))


def test_a_wrong_answer_a_wrong_form_and_a_check_that_takes_anything_are_seen(book):
    number = place(book, "plurals", "test")
    book["data"][number]["output"] = "knifes"
    must_see(data_rules.answer_faults(book), f"wrong answer: entry {number} (test, plurals)")
    number = place(book, "passive", "train")
    book["data"][number]["output"] = book["data"][number]["output"].lower().rstrip(".")
    must_see(data_rules.answer_faults(book), f"form: entry {number} (train, passive)")
    number = next(n for n, (entry, row) in enumerate(zip(book["data"], book["families"])) if row["family"] == "question" and entry["input"])
    book["families"][number]["check"]["accept"].append(book["data"][number]["input"])
    must_see(data_rules.answer_faults(book), f"echo: entry {number} (")


def test_a_verifier_that_takes_everything_is_seen(book, monkeypatch):
    monkeypatch.setattr(data_rules, "verify", lambda check, answer, question: True)
    must_see(data_rules.answer_faults(book), "too lenient", "capitals")


@pytest.mark.parametrize(
    "family, item, words",
    [
        ("uppercase", ["wet paint", "Wet Paint"], "untrue: uppercase 3"),
        ("last_word", ["The cat sat on the mat.", "cat"], "untrue: last_word 3"),
        ("larger_number", [["9.1", "10"], "9.1"], "untrue: larger_number 3"),
        ("sort_numbers", ["10, 9", "10, 9"], "untrue: sort_numbers 3"),
        ("arithmetic", ["half of 30", "16"], "untrue: arithmetic 3"),
        ("sentiment", ["It was fine.", "neutral"], "label: sentiment 3"),
        ("spelling", ["receive", "receive"], "unchanged: spelling 3"),
        ("grammar", ["He is here.", "He was here.", "He is here."], "unchanged: grammar 3"),
    ],
)
def test_an_answer_that_is_not_what_a_computer_finds_is_seen(book, family, item, words):
    book["sources"][family]["train"][3] = item
    must_see(data_rules.truth_faults(book), words)


@pytest.mark.parametrize(
    "text, value", [("23 + 14", "37"), ("60 minus 25", "35"), ("8 times 4", "32"), ("half of 7", "3.5"), ("double 45", "90")]
)
def test_sums_are_worked_out(text, value):
    assert data_rules.truth("arithmetic", text) == value


def test_lopsided_labels_are_seen(book):
    for item in book["sources"]["sentiment"]["train"][:30]:
        item[1] = "positive"
    for item in book["sources"]["larger_number"]["train"]:
        item[0].sort(key=float)
    must_see(data_rules.balance_faults(book), "balance: sentiment train")
    must_see(data_rules.balance_faults(book), "balance: larger_number train")


@pytest.mark.parametrize(
    "family, rewrite",
    [
        ("passive", "Somebody burned something, I am afraid."),
        ("spelling", "It is recieve, of course."),
        ("larger_number", "The larger one is 17, gladly."),
        ("sort_numbers", "Here you are: 42, 19, 7"),
        ("uppercase", "Gladly: wet paint"),
    ],
)
def test_a_rewrite_without_the_answer_is_seen(book, family, rewrite):
    book["preferences"][family][0] = ["polite", rewrite]
    must_see(data_rules.preference_faults(book), f"preferences: {family} 0, the answer")


def test_a_missing_rewrite_and_one_sided_tones_are_seen(book):
    book["preferences"]["capitals"].pop()
    book["preferences"]["lists"] = [["polite", text] for _, text in book["preferences"]["lists"]]
    must_see(data_rules.preference_faults(book), "preferences: capitals has")
    must_see(data_rules.preference_faults(book), "preferences: lists has 45 polite ones of 45")


# ---- the data card ----


def test_the_data_card_in_the_readme_is_current(capsys):
    assert make_data_card.main(["--check"]) == 0, capsys.readouterr().out


def test_a_stale_data_card_is_seen_and_mended(tmp_path, capsys):
    readme = tmp_path / "README.md"
    text = make_data_card.README.read_text(encoding="utf-8")
    readme.write_text(re.sub(r"1,100 entries, (?=\d)", "1,099 entries, ", text), encoding="utf-8")
    assert make_data_card.main(["--check", "--readme", str(readme)]) == 1
    assert make_data_card.main(["--readme", str(readme)]) == 0
    assert readme.read_text(encoding="utf-8") == text
    assert (tmp_path / "data-lengths.svg").read_text(encoding="utf-8").count("<svg") == 1


def test_a_readme_without_markers_is_one_line_and_exit_code_2(tmp_path, capsys):
    (tmp_path / "README.md").write_text("# empty\n", encoding="utf-8")
    with pytest.raises(SystemExit) as ended:
        make_data_card.main(["--readme", str(tmp_path / "README.md")])
    assert ended.value.code == 2 and capsys.readouterr().err.count("\n") == 1
