"""notebooks.py: each rule finds its planted fault, a clean run is saved whole or not at all, and tables follow measurements."""

import json
import subprocess
import sys
import threading

import nbformat
import notebook_budgets
import notebook_rules
import notebooks
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

PNG = "iVBORw0KGgo="
MEASURED = {"seconds": 5.0, "peak_mb": 300, "machine": "a machine"}


def code(source, count=1, outputs=(), tags=()):
    cell = new_code_cell(source, execution_count=count, outputs=list(outputs))
    if tags:
        cell.metadata["tags"] = list(tags)
    return cell


def prose(words=60):
    return new_markdown_cell("# Title\n\n" + "word " * words)


def figure(alt="A line rises from zero to one."):
    return new_output(
        "display_data", data={"image/png": PNG, "text/plain": "<Figure>"}, metadata={"image/png": {"alt": alt}} if alt else {}
    )


def stream(text, name="stdout"):
    return new_output("stream", name=name, text=text)


def write(folder, cells, name="lesson.ipynb"):
    """Save a clean notebook, whose cells are called a, b, c, ..., and return its path."""
    path = folder / name
    for cell_id, cell in zip("abcdefghij", cells, strict=False):
        cell["id"] = cell_id
    notebooks.write_atomically(path, notebooks.as_text(notebooks.clean(new_notebook(cells=list(cells)))))
    return path


def found(folder, cells, name="lesson.ipynb", measured=MEASURED):
    path = write(folder, cells, name)
    return "\n".join(notebook_rules.findings(nbformat.read(path, as_version=4), path, folder, {name: measured}))


def test_a_sound_notebook_has_no_findings(tmp_path):
    cells = [prose(), code("x = 1\nprint(x)", 1, [stream("1\n")]), prose(), code("fig", 2, [figure()])]
    assert found(tmp_path, cells) == ""


