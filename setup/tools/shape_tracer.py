"""The trace function behind shapes.py: it follows functions that carry shape notes and checks each note as it runs."""

import ast
import contextlib
import dis
import os
import sys
import tokenize
from dataclasses import dataclass, field

from shape_notes import Letters, Note, Source, Statement, shown, tensors_in

RETURNS = {number for name, number in dis.opmap.items() if name in ("RETURN_VALUE", "RETURN_CONST")}


class ShapeNoteError(AssertionError):
    """A shape note disagrees with the tensor beside it."""


@dataclass
class Report:
    """verified: (file, line) -> count; shapes: (file, line) -> last real shape; loose: notes where none can be checked."""

    verified: dict = field(default_factory=dict)
    shapes: dict = field(default_factory=dict)
    notes: list = field(default_factory=list)
    loose: list = field(default_factory=list)
    errors: list = field(default_factory=list)
    failed: set = field(default_factory=set)

    @property
    def never_ran(self) -> list:
        ran = self.failed | set(self.verified)
        return [note for note in self.notes if (note.file, note.line) not in ran]


def canonical(name: str) -> str:
    return os.path.realpath(name) if os.path.exists(name) else name


class Call:
    """Follows one frame line by line. A statement is checked when the frame leaves it: its targets then hold the result."""

    def __init__(self, tracer: "Tracer", file: str, lines: dict, letters: Letters, code: bytes):
        self.tracer, self.file, self.lines, self.letters, self.code = tracer, file, lines, letters, code
        self.pending = None  # the assignment that is running
        self.returning = None  # the return statement entered last

    def trace(self, frame, event, arg):
        if event == "line":
            statement = self.lines.get(frame.f_lineno)
            done, self.pending = self.pending, statement if statement and statement.targets else None
            if statement and not statement.targets:
                self.returning = statement
            if done is not None and done is not self.pending and done.notes:
                self.check_targets(done, frame)
        elif event == "exception":
            if not self.ends_inner_loop(arg[0]):
                self.pending = self.returning = None
        elif event == "return" and self.code[frame.f_lasti] in RETURNS:  # neither a yield nor an exception on its way out
            if self.pending is not None and self.pending.notes:
                self.check_targets(self.pending, frame)
            if self.returning is not None and not (self.returning.shared and arg is None):
                self.tracer.verify(self.returning, tensors_in(arg), self.letters, frame)
        return self.trace

    def ends_inner_loop(self, error: type) -> bool:
        """Python 3.12 runs comprehensions in the frame itself; the end of their iterator (or of yield from) is no failure."""
        statement = self.pending or self.returning
        return statement is not None and issubclass(error, StopIteration) and statement.loops_inside()

    def check_targets(self, statement: Statement, frame) -> None:
        for value in eval(statement.targets, frame.f_globals, frame.f_locals):
            self.tracer.verify(statement, tensors_in(value), self.letters, frame)


class Tracer:
    """Installs the trace function. `folder` and `cells` also admit files met on the way: see `admit`."""

    def __init__(self, files=(), strict: bool = True, folder: str | None = None, cells: dict | None = None):
        self.strict, self.report = strict, Report()
        self.folder, self.cells, self.cell_letters = folder, cells, Letters()
        self.wanted = {file: Source(file) for file in map(canonical, files)}
        self.sources = {}  # co_filename -> Source or None
        self.codes = {}  # id(code) -> (code, lines, bytes): holds the code object, so that the id stays its own
        for source in self.wanted.values():
            self.report.notes += source.notes
            self.report.loose += source.loose

    def start(self) -> None:
        self.previous = sys.gettrace()
        sys.settrace(self.on_call)

    def stop(self) -> None:
        sys.settrace(self.previous)

    def on_call(self, frame, event, arg):
        """The global trace function: decide whether this frame is followed. None means it is left alone."""
        code = frame.f_code
        try:
            source = self.sources[code.co_filename]
        except KeyError:
            source = self.sources[code.co_filename] = self.admit(code.co_filename, frame)
        if source is None:
            return None
        if id(code) not in self.codes:
            self.codes[id(code)] = (code, source.lines_for(code), code.co_code)
        _, lines, instructions = self.codes[id(code)]
        if lines is None:
            return None
        current = getattr(frame.f_trace, "__self__", None)
        if isinstance(current, Call) and current.tracer is self:  # a generator that goes on
            return frame.f_trace
        in_cell = self.cells is not None and frame.f_locals is self.cells
        return Call(self, source.file, lines, self.cell_letters if in_cell else Letters(), instructions).trace

    def admit(self, name: str, frame) -> "Source | None":
        """The notes of a file met for the first time: asked for, or beside the notebook, or a cell of the notebook."""
        file = canonical(name)
        if file in self.wanted:
            return self.wanted[file]
        exists = os.path.exists(file)
        beside = exists and self.folder is not None and os.path.dirname(file) == self.folder
        if not beside and (exists or self.cells is None or frame.f_globals is not self.cells):
            return None
        with contextlib.suppress(SyntaxError, tokenize.TokenError, ValueError):
            source = Source(file)
            return source if source.noted else None
        return None

    def verify(self, statement: Statement, values: list, letters: Letters, frame) -> None:
        for note in statement.notes:
            key = (note.file, note.line)
            why, shape = letters.check(note, values, frame.f_locals)
            if not why:
                self.report.verified[key] = self.report.verified.get(key, 0) + 1
                self.report.shapes[key] = shape
                continue
            error = ShapeNoteError(explain(note, statement, why, shape, letters))
            self.report.errors.append(error)
            self.report.failed.add(key)
            if self.strict:
                raise error


def explain(note: Note, statement: Statement, why: str, shape, letters: Letters) -> str:
    code = ast.unparse(statement.node).replace("\n", " ")
    known = {name: value for name, (value, _) in letters.bound.items()} | letters.used
    return (
        f"{shown(note.file)}:{note.line}: shape note does not hold: {why}\n"
        f"  statement: {code if len(code) <= 120 else code[:117] + '...'}\n  note:      {note.text}\n  shape:     {shape}\n"
        f"  bindings:  {', '.join(f'{name}={value}' for name, value in known.items()) or 'none'}"
    )
