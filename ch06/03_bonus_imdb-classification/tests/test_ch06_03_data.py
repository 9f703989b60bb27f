"""Film reviews: the right texts, exact parts, files that never mix, archives that stay in their folder, every cell kept as text."""

import io
import tarfile

import download_prepare_dataset as prepare
import pandas as pd
import pytest
from download_prepare_dataset import (
    download_and_extract_dataset,
    load_dataset_to_dataframe,
    load_reviews,
    part_file,
    partition_and_save,
    read_labeled_texts,
)


def frame(rows):
    return pd.DataFrame({"text": [f"text {number}" for number in range(rows)], "label": [number % 2 for number in range(rows)]})


def archive(path, members, kind=tarfile.REGTYPE):
    with tarfile.open(path, "w:gz") as tar:
        for name, text in members.items():
            member = tarfile.TarInfo(name)
            member.size, member.type = len(text.encode()), kind
            tar.addfile(member, io.BytesIO(text.encode()))
    return path


PLACES = [(part, kind, number) for part in ("train", "test") for kind in ("pos", "neg") for number in range(3)]
IMDB = {f"aclImdb/{part}/{kind}/{number}_7.txt": f"{part} {kind} {number} café" for part, kind, number in PLACES}


def test_the_reviews_are_those_of_the_package_without_plots():
    reviews = load_reviews()
    assert len(reviews) == 12_808 and reviews["label"].value_counts().to_dict() == {1: 7_403, 0: 5_405}
    lengths = reviews["text"].str.split().str.len()
    assert (lengths.min(), lengths.max()) == (1, 53)


def test_the_parts_have_their_exact_sizes_and_share_no_row(tmp_path):
    parts = partition_and_save(load_reviews(), (0.7, 0.1, 0.2), tmp_path, "reviews")
    assert [len(part) for part in parts] == [8_965, 1_280, 2_563] and 8_965 // 8 == 1_120
    assert sorted(index for part in parts for index in part.index) == list(range(12_808))
    for name, part in zip(prepare.PARTS, parts):
        read = read_labeled_texts(tmp_path / f"reviews-{name}.csv")
        assert read["text"].tolist() == part["text"].tolist() and read["label"].tolist() == part["label"].tolist()


def test_counts_and_fractions_cut_alike_and_the_order_is_fixed(tmp_path):
    counted = partition_and_save(frame(50), (35, 5, 10), tmp_path)
    shared = partition_and_save(frame(50), (0.7, 0.1, 0.2), tmp_path / "new", "reviews")
    assert [part["text"].tolist() for part in counted] == [part["text"].tolist() for part in shared]
    assert counted[0]["text"].tolist() != frame(50)["text"].tolist()[:35], "shuffled"
    assert [len(part) for part in partition_and_save(frame(50), (0.2, 0.2, 0.2), tmp_path)] == [10, 10, 10], "a part of the texts"


