"""Books cleaned and joined, shards that hold exactly their documents, held-out text that stays out, fair shares of the windows."""

import json
from pathlib import Path

import numpy as np
import prepare_dataset
import pytest
import shards
import torch
from ngrams import NearDuplicates, ngram_set
from prepare_dataset import clean_book, combine_files, is_english, load_tales
from previous_chapters import STORY_FILE, gpt2_tokenizer
from shards import RankBatches, TokenWindows, create_shard_dataloaders, read_index, write_shards

BOOK = (
    "The Project Gutenberg eBook of Tests\r\n\r\n*** START OF THE PROJECT GUTENBERG EBOOK TESTS ***\r\n\r\n\r\n\r\nChapter 1\r\n \r\n\r\n"
    "It was a dry year.\r\n\r\n*** END OF THE PROJECT GUTENBERG EBOOK TESTS ***\r\nTerms of use\r\n"
)


def write(folder, **texts):
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        (folder / f"{name}.txt").write_bytes(text if isinstance(text, bytes) else text.encode("utf-8"))
    return sorted(folder.iterdir())


def numbered(count, words=30):
    """Documents without a shared run of words."""
    return [" ".join(f"w{document}x{word}" for word in range(words)) for document in range(count)]


def expect_one_line(capsys, call, *words):
    with pytest.raises(SystemExit) as stop:
        call()
    err = capsys.readouterr().err.strip().splitlines()
    assert stop.value.code == 2 and "error:" in err[-1] and "Traceback" not in "".join(err)
    assert all(word in err[-1] for word in words), err[-1]


def test_english_is_told_by_the_share_of_ascii():
    assert is_english("Plain words, and a café.") and not is_english("Это не английский текст") and not is_english("")
    assert not is_english("a" * 9 + "é") and is_english("a" * 10 + "é")
    assert is_english("aé", threshold=0.4)


def test_license_and_blank_lines_go_the_book_stays():
    assert clean_book(BOOK) == "Chapter 1\n\nIt was a dry year."
    assert clean_book("No marks here.\n\nAt all.") == "No marks here.\n\nAt all."
    assert clean_book("Text.\nEnd of Project Gutenberg's Tests\nmore") == "Text."


def test_faulty_files_are_named_and_skipped(tmp_path, capsys):
    others = {"b": b"", "c": b"\x00\x01\x02PNG", "d": "Вот так " * 50, "e": "Café and tea for two.".encode("latin1")}
    files = write(tmp_path / "raw", a=BOOK, **others, f="Tea for two.".encode("utf-16"))
    assert combine_files(files + [tmp_path / "gone.txt"], tmp_path / "out") == 1
    text = (tmp_path / "out" / "combined_1.txt").read_text(encoding="utf-8")
    assert text == "Chapter 1\n\nIt was a dry year.\n<|endoftext|>\nCafé and tea for two."
    err = capsys.readouterr().err
    reasons = {"b.txt": "empty", "c.txt": "binary", "d.txt": "not English", "f.txt": "probably utf-16", "gone.txt": "cannot be read"}
    assert all(any(name in line and reason in line for line in err.splitlines()) for name, reason in reasons.items())


def test_combined_files_respect_the_limit_separators_included(tmp_path):
    texts = {f"b{i}": "x" * 300_000 for i in range(7)}
    files = write(tmp_path / "raw", a="y" * 1_200_000, **texts)
    assert combine_files(reversed(files), tmp_path / "out", max_size_mb=1) == 4
    sizes = [(tmp_path / "out" / f"combined_{n}.txt").stat().st_size for n in range(1, 5)]
    assert sizes[0] == 1_200_000 and all(0 < size <= 1_000_000 for size in sizes[1:])
    exact = combine_files(files[1:3], tmp_path / "two", max_size_mb=0.6)  # 600,000 bytes of text leave no room for a separator
    assert exact == 2
    with pytest.raises(ValueError, match="above 0"):
        combine_files(files, tmp_path / "none", max_size_mb=0)


def test_there_are_57_tales():
    tales = load_tales()
    tokenizer = gpt2_tokenizer()
    assert len(tales) == 57 and sum(len(tokenizer.encode(tale)) for tale in tales) == 115_520
    assert all(map(is_english, tales))


def test_the_tales_become_the_tokens_that_the_readme_names(tmp_path):
    assert prepare_dataset.main(["--tales", "--output_dir", str(tmp_path / "out")]) == 0
    tokens = {shard["split"]: shard["tokens"] for shard in read_index(tmp_path / "out")["shards"]}
    assert tokens == {"train": 113_225, "val": 2_352}
    readme = (Path(prepare_dataset.__file__).parent / "README.md").read_text(encoding="utf-8")
    assert all(f"{count:,} {name}" in readme for count, name in ((113_225, "training tokens"), (2_352, "held-out tokens")))


def test_shards_hold_the_documents_and_the_index_describes_them(tmp_path):
    documents, tokenizer = numbered(8), gpt2_tokenizer()
    files = write(tmp_path / "in", a="\n<|endoftext|>\n".join(documents[:4]), b="<|endoftext|>".join([*documents[4:], "  "]))
    index = write_shards(files, tmp_path / "out", tokenizer, tokens_per_shard=300)
    assert index == read_index(tmp_path / "out") and len(index["shards"]) > 1
    tokens = np.concatenate([np.fromfile(tmp_path / "out" / shard["file"], dtype="<u2") for shard in index["shards"]])
    assert tokenizer.decode(tokens.tolist()).split("<|endoftext|>") == [*documents, ""]
    assert index["shards"][0]["sha256"] == shards.file_sha256(tmp_path / "out" / "train_00000.bin")
    assert index["sources"][1]["empty"] == 1 and sum(source["documents"] for source in index["sources"]) == 8
    (tmp_path / "out" / "train_00000.bin").write_bytes(b"12")
    with pytest.raises(ValueError, match="has 2 bytes"):
        read_index(tmp_path / "out")


