"""Near-duplicates: pairs equal those of a brute-force search, positions survive empty fields, removal keeps one of each group."""

import copy
import importlib
import inspect
import json
import random
import re
import shlex
import time
from pathlib import Path

import near_duplicates
import numpy as np
import pytest
from instructions import DATA_FILE
from near_duplicates import (
    THRESHOLD,
    field_text,
    find_near_duplicates,
    find_print_and_remove_near_duplicates,
    preprocess_text,
    repeats,
    similar_pairs,
)
from sklearn.feature_extraction.text import TfidfVectorizer

FOLDER = Path(__file__).resolve().parent.parent
EXAMPLES = FOLDER / "instruction-examples.json"
WORDS = "bake boil bring build carry catch clean cook draw drink drive find fold grow hang heat keep knit lift mix move open".split()


def script():
    return importlib.import_module("find-near-duplicates")


def entries_of(*texts, field="instruction"):
    return [{field: text} for text in texts]


def random_entries(count, seed, empty=0.3):
    """Entries with short texts of few words, so that many are similar, and with fields that are empty, missing or null."""
    dice = random.Random(seed)
    entries = []
    for _ in range(count):
        entry = {}
        for field in ("instruction", "input"):
            if dice.random() < empty:
                entry.update(dice.choice([{}, {field: ""}, {field: None}, {field: " ?! "}]))
            else:
                entry[field] = " ".join(dice.choices(WORDS[:4], k=dice.randint(1, 3)))
        entries.append(entry)
    return entries


def brute_force(rows, columns, threshold, keys):
    """Every pair on its own, from a dense table: {(i, j): similarity}."""
    found = {}
    others = rows if columns is None else columns
    tables = []
    for key in keys:
        texts = [preprocess_text(entry.get(key) or "") for entry in (rows if columns is None else rows + columns)]
        vectorizer = TfidfVectorizer(analyzer="char", ngram_range=(1, 3)).fit([text for text in texts if text])
        dense = vectorizer.transform(texts).toarray()
        tables.append((texts, dense @ dense.T, 0 if columns is None else len(rows)))
    for i in range(len(rows)):
        for j in range(i + 1 if columns is None else 0, len(others)):
            values = []
            for texts, table, shift in tables:
                one, two = texts[i], texts[j + shift]
                if one or two:
                    values.append(table[i, j + shift] if one and two else -1)
            if values and min(values) >= 0 and min(values) >= threshold - 1e-9:
                found[i, j] = min(values)
    return found


# ---- similarity ----


@pytest.mark.parametrize(
    "one, two, same",
    [
        ("What's NEW, friend?", "whats new   friend", True),
        ("“Quoted” text – here…", "quoted text  here", True),
        ("caf\u00e9", "cafe\u0301", True),  # one letter, written as one character and as two
        ("What is 3 + 4?", "What is 3 < 4?", False),
        ("resume", "résumé", False),
        ("हिन्दी", "हन्दी", False),  # a vowel sign is no punctuation
    ],
)
def test_only_case_punctuation_and_spaces_are_ignored(one, two, same):
    assert (preprocess_text(one) == preprocess_text(two)) is same


@pytest.mark.parametrize("keys", [("instruction",), ("instruction", "input")])
@pytest.mark.parametrize("threshold", [0.0, 0.4, THRESHOLD, 1.0])
def test_pairs_are_those_of_a_brute_force_search(monkeypatch, threshold, keys):
    monkeypatch.setattr(near_duplicates, "BLOCK_SIZE", 7)  # several blocks, the last one not full
    entries = random_entries(45, seed=int(threshold * 100))
    assert len(brute_force(entries, None, threshold, keys)) > 1
    for rows, columns in ((entries, None), (entries[:20], entries[20:])):
        expected = brute_force(rows, columns, threshold, keys)
        pairs = similar_pairs(rows, columns, threshold, keys)
        assert [pair[:2] for pair in pairs] == sorted(expected)
        assert np.allclose([pair[2] for pair in pairs], [expected[pair[:2]] for pair in pairs])
        assert all(0 <= pair[2] <= 1 for pair in pairs)


def test_texts_that_differ_in_case_and_punctuation_have_similarity_one_and_reach_threshold_one():
    dice = random.Random(1)
    for _ in range(20):
        text = " ".join(dice.choices(WORDS, k=9))
        data = entries_of(text, text.upper() + "!", "quite another text")
        assert [pair[:2] for pair in similar_pairs(data, threshold=1.0, keys=("instruction",))] == [(0, 1)]


