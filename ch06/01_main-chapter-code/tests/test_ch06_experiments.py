"""The experiments: no text in two parts, counts that add up, a log that goes on where it stopped."""

import json

import experiments
import pytest
import torch
from gpt_class_finetune import add_classification_head
from previous_chapters import GPTModel, gpt2_tokenizer
from spam_data import SpamDataset, read_messages

TINY = {"vocab_size": 50257, "context_length": 260, "emb_dim": 8, "n_layers": 1, "n_heads": 2, "drop_rate": 0.0, "qkv_bias": True}


def common_form(texts) -> set:
    return {" ".join(text.lower().split()) for text in texts}


def test_no_text_stands_in_two_parts_and_both_kinds_share_them(tmp_path):
    files = experiments.split_messages(7, tmp_path)
    frames = {name: read_messages(path) for name, path in files.items()}
    parts = [common_form(frames[f"all {part}"]["Text"]) for part in ("train", "validation", "test")]
    assert sum(map(len, parts)) == len(set.union(*parts)) == 4533
    for part, texts in zip(("train", "validation", "test"), parts):
        balanced = frames[f"balanced {part}"]
        assert common_form(balanced["Text"]) <= texts and 0.35 < (balanced["Label"] == "1").mean() < 0.65
        assert (frames[f"all {part}"]["Label"] == "1").sum() == (balanced["Label"] == "1").sum()  # the rest is ham


def test_another_seed_is_another_split(tmp_path):
    tests = []
    for seed in (7, 8, 7):
        (tmp_path / str(seed)).mkdir(exist_ok=True)
        tests.append(set(read_messages(experiments.split_messages(seed, tmp_path / str(seed))["balanced test"])["Text"]))
    assert tests[0] == tests[2] != tests[1]


@pytest.mark.parametrize("pad_token_id", [experiments.PAD_TOKEN_ID, experiments.NO_TOKEN_ID])
def test_the_four_counts_are_those_of_the_labels(tmp_path, pad_token_id):
    (tmp_path / "m.csv").write_text("Label,Text\n" + "0,see you\n1,win now\n1,call now please\n0,ok\n" * 10, encoding="utf-8")
    dataset = SpamDataset(tmp_path / "m.csv", gpt2_tokenizer(), 12)
    torch.manual_seed(2)
    model = GPTModel(TINY)
    add_classification_head(model)
    counts = experiments.measure(model, dataset, pad_token_id)
    assert counts["spam_found"] + counts["spam_missed"] == counts["ham_lost"] + counts["ham_kept"] == 20
    assert counts["accuracy"] == (counts["spam_found"] + counts["ham_kept"]) / 40
    with torch.no_grad():
        model.out_head.bias.copy_(torch.tensor([-99.0, 99.0]))  # now everything is spam
    assert experiments.measure(model, dataset, pad_token_id) == {
        "spam_found": 20, "spam_missed": 0, "ham_lost": 20, "ham_kept": 0, "accuracy": 0.5,
    }  # fmt: skip


def test_the_committed_log_holds_every_way_and_seed_once():
    lines = [json.loads(line) for line in experiments.LOG_FILE.read_text(encoding="utf-8").splitlines()]
    assert "torch" in lines[0]
    runs = sorted((line["way"], line["seed"]) for line in lines[1:])
    assert runs == sorted((way, seed) for way, seeds in experiments.WAYS.items() for seed in seeds)


@pytest.mark.slow
def test_a_run_learns_is_logged_and_not_repeated(tmp_path, capsys):
    args = ["--ways", "pretrained", "--seeds", "5", "--num_epochs", "1", "--output", str(tmp_path / "log.jsonl")]
    assert experiments.main(args) == 0
    content = (tmp_path / "log.jsonl").read_text()
    result = json.loads(content.splitlines()[1])
    assert result["balanced test"]["accuracy"] > 0.8 and result["way"] == "pretrained" and result["seed"] == 5
    assert experiments.main(args) == 0 and (tmp_path / "log.jsonl").read_text() == content


@pytest.mark.parametrize("args", [["--ways", "magic"], ["--num_epochs", "0"], ["--seeds", "x"], ["--output", "no/such/folder/log.jsonl"]])
def test_bad_input_is_one_line(args, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        experiments.main(args)
    assert stop.value.code == 2 and capsys.readouterr().err.count("\n") == 1
