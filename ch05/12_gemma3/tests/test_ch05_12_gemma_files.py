"""The four pieces of Gemma: found without running their code, joined once, checked, safe when two processes do it at once."""

import hashlib
import importlib
import os
import subprocess
import sys
import time
from pathlib import Path

import gemma_files
import pytest

FOLDER = Path(__file__).resolve().parents[1]
PIECES = [b"GGUF", b"second", b"third!", b"4"]
JOINED = b"".join(PIECES)


@pytest.fixture
def packages(tmp_path, monkeypatch):
    """Four tiny packages in the place of the real ones; whoever imports them fails the test. Returns the cache folder."""
    for number, piece in enumerate(PIECES):
        data = tmp_path / "site" / f"tiny_gemma_part{number + 1}" / "data"
        data.mkdir(parents=True)
        (data / f"gemma-3-270m-q4_k_m.gguf.part{number:02}").write_bytes(piece)
        (data.parent / "__init__.py").write_text("raise SystemExit('the code of the package was run')", encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    importlib.invalidate_caches()
    monkeypatch.setattr(gemma_files, "PACKAGE", "tiny_gemma")
    monkeypatch.setattr(gemma_files, "FILE_SIZE", len(JOINED))
    monkeypatch.setattr(gemma_files, "FILE_SHA256", hashlib.sha256(JOINED).hexdigest())
    monkeypatch.setenv("LLM_COURSE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_the_pieces_are_joined_in_order_and_nothing_else_is_left(packages):
    assert gemma_files.find_gemma3() == packages / gemma_files.FILE_NAME
    assert [(path.name, path.read_bytes()) for path in packages.iterdir()] == [(gemma_files.FILE_NAME, JOINED)]


def test_a_complete_file_is_neither_written_nor_hashed_again(packages, monkeypatch):
    before = gemma_files.find_gemma3().stat()
    monkeypatch.setattr(gemma_files, "hashlib", None)  # any use of it would fail
    monkeypatch.setattr(gemma_files, "join_parts", None)
    assert gemma_files.find_gemma3().stat().st_mtime_ns == before.st_mtime_ns


def test_a_file_cut_short_is_joined_again(packages):
    path = gemma_files.find_gemma3()
    path.write_bytes(JOINED[:-1])
    assert gemma_files.find_gemma3().read_bytes() == JOINED


@pytest.mark.parametrize("damaged", [b"thirD!", b"third", b"third!!"])
def test_a_damaged_piece_leaves_no_file_and_is_named_in_one_line(packages, damaged):
    part = gemma_files.gemma3_parts()[2]
    part.write_bytes(damaged)
    with pytest.raises(ValueError, match="damaged") as caught:
        gemma_files.find_gemma3()
    assert "\n" not in str(caught.value) and list(packages.iterdir()) == []


@pytest.mark.parametrize("number", [0, 3])
def test_a_missing_piece_says_which_command_installs_it(packages, number):
    gemma_files.gemma3_parts()[number].unlink()
    with pytest.raises(FileNotFoundError, match=r"make gemma.*pip install.*data-packages-gemma\.txt") as caught:
        gemma_files.find_gemma3()
    assert "\n" not in str(caught.value)


def test_a_cache_that_cannot_be_written_falls_back_to_the_temporary_folder(packages, tmp_path, monkeypatch):
    packages.write_text("a file where the folder should be", encoding="utf-8")
    monkeypatch.setattr(gemma_files.tempfile, "gettempdir", lambda: str(tmp_path / "system"))
    assert gemma_files.find_gemma3() == tmp_path / "system" / "llm-course" / gemma_files.FILE_NAME
    assert gemma_files.find_gemma3().read_bytes() == JOINED


def test_no_place_at_all_is_one_line(packages, tmp_path, monkeypatch):
    packages.write_text("a file where the folder should be", encoding="utf-8")
    monkeypatch.setattr(gemma_files.tempfile, "gettempdir", lambda: str(packages))
    with pytest.raises(OSError, match="LLM_COURSE_CACHE") as caught:
        gemma_files.find_gemma3()
    assert "\n" not in str(caught.value)


def test_without_the_setting_the_system_folder_for_caches_is_used(monkeypatch, tmp_path):
    monkeypatch.delenv("LLM_COURSE_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path / "local"))
    for system, folder in (("linux", "xdg/llm-course"), ("win32", "local/llm-course"), ("darwin", "Library/Caches/llm-course")):
        monkeypatch.setattr(gemma_files.sys, "platform", system)
        assert gemma_files.cache_folders()[0].as_posix().endswith(folder)


TWO_AT_ONCE = """
import sys, time
import gemma_files
gemma_files.PACKAGE, gemma_files.FILE_SIZE, gemma_files.FILE_SHA256 = "tiny_gemma", int(sys.argv[1]), sys.argv[2]
sys.path.insert(0, sys.argv[3])
time.sleep(max(0, float(sys.argv[4]) - time.time()))
print(len(gemma_files.find_gemma3().read_bytes()))
"""


def test_processes_that_join_at_the_same_moment_all_succeed(packages):
    site = packages.parent / "site"
    start = time.time() + 1
    command = [sys.executable, "-c", TWO_AT_ONCE, str(len(JOINED)), hashlib.sha256(JOINED).hexdigest(), str(site), str(start)]
    running = [subprocess.Popen(command, cwd=FOLDER, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(4)]
    results = [(*process.communicate(timeout=60), process.returncode) for process in running]
    assert results == [(f"{len(JOINED)}\n", "", 0)] * 4
    assert [path.name for path in packages.iterdir()] == [gemma_files.FILE_NAME]


def run(*options, **environment):
    return subprocess.run([sys.executable, "-S", FOLDER / "gemma_files.py", *options], capture_output=True, text=True, timeout=60,
                          env={**os.environ, **environment})  # -S: no installed package at all, Gemma included


def test_the_terms_are_printed_before_anything_is_installed():
    result = run("--terms")
    assert result.returncode == 0 and result.stderr == ""
    assert "https://ai.google.dev/gemma/terms" in result.stdout and len(result.stdout.splitlines()) == 2


def test_the_program_ends_in_one_line_without_the_packages_and_for_bad_options(tmp_path):
    for options, message in ((["--check"], "make gemma"), (["--term"], "unrecognized")):
        result = run(*options, LLM_COURSE_CACHE=str(tmp_path), TMPDIR=str(tmp_path), TEMP=str(tmp_path))
        assert result.returncode == 2 and message in result.stderr and len(result.stderr.splitlines()) == 1 and result.stdout == ""


def test_check_notices_an_altered_byte(packages, capsys):
    gemma_files.main(["--check"])
    assert capsys.readouterr().out.strip() == str(packages / gemma_files.FILE_NAME)
    (packages / gemma_files.FILE_NAME).write_bytes(JOINED[:-1] + b"5")
    with pytest.raises(SystemExit) as caught:
        gemma_files.main(["--check"])
    assert caught.value.code == 2 and "altered" in capsys.readouterr().err


def test_the_real_packages_hold_what_is_expected():
    try:
        path = gemma_files.find_gemma3()
    except FileNotFoundError as error:
        if os.environ.get("CI") == "true":
            raise
        pytest.skip(str(error))
    assert gemma_files.has_right_hash(path)
