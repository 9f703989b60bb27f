"""copies.py in small made-up repositories: right copies pass, each planted fault is reported in one line."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import copies
import merging
import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

FILES = """
[[file]]
source = "a/story.txt"
targets = ["b/story.txt", "c/story.txt"]

[[file]]
source = "a/tool.py"
targets = ["b/tool.py"]
"""
MERGE = """
[[merge]]
targets = ["c/previous_chapters.py"]

[[merge.sources]]
path = "a/first.py"
names = ["RATE", "scaled", "helper"]

[[merge.sources]]
path = "b/second.py"
names = ["Box"]
"""
FIRST = '''"""Docstring that stays behind."""

from __future__ import annotations

import os.path
import sys
from pathlib import Path

RATE = 3  # per hour


def helper(x):
    return x * RATE


# why: said right above
@staticmethod
def scaled(x: Path) -> int:
    """Twice. Section 1."""
    return helper(x) + len(os.path.sep)


def unwanted():
    sys.exit()


if __name__ == "__main__":
    unwanted()
'''
SECOND = """import json
from previous_chapters import helper


class Box:
    def open(self):
        return json.dumps(helper(2))
"""
EXERCISES = '[[exercises]]\nsource = "a/exercise-solutions.ipynb"\ntarget = "a/exercises.ipynb"\n'
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
def files(tmp_path):
    return repository(tmp_path, FILES, **{"a/story.txt": "high water\nlow water\n", "a/tool.py": "#!/usr/bin/env python\nX = 1\n"})


@pytest.fixture
def merged(tmp_path):
    return repository(tmp_path, MERGE, **{"a/first.py": FIRST, "b/second.py": SECOND})


@pytest.fixture
def lesson(tmp_path):
    sources = ["import math", "# ## Exercise", "def f(x):\n    raise NotImplementedError", "def f(x):\n    return 7", "check(f)"]
    text = notebook(*sources, tags={2: ["stub"], 3: ["solution"], 4: ["check"]})
    return repository(tmp_path, EXERCISES, **{"a/exercise-solutions.ipynb": text})


# ---- file ----


def test_data_is_copied_byte_for_byte_and_code_gets_a_header_after_its_shebang(files, capsys):
    assert run(files) == 0
    assert (files / "c/story.txt").read_bytes() == (files / "a/story.txt").read_bytes()
    lines = (files / "b/tool.py").read_text(encoding="utf-8").splitlines()
    assert lines == ["#!/usr/bin/env python", "# Generated from a/tool.py by `make copies`; do not edit.", "X = 1"]
    assert problems(files, capsys) == []


@pytest.mark.parametrize("target", ["b/story.txt", "b/tool.py"])
def test_an_edited_copy_is_named_with_the_command_that_mends_it(files, capsys, target):
    run(files)
    (files / target).write_bytes((files / target).read_bytes() + b"# mine\n")
    (line,) = problems(files, capsys)
    assert line.startswith(target) and "make copies" in line
    assert run(files) == 0 and problems(files, capsys) == []


def test_check_reports_every_missing_copy_and_writes_nothing(files, capsys):
    assert [line.split()[0] for line in problems(files, capsys)] == ["b/story.txt", "c/story.txt", "b/tool.py"]
    assert not (files / "b").exists()


def test_a_missing_source_is_an_error_and_the_other_copies_are_still_written(files, capsys):
    (files / "a/story.txt").unlink()
    assert run(files) == 1
    assert (files / "b/tool.py").is_file()
    assert all("source a/story.txt does not exist" in line for line in problems(files, capsys))


def test_a_checkout_with_windows_line_ends_in_code_is_current_but_data_must_match_to_the_byte(files, capsys):
    run(files)
    for target in ("b/tool.py", "b/story.txt"):
        (files / target).write_bytes((files / target).read_bytes().replace(b"\n", b"\r\n"))
    assert [line.split()[0] for line in problems(files, capsys)] == ["b/story.txt"]


# ---- merge ----


def test_a_merge_holds_the_definitions_in_order_with_comments_and_decorators(merged, capsys):
    assert run(merged) == 0
    text = (merged / "c/previous_chapters.py").read_text(encoding="utf-8")
    names = [
        getattr(node, "name", None) or node.targets[0].id
        for node in ast.parse(text).body
        if hasattr(node, "name") or hasattr(node, "targets")
    ]
    assert names == ["RATE", "helper", "scaled", "Box"]
    assert "RATE = 3  # per hour\n" in text
    assert "# why: said right above\n@staticmethod\ndef scaled" in text
    assert "unwanted" not in text and "__main__" not in text and "stays behind" not in text
    assert "a/first.py" in ast.get_docstring(ast.parse(text)) and "make copies" in ast.get_docstring(ast.parse(text))
    assert problems(merged, capsys) == []


def test_a_merge_imports_what_its_definitions_use_sorted_and_nothing_else(merged):
    run(merged)
    lines = (merged / "c/previous_chapters.py").read_text(encoding="utf-8").splitlines()
    found = [line for line in lines if line.startswith(("import", "from"))]
    assert found == ["from __future__ import annotations", "import json", "import os.path", "from pathlib import Path"]


def test_a_merged_module_runs(merged):
    run(merged)
    scope = {"__name__": "merged"}
    exec((merged / "c/previous_chapters.py").read_text(encoding="utf-8"), scope)
    assert scope["Box"]().open() == "6"


@pytest.mark.parametrize(
    "change, message",
    [
        (('names = ["RATE", ', "names = ["), "uses RATE"),
        (('"scaled", "helper"', '"scaled"'), "uses helper"),
        (('["Box"]', '["Box", "Lid"]'), "does not define Lid"),
        (('["Box"]', "[]"), "names"),
    ],
)
def test_a_forgotten_dependency_or_missing_name_stops_the_merge(merged, capsys, change, message):
    config = merged / "setup/tools/copies.toml"
    config.write_text(MERGE.replace(*change), encoding="utf-8")
    try:
        assert run(merged) == 1
    except SystemExit as stop:
        assert stop.code == 2
    assert message in capsys.readouterr().err
    assert not (merged / "c/previous_chapters.py").exists()


def test_a_name_from_previous_chapters_must_come_from_an_earlier_source():
    parts = [("a.py", FIRST, ["RATE", "helper"]), ("b.py", SECOND, ["Box"])]
    assert "previous_chapters" not in merging.merge(parts)
    with pytest.raises(merging.Problem, match="takes helper from previous_chapters"):
        merging.merge(parts[::-1])


@pytest.mark.parametrize(
    "user",
    [
        "def user(x=LIMIT): pass",
        "def user():\n    def inner():\n        return [LIMIT for _ in range(2)]",
        "class user:\n    size = LIMIT",
        "@LIMIT\ndef user(): pass",
        "def user(x: LIMIT): pass",
        "def user(x: 'list[LIMIT]'): pass",
        "def user():\n    global LIMIT\n    LIMIT = 2",
        "user = {'a': LIMIT}",
    ],
)
def test_a_dependency_is_seen_wherever_the_name_is_used(user):
    with pytest.raises(merging.Problem, match="uses LIMIT"):
        merging.merge([("a.py", f"LIMIT = 1\n\n\n{user}\n", ["user"])])


@pytest.mark.parametrize(
    "user", ["def user(LIMIT): return LIMIT", "def user():\n    LIMIT = 2\n    return LIMIT", "def user(x): return x.LIMIT"]
)
def test_a_local_name_that_equals_a_constant_is_no_dependency(user):
    assert "LIMIT = 1" not in merging.merge([("a.py", f"LIMIT = 1\n\n\n{user}\n", ["user"])])


def test_two_meanings_of_one_name_are_refused():
    clash = [("a.py", "import numpy as np\nf = np.f\n", ["f"]), ("b.py", "import jax as np\ng = np.g\n", ["g"])]
    with pytest.raises(merging.Problem, match="different things by the name np"):
        merging.merge(clash)
    with pytest.raises(merging.Problem, match="both provide f"):
        merging.merge([("a.py", "f = 1\n", ["f"]), ("b.py", "f = 2\n", ["f"])])


def test_a_constant_that_is_completed_later_is_copied_whole():
    assert 'SIZES["big"] = 9' in merging.merge([("a.py", 'SIZES = {"small": 1}\nSIZES["big"] = 9\n', ["SIZES"])])


# ---- exercises ----


def test_the_learner_edition_has_no_solutions_and_no_outputs_and_keeps_ids(lesson, capsys):
    path = lesson / "a/exercise-solutions.ipynb"
    book = nbformat.read(path, as_version=4)
    book.cells[0].update(execution_count=4, outputs=[nbformat.v4.new_output("stream", text="hello")])
    book.cells[0].metadata["collapsed"] = True
    book.metadata["widgets"] = {"state": {}}
    nbformat.write(book, path)
    assert run(lesson) == 0
    learner = nbformat.read(lesson / "a/exercises.ipynb", as_version=4)
    assert [cell["id"] for cell in learner.cells] == ["generated-note", "c0", "c1", "c2", "c4"]
    assert all(cell.outputs == [] and cell.execution_count is None for cell in learner.cells if cell.cell_type == "code")
    assert set(learner.metadata) == {"kernelspec", "language_info"} and all(set(c.metadata) <= {"tags"} for c in learner.cells)
    note = learner.cells[0].source
    assert "Generated" in note and "exercise-solutions.ipynb" in note and "\n" not in note
    nbformat.validate(learner)
    assert (lesson / "a/exercises.ipynb").read_bytes().endswith(b"}\n")
    assert problems(lesson, capsys) == []


def test_a_solution_left_in_the_learner_edition_is_reported(lesson, capsys):
    run(lesson)
    path = lesson / "a/exercises.ipynb"
    book = nbformat.read(path, as_version=4)
    book.cells.append(new_code_cell("def f(x):\n    return 7", id="c3"))
    nbformat.write(book, path)
    (line,) = problems(lesson, capsys)
    assert line.startswith("a/exercises.ipynb") and "make copies" in line


def test_a_solution_without_its_tag_never_reaches_the_learner_edition(lesson, capsys):
    path = lesson / "a/exercise-solutions.ipynb"
    data = json.loads(path.read_text(encoding="utf-8"))
    data["cells"][3]["metadata"] = {}
    path.write_text(json.dumps(data), encoding="utf-8")
    assert run(lesson) == 1
    assert "cell 4 redefines the stub f" in capsys.readouterr().err
    assert not (lesson / "a/exercises.ipynb").exists()


def test_running_the_solutions_changes_no_byte_of_the_learner_edition(lesson):
    run(lesson)
    before = (lesson / "a/exercises.ipynb").read_bytes()
    path = lesson / "a/exercise-solutions.ipynb"
    book = nbformat.read(path, as_version=4)
    book.cells[0].execution_count = 1
    book.metadata["language_info"] = {"name": "python", "version": "3.12.1"}
    nbformat.write(book, path)
    run(lesson)
    assert (lesson / "a/exercises.ipynb").read_bytes() == before


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
def test_a_drifted_definition_is_reported_with_cell_number_and_diff(tmp_path, capsys, body):
    root = ledger_repository(tmp_path, MODULE, "# words", f"def area(w, h):\n    {body}")
    assert run(root, "--check") == 1
    text = capsys.readouterr().err
    assert "area in a/mod.py differs from cell 2 of a/book.ipynb" in text
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
    assert "a/book.ipynb cell 1 is not Python" in line
    (root / "a/book.ipynb").write_text("not json", encoding="utf-8")
    (line,) = problems(root, capsys)
    assert "a/book.ipynb is not a notebook" in line
    (root / "a/book.ipynb").unlink()
    (line,) = problems(root, capsys)
    assert "a/book.ipynb does not exist" in line


# ---- redefines_nothing ----


@pytest.mark.parametrize("cell", ["def area(w, h):\n    return 1", "area = 3", "for area in range(2):\n    pass", "class area:\n    pass"])
def test_a_summary_notebook_that_binds_a_public_name_is_reported(tmp_path, capsys, cell):
    config = '[[redefines_nothing]]\nmodule = "a/mod.py"\nnotebooks = ["a/book.ipynb"]\n'
    module = "import torch\n" + MODULE + "\n\ndef _private():\n    pass\n"
    clean = ["from mod import area", "torch = 1", "_private = 2", "def other():\n    area = 1\n    return area", "%pwd"]
    good = repository(tmp_path, config, **{"a/mod.py": module, "a/book.ipynb": notebook(*clean)})
    assert problems(good, capsys) == []
    (tmp_path / "a/book.ipynb").write_text(notebook(*clean, cell), encoding="utf-8")
    (line,) = problems(tmp_path, capsys)
    assert line.startswith("cell 6 of a/book.ipynb redefines area")


# ---- the list of copies itself ----


@pytest.mark.parametrize(
    "config, message",
    [
        (FILES + '[[file]]\nsource = "a/x.py"\ntargets = ["b/tool.py"]\n', "b/tool.py is the target of two entries"),
        (FILES + '[[file]]\nsource = "b/tool.py"\ntargets = ["c/tool.py"]\n', "b/tool.py is generated, so it cannot be a source"),
        ('[[flie]]\nsource = "a"\n', "unknown kind"),
        ('[[file]]\nsource = "a"\ntarget = "b"\n', "keys"),
        ("[[file]\n", "copies.toml"),
    ],
)
def test_a_wrong_list_of_copies_ends_in_one_line_and_exit_code_2(tmp_path, capsys, config, message):
    with pytest.raises(SystemExit) as stop:
        run(repository(tmp_path, config))
    error = capsys.readouterr().err
    assert stop.value.code == 2 and message in error and error.count("\n") == 1


def test_list_shows_sources_and_marks_what_is_missing(files, capsys):
    assert run(files, "--list") == 0
    assert "b/tool.py (missing) <- a/tool.py\n" in capsys.readouterr().out


def test_it_runs_from_any_folder_on_the_repository_it_lies_in(tmp_path):
    done = subprocess.run([sys.executable, copies.__file__, "--list"], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "previous_chapters.py" in done.stdout


def test_the_list_of_this_course_is_well_formed():
    root = Path(copies.__file__).parents[2]
    config = copies.load(root)
    assert copies.plan(root, config)
    assert {"file", "merge", "exercises", "ledger", "redefines_nothing"} <= config.keys()
