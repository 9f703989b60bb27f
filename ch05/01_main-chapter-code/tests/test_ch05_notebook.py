"""The chapter's text agrees with its outputs, its diagrams exist, and the core is the smaller half of the work.

Run it:  pytest ch05/01_main-chapter-code/tests/test_ch05_notebook.py
"""

import re
from pathlib import Path

import figures
import gpt_train
import nbformat

FOLDER = Path(gpt_train.__file__).parent
NOTEBOOK = nbformat.read(FOLDER / "ch05.ipynb", as_version=4)
PROSE = "\n".join(cell.source for cell in NOTEBOOK.cells if cell.cell_type == "markdown")
OUTPUT = "\n".join(output.get("text", "") for cell in NOTEBOOK.cells for output in cell.get("outputs", []))


def printed(words: str) -> list[float]:
    """The numbers that the notebook printed on the line that starts with these words."""
    return [float(number.replace(",", "")) for number in re.findall(r"-?[\d.,]*\d", re.search(f"{words}(.*)", OUTPUT)[1])]


def test_the_core_is_at_most_sixty_percent_of_the_words():
    words, optional = {True: 0, False: 0}, False
    for line in PROSE.splitlines():
        optional = "ptional" in line if re.match("#+ ", line) else optional
        words[optional] += len(line.split())
    assert words[False] <= 0.6 * sum(words.values()), words


def test_wrong_and_visible_targets_leave_the_starting_loss_alone_but_not_the_training():
    start = printed(r"training (?=\d+\.)")[0]
    assert all(abs(value - start) < 0.15 for value in printed("targets of another window"))
    honest, leaking = printed("after three epochs: shifted targets")
    assert f"stands at {honest}" in PROSE and f"is at {leaking} and falling" in PROSE and leaking < honest - 2


def test_the_pulses_in_the_prose_are_the_printed_ones():
    first, low, high = printed("update / weight: first")
    assert "begins at 0.012 and then stays between 0.004 and 0.009" in PROSE
    assert round(first, 3) == 0.012 and round(low, 3) == 0.004 and round(high, 3) == 0.009
    norms = printed("norm of the gradient, every sixth step:")
    assert "The norm rises by a third" in PROSE and 1.2 < norms[-1] / norms[0] < 1.45


def test_what_scale_buys_is_computed_from_the_table():
    mini, smol, gemma = (printed(name)[-1] for name in ("GPT-2 mini  ", "SmolLM2-135M-Instruct  ", r"Gemma 3 270M .*6 trillion"))
    assert f"is {smol} nats for each byte instead of {mini}, {1 - smol / mini:.0%} less" in PROSE
    assert f"is another {1 - gemma / smol:.0%} lower" in PROSE


def test_every_diagram_is_in_the_notebook():
    assert sorted(re.findall(r"\(figures/(\w+)\.svg\)", PROSE)) == sorted(figures.FIGURES)
    assert all((FOLDER / f"figures/{name}.svg").is_file() for name in figures.FIGURES)
