"""The rules a finished notebook keeps, one small function a rule; `notebooks.py check` prints what they find.

Cell numbers count all cells from 0. `exercises.ipynb` has no outputs by design, so the rules about outputs pass it over.
"""

import ast
import re
import tempfile
from pathlib import Path

import links
import nbformat

MAX_BYTES = 300_000
MAX_CELL_LINES = 40
FIGURES = (4, 8)  # in a main chapter
WORDS = {"main": (80, 120), "bonus": (40, 120)}  # prose words for each code cell
MINUTES = {"main": 5, "ch05.ipynb": 12, "exercises": 1, "bonus": 2, "summary": 2}  # chapter 5 trains 124M parameters, here in float32
MAX_MEGABYTES = 4000
EXERCISES = {"exercises.ipynb", "exercise-solutions.ipynb"}
SUMMARIES = {"dataloader.ipynb", "multihead-attention.ipynb"}
IGNORE, RAISES, SKIP = "nbval-ignore-output", "raises-exception", "nbval-skip"
MACHINE_PATH = re.compile(r"(?<![\w.])(?:/home/|/Users/|/root/|/tmp/|/private/|/var/folders/|[A-Za-z]:\\+(?:Users|Temp))[^\s'\"]*")


def kind_of(path: Path) -> str:
    """main, exercises, summary or bonus: decides which limits hold."""
    if re.fullmatch(r"ch\d\d\.ipynb", path.name):
        return "main"
    if path.name in EXERCISES:
        return "exercises"
    return "summary" if path.name in SUMMARIES else "bonus"


def findings(path: Path, root: Path, budgets: dict, strict_budgets: bool = False) -> list:
    """Everything wrong with one notebook, a line each: `cell N: what; how to mend`."""
    nb = nbformat.read(path, as_version=4)
    kind = kind_of(path)
    found = [*check_size(path), *check_prose(nb, kind), *check_sources(nb, kind), *check_tags(nb), *check_images(nb, path)]
    found += check_machine_paths(nb, root)
    if path.name != "exercises.ipynb":
        found += [*check_counts(nb), *check_outputs(nb), *check_figures(nb, kind)]
        found += check_budget(path, root, kind, budgets, strict_budgets)
    return found


def code_cells(nb):
    """(index, cell) of the code cells."""
    return [(index, cell) for index, cell in enumerate(nb.cells) if cell.cell_type == "code"]


def tags_of(cell) -> set:
    """Tags, and nbval's comment marks written as tags (`# NBVAL_SKIP` is the same as the tag)."""
    comments = re.findall(r"^\s*#\s*(NBVAL_[A-Z_]+)\s*$", cell.source, flags=re.MULTILINE)
    return set(cell.metadata.get("tags", [])) | {comment.lower().replace("_", "-") for comment in comments}