FAULTS = {
    "drawn figure without alt text": ([code("fig", 1, [figure(alt="")])], "without alt text"),
    "counts out of order": ([code("a = 1", 2), code("b = 2", 1)], "cell a: execution count 2, expected 1"),
    "cell not run": ([code("a = 1", None)], "execution count None"),
    "ignored output without assert": ([code("t = 1\nprint(t)", 1, tags=["nbval-ignore-output"])], "without an assert"),
    "ignored by comment": ([code("# NBVAL_IGNORE_OUTPUT\nprint(1)", 1)], "without an assert"),
    "too many ignored": ([code("assert 1 < 2", n, tags=["nbval-ignore-output"]) for n in (1, 2)], "2 of 2 code cells ignore"),
    "skipped cell": ([code("x = 1", 1, tags=["nbval-skip"])], "nothing tests it"),
    "41 lines": ([code("\n".join(f"x{n} = {n}" for n in range(41)), 1)], "41 lines, at most 40"),
    "stored error": ([code("1/0", 1, [new_output("error", ename="ZeroDivisionError", evalue="", traceback=[])])], "stored error"),
    "stderr": ([code("warn()", 1, [stream("UserWarning: no\n", "stderr")])], "writes to stderr"),
    "magic beside an import": ([code("%time import os", 1), code("%matplotlib inline\nimport os", 2)], "magic beside an import"),
    "assert in a comment only": ([code("t = 1\nprint(t)  # assert t", 1, tags=["nbval-ignore-output"])], "without an assert"),
    "little prose": ([prose(5), code("x = 1", 1)], "words of prose"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_each_planted_fault_is_found_and_says_how_to_mend_it(tmp_path, name):
    cells, wanted = FAULTS[name]
    lines = [line for line in found(tmp_path, cells).splitlines() if wanted in line]
    assert lines, f"{name} was not found"
    assert ";" in lines[0], "the finding does not say how to mend it"


def test_40_lines_one_ignored_cell_and_a_caught_error_are_allowed(tmp_path):
    error = new_output("error", ename="ValueError", evalue="", traceback=[])
    cells = [
        prose(200),
        code("\n".join(f"x{n} = {n}" for n in range(40)), 1),
        code("assert 1 < 2", 2, tags=["nbval-ignore-output"]),
        code("raise ValueError", 3, [error], tags=["raises-exception"]),
    ]
    assert found(tmp_path, cells) == ""


def test_main_chapters_need_figures_prose_and_plain_python(tmp_path):
    cells = [prose(95), code("fig", 1, [figure(), figure(), figure(), figure()])]
    assert found(tmp_path, cells, "ch02.ipynb") == ""
    assert "3 drawn figures" in found(tmp_path, [prose(95), code("fig", 1, [figure()] * 3)], "ch02.ipynb")
    assert "magic" in found(tmp_path, [prose(95), code("%time 1", 1, [figure()] * 4)], "ch02.ipynb")
    assert "wanted 80-120" in found(tmp_path, [prose(60), code("fig", 1, [figure()] * 4)], "ch02.ipynb")
    assert "wanted 80-120" in found(tmp_path, [prose(140), code("fig", 1, [figure()] * 4)], "ch02.ipynb")


def test_the_learner_edition_needs_no_outputs_but_keeps_the_other_rules(tmp_path):
    assert found(tmp_path, [code("x = 1", None)], "exercises.ipynb") == ""
    assert "41 lines" in found(tmp_path, [code("x = 1\n" * 41, None)], "exercises.ipynb")


def test_words_in_fenced_code_are_not_prose():
    cells = [new_markdown_cell("one two\n```text\nthree four five\n```\nsix"), code("x")]
    assert notebook_rules.prose_words(new_notebook(cells=cells)) == 3


@pytest.mark.parametrize("call", ["assert x", "    torch.testing.assert_close(a, b)", "np.testing.assert_allclose(a, b)"])
def test_any_form_of_assertion_counts(tmp_path, call):
    source = call if call[0] != " " else f"if True:\n{call}"
    assert found(tmp_path, [prose(), code(source, 1, tags=["nbval-ignore-output"])]) == ""


LIMITS = {  # notebook -> seconds it may take
    "ch02/01_main-chapter-code/ch02.ipynb": 30,
    "ch04/01_main-chapter-code/ch04.ipynb": 30,
    "ch05/01_main-chapter-code/ch05.ipynb": 150,
    "ch07/01_main-chapter-code/ch07.ipynb": 150,
    "ch05/01_main-chapter-code/exercise-solutions.ipynb": 20,
    "appendix-A/01_main-chapter-code/code-part1.ipynb": 30,
    "appendix-D/01_main-chapter-code/appendix-D.ipynb": 90,
    "appendix-E/01_main-chapter-code/appendix-E.ipynb": 90,
    "ch04/03_kv-cache/kv-cache.ipynb": 30,
}


@pytest.mark.parametrize("name", LIMITS)
def test_time_limits_depend_on_the_kind_of_notebook(name):
    def problems(seconds, peak_mb=4000, real_model=None):
        return list(notebook_budgets.budget_problems(name, real_model, {"seconds": seconds, "peak_mb": peak_mb}))

    assert problems(LIMITS[name]) == []
    assert len(problems(LIMITS[name] + 1)) == 1 and "minutes, at most" in problems(LIMITS[name] + 1)[0]
    assert problems(1, 4001) == ["needs 4001 MB, at most 4000; use smaller sizes or free what is done"]
    if "kv-cache" in name:
        assert problems(90, real_model="smollm2") == [] and len(problems(91, real_model="smollm2")) == 1


def test_a_missing_measurement_is_a_finding(tmp_path):
    assert "no measurement" in found(tmp_path, [prose(), code("x = 1", 1)], measured=None)


def test_an_exception_has_a_reason_and_holds_only_while_it_is_needed(monkeypatch):
    monkeypatch.setitem(notebook_budgets.EXCEPTIONS, "x.ipynb", (1, "because"))
    quick, slow, slower = (list(notebook_budgets.budget_problems("x.ipynb", None, {**MEASURED, "seconds": n})) for n in (29, 59, 61))
    assert "take it out of EXCEPTIONS" in quick[0] and slow == [] and "at most 1;" in slower[0]
    for name, (minutes, reason) in notebook_budgets.EXCEPTIONS.items():
        assert minutes > notebook_budgets.limit_minutes(name) and reason


@pytest.mark.parametrize("seconds, status", [(36 * 60, 0), (36 * 60 + 10, 1)])
def test_the_sum_of_all_notebooks_is_limited(tmp_path, capsys, seconds, status):
    notebook_budgets.record("a.ipynb", {**MEASURED, "seconds": seconds - 5}, tmp_path)
    (tmp_path / "a.ipynb").write_text("", encoding="utf-8")
    notebook_budgets.record("b.ipynb", MEASURED, tmp_path)
    (tmp_path / "a.ipynb").unlink()
    assert notebooks.main(["check", "--root", str(tmp_path)]) == status
    assert ("all notebooks take 36.2 minutes, at most 36" in capsys.readouterr().out) == bool(status)


def test_a_notebook_that_is_gone_leaves_the_measurements(tmp_path):
    notebook_budgets.record("gone.ipynb", MEASURED, tmp_path)
    notebook_budgets.record("new.ipynb", MEASURED, tmp_path)
    assert set(notebook_budgets.read_budgets(tmp_path)) == {"new.ipynb"}


def test_a_notebook_names_a_real_model_that_is_known(tmp_path):
    path = write(tmp_path, [prose(), code("x = 1", 1)])
    nb = nbformat.read(path, as_version=4)
    nb.metadata["requires"] = "gemma"
    assert notebooks.clean(nb).metadata["requires"] == "gemma"
    assert notebook_rules.findings(nb, path, tmp_path, {"lesson.ipynb": MEASURED}) == []
    nb.metadata["requires"] = "GPT-7"
    assert "requires 'GPT-7'" in notebook_rules.findings(nb, path, tmp_path, {"lesson.ipynb": MEASURED})[0]


def test_a_short_peak_of_memory_is_seen():
    code = "block = bytearray(300_000_000); del block; print('done', flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        process.stdout.readline()  # the block is gone
        done = threading.Event()
        done.set()
        assert notebook_budgets.peak_memory(process.pid, done) > (300e6 if sys.platform == "linux" else 1e6)
        process.communicate(b"\n")


def test_clean_drops_noise_keeps_meaning_and_is_stable(tmp_path):
    nb = new_notebook(cells=[prose(), code("fig", 1, [stream("a"), stream("b"), figure("A rising line.")], ["solution"])])
    nb.metadata = nbformat.from_dict(
        {"kernelspec": {"name": "my-env"}, "language_info": {"name": "python", "version": "3.99"}, "widgets": {}}
    )
    nb.cells[1].metadata.update(execution={"iopub.execute_input": "2026-01-01"}, collapsed=True)
    nb.cells[1].outputs[2].metadata["image/png"]["width"] = 400
    nb.cells[1].outputs[2].metadata["collapsed"] = True
    for cell in nb.cells:
        cell["id"] = "twice"
    once = notebooks.as_text(notebooks.clean(nb))
    data = json.loads(once)
    assert data["metadata"]["kernelspec"]["name"] == "python3" and data["metadata"]["language_info"] == {"name": "python"}
    assert set(data["metadata"]) == {"kernelspec", "language_info"}
    assert data["cells"][0]["id"] == "twice" and data["cells"][1]["id"] not in ("twice", "")
    assert data["cells"][1]["metadata"] == {"tags": ["solution"]}
    assert [output.get("text") for output in data["cells"][1]["outputs"]][0] == ["ab"]
    assert data["cells"][1]["outputs"][1]["metadata"] == {"image/png": {"alt": "A rising line."}}
    assert notebooks.as_text(notebooks.clean(nbformat.reads(once, as_version=4))) == once


def test_check_command_names_file_cell_and_status(tmp_path, capsys):
    path = write(tmp_path, [prose(), code("x = 1", 7)])
    path.write_text(path.read_text(encoding="utf-8") + "\n", encoding="utf-8")
    assert notebooks.main(["check", "--root", str(tmp_path), str(path)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("lesson.ipynb: cell b: execution count 7")
    assert "no measurement" in lines[1] and "notebooks.py clean" in lines[2]
    assert notebooks.main(["clean", "--root", str(tmp_path)]) == 0
    capsys.readouterr()
    notebooks.main(["check", "--root", str(tmp_path)])
    assert "notebooks.py clean" not in capsys.readouterr().out


@pytest.mark.parametrize("content", [None, "{"])
def test_bad_paths_end_in_one_line_and_status_2(tmp_path, capsys, content):
    path = tmp_path / "x.ipynb"
    if content:
        path.write_text(content, encoding="utf-8")
    with pytest.raises(SystemExit) as stopped:
        notebooks.main(["check", "--root", str(tmp_path), str(path)])
    assert stopped.value.code == 2 and len(capsys.readouterr().err.splitlines()) == 1


def test_table_shows_notebooks_below_its_folder_and_notices_staleness(tmp_path, capsys):
    for name in ("ch02/a.ipynb", "ch03/b.ipynb"):
        (tmp_path / name).parent.mkdir()
        write((tmp_path / name).parent, [prose()], name.split("/")[1])
        notebook_budgets.record(name, {"seconds": 90.0, "peak_mb": 1500}, tmp_path)
    readme = tmp_path / "ch02" / "README.md"
    readme.write_text("before\n<!-- budgets:start -->\nold\n<!-- budgets:end -->\nafter\n", encoding="utf-8")
    (tmp_path / "README.md").write_text("no marks\n", encoding="utf-8")
    assert notebooks.main(["table", "--root", str(tmp_path), "--check"]) == 1
    assert "old" in readme.read_text(encoding="utf-8")
    assert notebooks.main(["table", "--root", str(tmp_path)]) == 0
    text = readme.read_text(encoding="utf-8")
    assert "| [a.ipynb](a.ipynb) | 1.5 | 1.5 GB |" in text and "b.ipynb" not in text and "torch" in text
    assert text.startswith("before\n") and text.endswith("after\n")
    assert notebooks.main(["table", "--root", str(tmp_path), "--check"]) == 0


@pytest.mark.slow
def test_run_saves_a_passing_notebook_measured_and_leaves_a_failing_one_alone(tmp_path, capsys):
    plot = (
        "import matplotlib.pyplot as plt\nfrom pathlib import Path\nfig, ax = plt.subplots(figsize=(1, 1))\n"
        'display(fig, metadata={"image/png": {"alt": "An empty square."}})\nplt.close(fig)\nprint(Path("beside.txt").exists())'
    )
    (tmp_path / "beside.txt").write_text("x", encoding="utf-8")
    good = write(tmp_path, [code(plot, 9), code("1 + 1", 9)])
    (tmp_path / "README.md").write_text("<!-- budgets:start --><!-- budgets:end -->", encoding="utf-8")
    bad = write(tmp_path, [code("x = 1", 5), code("y = 1 / 0", 6)], "broken.ipynb")
    before = bad.read_bytes()
    assert notebooks.main(["run", "--measure", "--root", str(tmp_path), str(good), str(bad)]) == 1
    error = capsys.readouterr().err
    assert "broken.ipynb: cell b failed" in error and "y = 1 / 0" in error and "ZeroDivisionError" in error
    assert bad.read_bytes() == before
    nb = nbformat.read(good, as_version=4)
    assert [cell.execution_count for cell in nb.cells] == [1, 2]
    picture, printed = nb.cells[0].outputs
    assert picture.metadata == {"image/png": {"alt": "An empty square."}} and "image/png" in picture.data
    assert printed.text == "True\n" and nb.cells[1].outputs[0].data["text/plain"] == "2"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["README.md", "beside.txt", "broken.ipynb", "lesson.ipynb", "setup"]
    budgets = notebook_budgets.read_budgets(tmp_path)
    assert set(budgets) == {"lesson.ipynb"}
    assert (
        budgets["lesson.ipynb"]["peak_mb"] > 20 and budgets["lesson.ipynb"]["seconds"] > 0 and "torch" in budgets["lesson.ipynb"]["machine"]
    )
    assert "| [lesson.ipynb](lesson.ipynb) | 0.1 |" in (tmp_path / "README.md").read_text(encoding="utf-8")
    assert notebooks.main(["table", "--check", "--root", str(tmp_path)]) == 0
