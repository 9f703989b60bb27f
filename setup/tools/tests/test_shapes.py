"""shapes.py accepts true notes, catches false ones where they stand, and leaves everything else as it was."""

import contextlib
import linecache
import os
import re
import subprocess
import sys
import textwrap
import types

import pytest
import shapes
import torch
from shape_notes import Source
from shape_tracer import ShapeNoteError, Tracer

HEADER = "import torch\n"


@contextlib.contextmanager
def checking(module):
    """Check the notes of a module while the body runs, and raise the first that is false."""
    source = Source(os.path.realpath(module.__file__))
    tracer = Tracer(lambda file, frame: source if file == source.file else None)
    tracer.start()
    try:
        yield tracer
    finally:
        tracer.stop()
    if tracer.errors:
        raise tracer.errors[0]


@pytest.fixture
def load(tmp_path):
    """Write source to a file and execute it as a module; the first line of the source is line 2 of the file."""

    def make(source: str, name: str = "learner.py") -> types.ModuleType:
        path = tmp_path / name
        path.write_text(HEADER + textwrap.dedent(source).lstrip("\n"), encoding="utf-8")
        linecache.checkcache(str(path))
        module = types.ModuleType(path.stem)
        module.__file__ = str(path)
        exec(compile(path.read_text(encoding="utf-8"), str(path), "exec"), vars(module))
        return module

    return make


def lines(tracer) -> dict:
    return {line: count for (_, line), count in sorted(tracer.verified.items())}


def complaint(module, *args, function="f") -> str:
    with pytest.raises(ShapeNoteError) as caught:
        with checking(module):
            getattr(module, function)(*args)
    return str(caught.value)


def test_true_notes_pass_and_are_counted(load):
    module = load(
        """
        @torch.no_grad()
        def f(x):
            y = x @ x.T  # (n, n * 2 // 2) one score per pair
            y += 1  # (n, n)
            z: torch.Tensor = y[:, None]  # (n, 1, n)
            u = v = z[0]  # (1, n)
            a, b = y, y + 1  # (n, n)
            c, d = y, u  # (n, n), (1, n)
            rows = [row for row in y]  # (n)
            t = torch.zeros(6, 3)  # (2 * k, k)
            return torch.cat([y, z[0]])  # (n + 1, (n + n) / 2)
        """
    )
    with checking(module) as tracer:
        module.f(torch.ones(4, 3))
        module.f(torch.ones(2, 3))
    assert lines(tracer) == dict.fromkeys(range(4, 13), 2) | {7: 4}  # line 7 has two targets


@pytest.mark.parametrize(
    ("note", "why"),
    [
        ("(2, 4)", "term 2, 4, is 4, but the real size is 3"),
        ("(n, n)", "term 2, n, is 2, but the real size is 3"),
        ("(n, m, 1)", "the note has 3 terms, the real shape 2"),
        ("(n, n + 2)", "term 2, n + 2, is 4, but the real size is 3"),
        ("(n, 5 / n)", "term 2, 5 / n, is 2.5, but the real size is 3"),
        ("(n, 2 * k)", "term 2, 2 * k, has no value: k is not known here"),
        ("(2, width)", "term 2, width, is 5, but the real size is 3"),
        ("()", "the note has 0 terms, the real shape 2"),
        ("(6)", "the note has 1 terms, the real shape 2"),
        ("(n, m), (n, m)", "the note speaks of 2 tensors, here are 1"),
    ],
)
def test_a_false_note_is_caught_with_file_line_shape_and_reason(load, note, why):
    module = load(f"def f(width):\n    x = torch.zeros(2, 3)  # {note}\n    return x\n")
    message = complaint(module, 5)
    assert "learner.py:3: " in message and why in message
    assert "x = torch.zeros(2, 3)" in message and f"note:      {note}" in message and "shape:     (2, 3)" in message


