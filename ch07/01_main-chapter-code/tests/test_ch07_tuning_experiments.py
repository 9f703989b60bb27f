"""Equal rows are found and set apart, copying tasks use met words alone, and each way runs to its end."""

import json

import pytest
import torch
import tuning_experiments as experiments
from gpt_instruction_finetuning import TEST_CONFIG
from previous_chapters import GPTModel, gpt2_tokenizer


def model_with_equal_rows(first: int = 40_000) -> GPTModel:
    torch.manual_seed(1)
    model = GPTModel(TEST_CONFIG)
    model.tok_emb.weight.data[first:] = model.tok_emb.weight.data[first]
    return model


def test_the_tokens_that_share_a_row_are_the_unmet_ones():
    assert experiments.unmet_tokens(model_with_equal_rows()).nonzero().flatten().tolist() == list(range(40_000, 50_257))


def test_unmet_rows_are_set_apart_and_the_others_stay():
    model = model_with_equal_rows()
    before, unmet = model.tok_emb.weight.data.clone(), experiments.unmet_tokens(model)
    experiments.set_apart(model, unmet)
    after = model.tok_emb.weight.data
    assert torch.equal(after[~unmet], before[~unmet]) and len(torch.unique(after[unmet], dim=0)) == int(unmet.sum())


def test_copying_tasks_repeat_met_words_of_the_request():
    tokenizer, unmet = gpt2_tokenizer(), experiments.unmet_tokens(model_with_equal_rows())
    entries = experiments.copying_tasks(unmet, tokenizer, 30, seed=5)
    assert len(entries) == 30 and entries == experiments.copying_tasks(unmet, tokenizer, 30, seed=5)
    for entry in entries:
        words = entry["output"].split()
        assert entry["output"] in entry["instruction"] and 1 <= len(words) <= 4
        assert all(len(ids) == 1 and not unmet[ids[0]] for ids in (tokenizer.encode(f" {word}") for word in words))


@pytest.mark.parametrize("way", ["plain", "apart_and_copying"])
def test_a_way_runs_and_is_logged(way, tmp_path):
    assert experiments.main(["--way", way, "--test_mode", "--num_epochs", "1", "--log", str(tmp_path / "log.jsonl")]) == 0
    row = json.loads((tmp_path / "log.jsonl").read_text(encoding="utf-8"))
    assert row["way"] == way and row["updates"] == (1 if way == "plain" else 2) and row["marks"]["unseen"]["of"] > 0


def test_an_unknown_way_is_refused():
    with pytest.raises(SystemExit) as stopped:
        experiments.main(["--way", "sideways"])
    assert stopped.value.code == 2
