"""copies.py in small made-up repositories: right copies pass, each planted fault is reported in one line."""

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import borrowing
import copies
import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

FAMILY = """
[families]
previous_chapters = ["ch02/01_main/first.py", "ch03/01_main/second.py"]
"""
FIRST = '''"""Docstring that stays behind."""

from __future__ import annotations

import os.path
import sys
from pathlib import Path

RATE = 3  # per hour
STORY = Path(__file__).parent / "story.txt"


def helper(x):
    return x * RATE


# why: said right above
@staticmethod
def scaled(x: Path) -> int:
    """Twice. Section 1."""
    return helper(x) + len(os.path.sep)


def unwanted():
    sys.exit()


def main():
    return 1


if __name__ == "__main__":
    unwanted()
'''
SECOND = """import json
from previous_chapters import helper


class Box:
    def open(self):
        return json.dumps(helper(2))


def main():
    return 2
"""
FILES = {
    "ch02/01_main/first.py": FIRST,
    "ch02/01_main/story.txt": "high water\nlow water\n",
    "ch03/01_main/second.py": SECOND,
    "ch04/01_main/own.py": "from previous_chapters import Box, scaled\n",
}
LEDGER = '[[ledger]]\nmodule = "a/mod.py"\nnotebook = "a/book.ipynb"\n'
MODULE = 'def area(w: float, h: float) -> float:\n    """Product."""\n    return w * h\n'


def repository(root: Path, config: str, **files: str) -> Path:
    """A repository with this copies.toml and these files."""
    for name, text in {"setup/tools/copies.toml": config, **files}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode("utf-8"))
    return root


def notebook(*sources: str, tags: dict | None = None) -> str:
    """A notebook of code cells (markdown where the text starts with "# ") with ids c0, c1, ..."""
    cells = [new_markdown_cell(s, id=f"c{i}") if s.startswith("# ") else new_code_cell(s, id=f"c{i}") for i, s in enumerate(sources)]
    for index, names in (tags or {}).items():
        cells[index].metadata["tags"] = names
    return nbformat.writes(new_notebook(cells=cells))


def run(root: Path, *options: str) -> int:
    return copies.main(["--root", str(root), *options])


def problems(root: Path, capsys) -> list[str]:
    """Lines that --check reports (diffs left out)."""
    capsys.readouterr()
    status = run(root, "--check")
    lines = [line for line in capsys.readouterr().err.splitlines() if not line.startswith(" ")]
    assert status == (1 if lines else 0)
    return lines


@pytest.fixture
def course(tmp_path):
    return repository(tmp_path, FAMILY, **FILES)


@pytest.fixture
def lesson(tmp_path):
    sources = ["import math", "# ## Exercise", "def f(x):\n    raise NotImplementedError", "def f(x):\n    return 7", "check(f)"]
    text = notebook(*sources, tags={2: ["stub"], 3: ["solution"], 4: ["check"]})
    return repository(tmp_path, "", **{"ch02/01_main/exercise-solutions.ipynb": text})


# ---- borrowed modules ----


def generated(root: Path, path: str = "ch04/01_main/previous_chapters.py") -> str:
    return (root / path).read_text(encoding="utf-8")


def test_what_a_folder_imports_is_written_with_all_it_uses_in_order_with_comments_and_decorators(course, capsys):
    assert run(course) == 0
    text = generated(course)
    tree = ast.parse(text)
    names = [getattr(n, "name", None) or n.targets[0].id for n in tree.body if hasattr(n, "name") or hasattr(n, "targets")]
    assert names == ["RATE", "helper", "scaled", "Box"]
    assert "RATE = 3  # per hour\n" in text and "# why: said right above\n@staticmethod\ndef scaled" in text
    assert "unwanted" not in text and "__main__" not in text and "stays behind" not in text
    assert "ch02/01_main/first.py" in ast.get_docstring(tree) and "make copies" in ast.get_docstring(tree)
    assert problems(course, capsys) == []