def test_a_letter_must_agree_in_one_call_but_not_across_calls(load):
    module = load("def f(a, b):\n    x = a * 1  # (b_, n)\n    y = b * 1  # (b_, n)\n")
    message = complaint(module, torch.ones(2, 3), torch.ones(2, 4))
    assert "learner.py:4" in message and "term 2, n, is 3, but the real size is 4" in message and "b_=2, n=3" in message
    with checking(module) as tracer:
        module.f(torch.ones(2, 3), torch.ones(2, 3))
        module.f(torch.ones(7, 5), torch.ones(7, 5))
    assert lines(tracer) == {3: 2, 4: 2}


def test_a_letter_bound_in_a_loop_starts_afresh_with_each_pass(load):
    module = load(
        """
        def f(bad):
            for n in (2, 3):
                x = torch.ones(n + 1)  # (k)
                y = x[: 2 if bad else None]  # (k)
        """
    )
    with checking(module) as tracer:
        module.f(False)
    assert lines(tracer) == {4: 2, 5: 2}
    assert "learner.py:5" in complaint(module, True)


def test_notes_on_returns_are_checked_also_inside_with_and_if(load):
    module = load(
        """
        def f(x, way):
            if way == 0:
                return x  # (1, n)
            if way == 1:
                with torch.no_grad():
                    return x  # (2, n)
            try:
                return (
                    x
                )  # (3, n)
            finally:
                way = 4
        """
    )
    for way, line in ((0, 4), (1, 7), (2, 11)):
        with checking(module) as tracer:
            module.f(torch.ones(way + 1, 9), way)
        assert lines(tracer) == {line: 1}
        assert f"learner.py:{line}: " in complaint(module, torch.ones(8, 9), way)


def test_statements_of_several_lines_carry_their_note_on_the_last_line(load):
    module = load(
        """
        def f(x):
            a = torch.cat([
                x,
                x])  # (n)
            b = torch.stack([
                y
                for y in (x, x)
            ])  # (3, n)
            return a
        """
    )
    message = complaint(module, torch.ones(4))
    assert "learner.py:9: " in message and "term 1, 3, is 3, but the real size is 2" in message and "n=8" in message


def test_names_take_the_value_of_locals_attributes_and_globals(load):
    module = load(
        """
        width = 3
        w = (lambda n: torch.zeros(n))(width)  # (width)

        class Layer(torch.nn.Module):
            def __init__(self, d_out):
                super().__init__()
                self.d_out = d_out
                self.proj = torch.nn.Linear(3, d_out)  # (d_out, 3)
                self.w = torch.nn.Parameter(torch.zeros(d_out))  # (d_out)

            def forward(self, x, step):
                y = self.proj(x)  # (b, d_out)
                return y[:step]  # (step, d_out)
        """
    )
    with checking(module) as tracer:
        layer = module.Layer(8)
        layer(torch.ones(5, 3), 2)
        exec(compile(open(module.__file__).read(), module.__file__, "exec"), vars(module))
    assert lines(tracer) == {3: 1, 9: 1, 10: 1, 13: 1, 14: 1}
    layer.d_out = 9
    with pytest.raises(ShapeNoteError, match="d_out, is 9, but the real size is 8"), checking(module):
        layer(torch.ones(5, 3), 2)


def test_a_note_without_a_statement_of_its_own_is_loose(load):
    code = """
        def f(x):
            if x is None: y = x  # (n)
            z = (  # (n)
                x * 2)
            print(z)  # (n)
            size: torch.Tensor  # (n)
        """
    assert [note.line for note in Source(load(code).__file__).loose] == [3, 4, 6, 7]


def test_remarks_that_only_look_like_notes_are_left_alone(load):
    module = load("def f():\n    a = 1  # (see below), yes\n    # (n, m)\n    b = '# (n)'\n    c = (0.9, 0.95)  # (0.9, 0.95)\n")
    assert not Source(module.__file__).found


