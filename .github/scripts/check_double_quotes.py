"""Strings are written with double quotes: names every line of Python code that uses single ones without need.

    python .github/scripts/check_double_quotes.py [--include-notebooks] [PATH ...]

Single quotes are fine around a text that contains a double one. Exit code 1 if a line is named, 2 on bad input.
"""

import argparse
import io
import json
import re
import sys
import tokenize
from pathlib import Path

STRING_TOKENS = {tokenize.STRING, getattr(tokenize, "FSTRING_START", tokenize.STRING)}
SINGLE = re.compile(r"[A-Za-z]*'(?!'')")
SKIPPED = {".venv", ".git", ".ipynb_checkpoints", "__pycache__"}


def single_quoted_lines(source: str) -> list[int]:
    """Line numbers of strings in single quotes that contain no double quote. SyntaxError if the code cannot be read."""
    try:
        tokens = list(tokenize.generate_tokens(io.StringIO(source).readline))
    except tokenize.TokenError as error:
        raise SyntaxError(str(error)) from None
    lines = source.splitlines()
    found = [token for token in tokens if token.type in STRING_TOKENS and SINGLE.match(token.string)]
    # From Python 3.12 on, the token of an f-string is its beginning alone, so its line decides.
    return [token.start[0] for token in found if '"' not in (token.string if len(token.string) > 3 else lines[token.start[0] - 1])]


def code_of(path: Path) -> list[tuple[str, str]]:
    """(place, code) of a module, or of each code cell of a notebook; magics become comments."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".py":
        return [(str(path), text)]
    cells = json.loads(text)["cells"]
    sources = ["".join(cell["source"]) if cell["cell_type"] == "code" else "" for cell in cells]
    return [(f"{path}, cell {number}", re.sub(r"(?m)^(\s*)[%!]", r"\1#", source)) for number, source in enumerate(sources)]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Find strings in single quotes.", allow_abbrev=False)
    parser.add_argument("paths", nargs="*", type=Path, default=[Path(".")], metavar="PATH", help="files or folders (default: here)")
    parser.add_argument("--include-notebooks", action="store_true", help="look into code cells, too")
    args = parser.parse_args(argv)
    suffixes = {".py", ".ipynb"} if args.include_notebooks else {".py"}
    bad = 0
    for path in args.paths:
        if not path.exists():
            parser.error(f"{path} does not exist")
        files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.suffix in suffixes and file.is_file())
        for file in files:
            if SKIPPED & set(file.parts):
                continue
            try:
                found = [f"{place}, line {line}" for place, code in code_of(file) for line in single_quoted_lines(code)]
            except (SyntaxError, ValueError, KeyError) as error:
                parser.error(f"{file} cannot be read: {error}")
            for where in found:
                print(f"{where}: single quotes")
            bad += len(found)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
