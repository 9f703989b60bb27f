"""The README quotes the committed measurement, and settings that measure nothing end in one line."""

import json
from pathlib import Path

import benchmark_gemma3
import pytest
from llama import results_table

FOLDER = Path(benchmark_gemma3.__file__).parent


def test_the_readme_quotes_the_committed_benchmark():
    figures = json.loads((FOLDER / "benchmark_gemma3.json").read_text(encoding="utf-8"))
    assert results_table(figures) in (FOLDER / "README.md").read_text(encoding="utf-8")
    assert {(one["dtype"], one["rows"]) for one in figures["results"]} == {(d, rows) for d in ("fp32", "bf16") for rows in (1, 64)}
    assert all(one["same_ids"] for one in figures["results"] if one["dtype"] == "fp32")


@pytest.mark.parametrize("arguments", [["--new_tokens", "3"], ["--rows", "0"], ["--rounds", "0"], ["--prompt_tokens", "1"]])
def test_a_benchmark_that_measures_nothing_ends_in_one_line(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        benchmark_gemma3.main(arguments)
    assert stop.value.code == 2 and len(capsys.readouterr().err.splitlines()) == 1
