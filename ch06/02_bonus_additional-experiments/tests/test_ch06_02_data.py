"""The split is chapter 6's, nothing old is used again, and unpadded texts keep their lengths."""

import pandas as pd
import pytest
from additional_experiments import SpamDataset, create_dataset_csvs, download_and_unzip, random_split, text_length_limit, without_repeats
from classifier import create_loaders as chapter_loaders
from classifier import load_spam_messages, read_messages, spam_package_file
from classifier import random_split as chapter_split
from experiment_data import create_loaders
from previous_chapters import gpt2_tokenizer

NAMES = ["train", "validation", "test"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("split")
    create_dataset_csvs(spam_package_file(), path)
    return path


@pytest.mark.slow
def test_seed_123_writes_the_files_of_chapter_6(folder, tmp_path):
    chapter_loaders(load_spam_messages(), tmp_path, 1024, 8)
    for name in NAMES:
        assert (tmp_path / f"{name}.csv").read_bytes() == (folder / f"{name}.csv").read_bytes()


def test_sizes_and_labels(folder):
    parts = [read_messages(folder / f"{name}.csv") for name in NAMES]
    assert [len(part) for part in parts] == [898, 128, 258]
    assert sum((part["Label"] == "1").sum() for part in parts) == 642


def test_the_split_function_is_chapter_6s_and_its_seed_matters():
    df = pd.DataFrame({"Text": [str(i) for i in range(50)]})
    for ours, theirs in zip(random_split(df, 0.7, 0.1), chapter_split(df, 0.7, 0.1)):
        assert ours.equals(theirs)
    others = random_split(df, 0.7, 0.1, seed=124)
    assert sorted(pd.concat(others)["Text"]) == sorted(df["Text"]) and not others[0].equals(random_split(df, 0.7, 0.1)[0])
    for fractions in ((0, 0.1), (0.9, 0.1), (1.2, 0.1), (0.5, -0.1)):
        with pytest.raises(ValueError, match="fractions"):
            random_split(df, *fractions)


def test_files_that_were_there_are_replaced(tmp_path):
    (tmp_path / "train.csv").write_text("Label,Text\n1,somebody else's\n")
    create_dataset_csvs(spam_package_file(), tmp_path, seed=124)
    assert len(read_messages(tmp_path / "train.csv")) == 898


def test_unpadded_texts_keep_their_lengths(tmp_path):
    pd.DataFrame({"Label": [0, 1, 0], "Text": ["one two three", "", "word " * 50]}).to_csv(tmp_path / "x.csv", index=False)
    tokenizer = gpt2_tokenizer()
    data = SpamDataset(tmp_path / "x.csv", tokenizer, max_length=20, no_padding=True)
    assert [len(ids) for ids, _ in data] == [3, 1, 20] and data.num_cut == 1
    assert data[0][0].tolist() == tokenizer.encode("one two three") and data[1][0].tolist() == [50256]
    padded = SpamDataset(tmp_path / "x.csv", tokenizer, max_length=20)
    assert {len(ids) for ids, _ in padded} == {20} and padded.num_cut == 1
    assert SpamDataset(tmp_path / "x.csv", tokenizer, no_padding=True).num_cut == 0


def test_loaders_shuffle_the_training_alone_and_refuse_batches_larger_than_it(folder):
    train, validation, test = create_loaders(folder, 30, 8)
    assert [len(loader) for loader in (train, validation, test)] == [112, 16, 33]
    first = [next(iter(train))[0] for _ in range(2)]
    assert first[0].shape == (8, 30) and not first[0].equal(first[1])
    assert next(iter(test))[0].equal(next(iter(test))[0])
    trimmed = next(iter(create_loaders(folder, 200, 8, trim=True)[2]))[0]
    assert trimmed.shape[1] < 200 and (trimmed[:, -1] != 50256).any()
    with pytest.raises(ValueError, match="898 training messages are fewer than batch_size 899"):
        create_loaders(folder, 30, 899)


def test_a_repeat_is_found_through_capitals_and_spaces():
    train = pd.DataFrame({"Text": ["Call me  now", "b"]})
    test = pd.DataFrame({"Text": ["c", "call ME now ", "d", "b"]})
    assert without_repeats(test, train) == [0, 2]


def test_the_length_of_texts():
    assert text_length_limit("longest_training_example", 204, 256) == 204
    assert text_length_limit("longest_training_example", 300, 256) == 256
    assert text_length_limit("model_context_length", 204, 256) == text_length_limit(256, 204, 256) == 256
    assert text_length_limit(12, 204, 256) == 12
    with pytest.raises(ValueError, match="257 is more than the model's context of 256"):
        text_length_limit(257, 204, 256)


def test_a_collection_that_is_there_is_not_downloaded(tmp_path, capsys):
    (tmp_path / "messages.tsv").write_text("ham\thello\n")
    download_and_unzip("http://localhost:9/none.zip", tmp_path / "none.zip", tmp_path, tmp_path / "messages.tsv")
    assert "nothing to download" in capsys.readouterr().out and not (tmp_path / "none.zip").exists()