def test_the_module_imports_what_its_definitions_use_sorted_and_nothing_else_and_runs(course):
    run(course)
    found = [line for line in generated(course).splitlines() if line.startswith(("import", "from"))]
    assert found == ["from __future__ import annotations", "import json", "import os.path", "from pathlib import Path"]
    scope = {"__name__": "merged"}
    exec(generated(course), scope)
    assert scope["Box"]().open() == "6"


def test_an_optional_import_of_a_neighbor_brings_its_definitions(course):
    optional = "try:\n    from first import helper\nexcept ImportError:\n    helper = None\n\n\ndef twice():\n    return helper(2)\n"
    second = course / "ch03/01_main/second.py"
    second.write_text(optional, encoding="utf-8")
    (course / "ch02/01_main/first.py").rename(course / "ch03/01_main/first.py")
    config = course / "setup/tools/copies.toml"
    config.write_text(config.read_text(encoding="utf-8").replace("ch02/01_main/first", "ch03/01_main/first"), encoding="utf-8")
    (course / "ch04/01_main/own.py").write_text("from previous_chapters import twice\n", encoding="utf-8")
    run(course)
    text = generated(course)
    assert "def helper" in text and "ImportError" not in text and "import first" not in text


@pytest.mark.parametrize("user", ["tests/test_own.py", "book.ipynb", "inner.py"])
def test_an_import_counts_wherever_it_stands(course, user):
    code = "def f():\n    from previous_chapters import unwanted\n"
    (course / "ch04/01_main" / user).parent.mkdir(exist_ok=True)
    (course / "ch04/01_main" / user).write_text(notebook("%pwd\n" + code) if user.endswith("ipynb") else code, encoding="utf-8")
    assert run(course) == 0
    assert "def unwanted" in generated(course)


def test_a_data_file_comes_along_only_where_borrowed_code_reads_it(course, capsys):
    run(course)
    assert not (course / "ch04/01_main/story.txt").exists()
    (course / "ch04/01_main/reader.py").write_text("from previous_chapters import STORY\n", encoding="utf-8")
    run(course)
    assert (course / "ch04/01_main/story.txt").read_bytes() == (course / "ch02/01_main/story.txt").read_bytes()
    (course / "ch04/01_main/reader.py").unlink()
    (line,) = [line for line in problems(course, capsys) if "story" in line]
    assert line.startswith("ch04/01_main/story.txt") and "nothing needs it" in line
    assert run(course) == 0 and not (course / "ch04/01_main/story.txt").exists()


def test_an_edited_copy_is_named_with_the_command_that_mends_it(course, capsys):
    run(course)
    path = course / "ch04/01_main/previous_chapters.py"
    path.write_bytes(path.read_bytes() + b"# mine\n")
    (line,) = problems(course, capsys)
    assert line.startswith("ch04/01_main/previous_chapters.py is missing or differs from") and "make copies" in line
    assert run(course) == 0 and problems(course, capsys) == []


def test_check_reports_a_missing_module_and_writes_nothing(course, capsys):
    lines = problems(course, capsys)
    assert [line.split()[0] for line in lines] == ["ch03/01_main/previous_chapters.py", "ch04/01_main/previous_chapters.py"]
    assert "is missing" in lines[0] and not (course / "ch04/01_main/previous_chapters.py").exists()


def test_an_orphan_is_reported_and_removed(course, capsys):
    run(course)
    (course / "ch04/01_main/own.py").write_text("x = 1\n", encoding="utf-8")
    (line,) = problems(course, capsys)
    assert line.startswith("ch04/01_main/previous_chapters.py says that it is generated")
    assert run(course) == 0 and not (course / "ch04/01_main/previous_chapters.py").exists()


