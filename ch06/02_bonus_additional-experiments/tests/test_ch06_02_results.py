"""The result table: the committed log holds every row and seed, and README.md says what the log says."""

import re
from pathlib import Path

import pytest
import report_results
import run_all
from report_results import accuracies, fill, learning_rate_table, result_table, verdict

FOLDER = Path(report_results.__file__).resolve().parent
README = (FOLDER / "README.md").read_text(encoding="utf-8")
MACHINE, RUNS = run_all.read_log()
TEXTS = {"train": 898, "validation": 128, "test": 258}


def test_the_log_holds_every_row_with_every_seed_and_the_machine():
    for kind in ("result", "learning_rate", "timing"):
        done = [(run["row"], run["options"]) for run in RUNS if run["kind"] == kind]
        assert sorted(done) == sorted((job["row"], job["options"]) for job in run_all.jobs_of(kind, run_all.SEEDS))
    assert {"python", "torch", "processor", "threads"} <= MACHINE.keys()


@pytest.mark.parametrize("run", RUNS, ids=lambda run: f"{run['kind']}: {run['options']}")
def test_every_run_counts_whole_texts_of_parts_of_the_right_size(run):
    for part, number in TEXTS.items():
        assert run[part]["texts"] == number and type(run[part]["right"]) is int and 0 <= run[part]["right"] <= number
    alone, test = run["test_without_repeats"], run["test"]
    assert 200 < alone["texts"] < test["texts"] and 0 <= test["right"] - alone["right"] <= test["texts"] - alone["texts"]


def test_a_seed_is_one_split_and_the_learning_rates_are_those_of_the_script():
    for seed in run_all.SEEDS:
        assert len({run["test_without_repeats"]["texts"] for run in RUNS if run["seed"] == seed}) == 1
    import additional_experiments as experiments

    for run in RUNS:
        if run["kind"] == "result":
            layers = re.search(r"--trainable_layers (\S+)", run["options"])
            assert run["learning_rate"] == experiments.default_learning_rate("mini", layers[1] if layers else "last_block")


def test_the_page_says_what_the_log_says():
    page = fill(fill(README, "results", result_table(RUNS)), "learning rates", learning_rate_table(RUNS))
    assert page == README, "README.md differs from results.jsonl: run report_results.py"


def test_every_percentage_of_the_readings_is_in_a_table():
    tables, readings = README.split("\n## Twelve readings\n")
    readings = readings.split("\n## ")[0]
    assert len(re.findall(r"^\*\*\d+\. ", readings, flags=re.M)) == 12
    assert not [number for number in re.findall(r"\d+(?:\.\d+)? %", readings) if number not in tables]


def test_rows_are_equal_when_their_seeds_differ_as_much_as_their_means():
    baseline = [0.94, 0.96, 0.95]
    assert verdict([0.95, 0.97, 0.96], baseline) == verdict([0.90, 0.96, 0.95], baseline) == "equal"
    assert verdict([0.91, 0.90, 0.92], baseline) == "worse" and verdict([0.99, 0.98, 0.98], baseline) == "better"


def test_an_incomplete_log_and_a_page_without_marks_are_refused(tmp_path, capsys):
    with pytest.raises(ValueError, match="no run of the row 'baseline'"):
        accuracies([], "baseline", "test")
    with pytest.raises(ValueError, match="results:start"):
        fill("a page", "results", "a table")
    (tmp_path / "log.jsonl").write_text("{}\n")
    with pytest.raises(SystemExit) as stopped:
        report_results.main(["--log", str(tmp_path / "log.jsonl")])
    assert stopped.value.code == 2 and capsys.readouterr().err.count("\n") == 1


def test_the_picture_is_drawn_from_the_log(tmp_path):
    report_results.draw(RUNS, tmp_path / "drawn.png")
    for picture in (tmp_path / "drawn.png", FOLDER / "results.png"):
        assert 10_000 < picture.stat().st_size < 100_000 and picture.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
