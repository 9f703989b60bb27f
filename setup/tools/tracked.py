"""The files of this project: what git tracks, or, without git, what lies in the folder and is not ignored.

Every tool that looks through the repository asks here, so that environments, caches, what the course's programs write
and (with git) a learner's own notes are nobody's finding. Works in a downloaded zip, with a repository that git refuses
to read ("dubious ownership"), and inside another repository that knows nothing of this folder.
"""

import os
import subprocess
from fnmatch import fnmatch
from pathlib import Path

SHOWN = {".github", ".ci", ".devcontainer"}  # hidden folders that belong to the project
SKIPPED = {"venv", "env", "node_modules", "__pycache__", "runs", "build"}  # also where .gitignore is missing


def tracked(root, new=True) -> list:
    """Sorted names of the project's files below `root`, relative to it, with forward slashes; all of them exist.

    With `new`, files that git does not know yet but would add belong to it. A proof leaves them out (`new=False`): they
    may be a learner's own.
    """
    root = Path(root)
    names = _listed(root, "--cached")
    if names and new:
        names |= _listed(root, "--others", "--exclude-standard")
    return sorted(name for name in names or _walk(root) if (root / name).is_file())


def _listed(root: Path, *which: str) -> set:
    """What `git ls-files` answers in `root`; empty without git, outside a repository, or where git refuses."""
    command = ["git", "ls-files", "-z", *which]
    try:
        done = subprocess.run(command, cwd=root, capture_output=True, text=True, encoding="utf-8", stdin=subprocess.DEVNULL)
    except OSError:
        return set()
    return set(done.stdout.split("\0")) - {""} if done.returncode == 0 else set()


def _walk(root: Path):
    """Names of the files below `root`, without hidden folders, environments, and what its .gitignore names."""
    ignore = root / ".gitignore"
    lines = ignore.read_text(encoding="utf-8").splitlines() if ignore.is_file() else []
    patterns = [".git", *(line.strip() for line in lines if line.strip() and not line.startswith("#"))]  # a worktree's .git is a file
    for folder, subfolders, names in os.walk(root):
        inside = Path(folder).relative_to(root)
        subfolders[:] = [name for name in subfolders if _is_ours(name, Path(folder) / name, f"{(inside / name).as_posix()}/", patterns)]
        yield from (name for name in ((inside / name).as_posix() for name in names) if not _ignored(name, patterns))


def _is_ours(name: str, path: Path, inside: str, patterns: list) -> bool:
    hidden = name.startswith(".") and name not in SHOWN
    return not (hidden or name in SKIPPED or (path / "pyvenv.cfg").exists() or _ignored(inside, patterns))


def _ignored(name: str, patterns: list) -> bool:
    """True if a .gitignore with these lines ignores `name` (folders end in /); the last line that fits decides."""
    fitting = [line for line in patterns if fnmatch(name, line.lstrip("!/")) or fnmatch(name, f"*/{line.lstrip('!')}")]
    return bool(fitting) and not fitting[-1].startswith("!")
