"""The notebook's data set and loader against a loop written another way, its formulas, its check, and bad input."""

import ast
import inspect
import math
import random
import re
import warnings
from pathlib import Path

import nbformat
import pytest
import torch
from torch.utils.data import DataLoader, Dataset

FOLDER = Path(__file__).resolve().parents[1]
NOTEBOOK = nbformat.read(FOLDER / "dataloader-intuition.ipynb", as_version=4)
CODE = [cell for cell in NOTEBOOK.cells if cell.cell_type == "code"]
TEXT = "\n".join(cell.source for cell in NOTEBOOK.cells if cell.cell_type == "markdown")
NUMBERS = " ".join(map(str, range(50)))


def of_the_notebook() -> dict:
    """Its definitions, and the settings of its exercise."""
    names = {"torch": torch, "Dataset": Dataset, "DataLoader": DataLoader, "math": math, "warnings": warnings, "numbers": NUMBERS}
    for cell in CODE:
        for node in ast.parse(cell.source).body:
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)) or ast.unparse(node).startswith(("settings =", "predictions =")):
                exec(ast.unparse(node), names)
    return names


BOOK = of_the_notebook()
GPTDatasetV1, create_dataloader_v1, count_windows = (BOOK[name] for name in ("GPTDatasetV1", "create_dataloader_v1", "count_windows"))


def test_windows_equal_a_loop_written_another_way():
    for n_tokens in range(2, 19):
        for max_length in range(1, n_tokens):
            for stride in range(1, 8):
                expected, start = [], 0
                while start + max_length < n_tokens:  # the target of the last input must exist
                    expected.append(list(range(start, start + max_length)))
                    start += stride
                dataset = GPTDatasetV1(" ".join(map(str, range(n_tokens))), None, max_length, stride)
                assert [inputs.tolist() for inputs, _ in dataset] == expected
                assert all(torch.equal(targets, inputs + 1) for inputs, targets in dataset)
                assert len(dataset) == count_windows(n_tokens, max_length, stride)
                assert n_tokens - 1 - dataset[len(dataset) - 1][1][-1] <= stride - 1  # lost at the end


def test_the_loader_has_the_signature_of_the_chapter_and_batches_as_stated():
    defaults = [(name, parameter.default) for name, parameter in inspect.signature(create_dataloader_v1).parameters.items()][1:]
    assert defaults == [
        ("batch_size", 4), ("max_length", 256), ("stride", 128), ("shuffle", True), ("drop_last", True), ("num_workers", 0)
    ]  # fmt: skip
    for batch_size in range(1, 13):
        for drop_last in (True, False):
            loader = create_dataloader_v1(NUMBERS, batch_size, 4, 4, drop_last=drop_last)
            assert len(list(loader)) == len(loader) == (12 // batch_size if drop_last else math.ceil(12 / batch_size))
            windows = torch.cat([inputs for inputs, _ in loader])
            assert len(set(windows[:, 0].tolist())) == len(windows)


@pytest.mark.parametrize("text", ["0 1 tide 3 4 5", "0 1 2.5 3 4 5", "", " \n", "0 1 2 3"])
def test_a_text_that_cannot_work_is_refused(text):
    with pytest.raises(ValueError, match="needs at least 5|invalid literal"):
        GPTDatasetV1(text, None, 4, 1)


@pytest.mark.parametrize(("max_length", "stride"), [(0, 1), (1, 0), (-1, 1)])
def test_sizes_below_1_are_refused(max_length, stride):
    with pytest.raises(ValueError, match="at least 1"):
        GPTDatasetV1(NUMBERS, None, max_length, stride)


def test_no_batch_is_announced():
    with pytest.warns(UserWarning, match="12 windows are fewer than batch_size 13"):
        assert not list(create_dataloader_v1(NUMBERS, 13, 4, 4))


def answers() -> dict:
    """The rows that the folded answers give for each setting."""
    return {name: ast.literal_eval(rows) for name, rows in re.findall(r"(?m)^- ([ABC]): [^`]*`(\[\[.*?\]\])`", TEXT)}


def test_the_stated_answers_are_right_and_wrong_ones_are_told_apart():
    check, settings = BOOK["check_prediction"], BOOK["settings"]
    assert answers().keys() == settings.keys() == BOOK["predictions"].keys() and set(BOOK["predictions"].values()) == {None}
    for name, rows in answers().items():
        assert check(rows, settings[name]) == "right"
        assert check([tuple(row) for row in rows], settings[name]) == "right"
        assert "no prediction" in check(None, settings[name])
        assert f"has {len(rows)} rows" in check([*rows, rows[-1]], settings[name])
        changed = random.randrange(len(rows))
        wrong = [[number + (at == changed) for number in row] for at, row in enumerate(rows)]
        assert check(wrong, settings[name]).startswith(f"row {changed} should start at {rows[changed][0]}")
        assert "should" in check([row[:-1] for row in rows], settings[name])


def test_the_settings_in_the_text_are_those_that_are_checked():
    for name, setting in BOOK["settings"].items():
        assert f"- {name}: `{', '.join(f'{key}={value}' for key, value in setting.items())}`" in TEXT


def test_stated_counts():
    printed = "".join(output.get("text", "") for cell in CODE for output in cell.outputs)
    assert "all 2,940 pairs" in printed and "2,940 settings" in (FOLDER / "README.md").read_text(encoding="utf-8")
    assert "18 numbers 0x" in printed and "18 of the 50 numbers are never an input" in TEXT
    skipped = set(range(44)) - {n for inputs in GPTDatasetV1(NUMBERS, None, 4, 6).input_ids for n in inputs.tolist()}
    targets = {n for targets in GPTDatasetV1(NUMBERS, None, 4, 6).target_ids for n in targets.tolist()}
    assert sorted(skipped)[:4] == [4, 5, 10, 11] and {4, 10} <= targets and not {5, 11} & targets


def test_nothing_in_the_texts_calls_numbers_digits():
    assert "digit" not in (TEXT + (FOLDER / "README.md").read_text(encoding="utf-8")).lower()