def test_recursion_and_generators_have_bindings_of_their_own(load):
    module = load(
        """
        def f(x):
            y = x + 0  # (n)
            if len(x) > 1:
                f(x[1:])
            z = y * 2  # (n)
            return z  # (n)

        def windows(x, size):
            for i in range(len(x) - size + 1):
                part = x[i : i + size]  # (size)
                got = yield part  # (size, 1)
                last = yield from inner(part)  # (m, m)
            return part  # (size)

        def inner(x):
            yield x
            return x[:, None] @ x[None]  # (size, size)
        """
    )
    with checking(module) as tracer:
        module.f(torch.ones(4))
    assert lines(tracer) == {3: 4, 6: 4, 7: 4}
    two, three = module.windows(torch.ones(4), 2), module.windows(torch.ones(4), 3)
    with checking(module) as tracer:
        for generator, size in ((two, 2), (three, 3)) * 2:
            next(generator)
            generator.send(torch.ones(size, 1))
        assert next(three, None) is None
    assert lines(tracer) == {11: 4, 12: 4, 13: 3, 14: 1, 18: 3}


def test_exceptions_pass_through_untouched_and_leave_no_false_complaint(load):
    module = load(
        """
        def f(x, bad):
            y = x[0]  # ()
            try:
                y = x @ bad  # (n)
                z = missing  # (n, n)
            except RuntimeError:
                pass
            try:
                y = next(iter([]))  # (n)
            except StopIteration:
                pass
            return 1 / 0  # (n)
        """
    )
    before = sys.gettrace()
    with pytest.raises(ZeroDivisionError), checking(module) as tracer:
        module.f(torch.ones(3), torch.ones(4))
    assert lines(tracer) == {3: 1} and not tracer.errors and sys.gettrace() is before


def test_the_previous_trace_function_is_restored(load):
    module = load("def f(x):\n    y = x  # (2)\n    return y\n")

    def previous(frame, event, arg):
        return None

    before = sys.gettrace()
    try:
        for size in (2, 3):
            sys.settrace(previous)
            try:
                with checking(module):
                    module.f(torch.ones(size))
            except ShapeNoteError:
                assert size == 3
            assert sys.gettrace() is previous
    finally:
        sys.settrace(before)


def test_functions_without_notes_are_not_followed_line_by_line(load):
    module = load(
        """
        import sys
        def plain():
            return sys._getframe().f_trace
        def noted():
            y = torch.ones(1)  # (1)
            return sys._getframe().f_trace
        """
    )
    other = load("import sys\ndef plain():\n    return sys._getframe().f_trace\n", "other.py")
    with checking(module):
        assert module.plain() is None and other.plain() is None
        assert module.noted() is not None


TESTS = """import mod, torch


def test_f():
    mod.f(torch.ones(2, 3))


def test_wide():
    assert mod.f(torch.ones(4, 3), wide=True).shape == (3, 4)
"""
LLAMA_TESTS = """import llama, torch


def test_llama_reads_four_tokens():
    sizes = {"vocab_size": 9, "context_length": 8, "emb_dim": 8, "n_heads": 2, "n_layers": 1, "hidden_dim": 8, "n_kv_groups": 1}
    model = llama.Llama3Model({**sizes, "rope_base": 1e4, "rope_freq": None, "dtype": torch.float32})
    try:
        assert model(torch.zeros(2, 4, dtype=torch.int64)).shape == (2, 4, 9)
    except AssertionError:
        pass
"""


def run_tests_of(root, folder: str, files: dict, *options):
    """Run the tests of a course of one folder in a process of its own, then the report; returns what both printed, and its code."""
    files = {f"{folder}/{name}": text for name, text in files.items()}
    for name in ("conftest.py", "pyproject.toml", *(f"setup/tools/{path.name}" for path in shapes.TOOLS.glob("*.py"))):
        files[name] = (shapes.ROOT / name).read_text(encoding="utf-8")
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, encoding="utf-8")
    (root / "ran").mkdir()
    tests = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *options, folder]
    done = subprocess.run(tests, cwd=root, env={**os.environ, shapes.RAN: str(root / "ran")}, capture_output=True, text=True)
    report = subprocess.run([sys.executable, "setup/tools/shapes.py", "ran"], cwd=root, capture_output=True, text=True)
    return done.stdout, report.stdout.replace(os.sep, "/"), report.returncode


