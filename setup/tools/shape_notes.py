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
from dataclasses import dataclass, field

OPERATORS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.FloorDiv: operator.floordiv}
SCOPES = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
STATEMENTS = (ast.Assign, ast.AnnAssign, ast.AugAssign, ast.Return)
LOOPS_INSIDE = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp, ast.YieldFrom)


@dataclass(eq=False)
class Note:
    """One comment: `shapes` holds a list of terms (ast) for each parenthesis."""

    file: str
    line: int
    text: str
    shapes: list

    def __str__(self) -> str:
        return f"{shown(self.file)}:{self.line}: {self.text}"


@dataclass(eq=False)
class Statement:
    """An assignment or return. `targets` is the compiled list of targets; `shared` says its line begins another statement."""

    node: ast.stmt
    targets: types.CodeType | None
    shared: bool
    notes: list = field(default_factory=list)

    def loops_inside(self) -> bool:
        return any(isinstance(node, LOOPS_INSIDE) for node in ast.walk(self.node))


def shown(file: str) -> str:
    """The file name as messages give it: relative to the working folder where possible; notebook cells as `cell`."""
    if re.search(r"ipykernel_\d+.\d+\.py$|^<", file):
        return "notebook cell"
    return os.path.relpath(file) if file.startswith(os.getcwd() + os.sep) else file


def is_term(node: ast.AST) -> bool:
    if isinstance(node, ast.BinOp):
        return type(node.op) in OPERATORS and is_term(node.left) and is_term(node.right)
    return isinstance(node, ast.Name) or isinstance(node, ast.Constant) and type(node.value) is int


def leading_parenthesis(text: str) -> str:
    """The text up to the parenthesis that closes the one it begins with; "" if there is none."""
    depth = 0
    for i, letter in enumerate(text):
        depth += (letter == "(") - (letter == ")")
        if depth == 0:
            return text[: i + 1]
    return ""


def parse_note(comment: str) -> tuple[str, list]:
    """'# (b, 2 * n), (b) words' -> ('(b, 2 * n), (b)', [terms, terms]); no note: ('', [])."""
    rest, parts, shapes = comment.lstrip("#").strip(), [], []
    while rest.startswith("("):
        part = leading_parenthesis(rest)
        try:
            node = ast.parse(part, mode="eval").body
        except SyntaxError:
            break
        terms = node.elts if isinstance(node, ast.Tuple) else [node]
        if not part or not all(map(is_term, terms)):
            break
        parts.append(part)
        shapes.append(terms)
        rest = rest[len(part) :]
        rest = rest[1:].lstrip() if re.match(r", ?\(", rest) else ""
    return ", ".join(parts), shapes


def read_comments(text: str) -> dict:
    """line -> comment, for the comments that stand to the right of code."""
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    return {t.start[0]: t.string for t in tokens if t.type == tokenize.COMMENT and t.line[: t.start[1]].strip()}


class Source:
    """One file's notes. `scopes`: (name, first line) of a function or class, or None for the module -> {line: Statement}."""

    def __init__(self, file: str):
        self.file, self.scopes, self.notes = file, {None: {}}, []
        text = "".join(linecache.getlines(file))
        found = {line: parse_note(comment) for line, comment in read_comments(text).items()}
        self.found = {line: Note(file, line, *note) for line, note in found.items() if note[1]}
        if self.found:
            self.visit(ast.parse(text), None)
        placed = {id(note) for note in self.notes}
        self.loose = [note for note in self.found.values() if id(note) not in placed]
        self.noted = {key for key, lines in self.scopes.items() if any(s and s.notes for s in lines.values())}

    def visit(self, parent: ast.AST, scope) -> None:
        for node in ast.iter_child_nodes(parent):
            inner = scope
            if isinstance(node, SCOPES):
                inner = (node.name, min([node.lineno] + [d.lineno for d in node.decorator_list]))
                self.scopes[inner] = {}
            if isinstance(node, STATEMENTS) and node.value is not None:
                self.add(node, scope, shared=node.lineno == getattr(parent, "lineno", 0))
            elif not isinstance(node, ast.expr):
                self.visit(node, inner)

    def add(self, node: ast.stmt, scope, shared: bool) -> None:
        """Register a statement for its lines. An assignment behind `if x:` on one line may not run: its note stays loose."""
        lines, targets = self.scopes[scope], None
        if not isinstance(node, ast.Return):
            elements = node.targets if isinstance(node, ast.Assign) else [node.target]
            loads = "[" + ", ".join(ast.unparse(element) for element in elements) + "]"
            targets = compile(loads, "<targets of a shape note>", "eval")
        statement = Statement(node, targets, shared)
        if targets is None or not shared:
            here = [self.found[line] for line in {node.lineno: 0, node.end_lineno: 0} if line in self.found]
            earlier = lines.get(node.lineno)
            if earlier and here:  # a = 1; b = 2  # (n): the note belongs to the last one
                self.notes = [note for note in self.notes if note not in here]
                earlier.notes = [note for note in earlier.notes if note not in here]
            statement.notes = here
            self.notes += here
        lines.update(dict.fromkeys(range(node.lineno, node.end_lineno + 1), statement))

    def lines_for(self, code: types.CodeType) -> dict | None:
        """The {line: Statement} of a code object, or None if it carries no note."""
        key = (code.co_name, code.co_firstlineno)
        if key not in self.scopes:
            if code.co_flags & 1:  # CO_OPTIMIZED: a lambda or comprehension, not module level
                return None
            key = None
        return self.scopes[key] if key in self.noted else None


