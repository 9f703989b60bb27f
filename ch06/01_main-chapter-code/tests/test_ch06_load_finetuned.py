"""load-finetuned-model.ipynb prints the same with and without a trained classifier; only its last section tells them apart.

Run it:  pytest ch06/01_main-chapter-code/tests/test_ch06_load_finetuned.py
"""

import shutil
from pathlib import Path

import gpt_class_finetune
import nbformat
import pytest
import torch
from gpt_class_finetune import TEST_CONFIG, add_classification_head
from nbclient import NotebookClient
from previous_chapters import GPTModel

FOLDER = Path(gpt_class_finetune.__file__).parent
NAME = "load-finetuned-model.ipynb"


def printed(notebook) -> tuple[list[str], str]:
    """What the cells printed: (of all cells but the one about the real classifier, of that one)."""
    texts = ["".join(output.get("text", "") for output in cell.outputs) for cell in notebook.cells if cell.cell_type == "code"]
    (real,) = [i for i, cell in enumerate(c for c in notebook.cells if c.cell_type == "code") if "tags" in cell.metadata]
    return texts[:real] + texts[real + 1 :], texts[real]


def run_beside(folder: Path, checkpoint: bytes | None, kernel: str) -> tuple[list[str], str]:
    """Run a copy of the notebook in a folder with this classifier, or with none."""
    for module in FOLDER.glob("*.py"):
        shutil.copyfile(module, folder / module.name)
    if checkpoint is not None:
        (folder / "spam-classifier").mkdir()
        (folder / "spam-classifier" / "review_classifier.pth").write_bytes(checkpoint)
    notebook = nbformat.read(FOLDER / NAME, as_version=4)
    NotebookClient(notebook, timeout=300, kernel_name=kernel, resources={"metadata": {"path": str(folder)}}).execute()
    return printed(notebook)


def tiny_classifier(path: Path) -> bytes:
    torch.manual_seed(1)
    model = GPTModel(TEST_CONFIG)
    add_classification_head(model)
    torch.save({"model_state_dict": model.state_dict(), "gpt_config": TEST_CONFIG, "max_length": 50}, path)
    return path.read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("case", ["none", "trained"])
def test_only_the_last_section_depends_on_a_trained_classifier(case, tmp_path, offline_kernel):
    stored, _ = printed(nbformat.read(FOLDER / NAME, as_version=4))
    checkpoint = tiny_classifier(tmp_path / "tiny.pth") if case == "trained" else None
    others, real = run_beside(tmp_path, checkpoint, offline_kernel)
    assert others == stored
    if case == "trained":
        assert real.count("% spam: ") == len(real.splitlines()) == 4
    else:
        assert len(real.splitlines()) == 1 and "python gpt_class_finetune.py" in real


def test_the_notebook_prints_the_command_that_makes_the_classifier():
    _, real = printed(nbformat.read(FOLDER / NAME, as_version=4))
    assert "python gpt_class_finetune.py" in real, "store the output of a checkout without a trained classifier"
