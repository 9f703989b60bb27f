# Generated from ch05/01_main-chapter-code/download.py by `make copies`; do not edit.
"""Fetch large files from the network so that half a file is never taken for a whole one. Plumbing of gpt_download.py.

Bytes go to NAME.part, are checked there, and get their final name by a rename. A broken connection goes on where it broke, by
an HTTP range, in the same run or the next one. The variables HTTP_PROXY, HTTPS_PROXY and NO_PROXY are honoured.
"""

import base64
import glob
import hashlib
import os
import re
import shutil
import time
from pathlib import Path

import requests
from tqdm import tqdm

TIMEOUT = (10, 30)  # seconds to connect, and to wait for the next bytes
ATTEMPTS = 20  # requests to one source; each must bring something new
PAUSE = 1.0  # seconds between two of them
CHUNK = 1 << 15  # bytes; when a connection breaks, what came of the last chunk is lost


class DownloadError(OSError):
    """No source gave the file. The message is one line: each address with its fault, the target, the way by hand."""


class DiskError(DownloadError):
    """The file cannot be written here; another source would not help."""


class SourceFailed(Exception):
    """One source failed; the message says why."""


def file_hash(path: str | Path, kind: str = "sha256") -> str:
    """Return the hash of a file as hexadecimal text, reading it piece by piece."""
    digest = hashlib.new(kind)
    with open(path, "rb") as file:
        while piece := file.read(CHUNK):
            digest.update(piece)
    return digest.hexdigest()


def file_problem(path: Path, size: int | None = None, hashes: dict | None = None) -> str | None:
    """Say what is wrong with a file, or return None when it is there, has the size and the hashes {kind: hexadecimal}."""
    if not path.is_file():
        return "missing"
    if path.stat().st_size == 0:
        return "empty"
    if size is not None and path.stat().st_size != size:
        return f"{path.stat().st_size:,} bytes instead of {size:,}"
    wrong = [kind for kind, value in (hashes or {}).items() if file_hash(path, kind) != value]
    return f"wrong content (its {wrong[0]} differs)" if wrong else None


def download_file(
    url: str, destination: str | Path, backup_url: str | list | None = None, size: int | None = None, sha256: str | None = None
) -> Path:
    """Fetch a file from `url`, or from the backups in their order, and return its path.

    A file that is there already, with the right size and sha256 where they are given, costs no request. Raises DownloadError
    when no source gives the file, DiskError when it cannot be stored; `destination` is then as it was before.
    """
    destination = Path(destination)
    hashes = {"sha256": sha256} if sha256 else {}
    if file_problem(destination, size, hashes) is None:
        return destination
    sources = [url, *([backup_url] if isinstance(backup_url, str) else backup_url or [])]
    by_hand = f"by hand: open {url} in a browser, save it as {destination}, then start this again"
    faults = []
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        for source in sources:
            # Of a known size, any mirror may go on where another stopped; else a part belongs to its own address.
            mark = "" if size is not None else "." + hashlib.sha256(source.encode()).hexdigest()[:8]
            part = destination.with_name(f"{destination.name}{mark}.part")
            try:
                fetch(source, part, size, hashes)
            except SourceFailed as fault:
                faults.append(f"{source}: {fault}")
                continue
            os.replace(part, destination)
            remove_parts(destination)
            return destination
    except OSError as error:
        remove_parts(destination)  # a full disk wants the space back
        raise DiskError(f"cannot store {destination}: {error.strerror or error}; make room there, or {by_hand}") from None
    raise DownloadError(f"cannot download {destination.name}: {'; '.join(faults)}; {by_hand}")


def remove_parts(destination: Path) -> None:
    """Delete the unfinished pieces of a file."""
    for part in destination.parent.glob(f"{glob.escape(destination.name)}*.part"):
        part.unlink(missing_ok=True)


def bytes_in(part: Path) -> int:
    """Return the size of a file, 0 if it does not exist."""
    return part.stat().st_size if part.exists() else 0


def fetch(url: str, part: Path, size: int | None, hashes: dict) -> None:
    """Fill `part` from one source until it is complete and correct. Raises SourceFailed; keeps only what can be continued."""
    wanted = dict(hashes)  # and what the server says about the file
    fault = "it broke off again and again"
    try:
        for _ in range(ATTEMPTS):
            before = bytes_in(part)
            try:
                total = before if size is not None and before >= size else receive(url, part, size, wanted)
                fault = file_problem(part, size if size is not None else total, wanted)
                if fault is None:
                    return
                short = total is not None and bytes_in(part) < total
            except requests.RequestException as error:
                fault, short = reason(error), True
            if not short:  # all is there, and wrong: never continue from it
                part.unlink(missing_ok=True)
            if bytes_in(part) <= before and (short or before == 0):
                break  # nothing new came, or all came and is wrong; a wrong continuation has one try from the start
            time.sleep(PAUSE)
    finally:
        if part.is_file() and bytes_in(part) == 0:
            part.unlink()
    kept = f", {bytes_in(part):,} bytes are kept and the next try goes on from there" if part.exists() else ""
    raise SourceFailed(f"{fault}{kept}")


