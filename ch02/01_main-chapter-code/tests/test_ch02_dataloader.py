"""Windows, loaders, word tokenizers, and the command line of dataloader.py, against loops written another way."""

import hashlib
import inspect
import math
import random
import re
import shlex
import subprocess
import sys
import warnings
from pathlib import Path

import dataloader
import pytest
import torch

TOKENIZER = dataloader.gpt2_tokenizer()
STORY = dataloader.STORY_FILE.read_text(encoding="utf-8")


class NumberTokenizer:
    """Every token is its own position."""

    def encode(self, text, allowed_special=frozenset()):
        return [int(number) for number in text.split()]


def numbers(n):
    return " ".join(map(str, range(n)))


# ---- windows ----


def test_windows_equal_a_plain_loop_for_many_sizes():
    for n in range(2, 23):
        for max_length in range(1, n):
            for stride in range(1, 9):
                dataset = dataloader.GPTDatasetV1(numbers(n), NumberTokenizer(), max_length, stride)
                expected, start = [], 0
                while start + max_length <= n - 1:
                    expected.append((list(range(start, start + max_length)), list(range(start + 1, start + max_length + 1))))
                    start += stride
                assert [(x.tolist(), y.tolist()) for x, y in dataset] == expected
                assert len(dataset) == max(0, math.ceil((n - max_length) / stride))


def test_targets_are_inputs_moved_on_by_one_in_every_window_of_the_story():
    dataset = dataloader.GPTDatasetV1(STORY, TOKENIZER, 32, 17)
    ids = TOKENIZER.encode(STORY)
    for number in range(len(dataset)):
        x, y = dataset[number]
        assert torch.equal(x[1:], y[:-1]) and x.dtype == y.dtype == torch.int64 and x.shape == y.shape == (32,)
        assert y.tolist() == ids[number * 17 + 1 : number * 17 + 33]
    assert isinstance(dataset.input_ids, list) and isinstance(dataset.target_ids, list)


@pytest.mark.parametrize("n, max_length", [(4, 4), (4, 5), (1, 1)])
def test_a_text_without_a_window_names_both_numbers(n, max_length):
    with pytest.raises(ValueError, match=rf"\b{n} tokens.*\b{max_length}\b"):
        dataloader.GPTDatasetV1(numbers(n), NumberTokenizer(), max_length, 1)


@pytest.mark.parametrize("max_length, stride", [(0, 1), (1, 0), (-1, 1), (1, -2)])
def test_sizes_below_one_are_refused(max_length, stride):
    with pytest.raises(ValueError, match="at least 1"):
        dataloader.GPTDatasetV1(numbers(9), NumberTokenizer(), max_length, stride)


def test_end_of_text_is_one_id_in_the_data_set():
    dataset = dataloader.GPTDatasetV1("late<|endoftext|>Nell", TOKENIZER, 2, 1)
    assert 50256 in dataset.input_ids[0].tolist()


def test_strides_beyond_the_window_skip_exactly_the_difference():
    dataset = dataloader.GPTDatasetV1(numbers(100), NumberTokenizer(), 4, 7)
    used = {int(i) for x, _ in dataset for i in x}
    last = max(used)
    assert [i for i in range(last) if i not in used] == [i for i in range(last) if i % 7 >= 4]


# ---- loader ----


def test_signature_and_defaults_are_the_published_ones():
    parameters = inspect.signature(dataloader.create_dataloader_v1).parameters
    assert list(parameters) == ["txt", "batch_size", "max_length", "stride", "shuffle", "drop_last", "num_workers"]
    assert [p.default for p in parameters.values()][1:] == [4, 256, 128, True, True, 0]


def test_first_batch_of_the_story_and_its_embedding():
    loader = dataloader.create_dataloader_v1(STORY, batch_size=8, max_length=4, stride=4, shuffle=False)
    inputs, targets = next(iter(loader))
    assert inputs[0].tolist() == [464, 31105, 21328, 198] and targets[0].tolist() == [31105, 21328, 198, 198]
    assert inputs.reshape(-1).tolist() == TOKENIZER.encode(STORY)[:32]
    tok, pos = torch.nn.Embedding(50257, 256), torch.nn.Embedding(1024, 256)
    embedded = tok(inputs) + pos(torch.arange(4))
    assert embedded.shape == (8, 4, 256)
    assert torch.equal(embedded[5, 2], tok.weight[inputs[5, 2]] + pos.weight[2])


