"""The spam probe: a fair split, only the last block learns, padding changes nothing, and it can tell a useful model from a useless one."""

import pytest
import spam_probe
import torch
from export_gpt2 import export_gpt2
from fast_gpt import FastGPT
from previous_chapters import gpt2_tokenizer

SIZE = {"vocab_size": 50257, "context_length": 40, "emb_dim": 16, "n_heads": 2, "n_layers": 2}
SMALL = {**SIZE, "drop_rate": 0.0, "qkv_bias": True, "tied": True}


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(5)
    return FastGPT(SMALL).eval()


def test_the_messages_are_those_of_the_package():
    messages = spam_probe.load_spam_messages()
    assert len(messages) == 4862 and sum(label for _, label in messages) == 642 and all(text for text, _ in messages)


def test_parts_are_balanced_and_share_no_text():
    parts = spam_probe.balanced_split(spam_probe.load_spam_messages(), seed=1)
    everything = [message for part in parts for message in part]
    assert sum(label for _, label in everything) * 2 == len(everything)
    assert [round(len(part) / len(everything), 2) for part in parts] == [0.7, 0.1, 0.2]
    assert len({" ".join(text.lower().split()) for text, _ in everything}) == len(everything)
    assert parts != spam_probe.balanced_split(spam_probe.load_spam_messages(), seed=2)


@torch.no_grad()
def test_features_and_last_block_make_the_whole_model_and_padding_changes_nothing(model):
    texts = ["Are you home yet?", "WIN a prize today, call now!", "", "x " * 100]
    features = spam_probe.frozen_features(model, texts, gpt2_tokenizer())
    assert [len(row) for row in features][2:] == [1, 40]  # an empty text, and one that was cut at the context
    last = spam_probe.LastBlock(model).eval()
    together = next(spam_probe.batches(features, [0, 1, 0, 1], 4, [0, 1, 2, 3]))
    logits = last(*together[:2])
    for i, row in enumerate(features):
        assert torch.allclose(last(row[None], torch.tensor([len(row)]))[0], logits[i], atol=1e-6)
    ids = torch.tensor([gpt2_tokenizer().encode(texts[1])])
    whole = model.final_norm(model.trf_blocks(model.tok_emb(ids) + model.pos_emb.weight[: ids.shape[1]]))
    assert torch.allclose(last.head(whole[0, -1]), logits[1], atol=1e-6)


@pytest.mark.slow
def test_a_probe_learns_and_leaves_the_model_as_it_was(model):
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    scores = spam_probe.probe(model, seed=3, epochs=1)
    assert set(scores) == {"train", "validation", "test"} and 0.6 < scores["test"] <= 1
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.slow
def test_useless_features_stay_at_chance(model):
    blind = FastGPT(SMALL).eval()
    blind.load_state_dict(model.state_dict())
    with torch.no_grad():
        blind.tok_emb.weight.zero_()  # every token looks the same; only the length is left to see
        blind.pos_emb.weight.zero_()
    assert spam_probe.probe(blind, seed=3, epochs=1)["test"] < 0.6


def test_a_folder_is_loaded_and_bad_input_ends_in_one_line(model, tmp_path, capsys):
    export_gpt2(model.state_dict(), SMALL, tmp_path / "good")
    loaded = spam_probe.load_folder(tmp_path / "good")
    ids = torch.randint(0, 50257, (2, 40))
    with torch.no_grad():
        expected, fresh = model(ids), spam_probe.load_folder(tmp_path / "good", pretrained=False)(ids)
        assert (loaded(ids) - expected).abs().max() < 1e-3 < (fresh - expected).abs().mean()
    (tmp_path / "good" / "model.safetensors").write_bytes(b"not weights")
    for folder in ("absent", "good"):
        with pytest.raises(SystemExit) as stopped:
            spam_probe.main(["--weights", str(tmp_path / folder)])
        message = capsys.readouterr().err
        assert stopped.value.code == 2 and message.count("\n") == 1 and folder in message


@pytest.mark.parametrize("named", [".", "gpt2-mini"])
def test_without_weights_gpt2_mini_is_looked_for_where_the_environment_says(model, named, tmp_path, monkeypatch, capsys):
    export_gpt2(model.state_dict(), SMALL, tmp_path / "gpt2-mini")
    monkeypatch.setenv("LLM_COURSE_WEIGHTS", str(tmp_path / named))
    probed = []
    monkeypatch.setattr(spam_probe, "probe", lambda found, seed, epochs: probed.append(found) or {"test": 0.5})
    assert spam_probe.main(["--seeds", "1"]) == 0 and "50.0 %" in capsys.readouterr().out
    assert torch.allclose(probed[0].tok_emb.weight, model.tok_emb.weight, atol=1e-3)
