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
    names = set((git(root, "ls-files", "-z", "--cached") or "").split("\0")) - {""}
    if names and new:
        names |= set(git(root, "ls-files", "-z", "--others", "--exclude-standard").split("\0")) - {""}
    return sorted(name for name in names or _walk(Path(root)) if (Path(root) / name).is_file())


def find_files(paths: list, root: Path, *suffixes: str) -> list:
    """The files below `paths` (files or folders) whose names end in a suffix, as absolute paths; without paths, the project's."""
    found = set()
    for path in [Path(p) for p in paths] or [root]:
        if path.is_dir():
            found |= {path / name for name in tracked(path, new=bool(paths)) if name.endswith(suffixes)}
        elif path.is_file():
            found.add(path)
        else:
            raise FileNotFoundError(f"no such file or folder: {path}")
    return sorted(path.resolve() for path in found)


def git(root, *arguments: str):
    """What `git ARGUMENTS` prints in `root`; None without git, outside a repository, or where git refuses."""
    try:
        done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, encoding="utf-8", stdin=subprocess.DEVNULL)
    except OSError:
        return None
    return done.stdout if done.returncode == 0 else None


def _walk(root: Path):
    """Names of the files below `root`, without hidden folders, environments, and what its .gitignore names."""
    ignore = root / ".gitignore"
    lines = ignore.read_text(encoding="utf-8").splitlines() if ignore.is_file() else []
    patterns = [".git", *(line.strip() for line in lines if line.strip() and not line.startswith("#"))]  # a worktree's .git is a file
    for folder, subfolders, names in os.walk(root):
        inside = Path(folder).relative_to(root)
        visible = [name for name in subfolders if name in SHOWN or name not in SKIPPED and not name.startswith(".")]
        subfolders[:] = [
            name
            for name in visible
            if not (Path(folder) / name / "pyvenv.cfg").exists() and not _ignored(f"{(inside / name).as_posix()}/", patterns)
        ]
        yield from (name for name in ((inside / name).as_posix() for name in names) if not _ignored(name, patterns))


def _ignored(name: str, patterns: list) -> bool:
    """True if a .gitignore with these lines ignores `name` (folders end in /); the last line that fits decides."""
    fitting = [line for line in patterns if fnmatch(name, line.lstrip("!/")) or fnmatch(name, f"*/{line.lstrip('!')}")]
    return bool(fitting) and not fitting[-1].startswith("!")