def parse(source: str):
    """The cell as a syntax tree, or None if it is not plain Python (a magic or a shell line)."""
    try:
        return compile(source, "cell", "exec", ast.PyCF_ONLY_AST | ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    except SyntaxError:
        return None


# ---- the rules ------------------------------------------------------------------------------------------------------

def check_size(path: Path):
    size = path.stat().st_size
    if size > MAX_BYTES:
        yield f"file has {size / 1000:.0f} kB, at most {MAX_BYTES // 1000}; draw smaller figures or print less"


def prose_words(nb) -> int:
    """Words of the markdown cells, fenced code left out."""
    return sum(len(re.findall(r"\w+", re.sub(r"```.*?```", "", cell.source, flags=re.DOTALL)))
               for cell in nb.cells if cell.cell_type == "markdown")


def check_prose(nb, kind: str):
    number = sum(1 for _, cell in code_cells(nb) if cell.source.strip())
    if kind not in WORDS or not number:
        return
    low, high = WORDS[kind]
    average = prose_words(nb) / number
    if not low <= average <= high:
        yield f"{average:.0f} words of prose for each code cell, wanted {low}-{high}; explain {'more' if average < low else 'less'}"


def check_sources(nb, kind: str):
    for index, cell in code_cells(nb):
        lines = len(cell.source.splitlines())
        if lines > MAX_CELL_LINES:
            yield f"cell {index}: {lines} lines, at most {MAX_CELL_LINES}; split it or import part of it"
        if parse(cell.source) is None:
            if kind == "main":
                yield f"cell {index}: a magic, or not plain Python; main chapters use plain Python only"
            elif re.search(r"^\s*(import|from|def|class)\s", cell.source, flags=re.MULTILINE):
                yield f"cell {index}: a magic beside an import or a definition; put the magic in a cell of its own"


def has_assert(source: str) -> bool:
    tree = parse(source)
    if tree is None:
        return bool(re.search(r"^\s*assert\b", source, flags=re.MULTILINE))
    names = (getattr(node.func, "attr", getattr(node.func, "id", "")) for node in ast.walk(tree) if isinstance(node, ast.Call))
    return any(isinstance(node, ast.Assert) for node in ast.walk(tree)) or any(name.startswith("assert_") for name in names)


def check_tags(nb):
    cells = code_cells(nb)
    ignored = [(index, cell) for index, cell in cells if IGNORE in tags_of(cell)]
    if len(ignored) > 1 and len(ignored) >= 0.1 * len(cells):  # one such cell is always allowed
        yield f"{len(ignored)} of {len(cells)} code cells ignore their output, fewer than 10% may; print stable results instead"
    for index, cell in ignored:
        if not has_assert(cell.source):
            yield f"cell {index}: tagged {IGNORE} without an assert; assert the band in which the result lies"
    for index, cell in cells:
        if SKIP in tags_of(cell):
            yield f"cell {index}: tagged {SKIP}, so nothing tests it; remove the tag"


def check_counts(nb):
    expected = 1
    for index, cell in code_cells(nb):
        if not cell.source.strip():
            continue
        if cell.execution_count != expected:
            yield f"cell {index}: execution count {cell.execution_count}, expected {expected}; run notebooks.py run on this file"
            return
        expected += 1


def check_outputs(nb):
    for index, cell in code_cells(nb):
        for output in cell.outputs:
            if output.output_type == "error" and RAISES not in tags_of(cell):
                yield f"cell {index}: stored error ({output.ename}); catch it and print it, or mend the cell"
            if output.output_type == "stream" and output.name == "stderr" and output.text.strip() and IGNORE not in tags_of(cell):
                yield f"cell {index}: writes to stderr ({output.text.strip().splitlines()[-1][:60]}); remove the cause"


def check_images(nb, path: Path):
    """Alt text on every image, drawn or linked; linked images are local files."""
    for index, cell in enumerate(nb.cells):
        for output in cell.get("outputs", []):
            for mime in output.get("data", {}):
                if mime.startswith("image/") and not str(output.metadata.get(mime, {}).get("alt", "")).strip():
                    yield f'cell {index}: {mime} output without alt text; end the cell with show(fig, alt="...")'
        if cell.cell_type == "markdown":
            for reference in links.references(cell.source):
                problem = reference.alt is not None and links.image_problem(reference.target, reference.alt, path.parent)
                if problem:
                    yield f"cell {index}: {problem}"


def texts_of(cell):
    """(where, text) of everything readable in a cell."""
    if cell.cell_type == "code":
        yield "source", cell.source
    for output in cell.get("outputs", []):
        yield "output", output.get("text", "")
        yield "output", "\n".join([*output.get("traceback", []), output.get("evalue", "")])
        for mime, data in output.get("data", {}).items():
            if mime.startswith("text/") or mime == "image/svg+xml":
                yield "output", data


def check_machine_paths(nb, root: Path):
    """Folders of the author's computer, written or printed."""
    own = [str(folder) for folder in (Path.home(), root, tempfile.gettempdir()) if len(str(folder)) > 1]
    own_path = re.compile("|".join(rf"(?<![\w./]){re.escape(folder)}(?![\w])" for folder in own))
    for index, cell in enumerate(nb.cells):
        for where, text in texts_of(cell):
            match = MACHINE_PATH.search(text) or own_path.search(text)
            if match:
                yield f"cell {index}: path of one machine in the {where} ({match[0][:60]}); use or print a relative path"
                break


def check_figures(nb, kind: str):
    if kind != "main":
        return
    number = sum("image/png" in output.get("data", {}) for _, cell in code_cells(nb) for output in cell.outputs)
    if not FIGURES[0] <= number <= FIGURES[1]:
        yield f"{number} drawn figures, wanted {FIGURES[0]}-{FIGURES[1]}; draw what the reader has just computed"


def check_budget(path: Path, root: Path, kind: str, budgets: dict, strict: bool):
    key = path.relative_to(root).as_posix() if root in path.parents else str(path)
    measured = budgets.get(key)
    if measured is None:
        if strict:
            yield "no measurement in budgets.json; run notebooks.py run --measure on this file"
        return
    minutes = MINUTES.get(path.name, MINUTES[kind])
    if measured["seconds"] > 60 * minutes:
        yield f"takes {measured['seconds'] / 60:.1f} minutes, at most {minutes}; train less or use smaller sizes"
    if measured["peak_mb"] > MAX_MEGABYTES:
        yield f"needs {measured['peak_mb']} MB, at most {MAX_MEGABYTES}; use smaller sizes or free what is done"
