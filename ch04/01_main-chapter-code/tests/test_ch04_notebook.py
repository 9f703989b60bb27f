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


@pytest.mark.parametrize("number", ["2,360,064", "4,722,432", "3,072", "85,026,816", "38,597,376"])
def test_counts_in_the_prose_are_printed(number):
    assert number in PROSE and number in OUTPUT


def test_predictions_of_the_counts_come_before_the_counts():
    total, tied = "163,009,536", "124,412,160"
    assert total in OUTPUT and f"without a second table: {tied}" in OUTPUT
    assert total not in PROSE and tied not in PROSE, "the text asks for them first"


def parameters(module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def on_paper(**sizes):
    """A GPTModel of chapter 4's configuration, changed by `sizes`, whose parameters take no memory."""
    with torch.device("meta"):
        return gpt.GPTModel({**gpt.GPT_CONFIG_124M, **sizes})


def test_the_block_count_in_the_prose_is_that_of_a_real_block():
    model = on_paper()
    assert f"{parameters(model.trf_blocks[0]):,}" in PROSE and f"{parameters(model.trf_blocks):,}" in PROSE


def numbers_behind(words: str) -> list[float]:
    """The numbers that the notebook printed on the line that starts with these words."""
    return [float(number.replace(",", "")) for number in re.findall(r"-?[\d.,]*\d", re.search(f"{words}(.*)", OUTPUT)[1])]


def test_gradient_ratios_in_the_prose_are_the_printed_ones():
    plain, shortcut = re.findall(r"last layer divided by first: ([\d,.]+)", OUTPUT)
    assert f"smaller by a factor of {plain}" in PROSE and int(plain.replace(",", "")) > 10_000
    assert "It does not shrink at all" in PROSE and float(shortcut) < 1


def test_norm_placement_in_the_prose_is_the_measured_one():
    post, pre = numbers_behind("last step, post-norm"), numbers_behind("last step, pre-norm")
    assert f"between {min(post):.2f} and {max(post):.2f}" in PROSE and f"from {pre[0]:.2f} to {pre[-1]:.2f}" in PROSE
    post, pre = numbers_behind("first of 96 steps, post-norm"), numbers_behind("first of 96 steps, pre-norm")
    assert "luck decides" in PROSE and post[-1] > 5 > 2 > pre[-1], "the last number is largest / smallest"


def test_shares_in_the_prose_are_those_of_real_models():
    small, xl = on_paper(), on_paper(**gpt.MODEL_SIZES["gpt2-xl"])
    tables = {model: parameters(model.tok_emb) + parameters(model.pos_emb) + parameters(model.out_head) for model in (small, xl)}
    assert "take almost half of the parameters, in the largest a tenth" in PROSE
    assert 0.45 < tables[small] / parameters(small) < 0.5 and round(tables[xl] / parameters(xl), 2) == 0.10


def test_the_core_is_at_most_60_percent_of_the_words():
    words, optional = {True: 0, False: 0}, False
    for part in re.split(r"(?m)^(?=## )", re.sub(r"(?s)```.*?```", "", PROSE)):
        optional = "*optional" in part.partition("\n")[0].lower()
        words[optional] += len(re.findall(r"\w+", part))
    assert words[False] <= 0.6 * sum(words.values()), words
    core = PROSE.partition("## 4.8")[0]
    assert "(*optional*)" not in core.partition("## Check yourself")[0] and "sections 4.1 to 4.7" in core


def test_every_core_try_it_has_an_answer():
    core, answers = PROSE.partition("## 4.8")[0].split("## Answers to the Try-its")
    assert core.count("**Try it:**") == answers.count("<details>") == answers.count("</details>") == 7
    assert "**Try it.**" not in PROSE and "**Prediction" not in PROSE


def test_prediction_of_the_untrained_model_is_nearly_undecided():
    share = float(re.search(r"with probability ([\d.]+)", OUTPUT)[1])
    assert f"leads with {100 * share:.3f}%, nine times an even share" in PROSE and round(share * 50257) == 9


def test_notebook_and_readme_show_the_same_seeded_text():
    ids = re.search(r"output ids: (\[.*\])", README)[1]
    assert ids in OUTPUT


def labels(svg: Path) -> list[str]:
    """The texts of a diagram in order: matplotlib draws letters as paths and leaves each text in a comment."""
    return re.findall(r"<!-- (.*?) -->", svg.read_text(encoding="utf-8"), flags=re.DOTALL)


def test_diagrams_are_those_of_figures_py(tmp_path):
    assert figures.main(["--output", str(tmp_path / "new")]) == 0
    names = {path.name for path in (tmp_path / "new").iterdir()}
    assert names == {path.name for path in (FOLDER / "figures").iterdir()}
    for name in names:
        stored, drawn = FOLDER / "figures" / name, tmp_path / "new" / name
        assert f"figures/{name}" in PROSE and labels(stored) == labels(drawn) != []
        assert stored.stat().st_size == pytest.approx(drawn.stat().st_size, rel=0.05)


def test_diagrams_that_cannot_be_written_end_in_one_line(tmp_path, capsys):
    (tmp_path / "taken").write_text("a file, not a folder", encoding="utf-8")
    with pytest.raises(SystemExit) as stopped:
        figures.main(["--output", str(tmp_path / "taken")])
    assert stopped.value.code == 2 and len(capsys.readouterr().err.strip().splitlines()) == 1
