"""Saving and loading, hostile files, the download, the measurement, and what the README shows."""

import contextlib
import io
import json
import re
from pathlib import Path

import bpe_from_scratch
import measure_speed
import pytest
from bpe_files import bytes_to_unicode, download_file_if_absent
from bpe_from_scratch import BPETokenizerSimple
from previous_chapters import STORY_FILE, gpt2_data_folder, read_text
from tokenizers import Tokenizer, models, pre_tokenizers

FOLDER = Path(bpe_from_scratch.__file__).parent
PAGE = (FOLDER / "README.md").read_text(encoding="utf-8")


def state(tokenizer):
    merges, vocab = list(tokenizer.bpe_merges.items()), list(tokenizer.vocab.items())
    return merges, vocab, tokenizer.inverse_vocab, set(tokenizer.special_tokens)


def saved(tokenizer, folder):
    paths = folder / "vocab.json", folder / "merges.bpe"
    tokenizer.save_vocab_and_merges(*paths)
    return paths


@pytest.mark.parametrize(
    ("text", "specials"),
    [
        ("the tide takes the tin and then the tide turns", {"<|endoftext|>"}),
        ("#version: #version: # # caf\u00e9 \u4f60\u597d\r\n\r\n\t\t", {"<|pad|>", '"quoted"\n', "\u6f6e", "<|\u0120|>"}),
        ("", ()),
    ],
)
def test_a_loaded_tokenizer_equals_the_saved_one(text, specials, tmp_path):
    tokenizer, loaded = BPETokenizerSimple(), BPETokenizerSimple()
    tokenizer.train(text, 300, specials)
    loaded.train("other words", 280)
    loaded.load_vocab_and_merges(*saved(tokenizer, tmp_path))
    assert state(loaded) == state(tokenizer)
    assert loaded.encode(text + " other") == tokenizer.encode(text + " other")


def test_saved_files_are_for_human_eyes(tmp_path):
    tokenizer = BPETokenizerSimple()
    tokenizer.train(" the the", 259)
    vocab, merges = saved(tokenizer, tmp_path)
    lines = vocab.read_text(encoding="utf-8").splitlines()
    assert lines[257:] == ['"256": "\u0120t",', '"257": "\u0120th",', '"258": "<|endoftext|>"', "}"]
    assert merges.read_text(encoding="utf-8") == "#version: 0.2\n\u0120 t\n\u0120t h\n"


def test_openai_files_survive_saving(tmp_path):
    tokenizer, loaded, folder = BPETokenizerSimple(), BPETokenizerSimple(), gpt2_data_folder()
    tokenizer.load_vocab_and_merges_from_openai(folder / "encoder.json", folder / "vocab.bpe")
    assert len(tokenizer.vocab) == 50257 and len(tokenizer.bpe_merges) == 50000 and tokenizer.get_special_token_id("<|endoftext|>") == 50256
    loaded.load_vocab_and_merges(*saved(tokenizer, tmp_path))
    assert state(loaded) == state(tokenizer)
    assert (tmp_path / "merges.bpe").read_bytes() == (folder / "vocab.bpe").read_bytes()


def test_hugging_face_gives_the_same_ids_from_the_saved_files(tmp_path):
    tokenizer, story = BPETokenizerSimple(), read_text(STORY_FILE)
    tokenizer.train(story, 257 + 100)
    vocab, merges = saved(tokenizer, tmp_path)
    by_token = {token: int(token_id) for token_id, token in json.loads(vocab.read_text(encoding="utf-8")).items()}
    lines = merges.read_text(encoding="utf-8").split("\n")[1:-1]
    reference = Tokenizer(models.BPE(vocab=by_token, merges=[tuple(line.split(" ")) for line in lines]))
    reference.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    for text in (story, "caf\u00e9 \u4f60\u597d  \U0001f600\n\n x"):
        assert reference.encode(text).ids == tokenizer.encode(text)


def change(path, old, new, count=1):
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new, count), encoding="utf-8")


def learned_later(vocab, merges):
    """Files that agree with each other, but whose first merge uses the token of the second."""
    change(vocab, '"\u0120t",\n"257": "\u0120th"', '"\u0120th",\n"257": "th"')
    change(merges, "\u0120 t\n\u0120t h\n", "\u0120 th\nt h\n")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda vocab, merges: vocab.write_text("{"), "vocab.json is not a vocabulary in JSON"),
        (lambda vocab, merges: vocab.write_text("[" * 100_000), "vocab.json is not a vocabulary in JSON"),
        (lambda vocab, merges: vocab.write_text("[1, 2]"), "vocab.json is not a vocabulary in JSON"),
        (lambda vocab, merges: vocab.write_text("{}"), "first 256 tokens must be the single bytes"),
        (lambda vocab, merges: vocab.write_bytes(b"\xff\xfe"), "vocab.json is not a vocabulary in JSON"),
        (lambda vocab, merges: change(vocab, '"97": "a"', '"x": "a"'), "not a vocabulary in JSON"),
        (lambda vocab, merges: change(vocab, '"97": "a"', '"97": 7'), "tokens strings"),
        (lambda vocab, merges: change(vocab, '"97": "a"', '"97": ["a"]'), "tokens strings"),
        (lambda vocab, merges: change(vocab, '"97": "a"', '"98": "a"'), "each once"),
        (lambda vocab, merges: change(vocab, '"97": "a"', '"-1": "a"'), "each once"),
        (lambda vocab, merges: change(vocab, '"97": "a"', '"97": "aa"'), "single bytes"),
        (lambda vocab, merges: change(vocab, '"257": "\u0120th"', '"257": "\u0120tx"'), "merge 1"),
        (lambda vocab, merges: change(vocab, '"<|endoftext|>"', '"a"'), "two ids"),
        (lambda vocab, merges: change(merges, "\u0120t h\n", "\u0120t  h\n"), "merge 1"),
        (lambda vocab, merges: change(merges, "\u0120t h\n", "h\n"), "merge 1"),
        (lambda vocab, merges: change(merges, "\u0120t h\n", "\u0120t h\n\u0120t h\n"), "merge 2"),
        (lambda vocab, merges: change(merges, "\u0120t h\n", ""), "merge 1|too few"),
        (lambda vocab, merges: merges.write_text("#version: 0.2\n"), "0 merges, too few"),
        (lambda vocab, merges: merges.write_bytes(b"\xff\xfe\x00"), "merges.bpe is not UTF-8"),
        (lambda vocab, merges: merges.write_text("x" * 10_000), "merge 0"),
        (learned_later, "merge 0"),
        (lambda vocab, merges: vocab.unlink(), "vocab.json"),
        (lambda vocab, merges: merges.unlink(), "merges.bpe"),
    ],
)
def test_hostile_files_are_refused_and_change_nothing(damage, message, tmp_path):
    tokenizer = BPETokenizerSimple()
    tokenizer.train(" the the the", 260)
    paths, before = saved(tokenizer, tmp_path), state(tokenizer)
    damage(*paths)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        tokenizer.load_vocab_and_merges(*paths)
    assert state(tokenizer) == before


