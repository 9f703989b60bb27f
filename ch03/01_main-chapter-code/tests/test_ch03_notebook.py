"""Facts that chapter 3's texts and diagrams state, and the diagrams themselves."""

import ast
import math
import re
from pathlib import Path

import figures
import multihead_attention
import nbformat
import pytest
import torch

FOLDER = Path(__file__).resolve().parent.parent


def cells(name: str) -> list:
    return nbformat.read(FOLDER / name, as_version=4).cells


@pytest.fixture(scope="module")
def sentence() -> torch.Tensor:
    """The chapter's hand-made vectors, taken from the cell that defines them."""
    source = next(cell.source for cell in cells("ch03.ipynb") if cell.source.startswith("words = "))
    names = {"torch": torch}
    exec(source, names)
    return names["x"]


def test_diagram_of_one_query_shows_the_notebooks_numbers(sentence):
    scores = sentence @ sentence[3]
    weights = torch.softmax(scores, dim=0)
    drawn = {text.get_text() for text in figures.one_query().axes[0].texts}
    assert {f"{number:.2f}" for number in [*scores.tolist(), *weights.tolist()]} <= drawn


@pytest.fixture(scope="module")
def prose() -> str:
    return "\n".join(cell.source for cell in cells("ch03.ipynb") if cell.cell_type == "markdown")


def test_prose_numbers_about_she_and_nell_hold(sentence, prose):
    scores = sentence @ sentence[3]
    weights = torch.softmax(scores, dim=0)
    parts = weights[:, None] * sentence  # (5, 4)
    after = parts.sum(dim=0)
    assert f'"Nell" wins with {scores[0]:.2f}, even ahead of "she" itself with {scores[3]:.2f}' in prose
    assert f"it went from {sentence[3, 2]:.2f} to {after[2]:.2f}" in prose
    assert f'with {parts[0, 2]:.2f} of it from "Nell" and {parts[4, 2]:.2f} from "rowed"' in prose
    assert f"*person* fell from {sentence[3, 0]:.2f} to {after[0]:.2f}" in prose
    assert f"The weights run from {weights.min():.2f} to {weights.max():.2f}" in prose


def test_prose_numbers_about_the_first_trainable_weights_hold(sentence, prose):
    torch.manual_seed(123)
    attention = multihead_attention.SelfAttention_v1(4, 3)
    scores = ((sentence[3] @ attention.W_query) @ (sentence @ attention.W_key).T) / 3**0.5  # (5)
    low, high = scores.min().item(), scores.max().item()
    assert f"between {low:.2f} and {high:.2f}, and $e^{{{high:.2f}-{low:.2f}}}$ is {math.exp(high - low):.1f}" in prose


def test_every_core_try_it_has_an_answer(prose):
    core = prose[: prose.index("## What you have built")]
    folded = core[core.index("<details>") : core.index("</details>")]
    answers = prose[prose.index("## Answers to the Try-its") : prose.index("## 3.8")]
    assert core.count("**Try it:**") - folded.count("**Try it:**") == answers.count("<summary>") - answers.count("<summary>3.8") == 11
    assert answers.count("<details>") == answers.count("</details>") == answers.count("<summary>") == 13
    assert "**Try it.**" not in prose and "**Prediction" not in prose


def test_core_is_at_most_sixty_percent_of_the_words(prose):
    """The core: all sections whose heading does not say optional; 3.8 is optional with all its parts."""
    parts = re.split(r"(?m)^(?=#{2,3} )", prose)
    words = [(len(re.findall(r"\w+", part)), "optional" in part.partition("\n")[0]) for part in parts]
    assert sum(n for n, optional in words if not optional) <= 0.6 * sum(n for n, _ in words)


def labels(svg: Path) -> list[str]:
    """The texts of a diagram in order: matplotlib draws letters as paths and leaves each text in a comment."""
    return re.findall(r"<!-- (.*?) -->", svg.read_text(encoding="utf-8"), flags=re.DOTALL)


def test_every_diagram_is_used_and_up_to_date(tmp_path, capsys):
    assert figures.main(["--output", str(tmp_path)]) == 0
    used = {name for cell in cells("ch03.ipynb") for name in re.findall(r"\]\(figures/([\w-]+)\.svg\)", cell.source)}
    assert used == set(figures.FIGURES)
    for name in used:
        stored, drawn = FOLDER / "figures" / f"{name}.svg", tmp_path / f"{name}.svg"
        assert labels(stored) == labels(drawn) != [] and stored.stat().st_size == pytest.approx(drawn.stat().st_size, rel=0.05)


def test_figures_script_refuses_a_folder_it_cannot_write(tmp_path, capsys):
    (tmp_path / "file").write_text("in the way", encoding="utf-8")
    with pytest.raises(SystemExit) as stop:
        figures.main(["--output", str(tmp_path / "file")])
    error = capsys.readouterr().err.strip()
    assert stop.value.code == 2 and "cannot write" in error and "\n" not in error


def test_summary_notebook_imports_and_redefines_nothing():
    code = "\n".join(cell.source for cell in cells("multihead-attention.ipynb") if cell.cell_type == "code")
    assert not [node for node in ast.walk(ast.parse(code)) if isinstance(node, (ast.ClassDef, ast.FunctionDef))]
    assert "from multihead_attention import" in code


def test_exercises_use_the_chapters_classes():
    code = "\n".join(cell.source for cell in cells("exercise-solutions.ipynb") if cell.cell_type == "code")
    assert not [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.ClassDef)]


def test_readme_shows_the_scripts_lines(capsys):
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    count = multihead_attention.count_parameters(multihead_attention.MultiHeadAttention(768, 768, 4, 0.0, 12))
    assert f"parameters: {count:,}" in text


def test_the_answer_about_a_second_nell_is_true(sentence):
    copied = sentence.clone()
    copied[2] = sentence[0]
    before, after = (torch.softmax(x @ x.T, dim=-1) for x in (sentence, copied))
    assert torch.equal(after[2], after[0]) and ((after - before).abs() > 0.005).any(dim=-1).all()