def test_the_planted_pairs_of_the_examples_are_found():
    examples = json.loads(EXAMPLES.read_text(encoding="utf-8"))
    pairs = similar_pairs(examples, keys=("instruction",))
    assert len(pairs) == 20
    rows = re.findall(r"^\| (\d+), (\d+) \| .* \| ([\d.]+) \|$", (FOLDER / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
    planted = {(int(i), int(j)): float(value) for i, j, value in rows if float(value) >= THRESHOLD}
    assert {(i, j): round(value, 3) for i, j, value in pairs} == pytest.approx(planted, abs=0.0006)


def test_values_that_are_no_text_are_compared_and_null_counts_as_empty():
    chats = [[{"role": "user", "content": text}] for text in ("Name a red fruit.", "Name a red fruit!", "Where do owls sleep at noon?")]
    assert [pair[:2] for pair in similar_pairs(entries_of(*chats), threshold=0.9, keys=("instruction",))] == [(0, 1)]
    assert similar_pairs([{"instruction": "Add one.", "input": 5}, {"instruction": "Add one.", "input": 72}]) == []
    assert field_text({"input": None}, "input") == field_text({}, "input") == ""


@pytest.mark.parametrize("threshold", [-0.1, 1.1, float("nan")])
def test_a_threshold_out_of_range_is_refused(threshold):
    for function in (similar_pairs, find_near_duplicates, find_print_and_remove_near_duplicates):
        with pytest.raises(ValueError, match="allowed: 0 to 1"):
            function([], threshold=threshold)


# ---- positions and removal ----


def test_empty_fields_before_between_and_after_do_not_shift_positions():
    data = entries_of("", "Name a fruit.", None, "  ", "Where do owls sleep?", "name a fruit", "", "where do owls sleep", "?!")
    data.insert(0, {"output": "no instruction here"})
    kept, pairs = find_near_duplicates(data)
    assert [(data.index(one), data.index(two)) for one, two, _ in pairs] == [(2, 6), (5, 8)]
    assert all(any(item is entry for entry in data) for pair in pairs for item in pair[:2])
    assert kept == [entry for position, entry in enumerate(data) if position not in (6, 8)]


def test_a_field_that_is_empty_everywhere_changes_nothing():
    data = [{"instruction": "Name a fruit.", "input": ""}, {"instruction": "Where do owls sleep?", "input": ""}]
    assert find_near_duplicates(data, key="input") == (data, [])
    assert find_print_and_remove_near_duplicates(data, remove_duplicates=True) == data
    assert find_near_duplicates([]) == ([], []) and find_print_and_remove_near_duplicates([], True) == []


def test_fields_that_the_first_entry_lacks_are_searched(capsys):
    data = entries_of("Name a fruit.") + entries_of("a long note", "A long note!", field="note")
    assert find_print_and_remove_near_duplicates(data) == data
    assert "note: 1 pairs" in capsys.readouterr().out


def test_of_a_chain_only_the_middle_goes_and_of_a_triple_one_stays():
    assert repeats([(0, 1, 0.8), (1, 2, 0.8)]) == {1}
    assert repeats([(0, 1, 0.8), (0, 2, 0.8), (1, 2, 0.8)]) == {1, 2}
    assert repeats([(1, 2, 0.8), (0, 1, 0.8)]) == {1}  # whatever the order of the list
    assert repeats([(0, 1, 0.8), (1, 2, 0.8), (2, 3, 0.8)]) == {1, 3}
    examples = json.loads(EXAMPLES.read_text(encoding="utf-8"))
    removed = repeats(similar_pairs(examples, keys=("instruction",)))
    assert {49, 100, 114} & removed == {100} and {13, 165, 186} & removed == {165, 186}


@pytest.mark.parametrize("seed", range(5))
def test_after_removal_no_pair_is_left_and_nothing_goes_without_reason(seed):
    data = random_entries(60, seed)
    pairs = similar_pairs(data, threshold=0.6, keys=("instruction",))
    removed = repeats(pairs)
    assert removed and not any(i not in removed and j not in removed for i, j, _ in pairs)
    assert all(any(j == position and i not in removed for i, j, _ in pairs) for position in removed)


def test_equal_instructions_with_other_inputs_and_equal_outputs_stay():
    data = [
        {"instruction": "Make it plural.", "input": "apple", "output": "apples"},
        {"instruction": "Make it plural.", "input": "wolf", "output": "wolves"},
        {"instruction": "Is fire hot?", "input": "", "output": "Yes."},
        {"instruction": "Do fish swim?", "input": "", "output": "Yes."},
        {"instruction": "is fire hot", "input": None, "output": "It is."},
    ]
    before = copy.deepcopy(data)
    assert find_print_and_remove_near_duplicates(data, remove_duplicates=True) == data[:4] and data == before
    assert len(find_near_duplicates(data)[0]) == 3  # by the instruction alone, the wolf would go


def test_removal_without_question_fields_is_refused_and_reporting_is_not():
    data = entries_of("one text", "One text.", field="text")
    assert find_print_and_remove_near_duplicates(data) == data
    with pytest.raises(ValueError, match="instruction or input.*there are: text"):
        find_print_and_remove_near_duplicates(data, remove_duplicates=True)


def test_defaults_of_functions_and_command_line_agree(capsys):
    for function in (similar_pairs, find_near_duplicates, find_print_and_remove_near_duplicates):
        assert inspect.signature(function).parameters["threshold"].default == THRESHOLD == 0.75
    with pytest.raises(SystemExit):
        script().main(["--help"])
    assert f"(default: {THRESHOLD})" in " ".join(capsys.readouterr().out.split())


@pytest.mark.slow
def test_5000_entries_take_seconds():
    dice = random.Random(123)
    data = entries_of(*(" ".join(dice.choices(WORDS, k=9)) + f" {number}" for number in range(4998)))
    data[2500:2500] = entries_of("Describe the lighthouse of the island.")
    data.append({"instruction": "describe the lighthouse of an island"})
    start = time.process_time()
    pairs = similar_pairs(data, threshold=0.8, keys=("instruction",))
    assert time.process_time() - start < 20  # about 2 seconds; a loop over 12 million pairs takes minutes
    assert (2500, 4999) in [pair[:2] for pair in pairs]


# ---- command line ----


def test_without_a_file_the_built_in_entries_are_searched(capsys):
    assert script().main([]) == 0
    out = capsys.readouterr().out
    assert "instruction: 4 pairs" in out and "input: 0 pairs" in out and "0 and 2, similarity 1.000" in out


def test_removal_writes_what_stays(tmp_path, capsys):
    output = tmp_path / "kept.json"
    assert script().main(["--json_file", str(EXAMPLES), "--remove_duplicates", "--json_output_file", str(output)]) == 0
    kept, examples = json.loads(output.read_text(encoding="utf-8")), json.loads(EXAMPLES.read_text(encoding="utf-8"))
    removed = repeats(similar_pairs(examples))
    assert kept == [entry for position, entry in enumerate(examples) if position not in removed] and len(kept) == 184
    assert "184 of 200 entries written" in capsys.readouterr().out and list(tmp_path.iterdir()) == [output]


def test_training_entries_near_a_later_one_are_reported_and_removed(tmp_path, capsys):
    data = entries_of("Where do owls sleep?", "Where do the owls sleep?", "Fold it.", "Name a fruit.", "name a fruit", "Open the jar.")
    source, output = tmp_path / "data.json", tmp_path / "clean.json"
    source.write_text(json.dumps(data), encoding="utf-8")
    arguments = ["--json_file", str(source), "--train_entries", "4", "--remove_duplicates", "--json_output_file", str(output)]
    assert script().main(arguments) == 0
    out = capsys.readouterr().out
    assert "1 pairs" in out and "3 and 4, similarity 1.000" in out and "training is now the first 3" in out
    assert json.loads(output.read_text(encoding="utf-8")) == data[:3] + data[4:]


@pytest.mark.parametrize(
    "arguments, complaint",
    [
        ("--json_file no-such-file.json", "no-such-file.json"),
        ("--json_file object.json", "not a JSON list"),
        ("--json_file numbers.json", "not a JSON list of objects"),
        ("--json_file broken.json", "not a JSON file"),
        ("--threshold 1.5", "allowed: 0 to 1"),
        ("--threshold nan", "allowed: 0 to 1"),
        ("--threshold much", "not a number"),
        ("--remove_duplicates", "--json_output_file"),
        ("--json_output_file new.json", "with --remove_duplicates only"),
        ("--json_file list.json --remove_duplicates --json_output_file ./list.json", "is the input file"),
        ("--json_file list.json --remove_duplicates --json_output_file broken.json", "exists already"),
        ("--json_file list.json --remove_duplicates --json_output_file nowhere/new.json", "does not exist"),
        ("--json_file list.json --train_entries 1", "nothing is left"),
        ("--json_file list.json --train_entries 0", "too small"),
        ("--json_file texts.json --remove_duplicates --json_output_file new.json", "instruction or input"),
    ],
)
def test_bad_input_ends_in_one_line_and_changes_no_file(arguments, complaint, tmp_path, monkeypatch, capsys):
    files = {"object.json": "{}", "numbers.json": "[1]", "broken.json": "["}
    files |= {"list.json": '[{"instruction": "Go."}]', "texts.json": '[{"t": "a"}]'}
    for name, text in files.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        script().main(shlex.split(arguments))
    error = capsys.readouterr().err
    assert stop.value.code == 2 and complaint in error and error.count("\n") == 1
    assert {path.name: path.read_text(encoding="utf-8") for path in tmp_path.iterdir()} == files


def test_the_commands_of_the_page_run(tmp_path, monkeypatch, capsys):
    commands = re.findall(r"^python find-near-duplicates\.py(.*)$", (FOLDER / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert len(commands) >= 4 and DATA_FILE.exists()
    monkeypatch.chdir(tmp_path)
    for name in ("instruction-examples.json", "instruction-data.json"):
        (tmp_path / name).write_bytes((FOLDER / name).read_bytes())
    for command in commands:
        assert script().main(shlex.split(command)) == 0
        assert "pairs" in capsys.readouterr().out
