"""Grouped queries: equal to multi-head attention where they must be, to the fused call, and cached = uncached however a text is cut."""

import random

import gpt_with_kv_gqa
import gpt_with_kv_mha
import memory_estimator_gqa
import pytest
import torch
import torch.nn.functional as F
from gpt_with_kv_gqa import GroupedQueryAttention
from previous_chapters import GPTModel, generate_text_simple_cached

CFG = {"vocab_size": 61, "context_length": 24, "emb_dim": 16, "n_heads": 4, "n_layers": 3, "drop_rate": 0.1, "qkv_bias": False}
CLOSE = {"atol": 2e-6, "rtol": 1e-5}
each = pytest.mark.parametrize("groups", [None, 4, 2, 1], ids=["mha", "gqa4", "gqa2", "mqa"])


def seeded(groups, **changes):
    """The model with `groups` key-value heads; None: the multi-head model."""
    torch.manual_seed(7)
    cfg = {**CFG, **changes}
    return (gpt_with_kv_mha.GPTModel(cfg) if groups is None else gpt_with_kv_gqa.GPTModel({**cfg, "n_kv_groups": groups})).eval()


@torch.no_grad()
def plain(model, ids):
    return model(ids)


@torch.no_grad()
def in_chunks(model, ids, sizes):
    return torch.cat([model(piece, use_cache=True) for piece in ids.split(sizes, dim=1)], dim=1)


def random_sizes(rng, total):
    sizes = []
    while sum(sizes) < total:
        sizes.append(rng.randint(1, min(9, total - sum(sizes))))
    return sizes


@pytest.mark.parametrize("qkv_bias", [False, True])
@pytest.mark.parametrize("groups", [None, 4])
def test_as_many_groups_as_heads_is_the_seeded_model_of_chapter_4(groups, qkv_bias):
    model, ids = seeded(groups, qkv_bias=qkv_bias), torch.randint(61, (3, 20))
    torch.manual_seed(7)
    base = GPTModel({**CFG, "qkv_bias": qkv_bias}).eval()
    assert list(base.state_dict()) == list(model.state_dict())
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(model.state_dict().values(), base.state_dict().values()))
    torch.testing.assert_close(plain(model, ids), plain(base, ids), **CLOSE)
    for m in (base, model):
        m(ids).square().mean().backward()
    for mine, theirs in zip(model.parameters(), base.parameters()):
        torch.testing.assert_close(mine.grad, theirs.grad, atol=1e-6, rtol=1e-4)
    model(ids, use_cache=True)  # a filled cache is not part of the state dict
    base.load_state_dict(model.state_dict(), strict=True)


