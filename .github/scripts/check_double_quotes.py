"""Check that Python code quotes strings with double quotes.

    python .github/scripts/check_double_quotes.py [--include-notebooks] [PATH ...]

Prints `file:line: string` for each string in single quotes that could have double ones, and exits with 1 if there is any.
A string that contains a double quote may keep its single quotes, and so may anything inside an f-string's braces.
"""

import argparse
import ast
import io
import json
import subprocess
import sys
import token
import tokenize
from pathlib import Path

SKIPPED_FOLDERS = {".venv", ".git", ".ipynb_checkpoints", "__pycache__", "runs", "build", "node_modules"}
F_START, F_END = getattr(token, "FSTRING_START", None), getattr(token, "FSTRING_END", None)  # from Python 3.12 on


def wrong_quotes(source):
    """Return [(line, string)] for the strings in `source` that should have double quotes."""
    ast.parse(source)  # code that does not parse has no strings to speak of: SyntaxError
    found, depth, outer = [], 0, None
    for tok in tokenize.generate_tokens(io.StringIO(source).readline):
        if F_START is not None and tok.type == F_START:
            depth += 1
            if depth == 1:
                outer = (tok.start, tok.string)
        elif F_END is not None and tok.type == F_END:
            depth -= 1
            if depth == 0:
                start, opening = outer
                body = cut(source, start, tok.end)[len(opening) : -len(tok.string)]
                if opening.endswith("'") and '"' not in body:
                    found.append((start[0], opening + body + tok.string))
        elif tok.type == token.STRING and depth == 0:
            text = tok.string.lstrip("rRbBuUfF")
            if text.startswith("'") and '"' not in text:
                found.append((tok.start[0], tok.string))
    return found


def cut(source, start, end):
    """The text between two (line, column) positions."""
    lines = source.splitlines(keepends=True)[start[0] - 1 : end[0]]
    lines[-1] = lines[-1][: end[1]]
    lines[0] = lines[0][start[1] :]
    return "".join(lines)


def notebook_cells(text):
    """Yield (cell number, source) of the code cells; lines of IPython magic become comments."""
    for number, cell in enumerate(json.loads(text)["cells"], start=1):
        if cell["cell_type"] == "code":
            source = "".join(cell["source"])
            if not source.lstrip().startswith("%%"):
                yield number, "\n".join("#" + line if line.lstrip().startswith(("%", "!")) else line for line in source.split("\n"))


def check_file(path):
    """Return one line for each finding in a .py or .ipynb file."""
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".py":
            return [f"{path}:{line}: {string}" for line, string in wrong_quotes(text)]
        return [f"{path}: cell {n}, line {line}: {s}" for n, source in notebook_cells(text) for line, s in wrong_quotes(source)]
    except (SyntaxError, tokenize.TokenError, ValueError, KeyError) as error:
        return [f"{path}: cannot be read as code: {error}"]


def find_files(paths, include_notebooks):
    """The .py (and .ipynb) files at or below `paths`; in a git checkout, what git does not ignore."""
    suffixes = {".py", ".ipynb"} if include_notebooks else {".py"}
    for path in paths:
        if path.is_file():
            yield path
            continue
        answer = subprocess.run(
            ["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=path, capture_output=True, text=True, check=False
        )
        files = [path / line for line in answer.stdout.splitlines()] if answer.returncode == 0 else path.rglob("*")
        for file in sorted(files):
            if file.suffix in suffixes and file.is_file() and not SKIPPED_FOLDERS.intersection(file.relative_to(path).parts):
                yield file


def main(argv=None):
    """0: all quotes double; 1: findings printed; 2: bad arguments."""
    parser = argparse.ArgumentParser(description="Check that Python code quotes strings with double quotes.", allow_abbrev=False)
    parser.add_argument("--include-notebooks", "--include_notebooks", action="store_true", help="check code cells of .ipynb files too")
    parser.add_argument("paths", nargs="*", type=Path, default=[Path(".")], metavar="PATH", help="files or folders (default: .)")
    args = parser.parse_args(argv)
    missing = [str(path) for path in args.paths if not path.exists()]
    if missing:
        print(f"check_double_quotes.py: error: no such file or folder: {', '.join(missing)}", file=sys.stderr)
        return 2
    findings = [line for path in find_files(args.paths, args.include_notebooks) for line in check_file(path)]
    print("\n".join(findings) if findings else "all strings in double quotes")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
