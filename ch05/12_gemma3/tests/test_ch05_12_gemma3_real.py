"""Gemma 3 270M from its file: logits equal Hugging Face's, early, past the window, cached, and behind left padding."""

import os

import gemma3
import pytest
import torch
from gemma3 import GEMMA3_CONFIG_270M, SlidingKVCache, find_gemma3, load_gemma3, read_gguf
from gemma3_reference import hugging_face_twin
from gemma3_weights import GemmaNames
from previous_chapters import KVCache

pytestmark = pytest.mark.slow
TEXT = (
    "The tide comes in twice a day, and each time it reaches the old wall a little later than the time before. "
    "A keeper once wrote the hours down; 1,024 of them are left, in a book with a blue cover. def tide(hour):\n    return 12.42 * hour\n"
)


@pytest.fixture(scope="module")
def both():
    """(our model, tokenizer, Hugging Face's model), the same file in both."""
    try:
        path = find_gemma3()
    except FileNotFoundError as error:
        if os.environ.get("CI") == "true":
            pytest.fail(f"CI has to run the real model: {error}")
        pytest.skip(str(error))
    model, tokenizer = load_gemma3()
    return model, tokenizer, hugging_face_twin(GEMMA3_CONFIG_270M, GemmaNames(read_gguf(path)[1]))


@pytest.fixture(scope="module")
def ids(both):
    tokens = both[1].encode(TEXT)
    assert tokens[0] == 2  # <bos>
    return torch.tensor([(tokens + tokens[1:] * 12)[:600]])  # (1, 600)


def largest_difference(ours, theirs):
    return float((ours - theirs).abs().max())


@torch.inference_mode()
def test_early_logits(both, ids):
    model, _, reference = both
    assert sum(p.numel() for p in model.parameters()) == 268_098_176
    assert largest_difference(model(ids[:, :32]), reference(ids[:, :32]).logits) < 1e-3


@torch.inference_mode()
def test_logits_at_600_tokens_past_the_window(both, ids):
    model, _, reference = both
    theirs = reference(ids, logits_to_keep=4).logits  # (1, 4, vocab_size)
    assert largest_difference(model(ids, only_last=True), theirs[:, -1:]) < 1e-3
    for cache in (KVCache(18, 600), SlidingKVCache(model.cfg)):
        for part in ids[:, :596].split([300, 296], dim=1):
            model(part, cache, only_last=True)
        steps = [model(token, cache) for token in ids[:, 596:].split(1, dim=1)]
        assert largest_difference(torch.cat(steps, dim=1), theirs) < 1e-3


@torch.inference_mode()
def test_logits_behind_left_padding(both, ids):
    model, _, reference = both
    mask = torch.ones(2, 24, dtype=torch.long)
    mask[0, :15] = 0
    batch = torch.cat([torch.cat([torch.zeros_like(ids[:, :15]), ids[:, :9]], dim=1), ids[:, :24]])
    ours = model(batch, attention_mask=mask)
    theirs = reference(batch, attention_mask=mask, position_ids=(mask.cumsum(dim=1) - 1).clamp(min=0)).logits
    assert largest_difference(ours[mask == 1], theirs[mask == 1]) < 1e-3
    assert largest_difference(ours[0, 15:], model(ids[:, :9])[0]) < 1e-3


@torch.inference_mode()
def test_it_writes_english(both):
    model, tokenizer, _ = both
    prompt = torch.tensor([tokenizer.encode("The days of the week are Monday, Tuesday,")])
    new = torch.cat(list(gemma3.generate_text_basic_stream(model, prompt, 8)), dim=1)
    assert tokenizer.decode(new[0].tolist()).startswith(" Wednesday, Thursday, Friday")


def test_norm_weights_are_stored_with_the_one_already_added(both):
    _, tensors = read_gguf(find_gemma3())
    names = GemmaNames(tensors)
    raw, scale = tensors["blk.0.attn_q_norm.weight"], names["model.layers.0.self_attn.q_norm.weight"]
    assert torch.equal(raw - 1, scale) and torch.equal(scale, both[0].blocks[0].att.q_norm.scale)


@torch.inference_mode()
def test_query_rows_left_in_the_files_order_are_right_and_pairs_side_by_side_are_wrong(both, ids):
    model, _, reference = both
    theirs, weight = reference(ids[:, :32]).logits, model.blocks[0].att.W_query.weight
    pairs = weight.view(4, 128, 2, 640).transpose(1, 2).reshape(1024, 640)  # what a Llama file would need
    original = weight.clone()
    weight.copy_(pairs)
    try:
        assert largest_difference(model(ids[:, :32]), theirs) > 1
    finally:
        weight.copy_(original)