@pytest.mark.slow
def test_unit_tests_verify_the_notes_of_modules_across_processes(tmp_path):
    module = "import torch\n\n\ndef f(x, wide=False):\n    y = x * 1  # (n, 3)\n    if wide:\n        y = y.T  # (3, n)\n    return y\n"
    files = {"mod.py": module, "tests/test_mod.py": TESTS, "borrowed.py": '"""Generated by `make copies`."""\ny = 1  # (n)\n'}
    printed, report, code = run_tests_of(tmp_path, "ch09/01_main", files, "-n", "2", "--dist", "load")
    assert "2 passed" in printed and (report, code) == ("ch09/01_main/mod.py: 2 of 2 shape notes verified\n", 0)


@pytest.mark.slow
def test_a_false_note_in_a_real_module_fails_the_test_that_meets_it_and_unmet_notes_are_faults(tmp_path):
    folder = "ch05/07_gpt_to_llama"
    files = {path.name: path.read_text(encoding="utf-8") for path in (shapes.ROOT / folder).glob("*.py")}
    true, false = "(b, num_heads, num_tokens, all_tokens)", "(b, num_kv_groups, num_tokens, all_tokens)"
    assert files["llama.py"].count(true) == 1
    files |= {"llama.py": files["llama.py"].replace(true, false) + "torch.ones(1)  # (n)\n", "tests/test_llama.py": LLAMA_TESTS}
    printed, report, code = run_tests_of(tmp_path, folder, files)
    assert "1 failed" in printed and "shape note does not hold: term 2, num_kv_groups, is 1, but the real size is 2" in printed
    assert code == 1 and f"{false}: no unit test verifies it" in report
    assert "(n): no plain assignment or return" in report
    assert re.search(r"llama.py:\d+: \(b, 1, d_out\): no unit test verifies it", report)
    assert re.search(r"llama.py: [1-9]\d* of \d+ shape notes verified", report)


def test_a_missing_folder_is_one_line_and_code_2(capsys):
    with pytest.raises(SystemExit) as stop:
        shapes.main(["nowhere"])
    assert stop.value.code == 2 and "no such folder: nowhere" in capsys.readouterr().err


@pytest.mark.slow
def test_the_extension_makes_a_notebook_cell_with_a_false_note_fail(tmp_path):
    import nbformat
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError

    (tmp_path / "beside.py").write_text("def g(x):\n    y = x.T  # (3, 2)\n    return y\n")
    load = f"import sys\nsys.path.append({str(shapes.TOOLS)!r})\nget_ipython().extension_manager.load_extension('shapes')"
    start = [load, "import torch\nfrom beside import g\ndef f(x):\n    y = x * 1  # (n, 2)\n    return y"]
    good = ["a = f(torch.ones(3, 2))  # (k, 2)\nb = a[:2]  # (k - 1, 2)", "a = f(torch.ones(7, 2))  # (k, 2)"]
    failing = "f(torch.ones(3, 3)) + missing"  # the false note is what the reader must hear of, not the error that followed
    bad = ["f(torch.ones(3, 3))", "g(torch.ones(3, 3))", "a = torch.ones(2)  # (n)\nb = torch.ones(3)  # (n)", failing]
    cells = [nbformat.v4.new_code_cell(source) for source in start + good + bad]
    nb = nbformat.v4.new_notebook(cells=cells)
    client = NotebookClient(nb, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}, timeout=120)
    failed = []
    with client.setup_kernel():
        for i, cell in enumerate(cells):
            try:
                client.execute_cell(cell, i)
            except CellExecutionError as error:
                assert error.ename == "ShapeNoteError" and "shape note does not hold" in error.evalue
                failed.append(i)
    assert failed == [4, 5, 6, 7]
    assert not any(output.output_type == "stream" for cell in cells for output in cell.outputs)