def receive(url: str, part: Path, size: int | None, wanted: dict) -> int | None:
    """Make one request and append its bytes to `part`; returns the whole file's size, None where the server does not say.

    Adds to `wanted` the hashes that the server states. Raises SourceFailed for an answer that is not the file.
    """
    have = bytes_in(part)
    headers = {"Accept-Encoding": "identity", **({"Range": f"bytes={have}-"} if have else {})}
    with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT) as answer:
        if answer.status_code == 416 and have:  # nothing after what we have: it was complete, or is of no use
            stated = re.fullmatch(r"bytes \*/(\d+)", answer.headers.get("Content-Range", ""))
            return int(stated[1]) if stated else -1
        if answer.status_code not in (200, 206):
            raise SourceFailed(f"HTTP {answer.status_code} {answer.reason}".strip())
        if answer.headers.get("Content-Type", "").startswith("text/html"):
            raise SourceFailed("a web page came instead of the file")
        have, total = position(answer, have)
        if size is not None and total is not None and total != size:
            raise SourceFailed(f"it offers {total:,} bytes, expected are {size:,}")
        wanted.update(stated_hashes(answer))
        missing = (size if total is None and size is not None else total or have) - have
        if shutil.disk_usage(part.parent).free < missing:
            raise OSError(None, f"{missing:,} bytes are to come and {shutil.disk_usage(part.parent).free:,} are free")
        with open(part, "ab" if have else "wb") as file, progress_bar(part, total, have) as bar:
            for piece in answer.iter_content(CHUNK):
                if have == 0 and file.tell() == 0 and piece.lstrip()[:9].lower().startswith((b"<!doctype", b"<html")):
                    raise SourceFailed("a web page came instead of the file")
                file.write(piece)
                bar.update(len(piece))
            file.flush()
            os.fsync(file.fileno())
    return total


def position(answer: requests.Response, have: int) -> tuple[int, int | None]:
    """Return (where the answer's bytes begin, size of the whole file or None), for a whole file or a range of it."""
    if answer.status_code == 200:  # the server sends all from the start, asked for a range or not
        length = answer.headers.get("Content-Length", "")
        return 0, int(length) if length.isdigit() else None
    stated = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", answer.headers.get("Content-Range", ""))
    if not stated or int(stated[1]) != have:
        raise SourceFailed("it sent another range than asked for")
    return have, None if stated[2] == "*" else int(stated[2])


def stated_hashes(answer: requests.Response) -> dict:
    """Return the hashes of the whole file that the server states: Hugging Face its sha256, blob storage an md5."""
    found = {}
    for one in [*answer.history, answer]:
        linked = one.headers.get("X-Linked-ETag", "").strip('"')
        if re.fullmatch("[0-9a-f]{64}", linked):
            found["sha256"] = linked
    whole = answer.headers.get("Content-MD5") if answer.status_code == 200 else None
    md5 = answer.headers.get("x-ms-blob-content-md5") or whole
    if md5:
        found["md5"] = base64.b64decode(md5).hex()
    return found


def progress_bar(part: Path, total: int | None, have: int) -> tqdm:
    """Return a bar with speed and remaining time; none for less than a megabyte."""
    name = re.sub(r"(\.[0-9a-f]{8})?\.part$", "", part.name)
    return tqdm(desc=name, total=total, initial=have, unit="B", unit_scale=True, mininterval=1, disable=total is not None and total < 1e6)


def reason(error: requests.RequestException) -> str:
    """Say in a few words why a request failed; the library's own text is long, and may hold a proxy's password."""
    kinds = {
        requests.exceptions.ProxyError: "the proxy does not let it through (see HTTP_PROXY and HTTPS_PROXY)",
        requests.exceptions.SSLError: "its certificate is not accepted",
        requests.exceptions.ConnectTimeout: f"no answer within {TIMEOUT[0]} seconds",
        requests.exceptions.Timeout: f"no answer within {TIMEOUT[1]} seconds",
        requests.exceptions.ChunkedEncodingError: "the connection broke",
        requests.exceptions.ConnectionError: "no connection",
    }
    return next((text for kind, text in kinds.items() if isinstance(error, kind)), f"{type(error).__name__}")
