"""Every learner edition (exercises.ipynb) runs offline and fails exactly at the checks of its unsolved exercises."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from nbformat.v4 import new_code_cell, new_notebook
from tracked import tracked

ROOT = Path(__file__).resolve().parents[3]
CELLS = {  # the smallest edition: its parts in order
    "tools": 'class CheckFailed(AssertionError):\n    pass\n\n\ndef check(f):\n    raise CheckFailed("1.1 is not solved yet: write f")',
    "stub": 'def f():\n    raise NotImplementedError("exercise 1.1")',
    "call": "check(f)",
}


def editions() -> list[Path]:
    """Every exercises.ipynb of this repository."""
    return [ROOT / name for name in tracked(ROOT, new=False) if name.endswith("/exercises.ipynb")]


@pytest.fixture(scope="session")
def kernel(request) -> str:
    """The kernel that refuses outside addresses, or plain python3 where that fixture does not exist."""
    try:
        return request.getfixturevalue("offline_kernel")
    except pytest.FixtureLookupError:
        return "python3"


def faults(path: Path, kernel: str) -> list[str]:
    """Run a learner edition to its end; one line for each cell that does not do what it should."""
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(
        notebook, timeout=300, kernel_name=kernel, allow_errors=True, resources={"metadata": {"path": str(path.parent)}}
    ).execute()
    found = [] if any("check" in cell.metadata.get("tags", []) for cell in notebook.cells) else ["no cell is tagged `check`"]
    for cell in notebook.cells:
        error = next((output for output in cell.get("outputs", []) if output.output_type == "error"), None)
        is_check = "check" in cell.metadata.get("tags", [])
        if error and not is_check:
            found.append(f"cell {cell.id} is no check but stops with {error.ename}: {error.evalue}")
        if is_check and not error:
            found.append(f"cell {cell.id} is the check of an unsolved exercise but passes")
        if is_check and error and (error.ename != "CheckFailed" or "not solved yet" not in error.evalue):
            found.append(f"cell {cell.id} should say that its exercise is not solved yet, says {error.ename}: {error.evalue}")
    return found


@pytest.mark.slow
@pytest.mark.parametrize("path", editions(), ids=lambda path: path.relative_to(ROOT).parent.as_posix())
def test_a_learner_edition_fails_exactly_at_its_checks_and_says_what_to_do(path, kernel):
    assert faults(path, kernel) == []


def edition(folder: Path, cells: dict, tagged: int | None = None) -> Path:
    notebook = new_notebook(cells=[new_code_cell(source, id=name) for name, source in cells.items()])
    if tagged is not None:
        notebook.cells[tagged].metadata["tags"] = ["check"]
    nbformat.write(notebook, folder / "exercises.ipynb")
    return folder / "exercises.ipynb"


def test_an_unsolved_edition_passes_this_test(tmp_path, kernel):
    assert faults(edition(tmp_path, CELLS, tagged=2), kernel) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    "change, tagged, message",
    [
        ({"stub": "f()"}, 2, "cell stub is no check but stops with NameError"),
        ({"call": "pass"}, 2, "cell call is the check of an unsolved exercise but passes"),
        ({"call": "f()"}, 2, "cell call should say that its exercise is not solved yet, says NotImplementedError"),
        ({"call": "raise CheckFailed('no')"}, 2, "cell call should say that its exercise is not solved yet, says CheckFailed: no"),
        ({}, None, "no cell is tagged"),
    ],
)
def test_each_fault_of_an_edition_is_found(tmp_path, kernel, change, tagged, message):
    found = faults(edition(tmp_path, {**CELLS, **change}, tagged=tagged), kernel)
    assert found and found[0].startswith(message)