@pytest.mark.parametrize(
    "path, text, message",
    [
        ("ch04/01_main/own.py", "from previous_chapters import Lid\n", "no source of previous_chapters defines Lid"),
        ("ch04/01_main/own.py", "from previous_chapters import main\n", "no source of previous_chapters defines main"),
        ("ch04/01_main/own.py", "from previous_chapters import *\n", "imports *"),
        ("ch02/02_bonus/own.py", "from previous_chapters import Box\n", "a later chapter"),
        ("ch03/01_main/own.py", "from previous_chapters import Box\n", "its own file"),
        ("ch03/01_main/second.py", "from extra import lid\n\nclass Box:\n    f = lid\n", "no source"),
        ("ch03/01_main/second.py", "from previous_chapters import helper as h\n\nclass Box:\n    f = h\n", "needs the name itself"),
        ("ch02/01_main/first.py", "from previous_chapters import Box\nscaled = Box\n", "no earlier source"),
    ],
)
def test_what_cannot_be_borrowed_is_one_line_and_nothing_is_written_or_removed(course, capsys, path, text, message):
    run(course)
    before = generated(course)
    repository(course, FAMILY, **{"ch03/01_main/extra.py": "lid = max\n", path: text})
    assert run(course) == 1
    assert message in capsys.readouterr().err
    assert generated(course) == before


def test_a_later_family_imports_what_it_needs_of_an_earlier_one(course):
    config = FAMILY + 'llama = ["ch03/02_llama/llama.py"]\n'
    llama = "from previous_chapters import helper\n\n\ndef scaled(x):\n    return helper(x) * 10\n"
    repository(course, config, **{"ch03/02_llama/llama.py": llama, "ch04/01_main/own.py": "from llama import scaled\n"})
    assert run(course) == 0
    assert "from previous_chapters import helper" in generated(course, "ch04/01_main/llama.py")
    assert "def helper" in generated(course) and "def scaled" not in generated(course)
    assert "def helper" in generated(course, "ch03/02_llama/previous_chapters.py")  # the lender borrows, too


def test_a_second_meaning_of_a_name_is_refused_even_where_nobody_borrows_it(course, capsys):
    repository(course, FAMILY, **{"ch03/01_main/second.py": SECOND + "\n\ndef unwanted():\n    pass\n"})
    with pytest.raises(SystemExit) as stop:
        run(course)
    assert stop.value.code == 2 and "both define unwanted" in capsys.readouterr().err


def borrow(*sources: str, names: set[str], root: Path = Path("nowhere")) -> str:
    """The generated text for sources a/m0.py, a/m1.py, ... of one family."""
    modules = [borrowing.Source(f"a/m{number}.py", text) for number, text in enumerate(sources)]
    return borrowing.Family(root, "family", modules, []).borrow(names).text


@pytest.mark.parametrize(
    "user",
    [
        "def user(x=LIMIT): pass",
        "def user():\n    def inner():\n        return [LIMIT for _ in range(2)]",
        "class user:\n    size = LIMIT",
        "@LIMIT\ndef user(): pass",
        "def user(x: LIMIT): pass",
        "def user():\n    global LIMIT\n    LIMIT = 2",
        "user = {'a': LIMIT}",
    ],
)
def test_a_dependency_is_seen_wherever_the_name_is_used(user):
    assert "LIMIT = 1" in borrow(f"LIMIT = 1\n\n\n{user}\n", names={"user"})
    assert "LIMIT = 1" in borrow("LIMIT = 1\n", f"from m0 import LIMIT\n\n\n{user}\n", names={"user"})


@pytest.mark.parametrize(
    "user", ["def user(LIMIT): return LIMIT", "def user():\n    LIMIT = 2\n    return LIMIT", "def user(x): return x.LIMIT"]
)
def test_a_local_name_that_equals_a_constant_is_no_dependency(user):
    assert "LIMIT = 1" not in borrow(f"LIMIT = 1\n\n\n{user}\n", names={"user"})


def test_two_meanings_of_one_imported_name_are_refused():
    with pytest.raises(borrowing.Problem, match="different things by the name np"):
        borrow("import numpy as np\nf = np.f\n", "import jax as np\ng = np.g\n", names={"f", "g"})


def test_a_constant_that_is_completed_later_is_copied_whole():
    assert 'SIZES["big"] = 9' in borrow('SIZES = {"small": 1}\nSIZES["big"] = 9\n', names={"SIZES"})


# ---- exercises ----


