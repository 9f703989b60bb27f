"""Check the right-hand shape notes of a module or a notebook against the real shapes, while the code runs.

A shape note is a comment behind an assignment or a `return`: `scores = q @ k.mT  # (b, num_tokens, num_tokens)`.
- Terms are whole numbers, names, and + - * // of them. Words may follow the closing parenthesis.
- On a statement of several lines the note stands on its first or last line.
- A name takes the value of an int of that name: a local variable, an attribute of `self`, at module level a global.
- Any other name is a letter: its first use in one call of a function (in one notebook cell) binds it, later uses must
  agree. When the note that bound a letter runs again, in a loop, it binds the letter again.
- A layer such as nn.Linear stands for its weight; one note on a tuple or list of tensors holds for each of them,
  `# (b, n), (b, m)` gives one note for each.

Run it:  python setup/tools/shapes.py [FILE.py | FILE.ipynb ...]      (no FILE: every module of shapes.toml)
As a library:  with checking("gpt.py") as report: ...      check_call(model, token_ids)
In a notebook: %load_ext shapes      (then every cell is checked)

Only functions that carry notes are followed line by line, and only in the thread that asked for it.
"""

import argparse
import contextlib
import importlib
import io
import linecache
import os
import re
import sys
import tempfile
import types
from pathlib import Path

TOOLS = Path(__file__).resolve().parent
sys.path.append(str(TOOLS))  # for the two files beside this one, however this one was loaded
from shape_notes import Letters, shown  # noqa: E402
from shape_tracer import Report, ShapeNoteError, Tracer, canonical  # noqa: E402, F401 (the error is for callers)

sys.path.pop()
ROOT = TOOLS.parents[1]
TABLE = TOOLS / "shapes.toml"


@contextlib.contextmanager
def checking(*modules_or_files, strict: bool = True, folder: str | None = None):
    """Check the notes of these modules or files while the body runs; yields the Report. Raises ShapeNoteError if strict.

    `folder`: also check (without asking that every note runs) the modules of this folder.
    """
    files = [getattr(item, "__file__", None) or str(item) for item in modules_or_files]
    tracer = Tracer(files, strict, folder and canonical(folder))
    tracer.start()
    try:
        yield tracer.report
    finally:
        tracer.stop()
    if strict and tracer.report.errors:  # raised once already, and swallowed by the code under test
        raise tracer.report.errors[0]


def files_of(function) -> list:
    """The source files of a callable: of its own code, or of its class, its submodules' classes and their bases."""
    if hasattr(function, "__code__"):
        return [function.__code__.co_filename]
    parts = function.modules() if hasattr(function, "modules") else [function]
    classes = dict.fromkeys(base for part in parts for base in type(part).__mro__ if base.__module__.split(".")[0] != "torch")
    members = [getattr(member, "__wrapped__", member) for cls in classes for member in vars(cls).values()]
    return list(dict.fromkeys(member.__code__.co_filename for member in members if hasattr(member, "__code__")))


def check_call(function, *args, **kwargs):
    """Call `function(*args, **kwargs)`, check the shape notes in its own source, print each with the real shape."""
    with checking(*files_of(function)) as report:
        result = function(*args, **kwargs)
    for file, line in sorted(report.verified):
        code = linecache.getline(file, line).strip()
        print(f"{os.path.basename(shown(file))}:{line}: {code}  is {report.shapes[file, line]}")
    if not report.verified:
        print("no shape note ran: write some behind assignments, such as  # (b, num_tokens)")
    return result


class CellChecker:
    """Checks every cell that runs, and the functions of earlier cells and of the modules beside the notebook."""

    def __init__(self, ip):
        self.ip, self.active = ip, False
        self.tracer = Tracer(folder=os.path.realpath(os.getcwd()), cells=ip.user_ns)

    def before(self, info=None) -> None:
        if not self.active:
            self.tracer.cell_letters = Letters()
            self.active = True
            self.tracer.start()

    def after(self, result=None) -> None:
        if not self.active:
            return
        self.tracer.stop()
        self.active = False
        errors = self.tracer.report.errors
        if errors and result is not None and result.success:  # the cell swallowed it: the cell fails all the same
            result.error_in_exec = errors[0]
            self.ip.showtraceback((type(errors[0]), errors[0], errors[0].__traceback__))
        errors.clear()


def load_ipython_extension(ip) -> None:
    checker = ip._shape_checker = CellChecker(ip)
    ip.events.register("pre_run_cell", checker.before)
    ip.events.register("post_run_cell", checker.after)


def unload_ipython_extension(ip) -> None:
    ip._shape_checker.after()
    ip.events.unregister("pre_run_cell", ip._shape_checker.before)
    ip.events.unregister("post_run_cell", ip._shape_checker.after)


