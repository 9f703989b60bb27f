"""The rules a finished notebook keeps, one small function a rule; `notebooks.py check` prints what they find.

A cell is named by its id. `exercises.ipynb` has no outputs by design, so the rules about outputs pass it over. Links and
linked images are the business of links.py; sizes and paths of one machine, of setup/tests.
"""

import ast
import re
from pathlib import Path

from notebook_budgets import REAL_MODELS, budget_problems, relative

MAX_CELL_LINES = 40
FIGURES = (4, 8)  # in a main chapter
WORDS = {"main": (80, 120), "bonus": (40, 120)}  # prose words for each code cell
WITHOUT_PROSE = {"exercises.ipynb", "exercise-solutions.ipynb", "dataloader.ipynb", "multihead-attention.ipynb"}
IGNORE, RAISES, SKIP = "nbval-ignore-output", "raises-exception", "nbval-skip"


def kind_of(name: str) -> str:
    """main, bonus, or other (exercises and summaries): decides which limits hold."""
    if re.fullmatch(r"ch\d\d\.ipynb", name):
        return "main"
    return "other" if name in WITHOUT_PROSE else "bonus"


def findings(nb, path: Path, root: Path, budgets: dict) -> list:
    """Everything wrong with one notebook, a line each: `[cell ID: ]what; how to mend`."""
    kind, name, requires = kind_of(path.name), relative(path, root), nb.metadata.get("requires")
    found, rules = [*check_prose(nb, kind)], [check_source, check_tags]
    if requires and requires not in REAL_MODELS:
        found.append(f"requires {requires!r} in its metadata; known are {', '.join(REAL_MODELS)}")
    if path.name != "exercises.ipynb":
        found += [*check_ignored(nb), *check_counts(nb), *check_figures(nb, kind), *budget_problems(name, requires, budgets.get(name))]
        rules.append(check_outputs)
    return found + [f"cell {cell.id}: {problem}" for cell in nb.cells for rule in rules for problem in rule(cell, kind)]


def code_cells(nb):
    return [cell for cell in nb.cells if cell.cell_type == "code" and cell.source.strip()]


def tags_of(cell) -> set:
    """Tags, and nbval's comment marks written as tags (`# NBVAL_SKIP` is the same as the tag)."""
    comments = re.findall(r"^\s*#\s*(NBVAL_[A-Z_]+)\s*$", cell.source, flags=re.MULTILINE)
    return set(cell.metadata.get("tags", [])) | {comment.lower().replace("_", "-") for comment in comments}


def prose_words(nb) -> int:
    """Words of the markdown cells, fenced code left out."""
    prose = (re.sub(r"```.*?```", "", cell.source, flags=re.DOTALL) for cell in nb.cells if cell.cell_type == "markdown")
    return sum(len(re.findall(r"\w+", text)) for text in prose)


def check_prose(nb, kind: str):
    if kind not in WORDS or not code_cells(nb):
        return
    low, high = WORDS[kind]
    average = prose_words(nb) / len(code_cells(nb))
    if not low <= average <= high:
        yield f"{average:.0f} words of prose for each code cell, wanted {low}-{high}; explain {'more' if average < low else 'less'}"


def check_ignored(nb):
    ignored = [cell for cell in code_cells(nb) if IGNORE in tags_of(cell)]
    if len(ignored) > 1 and len(ignored) >= 0.1 * len(code_cells(nb)):  # one such cell is always allowed
        yield f"{len(ignored)} of {len(code_cells(nb))} code cells ignore their output, fewer than 10% may; print stable results instead"


def check_counts(nb):
    for expected, cell in enumerate(code_cells(nb), start=1):
        if cell.execution_count != expected:
            yield f"cell {cell.id}: execution count {cell.execution_count}, expected {expected}; run notebooks.py run on this file"
            return


def check_figures(nb, kind: str):
    number = sum("image/png" in output.get("data", {}) for cell in code_cells(nb) for output in cell.outputs)
    if kind == "main" and not FIGURES[0] <= number <= FIGURES[1]:
        yield f"{number} drawn figures, wanted {FIGURES[0]}-{FIGURES[1]}; draw what the reader has just computed"


def check_source(cell, kind: str):
    if cell.cell_type != "code":
        return
    lines = len(cell.source.splitlines())
    if lines > MAX_CELL_LINES:
        yield f"{lines} lines, at most {MAX_CELL_LINES}; split it or import part of it"
    try:
        compile(cell.source, "cell", "exec", ast.PyCF_ONLY_AST | ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    except SyntaxError:
        if kind == "main":
            yield "a magic, or not plain Python; main chapters use plain Python only"
        elif re.search(r"^\s*(import|from|def|class)\s", cell.source, flags=re.MULTILINE):
            yield "a magic beside an import or a definition; put the magic in a cell of its own"


def check_tags(cell, kind: str):
    if IGNORE in tags_of(cell) and not re.search(r"^\s*(assert\b|[\w.]*\bassert_\w+\()", cell.source, flags=re.MULTILINE):
        yield f"tagged {IGNORE} without an assert; assert the band in which the result lies"
    if SKIP in tags_of(cell):
        yield f"tagged {SKIP}, so nothing tests it; remove the tag"


def check_outputs(cell, kind: str):
    for output in cell.get("outputs", []):
        if output.output_type == "error" and RAISES not in tags_of(cell):
            yield f"stored error ({output.ename}); catch it and print it, or mend the cell"
        if output.output_type == "stream" and output.name == "stderr" and output.text.strip() and IGNORE not in tags_of(cell):
            yield f"writes to stderr ({output.text.strip().splitlines()[-1][:60]}); remove the cause"
        for mime in output.get("data", {}):
            if mime.startswith("image/") and not str(output.metadata.get(mime, {}).get("alt", "")).strip():
                yield f'{mime} output without alt text; end the cell with show(fig, alt="...")'
