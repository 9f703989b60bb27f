"""The index of exercises and chapter 1's map: complete in this repository, and each planted fault is reported in one line."""

import json
import re
import subprocess
from pathlib import Path

import copies
import indexes
import pytest
from nbformat import writes
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

REPO = Path(__file__).resolve().parents[3]
TASK = "## Exercise 9.1: Count | sort\n*Difficulty 2/5, about 15 minutes*\n\nWrite it."
PRACTICE = '["ch09/01_main"]\n"9.1" = "counting"\n\n["ch10/01_main"]\n"1" = "not there yet"\n'
MAP = "| part | folders |\n|---|---|\n| 9 | [main](ch09/01_main/README.md) |\n"
README = f"# The course\n\n## Map of the whole course\n\n{MAP}\n## More\n| a | b |\n"
BONUS = ["**Exercise 1: bytes** *(difficulty 3/5, about 20 minutes).* How many?", "### Exercise 2: why?"]


def notebook(*sources):
    """A notebook's text; what begins with a letter and a parenthesis is code."""
    cells = [new_code_cell(s) if re.match(r"\w+\(|def ", s) else new_markdown_cell(s) for s in sources]
    return writes(new_notebook(cells=cells))


@pytest.fixture
def course(tmp_path):
    files = {
        "setup/tools/copies.toml": "",
        "README.md": README,
        "ch01/README.md": "# One\n\n<!-- map:start -->\n<!-- map:end -->\nend\n",
        "ch09/README.md": "# Chapter 9: the end\n",
        "ch09/01_main/exercise-solutions.ipynb": notebook(TASK, "check_9_1(count)", "check_9_1(count)"),
        "ch09/02_bonus/book.ipynb": notebook(*BONUS),
        "ch09/03_more/book.ipynb": notebook("**Exercises.**\n\n1. Try it."),
        "ch09/01_main/ch09.ipynb": notebook("## Exercises\n\nsee exercises.ipynb"),
        "appendix-C/practice.toml": PRACTICE,
        "appendix-C/README.md": "# C\n\n<!-- exercises:start -->\nold\n<!-- exercises:end -->\nend\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    return tmp_path


def index(root):
    assert copies.main(["--root", str(root)]) == 0
    return (root / "appendix-C/README.md").read_text(encoding="utf-8")


def complaint(root, capsys):
    assert copies.main(["--root", str(root), "--check"]) == 1
    return capsys.readouterr().err


def test_each_exercise_gets_a_line_with_effort_practice_and_links(course):
    text = index(course)
    links = "[try](../ch09/01_main/exercises.ipynb), [solution](../ch09/01_main/exercise-solutions.ipynb)"
    row = f"| **9.1** Count \\| sort | 2/5 | 15 | counting | {links}, [`check_9_1`](../ch09/01_main/exercise_checks.py) |"
    assert row in text.splitlines() and "## Chapter 9: the end" in text and "\n1 exercises in" in text
    assert "| 1. bytes | 3/5, 20 minutes |" in text and "| 2. why? |  |" in text
    assert "03_more/book.ipynb) | several, at its end | |" in text and "ch09.ipynb" not in text
    assert text.startswith("# C\n") and text.endswith("<!-- exercises:end -->\nend\n") and "old" not in text


def test_the_map_keeps_its_rows_and_its_links_point_one_folder_up(course):
    assert copies.main(["--root", str(course)]) == 0
    page = (course / "ch01/README.md").read_text(encoding="utf-8")
    assert "| 9 | [main](../ch09/01_main/README.md) |\n<!-- map:end -->\nend\n" in page and "| a | b |" not in page


def test_check_sees_a_page_that_is_out_of_date(course, capsys):
    index(course)
    assert copies.main(["--root", str(course), "--check"]) == 0
    book = course / "ch09/01_main/exercise-solutions.ipynb"
    book.write_text(book.read_text(encoding="utf-8").replace("15 minutes", "20 minutes"), encoding="utf-8")
    (course / "README.md").write_text(README.replace("[main]", "[other]"), encoding="utf-8")
    told = complaint(course, capsys)
    assert "appendix-C/README.md is missing or differs" in told and "ch01/README.md is missing or differs" in told


def test_a_chapter_without_readme_is_named(course, capsys):
    (course / "ch09/README.md").unlink()
    assert "ch09/README.md is missing" in complaint(course, capsys)


@pytest.mark.parametrize(
    ("name", "old", "new", "told"),
    [
        ("appendix-C/practice.toml", '"9.1" = "counting"', "", "exercise 9.1 of ch09/01_main/exercise-solutions.ipynb needs"),
        ("appendix-C/practice.toml", '"9.1"', '"9.1" = "a"\n"9.2"', "exercises that ch09/01_main/exercise-solutions.ipynb does not have"),
        ("appendix-C/practice.toml", '"9.1" =', '"9.1"', "appendix-C/practice.toml: "),
        ("ch09/01_main/exercise-solutions.ipynb", "about 15 minutes", "short", "needs a line with difficulty"),
        ("ch01/README.md", "<!-- map:end -->", "", "needs the lines <!-- map:start --> and <!-- map:end -->"),
        ("README.md", "## Map of", "## A map of", "no table under"),
    ],
)
def test_what_is_missing_is_named(course, capsys, name, old, new, told):
    text = (course / name).read_text(encoding="utf-8")
    assert old in text
    (course / name).write_text(text.replace(old, new), encoding="utf-8")
    assert told in complaint(course, capsys)


def test_no_exercise_of_this_repository_is_missing():
    """Counted another way than the tool counts: in the text of the files, learner editions included."""
    listed = subprocess.run(["git", "ls-files", "*.ipynb"], cwd=REPO, capture_output=True, text=True).stdout.split()
    if not listed:
        pytest.skip("not a git checkout")
    rows = (REPO / indexes.INDEX).read_text(encoding="utf-8").splitlines()
    seen = 0
    for name in listed:
        found = set(re.findall(r'"(?:#+ |\*\*)Exercise ([^:]+): ', (REPO / name).read_text(encoding="utf-8")))
        folder = Path(name).parent.as_posix()
        mine = [row for row in rows if f"(../{name})" in row]
        if name.endswith("exercises.ipynb"):
            solved = {number for number, _ in headings(f"{folder}/exercise-solutions.ipynb")}
            assert found == solved, f"{name} and its solutions differ"
        assert len(mine) >= len(found) and all(any(re.search(rf"\*\*{n}\*\* |\| {n}\. ", row) for row in mine) for n in found), name
        seen += len(found)
    assert seen > 120


def headings(name):
    """(number, title) of the exercises of a notebook, by its headings."""
    text = "\n".join("".join(cell["source"]) for cell in json.loads((REPO / name).read_text(encoding="utf-8"))["cells"])
    return re.findall(r"^## Exercise ([^:]+): (.+)$", text, flags=re.M)
