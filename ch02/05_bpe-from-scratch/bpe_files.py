"""The files of a byte-pair encoder: GPT-2's characters for bytes, vocabulary, merges, download."""

import json
import os
import urllib.request
from http.client import HTTPException
from pathlib import Path


def bytes_to_unicode() -> dict[int, str]:
    """Return a printable character for each of the 256 byte values, as GPT-2's vocabulary files write them.

    Folder 05 of chapter 2.
    """
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    table = {byte: chr(byte) for byte in printable}
    hidden = [byte for byte in range(256) if byte not in table]
    return table | {byte: chr(256 + number) for number, byte in enumerate(hidden)}


def read_vocab(path: str | Path, tokens_first: bool = False) -> dict[int, str]:
    """Return {id: token} of a JSON file that holds {id: token}, or {token: id} if tokens_first.

    ValueError naming the file unless the ids are 0, 1, 2, ... and the first 256 are the single bytes. Folder 05 of chapter 2.
    """
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8")).items()
        vocab = dict(sorted((number, token) if tokens_first else (int(token), number) for token, number in found))
    except (ValueError, AttributeError, TypeError, RecursionError) as error:
        raise ValueError(f"{path} is not a vocabulary in JSON: {error}") from None
    right_types = all(type(token_id) is int and type(token) is str for token_id, token in vocab.items())
    if not right_types or list(vocab) != list(range(len(found))):
        raise ValueError(f"{path}: the ids must be 0, 1, 2, ..., each once, and the tokens strings")
    if {vocab.get(token_id) for token_id in range(256)} != set(bytes_to_unicode().values()):
        raise ValueError(f"{path}: the first 256 tokens must be the single bytes")
    return vocab


def read_merges(path: str | Path, vocab: dict[int, str]) -> dict[tuple[int, int], int]:
    """Return {(id, id): new id} of a merges file; ValueError naming the line that does not fit the vocabulary.

    Folder 05 of chapter 2.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not UTF-8 text") from None
    ids, merges = {token: token_id for token_id, token in vocab.items()}, {}
    for line in lines[lines[0].startswith("#version:") :]:
        if line:
            left, _, right = line.partition(" ")
            pair, new_id = (ids.get(left), ids.get(right)), 256 + len(merges)
            if None in pair or max(pair) >= new_id or vocab.get(new_id) != left + right:
                raise ValueError(f"{path}: merge {len(merges)} ({line[:40]!r}) does not fit the vocabulary")
            merges[pair] = new_id
    return merges


def download_file_if_absent(url: str, filename: str, search_dirs: list[str | Path]) -> Path:
    """Return the first `search_dir/filename` that exists; else download it into `search_dirs[0]`.

    ValueError if search_dirs is empty; OSError naming the address and the place if the download fails. Folder 05 of chapter 2.
    """
    if not search_dirs:
        raise ValueError("search_dirs is empty")
    for folder in map(Path, search_dirs):
        if (folder / filename).is_file():
            print(f"found {filename}, nothing to download")
            return folder / filename
    target = Path(search_dirs[0]) / filename
    try:
        with urllib.request.urlopen(url, timeout=60) as answer:
            data = answer.read()
    except (OSError, HTTPException, ValueError) as error:
        raise OSError(f"cannot download {url}: {error}; get it by other means and put it at {target}") from error
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f"{filename}.{os.getpid()}.part")
    partial.write_bytes(data)
    os.replace(partial, target)  # a rename happens at once: never half a file under the final name
    return target