def test_the_learner_edition_has_no_solutions_and_no_outputs_and_keeps_ids(lesson, capsys):
    path = lesson / "ch02/01_main/exercise-solutions.ipynb"
    book = nbformat.read(path, as_version=4)
    book.cells[0].update(execution_count=4, outputs=[nbformat.v4.new_output("stream", text="hello")])
    book.cells[0].metadata["collapsed"] = True
    book.metadata["widgets"] = {"state": {}}
    nbformat.write(book, path)
    assert run(lesson) == 0
    learner = nbformat.read(lesson / "ch02/01_main/exercises.ipynb", as_version=4)
    assert [cell["id"] for cell in learner.cells] == ["generated-note", "c0", "c1", "c2", "c4"]
    assert all(cell.outputs == [] and cell.execution_count is None for cell in learner.cells if cell.cell_type == "code")
    assert set(learner.metadata) == {"kernelspec", "language_info"} and all(set(c.metadata) <= {"tags"} for c in learner.cells)
    note = learner.cells[0].source
    assert "Generated" in note and "exercise-solutions.ipynb" in note and "\n" not in note
    nbformat.validate(learner)
    assert (lesson / "ch02/01_main/exercises.ipynb").read_bytes().endswith(b"}\n")
    assert problems(lesson, capsys) == []


def test_a_solution_left_in_the_learner_edition_is_reported(lesson, capsys):
    run(lesson)
    path = lesson / "ch02/01_main/exercises.ipynb"
    book = nbformat.read(path, as_version=4)
    book.cells.append(new_code_cell("def f(x):\n    return 7", id="c3"))
    nbformat.write(book, path)
    (line,) = problems(lesson, capsys)
    assert line.startswith("ch02/01_main/exercises.ipynb") and "make copies" in line


def test_a_solution_without_its_tag_never_reaches_the_learner_edition(lesson, capsys):
    path = lesson / "ch02/01_main/exercise-solutions.ipynb"
    data = json.loads(path.read_text(encoding="utf-8"))
    data["cells"][3]["metadata"] = {}
    path.write_text(json.dumps(data), encoding="utf-8")
    assert run(lesson) == 1
    assert "cell c3 redefines the stub f" in capsys.readouterr().err
    assert not (lesson / "ch02/01_main/exercises.ipynb").exists()


def test_running_the_solutions_changes_no_byte_of_the_learner_edition(lesson):
    run(lesson)
    before = (lesson / "ch02/01_main/exercises.ipynb").read_bytes()
    path = lesson / "ch02/01_main/exercise-solutions.ipynb"
    book = nbformat.read(path, as_version=4)
    book.cells[0].execution_count = 1
    book.metadata["language_info"] = {"name": "python", "version": "3.12.1"}
    nbformat.write(book, path)
    run(lesson)
    assert (lesson / "ch02/01_main/exercises.ipynb").read_bytes() == before


# ---- ledger ----


def ledger_repository(root: Path, module: str, *cells: str, extra: str = "") -> Path:
    return repository(root, LEDGER + extra, **{"a/mod.py": module, "a/book.ipynb": notebook(*cells)})


@pytest.mark.parametrize(
    "cell",
    [
        "def area(w, h):\n    return w * h",
        "def area(\n    w, h  # meters\n):\n    'Other words.'\n    # product\n    return (w * h)",
        "%matplotlib inline\n!echo hello\ndef area(w, h):\n    return w * h",
        "%%time\nif True:\n    %pwd\ndef area(w, h):\n    return w * h",
    ],
)
def test_docstrings_hints_comments_layout_and_magics_do_not_count(tmp_path, capsys, cell):
    assert problems(ledger_repository(tmp_path, MODULE, "%%bash\nls -l | wc", "# words", cell), capsys) == []


@pytest.mark.parametrize("body", ["return h * w", "return w * h + 0", "w = w\n    return w * h", "return w * h if w % 2 else w * h"])
def test_a_drifted_definition_is_reported_with_its_cell_and_diff(tmp_path, capsys, body):
    root = ledger_repository(tmp_path, MODULE, "# words", f"def area(w, h):\n    {body}")
    assert run(root, "--check") == 1
    text = capsys.readouterr().err
    assert "area in a/mod.py differs from cell c1 of a/book.ipynb" in text
    assert any(line.strip().startswith("+") and body.splitlines()[0] in line for line in text.splitlines())