@pytest.mark.parametrize("sizes", [(40, 5, 10), (0, 5, 10), (-1, 5, 10), (0.9, 0.1, 0.2), (0.7, 0.1, 10), (35, 5), (0.999, 0.0005, 0.0005)])
def test_sizes_that_do_not_fit_are_refused_and_nothing_is_written(sizes, tmp_path):
    with pytest.raises(ValueError):
        partition_and_save(frame(50), sizes, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_each_collection_has_files_of_its_own(tmp_path):
    partition_and_save(frame(20), (0.5, 0.25, 0.25), tmp_path, "reviews")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    partition_and_save(frame(40), (20, 10, 10), tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.name in before} == before
    assert len(list(tmp_path.iterdir())) == 6 and not {"train.csv", "test.csv"} & {path.name for path in tmp_path.iterdir()}


def test_an_archive_is_unpacked_once_and_read(tmp_path, capsys):
    target = archive(tmp_path / "aclImdb_v1.tar.gz", IMDB)
    download_and_extract_dataset("http://127.0.0.1:9/none", target, tmp_path / "data" / "aclImdb")
    reviews = load_dataset_to_dataframe(tmp_path / "data" / "aclImdb")
    assert sorted(reviews["text"]) == sorted(IMDB.values()) and reviews["label"].sum() == 6
    assert all(("pos" in text) == bool(label) for text, label in zip(reviews["text"], reviews["label"]))
    assert not reviews["text"].is_monotonic_increasing, "shuffled"
    target.unlink()
    download_and_extract_dataset("http://127.0.0.1:9/none", target, tmp_path / "data" / "aclImdb")
    assert "nothing to download" in capsys.readouterr().out


@pytest.mark.parametrize("damage", ["cut", "outside", "two folders", "link"])
def test_a_bad_archive_leaves_no_folder_and_nothing_outside(damage, tmp_path):
    target = tmp_path / "a.tar.gz"
    if damage == "link":
        archive(target, {"aclImdb/link": ""}, kind=tarfile.SYMTYPE)
    else:
        extra = {"outside": {"../../escaped.txt": "x"}, "two folders": {"other/a.txt": "x"}}.get(damage, {})
        archive(target, {**IMDB, **extra})
    if damage == "cut":
        target.write_bytes(target.read_bytes()[:-40])
    with pytest.raises(ValueError):
        download_and_extract_dataset("http://127.0.0.1:9/none", target, tmp_path / "data" / "aclImdb")
    assert list((tmp_path / "data").iterdir()) == [] and not list(tmp_path.rglob("escaped.txt"))


def test_unpacking_that_is_stopped_leaves_no_folder_that_looks_complete(tmp_path, monkeypatch):
    target, written, whole = archive(tmp_path / "a.tar.gz", IMDB), [], prepare.extract_member

    def stopped(*arguments):
        written.append(arguments)
        if len(written) == 5:
            raise KeyboardInterrupt
        whole(*arguments)

    monkeypatch.setattr(prepare, "extract_member", stopped)
    with pytest.raises(KeyboardInterrupt):
        download_and_extract_dataset("http://127.0.0.1:9/none", target, tmp_path / "data" / "aclImdb")
    assert list((tmp_path / "data").iterdir()) == []
    download_and_extract_dataset("http://127.0.0.1:9/none", target, tmp_path / "data" / "aclImdb")
    assert len(load_dataset_to_dataframe(tmp_path / "data" / "aclImdb")) == len(IMDB)


def test_a_folder_that_lacks_reviews_is_not_taken_for_the_collection(tmp_path):
    (tmp_path / "train" / "pos").mkdir(parents=True)
    with pytest.raises(ValueError, match="holds no reviews.*--imdb"):
        load_dataset_to_dataframe(tmp_path)


def test_labels_can_be_chosen_and_the_default_stays(tmp_path):
    download_and_extract_dataset("http://127.0.0.1:9/none", archive(tmp_path / "a.tar.gz", IMDB), tmp_path / "aclImdb")
    assert set(load_dataset_to_dataframe(tmp_path / "aclImdb", {"pos": 5, "neg": 3})["label"]) == {3, 5}
    assert set(load_dataset_to_dataframe(tmp_path / "aclImdb")["label"]) == {0, 1}


def test_every_cell_stays_the_text_it_is(tmp_path):
    texts = ["NA", "", 'He said "no", twice', "a\ttab", "<|endoftext|>", "null", "two\nlines"]
    path = tmp_path / "a.csv"
    pd.DataFrame({"text": texts, "label": [0, 1] * 3 + [0]}).to_csv(path, index=False)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())  # a byte-order mark, as Excel writes it
    assert read_labeled_texts(path)["text"].tolist() == texts


@pytest.mark.parametrize("text", ["text,label\n", "words,label\na,1\n", "text,label\na,2\n", "text,label\na,\n", 'text,label\n"a,1\n'])
def test_files_that_cannot_be_used_are_refused_in_one_line(text, tmp_path):
    path = tmp_path / "a.csv"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError) as refused:
        read_labeled_texts(path)
    assert "a.csv" in str(refused.value)


def test_a_missing_part_names_the_command_that_writes_it(tmp_path):
    with pytest.raises(ValueError, match=r"reviews-test.csv does not exist; .*python download_prepare_dataset.py --data_dir"):
        part_file("reviews", "test", tmp_path)
    with pytest.raises(ValueError, match="download_prepare_dataset.py --imdb"):
        part_file("imdb", "test", tmp_path)


def test_the_command_writes_all_parts_and_says_what_they_hold(tmp_path, capsys):
    assert prepare.main(["--data_dir", str(tmp_path / "new")]) == 0
    assert len(list((tmp_path / "new").iterdir())) == 3
    out = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in out] == ["8,965", "1,280", "2,563"]


def test_a_download_that_fails_is_one_line(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(prepare, "IMDB_URL", "http://127.0.0.1:9/aclImdb_v1.tar.gz")
    with pytest.raises(SystemExit) as stop:
        prepare.main(["--imdb", "--data_dir", str(tmp_path)])
    error = capsys.readouterr().err.strip().splitlines()
    assert stop.value.code == 2 and len(error) == 1 and "127.0.0.1" in error[0] and list(tmp_path.glob("*.csv")) == []