def tensors_in(value) -> list:
    return [part for item in value for part in tensors_in(item)] if type(value) in (tuple, list) else [value]


def shape_of(value) -> tuple | None:
    shape = getattr(value, "shape", None)
    if shape is None:
        shape = getattr(getattr(value, "weight", None), "shape", None)
    try:
        return tuple(int(size) for size in shape)
    except (TypeError, ValueError):
        return None


class Letters:
    """The bindings of one function call: name -> (value, note that bound it)."""

    def __init__(self):
        self.bound = {}

    def check(self, note: Note, values: list, names) -> tuple[str, tuple | None]:
        """Compare each value with its part of the note; return (what is wrong or "", the last real shape)."""
        bound = {name: pair for name, pair in self.bound.items() if pair[1] is not note}
        self.used, sizes = {}, [shape_of(value) for value in values]
        if not values or None in sizes:
            kind = type(values[sizes.index(None)]).__name__ if values else "empty tuple or list"
            return f"a value of type {kind} has no shape", None
        if len(note.shapes) not in (1, len(values)):
            return f"the note speaks of {len(note.shapes)} tensors, here are {len(values)}", sizes[0]
        for i, shape in enumerate(sizes):
            why = self.compare(note.shapes[i % len(note.shapes)], shape, bound, names, note)
            if why:
                return why, shape
        self.bound = bound
        return "", sizes[-1]

    def compare(self, terms: list, shape: tuple, bound: dict, names, note: Note) -> str:
        if len(terms) != len(shape):
            return f"the note has {len(terms)} terms, the real shape {len(shape)}"
        order = sorted(range(len(terms)), key=lambda i: isinstance(terms[i], ast.BinOp))  # bare names bind first
        for i in order:
            term, place = ast.unparse(terms[i]), f"term {i + 1}"
            try:
                expected = self.value(terms[i], bound, names)
            except (LookupError, ZeroDivisionError) as error:
                if not isinstance(terms[i], ast.Name):
                    return f"{place}, {term}, has no value: {error.args[0]}"
                expected = shape[i]
                bound[term] = (expected, note)
                self.used[term] = expected
            if expected != shape[i]:
                return f"{place}, {term}, is {expected}, but the real size is {shape[i]}"
        return ""

    def value(self, node: ast.AST, bound: dict, names) -> int:
        if isinstance(node, ast.Constant):
            return node.value
        if isinstance(node, ast.BinOp):
            left, right = self.value(node.left, bound, names), self.value(node.right, bound, names)
            return OPERATORS[type(node.op)](left, right)
        self.used[node.id] = bound[node.id][0] if node.id in bound else self.known_int(node.id, names)
        return self.used[node.id]

    @staticmethod
    def known_int(name: str, names) -> int:
        own = names.get("self")
        for value in (names.get(name), getattr(own, name, None) if own is not None else None):
            if type(value) is int:
                return value
        raise LookupError(f"{name} is not known here")
