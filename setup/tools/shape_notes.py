"""Shape notes as data: find them in a source file, and compare one with the shapes of real tensors.

What a note is and how its letters get their values is told in shapes.py, which is the tool to run.
"""

import ast
import io
import linecache
import operator
import os
import re
import tokenize
import types
from dataclasses import dataclass

OPERATORS = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
    ast.Div: operator.truediv,
}
SCOPES = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
STATEMENTS = (ast.Assign, ast.AnnAssign, ast.AugAssign, ast.Return)
PARENTHESIS = re.compile(r"\((?:[^()]|\([^()]*\))*\)")  # one more pair may stand inside
LOOPS_INSIDE = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp, ast.YieldFrom)


@dataclass(eq=False)
class Note:
    """One comment: `shapes` holds a list of terms (ast) for each parenthesis; `node` is its statement, None if it has none."""

    file: str
    line: int
    text: str
    shapes: list
    node: ast.stmt | None = None
    targets: types.CodeType | None = None  # evaluates to the list of targets of an assignment
    loops_inside: bool = False

    def __str__(self) -> str:
        return f"{shown(self.file)}:{self.line}: {self.text}"


def shown(file: str) -> str:
    """The file name as messages give it: relative to the working folder where possible; notebook cells as `cell`."""
    if re.search(r"ipykernel_\d+.\d+\.py$|^<", file):
        return "notebook cell"
    return os.path.relpath(file) if file.startswith(os.getcwd() + os.sep) else file


def is_term(node: ast.AST) -> bool:
    if isinstance(node, ast.BinOp):
        return type(node.op) in OPERATORS and is_term(node.left) and is_term(node.right)
    return isinstance(node, ast.Name) or isinstance(node, ast.Constant) and type(node.value) is int


def parse_note(comment: str) -> tuple[str, list]:
    """'# (b, 2 * n), (b) words' -> ('(b, 2 * n), (b)', [terms, terms]); no note: ('', [])."""
    rest, parts, shapes = comment.lstrip("#").strip(), [], []
    while match := PARENTHESIS.match(rest):
        try:
            node = ast.parse(match[0], mode="eval").body
        except SyntaxError:
            break
        terms = node.elts if isinstance(node, ast.Tuple) else [node]
        if not all(map(is_term, terms)):
            break
        parts.append(match[0])
        shapes.append(terms)
        rest = rest[match.end() :]
        rest = rest[1:].lstrip() if re.match(r", ?\(", rest) else ""
    return ", ".join(parts), shapes


def read_comments(text: str) -> dict:
    """line -> comment, for the comments that stand to the right of code."""
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    return {t.start[0]: t.string for t in tokens if t.type == tokenize.COMMENT and t.line[: t.start[1]].strip()}


class Source:
    """One file's notes. `scopes`: (name, first line) of a function or class, or None for the module -> {line: Note}."""

    def __init__(self, file: str):
        self.file, self.scopes = file, {}
        text = "".join(linecache.getlines(file))
        found = {line: parse_note(comment) for line, comment in read_comments(text).items()}
        self.found = {line: Note(file, line, *note) for line, note in found.items() if note[1]}
        if self.found:
            self.visit(ast.parse(text), None)
        self.notes = [note for note in self.found.values() if note.node]
        self.loose = [note for note in self.found.values() if not note.node]

    def visit(self, parent: ast.AST, scope) -> None:
        """Give each note the assignment or return that ends on its line, unless that is behind `if x:` and may not run."""
        for node in ast.iter_child_nodes(parent):
            inner = scope
            if isinstance(node, SCOPES):
                inner = (node.name, min([node.lineno] + [d.lineno for d in node.decorator_list]))
            if not isinstance(node, STATEMENTS):
                self.visit(node, inner)
            elif node.end_lineno in self.found and node.value and node.lineno != getattr(parent, "lineno", 0):
                note = self.found[node.end_lineno]
                note.node, note.loops_inside = node, any(isinstance(part, LOOPS_INSIDE) for part in ast.walk(node))
                if not isinstance(node, ast.Return):
                    targets = ", ".join(map(ast.unparse, getattr(node, "targets", None) or [node.target]))
                    note.targets = compile(f"[{targets}]", "<targets of a shape note>", "eval")
                self.scopes.setdefault(scope, {}).update(dict.fromkeys(range(node.lineno, node.end_lineno + 1), note))

    def lines_for(self, code: types.CodeType) -> dict | None:
        """The {line: Note} of a code object, or None if it carries no note."""
        key = (code.co_name, code.co_firstlineno)
        if key not in self.scopes and not code.co_flags & 1:  # CO_OPTIMIZED: a function; without it, module level
            key = None
        return self.scopes.get(key)


