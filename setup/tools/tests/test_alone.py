"""alone.py: a folder that has all it needs passes; one that reads its neighbor, or whose program knows no --help, is named.

python -m pytest setup/tools/tests/test_alone.py
"""

import alone
import pytest

PROGRAM = "import argparse\n\nif __name__ == '__main__':\n    argparse.ArgumentParser(description='Adds.').parse_args()\n"
READS_ITS_NEIGHBOR = "from pathlib import Path\nTEXT = (Path(__file__).parents[1] / '01_main' / 'text.txt').read_text()\n"
TESTS = "import pathlib\n\n\ndef test_text():\n    assert pathlib.Path(__file__).parents[2].joinpath('01_main/text.txt').exists()\n"


@pytest.fixture
def course(tmp_path, monkeypatch):
    """A course with one good folder; returns a function that adds files."""

    def add(**files):
        for name, text in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")

    plumbing = {name: (alone.ROOT / name).read_text(encoding="utf-8") for name in alone.PLUMBING}
    add(**plumbing, **{"ch02/01_main/program.py": PROGRAM, "ch02/01_main/text.txt": "high water\n"})
    add(**{"ch02/01_main/tests/test_a.py": "def test(): pass\n"})
    monkeypatch.setattr(alone, "ROOT", tmp_path)
    return add


@pytest.mark.slow
def test_a_folder_that_has_all_it_needs_runs_alone(course, capsys):
    assert alone.main(["--tests"]) == 0
    assert capsys.readouterr().out == "1 folders run alone\n"


def test_a_module_that_reads_its_neighbor_is_named_although_the_neighbor_exists(course, capsys):
    course(**{"ch02/02_bonus/reader.py": READS_ITS_NEIGHBOR})
    assert alone.main([]) == 1
    out = capsys.readouterr().out
    assert out.startswith("ch02/02_bonus does not run alone: import reader") and "FileNotFoundError" in out


@pytest.mark.slow
def test_a_test_that_reads_its_neighbor_is_named_where_tests_are_asked_for(course, capsys):
    course(**{"ch02/02_bonus/tests/test_b.py": TESTS, "ch02/02_bonus/fine.py": "x = 1\n"})
    assert alone.main([]) == 0
    assert alone.main(["--tests", "ch02/02_bonus"]) == 1
    assert "ch02/02_bonus does not run alone: pytest" in capsys.readouterr().out


def test_a_program_without_help_is_named(course, capsys):
    course(**{"ch02/02_bonus/deaf.py": PROGRAM.replace(".parse_args()", "")})
    assert alone.main(["ch02/02_bonus/"]) == 1
    assert "deaf.py --help" in capsys.readouterr().out


def test_an_unknown_folder_is_one_line_and_code_2(course, capsys):
    with pytest.raises(SystemExit) as stop:
        alone.main(["ch09/01_main"])
    assert stop.value.code == 2 and "no such numbered folder" in capsys.readouterr().err