@pytest.mark.parametrize("qkv_bias", [False, True])
@pytest.mark.parametrize(("heads", "groups"), [(4, 4), (4, 2), (6, 3), (6, 1)])
def test_values_and_gradients_are_those_of_the_fused_call(heads, groups, qkv_bias):
    """The oracle repeats each set of keys and values for its neighboring heads; widths in and out differ."""
    att, x = GroupedQueryAttention(10, 24, 0.0, heads, groups, qkv_bias=qkv_bias), torch.randn(2, 7, 10, requires_grad=True)
    by_head = [w(x).view(2, 7, -1, 24 // heads).transpose(1, 2) for w in (att.W_query, att.W_key, att.W_value)]
    query, key, value = (part.repeat_interleave(heads // part.shape[1], dim=1) for part in by_head)
    fused = F.scaled_dot_product_attention(query, key, value, is_causal=True)
    expected, mine = att.out_proj(fused.transpose(1, 2).reshape(2, 7, 24)), att(x)
    torch.testing.assert_close(mine, expected, **CLOSE)
    weights = [x, *att.parameters()]
    theirs = torch.autograd.grad(expected.square().sum(), weights)
    torch.testing.assert_close(torch.autograd.grad(mine.square().sum(), weights), theirs, atol=1e-5, rtol=1e-4)


@each
def test_any_chunking_gives_the_logits_without_a_cache(groups):
    rng, model = random.Random(1), seeded(groups)
    for trial in range(20):
        ids = torch.randint(61, (rng.randint(1, 4), rng.randint(1, 24)))
        model.reset_kv_cache()
        cached = in_chunks(model, ids, random_sizes(rng, ids.shape[1]))
        torch.testing.assert_close(cached, plain(model, ids), **CLOSE)


@each
def test_a_cropped_or_reordered_cache_continues_the_text_that_is_left(groups):
    rng, model = random.Random(2), seeded(groups)
    for trial in range(10):
        b, read = rng.randint(1, 4), rng.randint(2, 20)
        ids, length = torch.randint(61, (b, 24)), rng.randint(0, read)
        model.reset_kv_cache()
        in_chunks(model, ids[:, :read], random_sizes(rng, read))
        model.crop_kv_cache(length)
        rows = torch.randint(b, (rng.randint(1, 5),)) if length else torch.arange(b)
        model.reorder_kv_cache(rows)
        text = torch.cat([ids[rows, :length], torch.randint(61, (len(rows), 24 - length))], dim=1)
        cached = in_chunks(model, text[:, length:], random_sizes(rng, 24 - length))
        torch.testing.assert_close(cached, plain(model, text)[:, length:], **CLOSE)
    with pytest.raises(ValueError, match="cannot crop a cache of 24 tokens to 25"):
        model.crop_kv_cache(25)


@each
def test_the_cache_has_the_number_type_of_the_keys(groups):
    model, ids = seeded(groups).to(torch.bfloat16), torch.randint(61, (2, 9))
    torch.testing.assert_close(in_chunks(model, ids, [4, 1, 4]), plain(model, ids), atol=0.05, rtol=0.05)
    att = model.trf_blocks[0].att
    assert att.cache_k.dtype == att.cache_v.dtype == torch.bfloat16
    assert GroupedQueryAttention(8, 8, 0.0, 2, 1, dtype=torch.bfloat16).W_key.weight.dtype == torch.bfloat16


@each
def test_generation_is_the_same_with_and_without_a_cache_and_counts_its_passes(groups):
    model, ids, seen = seeded(groups), torch.randint(61, (2, 6)), []
    expected = generate_text_simple_cached(model, ids, 9, use_cache=False)
    hook = model.register_forward_hook(lambda _, inputs, logits: seen.append(inputs[0].shape[1]))
    for again in range(2):  # generation resets what the run before left
        assert torch.equal(generate_text_simple_cached(model, ids, 9), expected)
    hook.remove()
    assert seen == ([6] + [1] * 8) * 2


@each
def test_the_estimate_is_the_bytes_of_the_real_cache(groups):
    for dtype, name in ((torch.float32, "fp32"), (torch.bfloat16, "bf16")):
        model = seeded(groups).to(dtype)
        in_chunks(model, torch.randint(61, (2, 13)), [6, 6, 1])
        heads, elem = groups or 4, memory_estimator_gqa.DTYPE_BYTES[name]
        assert gpt_with_kv_mha.cache_bytes(model) == memory_estimator_gqa.calc_kv_bytes_total(2, 13, 16, 4, heads, 3, elem)
        assert model.trf_blocks[0].att.cache_k.shape == (2, heads, 13, 4)
        model.crop_kv_cache(5)  # the memory behind is given back, too
        assert gpt_with_kv_mha.cache_bytes(model) == memory_estimator_gqa.calc_kv_bytes_total(2, 5, 16, 4, heads, 3, elem)


@each
def test_without_use_cache_nothing_is_read_or_changed_and_a_wrong_text_is_refused(groups):
    model, ids = seeded(groups), torch.randint(61, (2, 24))
    in_chunks(model, ids[:, :20], 20)
    plain(model, torch.randint(61, (3, 24)))
    for wrong, message in ((ids[:, :5], "20 cached \\+ 5 new"), (ids[:1, :1], "reset"), (torch.full((2, 1), 61), "vocabulary")):
        with pytest.raises(ValueError, match=message):
            model(wrong, use_cache=True)
    torch.testing.assert_close(in_chunks(model, ids[:, 20:], 4), plain(model, ids)[:, 20:], **CLOSE)


@pytest.mark.parametrize(("d_out", "heads", "groups"), [(10, 4, 2), (8, 4, 3), (8, 4, 0), (8, 4, 8)])
def test_head_counts_that_do_not_divide_are_refused(d_out, heads, groups):
    with pytest.raises(ValueError, match="not divisible"):
        GroupedQueryAttention(8, d_out, 0.0, heads, groups)
    with pytest.raises(ValueError, match="10 is not divisible by num_heads 4"):
        gpt_with_kv_mha.MultiHeadAttention(10, 10, 0.0, 4)