def test_no_held_out_or_excluded_text_is_trained_on(tmp_path):
    documents = numbered(40)
    documents[7] += " " + documents[10]  # 10 is held out at a share of 1/20
    story = STORY_FILE.read_text(encoding="utf-8")
    documents[8] += " " + story[3000:3300]
    path = tmp_path / "made.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in documents), encoding="utf-8")
    out, tokenizer = tmp_path / "out", gpt2_tokenizer()
    assert prepare_dataset.main(["--generated", str(path), "--output_dir", str(out)]) == 0
    index = read_index(out)
    assert index["sources"][0]["overlapping"] == 2
    text = {split: "" for split in ("train", "val")}
    for shard in index["shards"]:
        text[shard["split"]] += tokenizer.decode(np.fromfile(out / shard["file"], dtype="<u2").tolist())
    assert documents[10] in text["val"] and documents[30] in text["val"] and documents[9] in text["train"]
    assert not ngram_set([text["train"]], 13) & ngram_set([story, *text["val"].split("<|endoftext|>")], 13)


def test_windows_are_memory_mapped_and_targets_are_moved_by_one(tmp_path):
    np.arange(25, dtype="<u2").tofile(tmp_path / "a.bin")
    np.arange(100, 109, dtype="<u2").tofile(tmp_path / "b.bin")
    windows = TokenWindows([tmp_path / "a.bin", tmp_path / "b.bin"], max_length=8)
    assert all(isinstance(shard, np.memmap) for shard in windows.shards)
    assert len(windows) == 4  # 25 tokens: three windows and the target of the last
    assert windows[2][0].tolist() == list(range(16, 24)) and windows[2][1].tolist() == list(range(17, 25))
    assert windows[3][1].tolist() == list(range(101, 109))
    with pytest.raises(ValueError, match="no window"):
        TokenWindows([tmp_path / "b.bin"], max_length=9)
    with pytest.raises(ValueError, match="fewer than one batch"):
        RankBatches(3, batch_size=2, seed=1, world=2)


def test_two_processes_see_together_what_one_would_see():
    together = list(RankBatches(50, batch_size=6, seed=4))
    shares = [list(RankBatches(50, batch_size=3, seed=4, rank=rank, world=2)) for rank in (0, 1)]
    assert [first + second for first, second in zip(*shares, strict=True)] == together
    assert len(set(sum(together, []))) == 48


def test_an_epoch_can_begin_in_its_middle_and_differs_from_the_next():
    batches = RankBatches(40, batch_size=4, seed=4)
    batches.go_to(1, 0)
    second = list(batches)
    batches.go_to(1, 6)
    assert list(batches) == second[6:]
    batches.go_to(0, 0)
    assert list(batches) != second


def test_reading_batches_draws_no_global_random_numbers(tmp_path):
    np.arange(200, dtype="<u2").tofile(tmp_path / "a.bin")
    before = torch.get_rng_state()
    train, val = create_shard_dataloaders([tmp_path / "a.bin"], 2, 8, train_ratio=0.5)
    seen = {int(row[0]) for inputs, _ in train for row in inputs}
    held = {int(row[0]) for inputs, _ in val["val"] for row in inputs}
    assert torch.equal(before, torch.get_rng_state())
    assert seen and held and not seen & held and max(seen) < min(held)


def test_near_duplicates_are_seen_and_new_texts_are_not():
    base = numbered(2, words=200)
    known = NearDuplicates(max_overlap=0.5)
    assert known.is_new(base[0]) and not known.is_new(base[0].upper() + "!")
    assert not known.is_new(" ".join(base[0].split()[:150]) + " and an end of its own") and known.is_new(base[1])
    assert known.is_new(" ".join(base[0].split()[:60] + numbered(4, 140)[3].split()))


@pytest.mark.parametrize(
    "options, words",
    [
        ([], ["no folder gutenberg/data/raw"]),
        (["--data_dir", "."], ["no text files", ".txt.utf8"]),
        (["--generated", "no.jsonl"], ["cannot read no.jsonl"]),
        (["--tales", "--exclude", "no.txt"], ["no.txt"]),
        (["--tales", "--val_share", "0.9"], ["val_share"]),
        (["--tales", "--max_size_mb", "0"], ["max_size_mb"]),
        (["--tales", "--output_dir", "full"], ["--overwrite"]),
    ],
)
def test_bad_input_ends_in_one_line(capsys, tmp_path, options, words):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").write_text("x", encoding="utf-8")
    expect_one_line(capsys, lambda: prepare_dataset.main(options), *words)


def test_a_line_that_is_no_document_is_named(capsys, tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "a b"}\n[1]\n', encoding="utf-8")
    expect_one_line(capsys, lambda: prepare_dataset.main(["--generated", "a.jsonl"]), "a.jsonl, line 2")


@pytest.mark.parametrize("encoding", ["utf-16", "cp1252"])
def test_lines_in_another_encoding_are_named_and_a_byte_order_mark_is_dropped(capsys, tmp_path, encoding):
    line = json.dumps({"text": "Café."}, ensure_ascii=False) + "\n"
    (tmp_path / "a.jsonl").write_bytes(line.encode(encoding))
    expect_one_line(capsys, lambda: prepare_dataset.main(["--generated", "a.jsonl"]), "a.jsonl", f"probably {encoding}", "save it as UTF-8")
    (tmp_path / "a.jsonl").write_bytes(line.encode("utf-8-sig"))
    assert list(shards.documents_of("a.jsonl")) == ["Café."]
