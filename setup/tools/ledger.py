"""Prove that definitions repeated in a notebook equal those of a module: the part of copies.py that reads and compares.

Compared is parsed code without docstrings and type annotations, so comments, layout and hints may differ.
"""

import ast
import copy
import difflib
import re
from collections.abc import Iterator

from borrowing import DEFINITIONS, ENTRY_POINTS, Problem, parse
from nbformat import NotebookNode


class Bare(ast.NodeTransformer):
    """Removes docstrings and type annotations; comments and layout are gone already once code is parsed."""

    def visit_body(self, node: ast.AST) -> ast.AST:
        self.generic_visit(node)
        if ast.get_docstring(node, clean=False) is not None:
            node.body = node.body[1:] or [ast.Pass()]
        node.type_params = []
        return node

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        node.returns = None
        return self.visit_body(node)

    visit_AsyncFunctionDef = visit_FunctionDef
    visit_ClassDef = visit_body

    def visit_arg(self, node: ast.arg) -> ast.AST:
        node.annotation = None
        return node

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST:
        if node.value is None:
            return ast.Expr(node.target)  # a field of a dataclass keeps its name
        return ast.Assign([node.target], self.visit(node.value), lineno=node.lineno)


def bare(node: ast.stmt) -> str:
    """Source text of a definition, in the one layout of ast.unparse, without docstrings and annotations."""
    return ast.unparse(ast.fix_missing_locations(Bare().visit(copy.deepcopy(node))))


def cell_tree(where: str, source: str) -> ast.Module:
    """The parsed cell; lines starting with % or ! count as `pass`, cells in another language (%%bash, ...) as empty."""
    try:
        return ast.parse(source)
    except SyntaxError:
        plain = re.sub(r"(?m)^([ \t]*)[%!].*$", r"\1pass", source)
    try:
        return parse(where, plain)
    except Problem:
        if source.lstrip().startswith("%%"):
            return ast.Module([], [])
        raise


def cell_statements(notebook: NotebookNode, path: str) -> Iterator[tuple[str, ast.stmt, NotebookNode]]:
    """Each top-level statement of the code cells with the id of its cell."""
    for cell in notebook.cells:
        if cell.cell_type == "code":
            for node in cell_tree(f"{path} cell {cell.get('id', '?')}", cell.source).body:
                yield cell.get("id", "?"), node, cell


def definitions(tree: ast.Module) -> dict[str, ast.stmt]:
    return {node.name: node for node in tree.body if isinstance(node, DEFINITIONS)}


def reason_problems(module: str, ours: dict, theirs: dict, module_only: dict, deviations: dict) -> list[str]:
    """What is wrong with the lists of exceptions themselves: an entry that is not needed, or that gives no reason."""
    stale = [name for name in module_only if name not in ours or name in theirs]
    stale += [name for name in deviations if name not in ours or name not in theirs or bare(ours[name]) == bare(theirs[name][1])]
    problems = [f"{name} needs no exception for {module}: remove its stale entry in copies.toml" for name in stale]
    bare_reasons = [name for name, why in {**module_only, **deviations}.items() if not str(why).strip()]
    return problems + [f"{name} of {module} is listed in copies.toml without a reason" for name in bare_reasons]


def ledger(module: str, text: str, notebook: str, cells: NotebookNode, module_only: dict, deviations: dict) -> list[str]:
    """Problems unless the module's definitions equal the notebook's last ones, but for the exceptions that are named."""
    ours = definitions(parse(module, text))
    theirs = {node.name: (cell_id, node) for cell_id, node, _ in cell_statements(cells, notebook) if isinstance(node, DEFINITIONS)}
    problems = reason_problems(module, ours, theirs, module_only, deviations)
    for name in ours.keys() - ENTRY_POINTS - module_only.keys() - deviations.keys():
        if name not in theirs:
            problems.append(f"{name} is in {module} but not in {notebook}: teach it there, or list it in module_only with a reason")
        elif bare(ours[name]) != bare(theirs[name][1]):
            problems.append(difference(name, module, bare(ours[name]), notebook, theirs[name][0], bare(theirs[name][1])))
    return problems


def difference(name: str, module: str, ours: str, notebook: str, cell_id: str, theirs: str) -> str:
    """One line, then the first 16 lines of a unified diff."""
    diff = list(difflib.unified_diff(ours.splitlines(), theirs.splitlines(), module, f"{notebook} cell {cell_id}", n=1, lineterm=""))
    head = f"{name} in {module} differs from cell {cell_id} of {notebook}: make them equal, or list it in deviations with a reason"
    return "\n    ".join([head, *diff[:16], *["..."][: len(diff) > 16]])
