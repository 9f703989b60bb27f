"""The files of this project, said once for every tool: what git tracks or would add; without git, what lies here."""

import os
import subprocess
from pathlib import Path

ELSEWHERE = {"venv", "env", "node_modules", "__pycache__", "runs", "build"}  # environments, caches, what programs write
HIDDEN_BUT_OURS = {".github", ".ci", ".devcontainer"}


def tracked(root: Path, learners_own: bool = True) -> list[str]:
    """Relative paths of the files, sorted; `learners_own=False` leaves out what git does not track (yet).

    A zip without .git, a machine without git and a folder that git distrusts are walked; there all files count.
    """
    others = ["--others", "--exclude-standard"] if learners_own else []
    try:
        command = ["git", "ls-files", "-z", "--cached", *others, "."]
        answer = subprocess.run(command, cwd=root, capture_output=True, text=True, encoding="utf-8", check=True).stdout
        if not git_knows(root):
            raise OSError("the folder lies inside somebody else's repository")
    except (OSError, subprocess.CalledProcessError):
        return sorted(walk(Path(root)))
    return sorted({name for name in answer.split("\0") if name and (Path(root) / name).is_file()})


def git_knows(root: Path) -> bool:
    """True if `root` is the top of its repository: a copy unpacked inside another one is walked."""
    top = subprocess.run(["git", "rev-parse", "--show-cdup"], cwd=root, capture_output=True, text=True)
    return top.returncode == 0 and not top.stdout.strip()


def walk(root: Path):
    """Every file below `root` but those of environments, caches and editors."""
    for folder, names, files in os.walk(root):
        names[:] = [n for n in names if n not in ELSEWHERE and (not n.startswith(".") or n in HIDDEN_BUT_OURS)]
        names[:] = [n for n in names if not (Path(folder) / n / "pyvenv.cfg").exists()]
        yield from ((Path(folder) / name).relative_to(root).as_posix() for name in files if name != ".DS_Store")