def read_table(path: Path = TABLE) -> dict:
    """path -> list of {argv} or {code}. ValueError if an entry is neither."""
    try:
        import tomllib
    except ModuleNotFoundError:  # Python 3.10
        import tomli as tomllib
    table = tomllib.loads(path.read_text(encoding="utf-8"))
    for name, runs in table.items():
        if not isinstance(runs, list) or any(set(run) not in ({"argv"}, {"code"}) for run in runs):
            raise ValueError(f"{path.name}: {name}: each [[...]] needs either argv or code")
    return {str((ROOT / name).resolve()): runs for name, runs in table.items()}


@contextlib.contextmanager
def own_world(folder: Path):
    """`folder` first on sys.path with fresh modules; an empty working folder; output caught in the yielded buffer. All put back after."""

    def local() -> dict:
        names = {path.stem for path in folder.glob("*.py")}
        return {name: module for name, module in list(sys.modules.items()) if name in names}

    kept, path, cwd, main = local(), list(sys.path), os.getcwd(), sys.modules["__main__"]
    for name in kept:
        del sys.modules[name]
    sys.path.insert(0, str(folder))
    os.environ.setdefault("MPLBACKEND", "Agg")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
        os.chdir(scratch)
        printed = io.StringIO()
        try:
            with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
                yield printed
        finally:
            os.chdir(cwd)
            for name in local():
                del sys.modules[name]
            sys.modules.update(kept, __main__=main)
            sys.path[:] = path


def run_module(path: Path, runs: list) -> Report:
    with own_world(path.parent) as printed, checking(path, strict=False) as report:
        module = importlib.import_module(path.stem)
        for run in runs:
            if "code" in run:
                exec(compile(run["code"], f"<{path.name} in shapes.toml>", "exec"), vars(module))
                continue
            try:
                code = module.main(list(run["argv"]))
            except SystemExit as stop:
                code = stop.code
            if code:
                last_line = printed.getvalue().strip().rpartition("\n")[2]
                raise RuntimeError(f"main({run['argv']}) ended with {code!r}: {last_line}")
    return report


def code_cells(path: Path) -> list:
    """(file name, source) of each code cell, without magics, registered where tracebacks look for source."""
    import nbformat

    cells = []
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type == "code":
            name = f"{path}#cell{len(cells) + 1}"
            text = re.sub(r"(?m)^([ \t]*)[%!].*$", r"\1pass", "" if cell.source.startswith("%%") else cell.source) + "\n"
            linecache.cache[name] = (len(text), None, text.splitlines(True), name)
            cells.append((name, text, "raises-exception" in cell.metadata.get("tags", [])))
    return cells


def run_notebook(path: Path) -> Report:
    cells = code_cells(path)
    with own_world(path.parent), checking(*[name for name, _, _ in cells], strict=False, folder=str(path.parent)) as report:
        os.chdir(path.parent)
        namespace = sys.modules["__main__"] = types.ModuleType("__main__")
        namespace.display = lambda *things, **options: None
        for name, text, may_raise in cells:
            try:
                exec(compile(text, name, "exec"), vars(namespace))
            except Exception:
                if not may_raise:
                    raise
    return report


def check_file(path: Path, runs: list) -> tuple[int, int]:
    """Run one file and print what is wrong; returns (notes verified, faults)."""
    try:
        report = run_notebook(path) if path.suffix == ".ipynb" else run_module(path, runs)
    except (Exception, SystemExit) as error:
        print(f"{path}: the code itself fails: {type(error).__name__}: {error}")
        return 0, 1
    for error in report.errors:
        print(error)
    for note in report.never_ran:
        print(f"never ran: {note}")
    for note in report.loose:
        print(f"not checked (no plain assignment or return): {note}")
    known = {(note.file, note.line) for note in report.notes}
    count = len(known & set(report.verified) - report.failed)
    print(f"{path.relative_to(ROOT) if ROOT in path.parents else path}: {count} notes verified, {len(report.never_ran)} never ran")
    return count, len(report.errors) + len(report.never_ran)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Run modules or notebooks on tiny sizes and check every shape note.", allow_abbrev=False)
    parser.error = lambda message: parser.exit(2, f"{parser.prog}: error: {message}\n")
    parser.add_argument("files", nargs="*", metavar="FILE", help="modules (.py) or notebooks (.ipynb); default: all of shapes.toml")
    args = parser.parse_args(argv)
    try:
        table = read_table()
    except (OSError, ValueError, ModuleNotFoundError) as error:
        parser.error(str(error))
    paths = [Path(name).resolve() for name in args.files or table]
    for path in paths:
        if path.suffix not in (".py", ".ipynb") or not path.is_file():
            parser.error(f"{path} is not a .py or .ipynb file")
    results = [check_file(path, table.get(str(path), [])) for path in paths]
    return 1 if any(faults for _, faults in results) else 0


if __name__ == "__main__":
    sys.exit(main())