def tensors_in(value) -> list:
    return [part for item in value for part in tensors_in(item)] if type(value) in (tuple, list) else [value]


def shape_of(value) -> tuple | None:
    try:
        return tuple(int(size) for size in getattr(value, "shape", None) or getattr(value, "weight", value).shape)
    except (AttributeError, TypeError, ValueError):
        return None


class Letters:
    """The bindings of one function call: name -> (value, note that bound it)."""

    def __init__(self):
        self.bound = {}

    def check(self, note: Note, value, names) -> str:
        """Compare each tensor in `value` with its part of the note; return the message that says what is wrong, or ""."""
        values = tensors_in(value)
        self.used, sizes = {}, [shape_of(value) for value in values]
        if not values or None in sizes:
            kind = type(values[sizes.index(None)]).__name__ if values else "empty tuple or list"
            return self.message(note, f"a value of type {kind} has no shape", None)
        if len(note.shapes) not in (1, len(values)):
            return self.message(note, f"the note speaks of {len(note.shapes)} tensors, here are {len(values)}", sizes[0])
        bound = {name: pair for name, pair in self.bound.items() if pair[1] is not note}
        for i, shape in enumerate(sizes):
            why = self.compare(note.shapes[i % len(note.shapes)], shape, bound, names, note)
            if why:
                return self.message(note, why, shape)
        self.bound = bound
        return ""

    def message(self, note: Note, why: str, shape: tuple | None) -> str:
        code = ast.unparse(note.node).replace("\n", " ")
        known = {name: value for name, (value, _) in self.bound.items()} | self.used
        return (
            f"{shown(note.file)}:{note.line}: shape note does not hold: {why}\n"
            f"  statement: {code if len(code) <= 120 else code[:117] + '...'}\n  note:      {note.text}\n  shape:     {shape}\n"
            f"  bindings:  {', '.join(f'{name}={value}' for name, value in known.items()) or 'none'}"
        )

    def compare(self, terms: list, shape: tuple, bound: dict, names, note: Note) -> str:
        if len(terms) != len(shape):
            return f"the note has {len(terms)} terms, the real shape {len(shape)}"
        for i in sorted(range(len(terms)), key=lambda i: isinstance(terms[i], ast.BinOp)):  # bare names bind first
            term, place = ast.unparse(terms[i]), f"term {i + 1}"
            try:
                expected = self.value(terms[i], bound, names)
            except (LookupError, ZeroDivisionError) as error:
                if not isinstance(terms[i], ast.Name):
                    return f"{place}, {term}, has no value: {error.args[0]}"
                expected = self.used[term] = shape[i]
                bound[term] = (expected, note)
            if expected != shape[i]:
                return f"{place}, {term}, is {expected}, but the real size is {shape[i]}"
        return ""

    def value(self, node: ast.AST, bound: dict, names) -> int | float:
        if isinstance(node, ast.Constant):
            return node.value
        if isinstance(node, ast.BinOp):
            return OPERATORS[type(node.op)](self.value(node.left, bound, names), self.value(node.right, bound, names))
        known = [bound[node.id][0]] if node.id in bound else [names.get(node.id), getattr(names.get("self"), node.id, None)]
        for value in known:
            if type(value) is int:
                self.used[node.id] = value
                return value
        raise LookupError(f"{node.id} is not known here")