@pytest.mark.parametrize("batch_size", [1, 3, 8, 500])
@pytest.mark.parametrize("drop_last", [True, False])
def test_batch_counts_follow_the_formula(batch_size, drop_last):
    loader = dataloader.create_dataloader_v1(STORY, batch_size, max_length=64, stride=10, drop_last=drop_last)
    windows = math.ceil((5295 - 64) / 10)
    assert len(loader) == sum(1 for _ in loader) == (windows // batch_size if drop_last else math.ceil(windows / batch_size))


def test_shuffling_gives_each_window_once_per_epoch():
    loader = dataloader.create_dataloader_v1(STORY, batch_size=5, max_length=16, stride=16, drop_last=False)
    epochs = [[x.tolist() for batch, _ in loader for x in batch] for _ in range(2)]
    plain = [x.tolist() for x, _ in loader.dataset]
    assert epochs[0] != epochs[1] and sorted(epochs[0]) == sorted(epochs[1]) == sorted(plain)


def test_no_batch_at_all_is_warned_about_with_both_numbers():
    with pytest.warns(UserWarning, match="20 windows.*batch_size 21"):
        assert len(dataloader.create_dataloader_v1(STORY, batch_size=21, stride=256)) == 0


def test_a_loader_with_batches_does_not_warn():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(dataloader.create_dataloader_v1(STORY, batch_size=20, stride=256)) == 1
        assert len(dataloader.create_dataloader_v1(STORY, batch_size=21, stride=256, drop_last=False)) == 1


# ---- word tokenizers ----


def slow_split(text):
    """The rule of section 2.2, character by character."""
    tokens, word, i = [], "", 0
    while i < len(text) + 1:
        letter = text[i : i + 1]
        mark = "--" if text[i : i + 2] == "--" else letter if letter in set(",.:;?_!\"()'") else ""
        if mark or letter.isspace() or not letter:
            tokens += [word] * bool(word) + [mark] * bool(mark)
            word = ""
        else:
            word += letter
        i += max(1, len(mark))
    return tokens


def test_split_equals_a_reader_that_goes_character_by_character():
    generator = random.Random(123)
    texts = ["".join(generator.choices("ab-.,'_\"() \n\t;:?!é", k=30)) for _ in range(500)]
    for text in [STORY, "", "---", "a---b", *texts]:
        assert dataloader.split_text(text) == slow_split(text), repr(text)


def story_vocab():
    tokens = sorted(set(dataloader.split_text(STORY))) + ["<|endoftext|>", "<|unk|>"]
    return {token: token_id for token_id, token in enumerate(tokens)}


def test_both_tokenizers_agree_on_known_text_and_invert_each_other():
    vocab = story_vocab()
    v1, v2 = dataloader.SimpleTokenizerV1(vocab), dataloader.SimpleTokenizerV2(vocab)
    ids = v1.encode(STORY)
    assert ids == v2.encode(STORY) and v1.decode(ids) == v2.decode(ids)
    assert v1.encode(v1.decode(ids)) == ids  # spaces differ, tokens do not
    assert v1.str_to_int == vocab and v1.int_to_str[vocab["clock"]] == "clock"


def test_v1_names_the_unknown_token_and_v2_replaces_it():
    vocab = story_vocab()
    with pytest.raises(KeyError, match="telephone"):
        dataloader.SimpleTokenizerV1(vocab).encode("Nell bought".replace("bought", "telephone"))
    v2 = dataloader.SimpleTokenizerV2(vocab)
    assert v2.encode("telephone <|endoftext|> clock") == [934, 933, vocab["clock"]]


@pytest.mark.parametrize("tokenizer", [dataloader.SimpleTokenizerV1, dataloader.SimpleTokenizerV2])
@pytest.mark.parametrize("mark", list(",.:;?!\"()'"))
def test_decode_drops_the_space_before_every_closing_mark(tokenizer, mark):
    vocab = {"a": 0, mark: 1, "<|unk|>": 2}
    assert tokenizer(vocab).decode([0, 1, 0]) == f"a{mark} a"
    assert tokenizer({"a": 0, "--": 1, "_": 2, "<|unk|>": 3}).decode([0, 1, 2, 0]) == "a -- _ a"


# ---- devices, story, command line ----


def test_pick_device_reports_once_and_names_what_there_is(capsys, monkeypatch):
    monkeypatch.setattr(dataloader, "REPORTED_DEVICES", set())
    assert dataloader.pick_device("cpu") == dataloader.pick_device("cpu") == torch.device("cpu")
    assert capsys.readouterr().err == "device: cpu\n"
    with pytest.raises(ValueError, match="available: cpu"):
        dataloader.pick_device("toaster")


def test_pick_device_takes_cuda_but_never_mps_by_itself(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert dataloader.pick_device("auto").type == "cuda"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert dataloader.pick_device("auto").type == "cpu"


@pytest.mark.parametrize("values, right", [((1.42331, 1.84719), True), ((1.43, 1.84719), False), ((1.42331, 1.8), False)])
def test_mps_is_taken_only_after_the_self_check(values, right, monkeypatch):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(dataloader, "self_check_values", lambda device: values)
    if right:
        assert dataloader.pick_device("mps").type == "mps"
    else:
        with pytest.raises(ValueError, match="self-check"):
            dataloader.pick_device("mps")


def test_stored_self_check_values_are_those_of_this_cpu():
    loss, gradient = dataloader.self_check_values(torch.device("cpu"))
    assert loss == pytest.approx(1.42331, abs=1e-4) and gradient == pytest.approx(1.84719, abs=1e-4)


def test_the_source_note_of_the_story_is_true():
    note = dataloader.STORY_FILE.with_suffix(".md").read_text(encoding="utf-8")
    data = dataloader.STORY_FILE.read_bytes()
    facts = [hashlib.sha256(data).hexdigest(), f"{len(data)} bytes", f"{len(STORY)} characters", str(len(STORY.split())), "CC0"]
    assert all(fact in note for fact in facts) and f"| {len(TOKENIZER.encode(STORY))} |" in note
    assert STORY.isascii() and b"\r" not in data and 20_000 <= len(STORY) <= 22_000 and "--" in STORY


def test_command_line_prints_counts_first_batch_and_shape(capsys):
    assert dataloader.main(["--no_shuffle", "--device", "cpu"]) == 0
    out = capsys.readouterr().out
    assert "windows: 1323   batches: 166" in out and "embedded: (8, 4, 256)" in out
    assert re.search(r"first inputs:\s+tensor\(\[\[\s*464, 31105, 21328,\s+198\]", out)


def test_the_seed_decides_the_order(capsys):
    outputs = []
    for seed in ("1", "1", "2"):
        dataloader.main(["--seed", seed, "--device", "cpu"])
        outputs.append(capsys.readouterr().out)
    assert outputs[0] == outputs[1] != outputs[2]


def test_a_byte_order_mark_is_no_part_of_the_text_and_line_ends_are_those_of_python(tmp_path):
    (tmp_path / "windows.txt").write_bytes(b"\xef\xbb\xbfNell sang.\r\nAmos rowed.\r\n")
    assert dataloader.read_text(tmp_path / "windows.txt") == "Nell sang.\nAmos rowed.\n"


OTHER_ENCODINGS = [
    ("Nell sang \u201cMüller\u201d.\n", ["utf-16", "utf-16-le", "utf-16-be", "cp1252"]),
    ("Нелл\u00a0пела поздно.\r\n", ["utf-16", "utf-16-le", "utf-16-be"]),
]


@pytest.mark.parametrize("text, encoding", [(text, encoding) for text, encodings in OTHER_ENCODINGS for encoding in encodings])
def test_another_encoding_is_named_and_the_printed_command_converts_the_file(text, encoding, tmp_path, monkeypatch):
    name = "Nell's notes.txt"
    (tmp_path / name).write_bytes(text.encode(encoding))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=f"probably {encoding}:") as caught:
        dataloader.read_text(name)
    words = shlex.split(str(caught.value).partition("or run: ")[2])
    assert words[0] == "python" and "\n" not in str(caught.value)
    subprocess.run([sys.executable, *words[1:]], check=True)
    assert dataloader.read_text("Nell's notes-utf8.txt") == text.replace("\r\n", "\n")
    assert (tmp_path / name).read_bytes() == text.encode(encoding)
    again = subprocess.run([sys.executable, *words[1:]], capture_output=True)
    assert again.returncode != 0 and b"FileExistsError" in again.stderr  # it overwrites nothing


PNG, ZIP = b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR\xff\xd8", b"PK\x03\x04\x14\x00 \x00"


@pytest.mark.parametrize("data", [PNG, ZIP, b"\x00\x01", b" \x00a\x00x", b" \x00a\x00\x00\xd8", bytes(range(256))])
def test_binary_files_are_not_taken_for_text(data, tmp_path):
    (tmp_path / "photo.txt").write_bytes(data)
    with pytest.raises(ValueError, match=r"photo\.txt is not text$"):
        dataloader.read_text(tmp_path / "photo.txt")


BAD_CALLS = {
    "missing file": (["--text", "absent.txt"], "absent.txt"),
    "a folder": (["--text", "."], "cannot read"),
    "empty file": (["--text", "empty.txt"], "empty.txt is empty"),
    "not UTF-8": (["--text", "latin.txt"], "latin.txt is not UTF-8 but probably cp1252"),
    "UTF-16": (["--text", "utf16.txt"], "utf16.txt is not UTF-8 but probably utf-16"),
    "not text": (["--text", "photo.txt"], "photo.txt is not text"),
    "too short": (["--text", "short.txt"], "max_length 4 needs at least 5"),
    "batch_size": (["--batch_size", "0"], "--batch_size: 0 is too small"),
    "max_length": (["--max_length", "0"], "--max_length: 0 is too small"),
    "stride": (["--stride", "-1"], "--stride: -1 is too small"),
    "num_workers": (["--num_workers", "-1"], "--num_workers: -1 is too small"),
    "not a number": (["--stride", "two"], "'two' is not a whole number"),
    "device": (["--device", "toaster"], "available: cpu"),
    "unknown option": (["--strid", "4"], "--strid"),
}


@pytest.mark.parametrize("case", BAD_CALLS)
def test_bad_input_is_one_line_and_exit_2(case, tmp_path, capsys):
    (tmp_path / "empty.txt").write_text("\n", encoding="utf-8")
    (tmp_path / "latin.txt").write_bytes("Müller".encode("latin-1"))
    (tmp_path / "utf16.txt").write_text("Nell sang.", encoding="utf-16")
    (tmp_path / "photo.txt").write_bytes(PNG)
    (tmp_path / "short.txt").write_text("Nell sang.", encoding="utf-8")
    arguments, message = BAD_CALLS[case]
    with pytest.raises(SystemExit) as stop:
        dataloader.main(arguments)
    captured = capsys.readouterr()
    assert stop.value.code == 2 and captured.out == "" and message in captured.err and captured.err.count("\n") == 1


def test_the_script_runs_from_any_folder(tmp_path):
    script = Path(dataloader.__file__)
    command = [sys.executable, str(script), "--help"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, encoding="utf-8", check=False)
    assert done.returncode == 0 and "default: 8" in done.stdout and done.stderr == ""


def test_a_text_in_another_encoding_is_one_line_and_exit_2_on_a_real_command_line(tmp_path):
    (tmp_path / "desk.txt").write_text("Nell sang.", encoding="utf-16")
    command = [sys.executable, dataloader.__file__, "--text", "desk.txt"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, encoding="utf-8", check=False)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1) and "probably utf-16" in done.stderr
