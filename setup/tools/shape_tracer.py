"""The trace function behind shapes.py: it follows functions that carry shape notes and checks each note as it runs."""

import dis
import os
import sys
from collections import Counter

from shape_notes import Letters, Note

RETURNS = {number for name, number in dis.opmap.items() if name in ("RETURN_VALUE", "RETURN_CONST")}


class ShapeNoteError(AssertionError):
    """A shape note disagrees with the tensor beside it."""


class Call:
    """Follows one frame line by line. A statement is checked when the frame leaves it: its targets then hold the result."""

    def __init__(self, tracer: "Tracer", lines: dict, letters: Letters):
        self.tracer, self.lines, self.letters = tracer, lines, letters
        self.pending = None  # the note on the assignment that is running
        self.returning = None  # the note on the return statement entered last

    def trace(self, frame, event, arg):
        if event == "line":
            note = self.lines.get(frame.f_lineno)
            done, self.pending = self.pending, note if note and note.targets else None
            if note and not note.targets:
                self.returning = note
            if done is not self.pending:
                self.check_targets(done, frame)
        elif event == "exception":
            # Python 3.12 runs comprehensions in the frame itself: the end of their iterator (or of yield from) is no failure
            running = self.pending or self.returning
            if not (running and running.loops_inside and issubclass(arg[0], StopIteration)):
                self.pending = self.returning = None
        elif frame.f_code.co_code[frame.f_lasti] in RETURNS:  # neither a yield nor an exception on its way out
            self.check_targets(self.pending, frame)
            if self.returning:
                self.tracer.verify(self.returning, arg, self.letters, frame)
        return self.trace

    def check_targets(self, note: Note | None, frame) -> None:
        for value in eval(note.targets, frame.f_globals, frame.f_locals) if note else []:
            self.tracer.verify(note, value, self.letters, frame)


class Tracer:
    """Checks notes while it is started. verified: (file, line) -> how often a note was true; errors: what was false.

    `source_of(file, frame)` gives the Source of a file met for the first time, or None to leave it alone.
    """

    def __init__(self, source_of):
        self.source_of, self.verified, self.errors, self.previous = source_of, Counter(), [], None
        self.sources = {}  # co_filename -> Source or None
        self.module_letters = {}  # co_filename -> Letters: a notebook cell runs in several pieces
        self.codes = {}  # id(code) -> (code, lines): holds the code object, so that the id stays its own

    def start(self) -> None:
        self.previous = sys.gettrace()
        sys.settrace(self.on_call)

    def stop(self) -> None:
        sys.settrace(self.previous)

    def on_call(self, frame, event, arg):
        """The global trace function: decide whether this frame is followed. None means it is left alone."""
        code = frame.f_code
        name = code.co_filename
        if name not in self.sources:
            self.sources[name] = self.source_of(os.path.realpath(name) if os.path.exists(name) else name, frame)
        if self.sources[name] is None:
            return None
        if id(code) not in self.codes:
            self.codes[id(code)] = (code, self.sources[name].lines_for(code))
        lines = self.codes[id(code)][1]
        if lines is None:
            return None
        current = getattr(frame.f_trace, "__self__", None)
        if isinstance(current, Call) and current.tracer is self:  # a generator that goes on
            return frame.f_trace
        in_module = frame.f_locals is frame.f_globals
        return Call(self, lines, self.module_letters.setdefault(name, Letters()) if in_module else Letters()).trace

    def verify(self, note: Note, value, letters: Letters, frame) -> None:
        why = letters.check(note, value, frame.f_locals)
        if why:
            self.errors.append(ShapeNoteError(why))
        else:
            self.verified[note.file, note.line] += 1
