"""tracked.py: the same answer with git, without git and in a zip; a learner's files and environments are not the project's.

python -m pytest setup/tools/tests/test_tracked.py
"""

import subprocess
from pathlib import Path

import pytest
import tracked as files

ROOT = Path(__file__).resolve().parents[3]
OURS = [".github/workflows/tests.yml", ".gitignore", "README.md", "ch02/ch02.ipynb", "ch02/gpt2-mini/model.safetensors"]
NOT_OURS = [
    ".DS_Store",
    ".venv/a.ipynb",
    "venv/lib/x.md",
    "my env/pyvenv.cfg",
    "my env/x.py",
    "ch02/.ipynb_checkpoints/ch02.ipynb",
    "node_modules/x/README.md",
    "ch02/runs/log.md",
    "build/x.py",
    "ch02/model.safetensors",
    "ch02/__pycache__/x.py",
    "ch02/gpt2/x.json",
]
IGNORE = """# caches
.venv/
.DS_Store
venv/
my env/
node_modules/
runs/
build/
gpt2/
*.safetensors
!**/gpt2-mini/model.safetensors
.ipynb_checkpoints/
__pycache__/
"""


@pytest.fixture
def project(tmp_path):
    """A small project, in a path with a space, with an environment, caches and outputs in it."""
    root = tmp_path / "my course"
    for name in OURS + NOT_OURS:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(IGNORE if name == ".gitignore" else "", encoding="utf-8")
    return root


def git(root, *arguments):
    subprocess.run(["git", *arguments], cwd=root, check=True, capture_output=True)


def committed(root):
    git(root, "init", "-q")
    git(root, "add", ".")
    return root


def test_a_folder_without_git_shows_what_is_not_ignored(project):
    assert files.tracked(project) == OURS


def test_an_environment_of_any_name_is_skipped_without_git(project):
    (project / "an environment").mkdir()
    for name in ("pyvenv.cfg", "x.py"):
        (project / "an environment" / name).write_text("", encoding="utf-8")
    assert files.tracked(project) == OURS


def test_git_knows_the_same_files(project):
    assert files.tracked(committed(project)) == OURS
    assert files.tracked(project / "ch02") == ["ch02.ipynb", "gpt2-mini/model.safetensors"]


def test_a_learners_own_notes_are_no_part_of_a_proof(project):
    (committed(project) / "my-notes.ipynb").write_text("", encoding="utf-8")
    assert "my-notes.ipynb" in files.tracked(project)
    assert files.tracked(project, new=False) == OURS


def test_a_tracked_file_that_was_deleted_is_not_listed(project):
    (committed(project) / "README.md").unlink()
    assert files.tracked(project) == [name for name in OURS if name != "README.md"]


@pytest.mark.parametrize("answer", ["no program", "refuses"])
def test_without_a_working_git_the_folder_is_searched(project, monkeypatch, answer):
    def run(command, **options):
        if answer == "no program":
            raise FileNotFoundError("git")
        return subprocess.CompletedProcess(command, 128, "", "fatal: detected dubious ownership in repository")

    monkeypatch.setattr(subprocess, "run", run)
    assert files.tracked(project) == OURS


def test_a_folder_inside_a_foreign_repository_that_knows_nothing_of_it_is_searched(project):
    git(project.parent, "init", "-q")
    assert files.tracked(project) == OURS


def test_here_the_search_finds_all_that_git_tracks():
    """The lines of this repository's .gitignore are understood: no tracked file is taken for an ignored one."""
    missed = set(files.tracked(ROOT, new=False)) - set(files._walk(ROOT))
    assert [name for name in missed if not name.startswith("setup/.vscode/")] == []
