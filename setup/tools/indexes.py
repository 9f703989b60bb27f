"""The two pages that `copies.py` keeps up to date between marks: the index of exercises, and chapter 1's map of folders.

- appendix-C/README.md gets a line for each exercise that stands in a notebook. Number, title, difficulty and minutes come
  from the heading and the line below it, the check from the cells that follow, and what it practices from practice.toml beside.
- ch01/README.md gets the map of the root README, with its links pointing one folder up.
"""

import json
import re
import sys
from pathlib import Path

from borrowing import Problem

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

INDEX, MAP, PRACTICE = "appendix-C/README.md", "ch01/README.md", "appendix-C/practice.toml"
MAP_HEADING = "\n## Map of the whole course\n"
SOLUTIONS, EDITION, CHECKS = "exercise-solutions.ipynb", "exercises.ipynb", "exercise_checks.py"
EXERCISE = re.compile(r"(?:#+ |\*\*)Exercise ([A-Z0-9.]+): (.+?)(?:\*\*|$)", flags=re.M)
UNNUMBERED = re.compile(r"^(?:#+ |\*\*)Exercises\b", flags=re.M)
EFFORT = re.compile(r"[Dd]ifficulty (\d)/5, (?:about )?(\d+) minutes")


def cells(root: Path, path: str) -> list[tuple[str, str]]:
    """(kind, source) of a notebook's cells."""
    return [(cell["cell_type"], "".join(cell["source"])) for cell in json.loads((root / path).read_text(encoding="utf-8"))["cells"]]


def exercises(root: Path, path: str) -> list[dict]:
    """Number, title, difficulty and minutes ("" if unsaid), and the checks called, of each exercise of a notebook, in order."""
    found: list[dict] = []
    for kind, source in cells(root, path):
        if kind == "code":
            if found:
                found[-1]["checks"] |= dict.fromkeys(re.findall(r"^(check_\w+)\(", source, flags=re.M))
            continue
        for match in EXERCISE.finditer(source):
            effort = EFFORT.match(source[match.end() :].lstrip("\n *("))
            difficulty, minutes = effort.groups() if effort else ("", "")
            found.append(
                {"number": match[1], "title": match[2].replace("|", r"\|"), "difficulty": difficulty, "minutes": minutes, "checks": {}}
            )
    return found


def title_of(root: Path, path: str) -> str:
    """The first heading of a README; Problem if it is not there."""
    if not (root / path).is_file():
        raise Problem(f"{path} is missing: the index of exercises takes a heading from it")
    return (root / path).read_text(encoding="utf-8").partition("\n")[0].lstrip("# ")


def place(path: str) -> tuple[bool, str]:
    """Sorts chapters before appendices."""
    return path.startswith("appendix"), path


def checked_table(root: Path, path: str, practice: dict) -> list[str]:
    """The table of one exercise-solutions.ipynb; Problem if an exercise lacks its minutes or its line in practice.toml."""
    folder = path.removesuffix(f"/{SOLUTIONS}")
    lines_of_practice = practice.get(folder, {})
    lines = ["| exercise | difficulty | minutes | what it practices | where |", "|---|---|---|---|---|"]
    found = exercises(root, path)
    for exercise in found:
        number = exercise["number"]
        if not (exercise["minutes"] and number in lines_of_practice):
            raise Problem(f"exercise {number} of {path} needs a line with difficulty and minutes, and one in {PRACTICE}")
        links = [f"[try](../{folder}/{EDITION})", f"[solution](../{path})"]
        links += [f"[`{check}`](../{folder}/{CHECKS})" for check in exercise["checks"]]
        name = f"**{number}** {exercise['title']}"
        lines.append(f"| {name} | {exercise['difficulty']}/5 | {exercise['minutes']} | {lines_of_practice[number]} | {', '.join(links)} |")
    if gone := lines_of_practice.keys() - {exercise["number"] for exercise in found}:
        raise Problem(f"{PRACTICE} has lines for exercises that {path} does not have: {', '.join(sorted(gone))}")
    return lines


def other_lines(root: Path, path: str, worked: bool) -> list[str]:
    """A line for each exercise inside another notebook; one for the whole if they have no numbers. `worked`: the folder has solutions."""
    link = f"[{path}](../{path})"
    found = exercises(root, path)
    lines = []
    for exercise in found:
        effort = f"{exercise['difficulty']}/5, {exercise['minutes']} minutes" if exercise["minutes"] else ""
        lines.append(f"| {link} | {exercise['number']}. {exercise['title']} | {effort} |")
    if not found and not worked and any(UNNUMBERED.search(source) for kind, source in cells(root, path) if kind == "markdown"):
        lines.append(f"| {link} | several, at its end | |")
    return lines


def index_page(root: Path, files: list[str]) -> str:
    """All tables of appendix C."""
    try:
        practice = tomllib.loads((root / PRACTICE).read_text(encoding="utf-8"))
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise Problem(f"{PRACTICE}: {error}") from None
    notebooks = sorted((path for path in files if path.endswith(".ipynb") and not path.endswith(EDITION)), key=place)
    solved = [path for path in notebooks if path.endswith(f"/{SOLUTIONS}")]
    parts, count = [], 0
    for path in solved:
        table = checked_table(root, path, practice)
        folder = Path(path).parent
        readme = folder.parent if folder.name.startswith("01_") else folder
        parts += [f"## {title_of(root, f'{readme.as_posix()}/README.md')}", "\n".join(table)]
        count += len(table) - 2
    worked = {str(Path(path).parent) for path in solved}
    others = [line for path in notebooks if path not in solved for line in other_lines(root, path, str(Path(path).parent) in worked)]
    head = f"{count} exercises in notebooks of their own; those inside bonus notebooks follow at the end."
    more = ["## Inside bonus notebooks", "\n".join(["| notebook | exercise | effort |", "|---|---|---|", *others])] if others else []
    return "\n\n".join([head, *parts, *more])


def map_page(root: Path) -> str:
    """The table of the root README's map, with its links pointing one folder up."""
    after = (root / "README.md").read_text(encoding="utf-8").partition(MAP_HEADING)[2]
    rows = re.findall(r"^\|.*\|$", after.partition("\n## ")[0], flags=re.M)
    if not rows:
        raise Problem(f"README.md has no table under the heading {MAP_HEADING.strip()!r}")
    return re.sub(r"\]\((?!https?:|#)", "](../", "\n".join(rows))


def between_marks(root: Path, path: str, name: str, content: str) -> bytes:
    """The page with `content` between `<!-- NAME:start -->` and `<!-- NAME:end -->`."""
    start, end = f"<!-- {name}:start -->", f"<!-- {name}:end -->"
    text = (root / path).read_text(encoding="utf-8")
    if text.count(start) != 1 or text.count(end) != 1:
        raise Problem(f"{path} needs the lines {start} and {end}, once each")
    return f"{text.partition(start)[0]}{start}\n{content}\n{end}{text.partition(end)[2]}".encode()


def pages(root: Path, files: list[str]) -> list[tuple[str, list[str], bytes]]:
    """(page, what it is made from, its bytes) of the two pages, where they exist."""
    found = []
    if INDEX in files:
        found.append((INDEX, ["the notebooks' exercises", PRACTICE], between_marks(root, INDEX, "exercises", index_page(root, files))))
    if MAP in files:
        found.append((MAP, ["the map in README.md"], between_marks(root, MAP, "map", map_page(root))))
    return found
