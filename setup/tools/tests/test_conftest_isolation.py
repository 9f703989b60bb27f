"""Every test file gets its own folder's modules, whatever ran before; tests start seeded and in an empty folder."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[3]

TEST = """
import os
import pytest
import shared_name

def test_early_late_and_indirect_imports_agree():
    import shared_name as again
    import late_name
    assert shared_name.OWNER == late_name.OWNER == shared_name.indirect() == "{folder}"
    assert again is shared_name and again.late_name_module() is late_name

@pytest.fixture(scope="module")
def wide():
    import late_name
    return late_name.OWNER

def test_fixtures_see_the_folder_too(wide):
    assert wide == "{folder}"

def test_working_folder_is_empty():
    assert os.listdir(".") == []
    open("litter.txt", "w").close()

def test_working_folder_is_empty_again():
    assert os.listdir(".") == []
"""
MODULE = """
OWNER = "{folder}"

def late_name_module():
    import late_name
    return late_name

def indirect():
    return late_name_module().OWNER
"""


@pytest.fixture(scope="module")
def repo(tmp_path_factory):
    """Two folders with modules of equal names, one of which lacks `only_in_one`."""
    root = tmp_path_factory.mktemp("repo")
    (root / "setup" / "tools").mkdir(parents=True)
    for name in ("conftest.py", "pyproject.toml", "setup/tools/offline_kernel.py"):
        shutil.copy(ROOT / name, root / name)
    for folder in ("one", "two"):
        (root / folder / "tests").mkdir(parents=True)
        (root / folder / "shared_name.py").write_text(MODULE.format(folder=folder), encoding="utf-8")
        (root / folder / "late_name.py").write_text(f'OWNER = "{folder}"\n', encoding="utf-8")
        (root / folder / "tests" / f"test_{folder}.py").write_text(TEST.format(folder=folder), encoding="utf-8")
    (root / "one" / "only_in_one.py").write_text("", encoding="utf-8")
    (root / "one" / "tests" / "test_one_extra.py").write_text("import only_in_one\n\ndef test_it(): pass\n", encoding="utf-8")
    return root


def run_pytest(cwd, *arguments):
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("PYTEST", "PYTHONPATH"))}
    command = [sys.executable, "-m", "pytest", "-q", "--color=no", "-p", "no:cacheprovider", "-p", "no:nbval", *arguments]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=120).stdout


def test_equal_module_names_do_not_mix_from_the_root(repo):
    assert "9 passed" in run_pytest(repo, "-p", "no:xdist", "one", "two")


def test_equal_module_names_do_not_mix_from_a_folder(repo):
    assert "4 passed" in run_pytest(repo / "two", "-p", "no:xdist")


def test_equal_module_names_do_not_mix_when_tests_alternate(repo):
    names = [
        f"{folder}/tests/test_{folder}.py::{test}"
        for test in ("test_fixtures_see_the_folder_too", "test_early_late_and_indirect_imports_agree")
        for folder in ("one", "two")
    ]
    assert "4 passed" in run_pytest(repo, "-p", "no:xdist", *names)


@pytest.mark.slow
def test_equal_module_names_do_not_mix_across_workers(repo):
    assert "9 passed" in run_pytest(repo, "-n", "2", "one", "two")


def test_a_module_of_another_folder_is_not_found(repo):
    """A planted fault: folder two imports what only folder one has, after folder one's tests were collected."""
    bad = repo / "two" / "tests" / "test_two_wrong.py"
    bad.write_text("import only_in_one\n\ndef test_it(): pass\n", encoding="utf-8")
    try:
        output = run_pytest(repo, "-p", "no:xdist", "one", "two")
    finally:
        bad.unlink()
    assert "No module named 'only_in_one'" in output and "1 error" in output


@pytest.mark.parametrize("turn", [1, 2])
def test_every_test_starts_from_the_same_seed(turn):
    drawn = torch.rand(3)
    torch.manual_seed(123)
    assert torch.equal(drawn, torch.rand(3))
