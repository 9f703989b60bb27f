"""Prove that definitions repeated in a notebook equal those of a module: the part of copies.py that reads and compares.

Compared is parsed code without docstrings and type annotations, so comments, layout and hints may differ.
"""

import ast
import copy
import difflib
import re
from collections.abc import Iterator

from borrowing import DEFINITIONS, ENTRY_POINTS, Problem, names_in, parse
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


def reason_problems(module: str, ours: dict, module_only: dict, deviations: dict) -> list[str]:
    """What is wrong with the lists of exceptions themselves."""
    listed = {**module_only, **deviations}
    problems = [
        f"{name} is listed in copies.toml, but {module} does not define it: remove the stale entry" for name in listed if name not in ours
    ]
    problems += [f"{name} of {module} is listed in copies.toml without a reason" for name, why in listed.items() if not str(why).strip()]
    return problems + [f"{name} of {module} is both module_only and a deviation" for name in module_only if name in deviations]


def ledger(module: str, text: str, notebook: str, cells: NotebookNode, module_only: dict, deviations: dict) -> list[str]:
    """Problems unless the module's definitions equal the notebook's last ones, but for the exceptions that are named."""
    ours = definitions(parse(module, text))
    theirs = {node.name: (cell_id, node) for cell_id, node, _ in cell_statements(cells, notebook) if isinstance(node, DEFINITIONS)}
    problems = reason_problems(module, ours, module_only, deviations)
    for name, node in ours.items():
        if name not in theirs:
            if name in deviations:
                problems.append(f"{name} is listed as a deviation of {module}, but {notebook} does not define it: remove the stale entry")
            elif name not in module_only and name not in ENTRY_POINTS:
                problems.append(f"{name} is in {module} but not in {notebook}: teach it there, or list it in module_only with a reason")
            continue
        cell_id, other = theirs[name]
        if name in module_only:
            problems.append(
                f"{name} is listed in module_only of {module}, but cell {cell_id} of {notebook} defines it: remove the stale entry"
            )
        elif name in deviations and bare(node) == bare(other):
            problems.append(f"{name} of {module} equals cell {cell_id} of {notebook}: remove its stale entry in deviations")
        elif name not in deviations and bare(node) != bare(other):
            problems.append(difference(name, module, bare(node), notebook, cell_id, bare(other)))
    return problems


def difference(name: str, module: str, ours: str, notebook: str, cell_id: str, theirs: str) -> str:
    """One line, then the first 16 lines of a unified diff."""
    diff = list(difflib.unified_diff(ours.splitlines(), theirs.splitlines(), module, f"{notebook} cell {cell_id}", n=1, lineterm=""))
    head = f"{name} in {module} differs from cell {cell_id} of {notebook}: make them equal, or list it in deviations with a reason"
    return "\n    ".join([head, *diff[:16], *["..."][: len(diff) > 16]])


def redefinitions(module: str, text: str, notebook: str, cells: NotebookNode) -> list[str]:
    """Problems if the notebook binds, at column 0, a public name of the module that it is to import."""
    own = [node for node in parse(module, text).body if not isinstance(node, (ast.Import, ast.ImportFrom))]
    public = {name for node in own for name in names_in(ast.unparse(node))[0] if not name.startswith("_")}
    problems = []
    for cell_id, node, _ in cell_statements(cells, notebook):
        if not isinstance(node, (ast.Import, ast.ImportFrom)):
            for name in sorted(names_in(ast.unparse(node))[0] & public):
                problems.append(f"cell {cell_id} of {notebook} redefines {name}: import it from {module}")
    return problems
