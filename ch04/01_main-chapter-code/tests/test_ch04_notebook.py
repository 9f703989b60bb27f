"""The chapter's text agrees with its outputs, its diagrams exist, and the README tells the truth.

Run it:  pytest ch04/01_main-chapter-code/tests/test_ch04_notebook.py
"""

import re
from pathlib import Path

import figures
import gpt
import nbformat
import pytest
import torch

FOLDER = Path(gpt.__file__).parent
NOTEBOOK = nbformat.read(FOLDER / "ch04.ipynb", as_version=4)
PROSE = "\n".join(cell.source for cell in NOTEBOOK.cells if cell.cell_type == "markdown")
OUTPUT = "\n".join(output.get("text", "") for cell in NOTEBOOK.cells for output in cell.get("outputs", []))
README = (FOLDER / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("number", ["163,009,536", "2,360,064", "4,722,432", "3,072", "85,026,816", "38,597,376", "124,412,160"])
def test_counts_in_the_prose_are_printed(number):
    assert number in PROSE and number in OUTPUT


def parameters(module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def on_paper(**sizes):
    """A GPTModel of chapter 4's configuration, changed by `sizes`, whose parameters take no memory."""
    with torch.device("meta"):
        return gpt.GPTModel({**gpt.GPT_CONFIG_124M, **sizes})


def test_the_block_count_in_the_prose_is_that_of_a_real_block():
    model = on_paper()
    assert f"{parameters(model.trf_blocks[0]):,}" in PROSE and f"{parameters(model.trf_blocks):,}" in PROSE


def test_gradient_ratios_in_the_prose_fit_the_printed_ones():
    before, first = map(int, re.search(r"against the one before: (\d+), against the first: (\d+)", OUTPUT).groups())
    assert f"by a factor of {before}, to the first layer by more than 40" in PROSE and first > 40
    gain = int(re.search(r"first layer: (\d+) times larger", OUTPUT)[1])
    assert 25 < gain < 100, "the prediction offers 5, 50 or 500"
    values = [float(value) for value in re.findall(r"mean absolute gradient ([\d.]+)", OUTPUT)]
    plain, shortcut = values[:5], values[5:]
    grown, lost = round(shortcut[4] / plain[4]), round(shortcut[4] / shortcut[0])
    assert f"grew too, {grown} times" in PROSE and f"{first} times less than the last, with them {lost} times less" in PROSE
    assert abs(shortcut[0] / shortcut[3] - 1) < 0.05, "from layer 3 back to layer 0 nothing is lost"


def test_shares_in_the_prose_are_those_of_real_models():
    small, xl = on_paper(), on_paper(**gpt.MODEL_SIZES["gpt2-xl"])
    head, total = {}, {}
    for name, model in (("small", small), ("xl", xl)):
        head[name], total[name] = parameters(model.out_head), parameters(model)
    assert f"{100 * head['small'] / total['small']:.0f} %" == "24 %" and "24 %" in PROSE
    assert f"{100 * head['xl'] / total['xl']:.0f} % in XL" in PROSE
    tables = parameters(xl.tok_emb) + parameters(xl.pos_emb) + head["xl"]
    assert "in the largest one a tenth" in PROSE and round(tables / total["xl"], 2) == 0.10


def test_prediction_of_the_untrained_model_is_nearly_undecided():
    share = float(re.search(r"its probability: ([\d.]+)", OUTPUT)[1])
    assert "less than 0.02 %" in PROSE and share < 0.0002


def test_notebook_and_readme_show_the_same_seeded_text():
    ids = re.search(r"output ids: (\[.*\])", README)[1]
    assert ids in OUTPUT


def test_diagrams_are_those_of_figures_py(tmp_path):
    assert figures.main(["--output", str(tmp_path / "new")]) == 0
    names = {path.name for path in (tmp_path / "new").iterdir()}
    assert names == {path.name for path in (FOLDER / "figures").iterdir()}
    assert all(f"figures/{name}" in PROSE for name in names)


def test_diagrams_that_cannot_be_written_end_in_one_line(tmp_path, capsys):
    (tmp_path / "taken").write_text("a file, not a folder", encoding="utf-8")
    with pytest.raises(SystemExit) as stopped:
        figures.main(["--output", str(tmp_path / "taken")])
    assert stopped.value.code == 2 and len(capsys.readouterr().err.strip().splitlines()) == 1
