"""The shipped gpt2-mini: GPT-2's architecture within 40 MB, the losses that its card states, and no held-out text in training."""

import json
import re
from pathlib import Path

import pack_model
import pytest
import spam_probe
import torch
from ngrams import ngram_hashes
from previous_chapters import MODELS_DIR, find_mini, gpt2_tokenizer, load_tales
from shards import SEPARATOR, file_sha256, is_held_out
from transformers import GPT2LMHeadModel

FOLDER = Path(pack_model.__file__).resolve().parent / "gpt2-mini"
CARD = (FOLDER / "README.md").read_text(encoding="utf-8")
RESULTS = json.loads((FOLDER / "results.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def weights():
    """The folder with the weights: in a copy of this folder alone they may be missing, being large, and lie elsewhere."""
    return find_mini(MODELS_DIR)


@pytest.fixture(scope="module")
def model(weights):
    return spam_probe.load_folder(weights)


def test_it_is_a_gpt2_within_forty_megabytes(weights):
    config = json.loads((weights / "config.json").read_text(encoding="utf-8"))
    assert config["model_type"] == "gpt2" and config["tie_word_embeddings"] and config["vocab_size"] == gpt2_tokenizer().n_vocab
    assert config["n_positions"] >= 256 and (weights / "model.safetensors").stat().st_size <= 40_000_000
    assert file_sha256(weights / "model.safetensors") == RESULTS["sha256"]["model.safetensors"]


@torch.no_grad()
def test_hugging_face_loads_it_and_computes_the_same(model, weights):
    theirs = GPT2LMHeadModel.from_pretrained(weights, dtype=torch.float32).eval()
    ids = torch.tensor([gpt2_tokenizer().encode("Dear Ada, the boat came in at noon, and nobody was on it.")])
    assert torch.allclose(model(ids), theirs(ids).logits, atol=1e-3)


@pytest.mark.slow
def test_losses_computed_again_are_those_of_the_card(model, tmp_path):
    tales = [text for i, text in enumerate(load_tales()) if is_held_out(i, 0.05)]
    texts = {"tales": f"\n{SEPARATOR}\n".join(tales), "generated": (FOLDER / "held-out-generated.txt").read_text(encoding="utf-8")}
    shards = {name: [pack_model.write_shard(text, tmp_path / f"{name}.bin")] for name, text in texts.items()}
    found = pack_model.losses_of(model, shards, model.pos_emb.num_embeddings)
    for name in ("val_tales_loss", "val_generated_loss"):
        assert found[name] == pytest.approx(RESULTS["losses"][name], abs=2e-3) and f"{RESULTS['losses'][name]:.2f}" in CARD


def test_it_has_learned_something(model):
    """Held-out generated text is far likelier than the same words in another order, and both than under even guessing."""
    tokenizer = gpt2_tokenizer()
    text = (FOLDER / "held-out-generated.txt").read_text(encoding="utf-8").replace(SEPARATOR, "")
    ids = tokenizer.encode(text[:4000])[:257]
    shuffled = [ids[i] for i in torch.randperm(len(ids), generator=torch.Generator().manual_seed(1)).tolist()]
    with torch.no_grad():
        losses = [
            torch.nn.functional.cross_entropy(model(torch.tensor([row[:-1]]))[0], torch.tensor(row[1:])).item() for row in (ids, shuffled)
        ]
    assert losses[0] + 1 < losses[1] and losses[0] < 5


def test_the_held_out_text_shares_no_long_run_with_the_story():
    story = (Path(pack_model.__file__).parent / "the-tide-clock.txt").read_text(encoding="utf-8")
    held_out = (FOLDER / "held-out-generated.txt").read_text(encoding="utf-8")
    assert not set(ngram_hashes(story, 13)) & set(ngram_hashes(held_out, 13))


def test_the_log_and_the_samples_are_there():
    log = [json.loads(line) for line in (FOLDER / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    assert log[-1]["tokens_seen"] >= 8_000_000 and log[0]["train_loss"] > 10 > log[-1]["train_loss"]
    samples = (FOLDER / "samples.md").read_text(encoding="utf-8")
    assert len(re.findall(r"^\d+\. ", samples, flags=re.M)) == 10 and all(prompt in samples for prompt in pack_model.PROMPTS)
