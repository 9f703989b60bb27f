"""load-finetuned-model.ipynb prints the same with and without a tuned model; only its last section tells them apart.

Run it:  pytest ch07/01_main-chapter-code/tests/test_ch07_load_finetuned.py
"""

import shutil
from pathlib import Path

import gpt_instruction_finetuning
import nbformat
import pytest
import torch
from gpt_instruction_finetuning import TEST_CONFIG
from nbclient import NotebookClient
from previous_chapters import GPTModel

FOLDER = Path(gpt_instruction_finetuning.__file__).parent
NAME = "load-finetuned-model.ipynb"


def printed(notebook) -> tuple[list[str], str]:
    """What the cells printed: (of all cells but the one about the real model, of that one)."""
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    texts = ["".join(output.get("text", "") for output in cell.outputs) for cell in code]
    (real,) = [i for i, cell in enumerate(code) if "tags" in cell.metadata]
    return texts[:real] + texts[real + 1 :], texts[real]


def run_beside(folder: Path, place: str | None, kernel: str) -> tuple[list[str], str]:
    """Run a copy of the notebook in a folder with a tuned model in this place, or with none."""
    for path in [*FOLDER.glob("*.py"), *FOLDER.glob("instruction-*.json")]:
        shutil.copyfile(path, folder / path.name)
    if place:
        torch.manual_seed(1)
        (folder / place).parent.mkdir(exist_ok=True)
        torch.save({"model_state_dict": GPTModel(TEST_CONFIG).state_dict(), "gpt_config": TEST_CONFIG}, folder / place)
    notebook = nbformat.read(FOLDER / NAME, as_version=4)
    NotebookClient(notebook, timeout=300, kernel_name=kernel, resources={"metadata": {"path": str(folder)}}).execute()
    return printed(notebook)


@pytest.mark.slow
@pytest.mark.parametrize("place", [None, "gpt2-mini-sft.pth", "instruction-model/gpt2-mini-sft-standalone.pth"])
def test_only_the_last_section_depends_on_a_tuned_model(place, tmp_path, offline_kernel):
    stored, _ = printed(nbformat.read(FOLDER / NAME, as_version=4))
    others, real = run_beside(tmp_path, place, offline_kernel)
    assert others == stored
    if place:
        assert real.count(" -> ") == 3
    else:
        assert len(real.splitlines()) == 1 and "python gpt_instruction_finetuning.py" in real


def test_the_notebook_prints_the_command_that_makes_the_model():
    _, real = printed(nbformat.read(FOLDER / NAME, as_version=4))
    assert "python gpt_instruction_finetuning.py" in real, "store the output of a checkout without a tuned model"