def test_default_values_and_base_classes_count(tmp_path, capsys):
    module = "def f(x: int = 1):\n    return x\n\n\nclass A(dict):\n    n: int = 0\n"
    assert problems(ledger_repository(tmp_path, module, "def f(x=1):\n    return x\nclass A(dict):\n    n = 0"), capsys) == []
    assert len(problems(ledger_repository(tmp_path, module, "def f(x=2):\n    return x\nclass A(list):\n    n = 0"), capsys)) == 2


def test_the_last_definition_at_column_0_counts(tmp_path, capsys):
    old, new = "def area(w, h):\n    return 0", "def area(w, h):\n    return w * h"
    assert problems(ledger_repository(tmp_path, MODULE, old, new), capsys) == []
    assert problems(ledger_repository(tmp_path, MODULE, new, old), capsys)
    assert problems(ledger_repository(tmp_path, MODULE, new, "if True:\n    def area(w, h):\n        return 0"), capsys) == []


def test_a_definition_missing_from_the_notebook_needs_a_reason(tmp_path, capsys):
    (line,) = problems(ledger_repository(tmp_path, MODULE, "x = 1"), capsys)
    assert "area is in a/mod.py but not in a/book.ipynb" in line
    excuse = '[ledger.module_only]\narea = "plumbing"\n'
    assert problems(ledger_repository(tmp_path, MODULE, "x = 1", extra=excuse), capsys) == []
    (line,) = problems(ledger_repository(tmp_path, MODULE, "x = 1", extra=excuse.replace("plumbing", " ")), capsys)
    assert "without a reason" in line


def test_a_named_deviation_passes(tmp_path, capsys):
    extra = '[ledger.deviations]\narea = "checks its input"\n'
    assert problems(ledger_repository(tmp_path, MODULE, "def area(w, h):\n    return 0", extra=extra), capsys) == []


@pytest.mark.parametrize(
    "extra, cell",
    [
        ('[ledger.deviations]\narea = "why"\n', "def area(w, h):\n    return w * h"),
        ('[ledger.module_only]\narea = "why"\n', "def area(w, h):\n    return w * h"),
        ('[ledger.module_only]\narea = "why"\n[ledger.deviations]\narea = "why"\n', "x = 1"),
        ('[ledger.deviations]\ngone = "why"\n', "def area(w, h):\n    return w * h"),
        ('[ledger.module_only]\ngone = "why"\n', "def area(w, h):\n    return w * h"),
    ],
)
def test_an_exception_that_is_no_longer_needed_is_an_error(tmp_path, capsys, extra, cell):
    assert problems(ledger_repository(tmp_path, MODULE, cell, extra=extra), capsys)


def test_a_missing_or_broken_notebook_is_one_line(tmp_path, capsys):
    root = ledger_repository(tmp_path, MODULE, "def area(w, h) return")
    (line,) = problems(root, capsys)
    assert "a/book.ipynb cell c0 is not Python" in line
    (root / "a/book.ipynb").write_text("not json", encoding="utf-8")
    (line,) = problems(root, capsys)
    assert "a/book.ipynb is not a notebook" in line
    (root / "a/book.ipynb").unlink()
    (line,) = problems(root, capsys)
    assert "a/book.ipynb does not exist" in line


# ---- the list itself ----


@pytest.mark.parametrize(
    "config, message",
    [
        ('[familes]\nx = ["a"]\n', "unknown kind"),
        ('[families]\nx = ["a/gone.py"]\n', "a/gone.py does not exist"),
        ('[[ledger]]\nmodule = "a"\n', "needs"),
        ("[[ledger]\n", "copies.toml"),
    ],
)
def test_a_wrong_list_ends_in_one_line_and_exit_code_2(tmp_path, capsys, config, message):
    with pytest.raises(SystemExit) as stop:
        run(repository(tmp_path, config))
    error = capsys.readouterr().err
    assert stop.value.code == 2 and message in error and error.count("\n") == 1


@pytest.mark.slow
def test_it_runs_from_any_folder_on_the_repository_it_lies_in(tmp_path):
    done = subprocess.run([sys.executable, copies.__file__, "--check"], cwd=tmp_path, capture_output=True, text=True)
    assert re.match(r"\d\d+ generated files", done.stdout) or "run `make copies`" in done.stderr