def test_other_sizes_than_gpt2s_are_refused(tmp_path):
    tokenizer, folder = BPETokenizerSimple(), gpt2_data_folder()
    own = dict(sorted((char, byte) for byte, char in bytes_to_unicode().items()))
    (tmp_path / "small.json").write_text(json.dumps(own), encoding="utf-8")
    (tmp_path / "none.bpe").write_text("#version: 0.2\n", encoding="utf-8")
    for files in ((tmp_path / "small.json", tmp_path / "none.bpe"), (folder / "encoder.json", tmp_path / "none.bpe")):
        with pytest.raises(ValueError, match="GPT-2 has 50257 entries, 50000 merges"):
            tokenizer.load_vocab_and_merges_from_openai(*files)
    with pytest.raises(ValueError, match="small.json is not a vocabulary"):
        tokenizer.load_vocab_and_merges(tmp_path / "small.json", tmp_path / "none.bpe")  # {token: id} where {id: token} belongs
    assert len(tokenizer.vocab) == 256


def test_bytes_to_unicode_is_one_to_one_and_printable():
    table = bytes_to_unicode()
    assert sorted(table) == list(range(256)) and len(set(table.values())) == 256
    assert all(char.isprintable() and not char.isspace() for char in table.values())
    assert (table[32], table[10], table[97]) == ("\u0120", "\u010a", "a")


def test_a_file_is_searched_before_it_is_downloaded(tmp_path, capsys):
    first, second, source = tmp_path / "a", tmp_path / "b", tmp_path / "source.txt"
    source.write_text("from far away", encoding="utf-8")
    second.mkdir()
    (second / "file.txt").write_text("here", encoding="utf-8")
    assert download_file_if_absent("https://nowhere.invalid/x", "file.txt", [first, second]) == second / "file.txt"
    assert "nothing to download" in capsys.readouterr().out
    (second / "file.txt").unlink()
    assert download_file_if_absent(source.as_uri(), "file.txt", [str(first), second]) == first / "file.txt"
    assert (first / "file.txt").read_text(encoding="utf-8") == "from far away"
    assert [path.name for path in first.iterdir()] == ["file.txt"]


def test_a_failed_download_says_what_to_do_and_leaves_nothing(tmp_path):
    for url in ((tmp_path / "missing").as_uri(), "no address"):
        with pytest.raises(OSError, match=r"cannot download .*(missing|no address).*put it at .*file\.txt"):
            download_file_if_absent(url, "file.txt", [tmp_path])
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match="search_dirs is empty"):
        download_file_if_absent("https://nowhere.invalid/x", "file.txt", [])


def test_the_measurement_runs_and_its_log_shows_what_was_promised(tmp_path, capsys):
    assert measure_speed.main(["--bytes", "20000", "--merges", "20", "--samples", "2", "--log", str(tmp_path / "speed.json")]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"20,000 bytes, 20 merges", printed) and len(re.findall(r"times faster", printed)) == 2
    log = json.loads((FOLDER / "speed.json").read_text(encoding="utf-8"))
    assert set(json.loads((tmp_path / "speed.json").read_text(encoding="utf-8"))) == set(log)
    assert (log["bytes"], log["merges"]) == (1_000_000, 1000) and log["train_seconds"] < 30
    assert log["train_ratio"] >= 50 and log["encode_ratio"] >= 20
    for key in ("train_ratio", "encode_ratio", "train_seconds", "encode_seconds", "recount_seconds_per_merge", "attempt_seconds_per_merge"):
        assert f" {log[key]} " in PAGE, key
    assert log["processor"] in PAGE


@pytest.mark.parametrize(("options", "message"), [(["--bytes", "5"], "too small"), (["--log", "/nowhere/x/y.json"], "nowhere")])
def test_bad_options_end_in_one_line(options, message, capsys):
    with pytest.raises(SystemExit) as stop:
        measure_speed.main([*["--bytes", "2000", "--merges", "2", "--samples", "1"], *options])
    lines = [line for line in capsys.readouterr().err.splitlines() if "error:" in line]
    assert stop.value.code == 2 and len(lines) == 1 and message in lines[0]


def test_the_readme_example_prints_what_stands_there():
    code, shown = re.search(r"```python\n(.*?)```\n+```text\n(.*?)```", PAGE, re.DOTALL).groups()
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(code, {})
    assert printed.getvalue() == shown
