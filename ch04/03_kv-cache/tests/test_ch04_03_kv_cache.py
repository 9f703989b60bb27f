"""The three models with a cache compute what chapter 4's model computes, however a text is cut into calls."""

import copy
import random
import warnings

import gpt_with_kv_cache
import gpt_with_kv_cache_object
import gpt_with_kv_cache_optimized
import kv_cache
import pytest
import torch
from previous_chapters import GPTModel, generate_text_simple

CFG = {"vocab_size": 61, "context_length": 24, "emb_dim": 16, "n_heads": 4, "n_layers": 3, "drop_rate": 0.1, "qkv_bias": False}
MODULES = {"clear": gpt_with_kv_cache, "optimized": gpt_with_kv_cache_optimized, "object": gpt_with_kv_cache_object}
each = pytest.mark.parametrize("module", MODULES.values(), ids=MODULES)


def seeded(model_class, **changes):
    torch.manual_seed(7)
    return model_class({**CFG, **changes}).eval()


def windowed_oracle(window, **changes):
    """Chapter 4's own model, its mask changed to that of sliding-window attention."""
    model, n = seeded(GPTModel, **changes), CFG["context_length"]
    distance = torch.arange(n)[:, None] - torch.arange(n)
    for block in model.trf_blocks:
        block.att.mask = (distance < 0) | (distance >= window)
    return model


def in_chunks(model, ids, sizes, **options):
    """Logits of all tokens, the text read in pieces of these sizes."""
    with torch.no_grad():
        return torch.cat([model(piece, use_cache=True, **options) for piece in ids.split(sizes, dim=1)], dim=1)


def random_sizes(rng, total):
    sizes = []
    while sum(sizes) < total:
        sizes.append(rng.randint(1, min(9, total - sum(sizes))))
    return sizes


def plain(model, ids):
    with torch.no_grad():
        return model(ids)


@each
def test_any_chunking_gives_the_logits_of_chapter_4(module):
    rng, base, model = random.Random(1), seeded(GPTModel), seeded(module.GPTModel)
    for trial in range(30):
        ids = torch.randint(61, (rng.randint(1, 4), rng.randint(1, 24)))
        expected = plain(base, ids)
        model.reset_kv_cache()
        cached = in_chunks(model, ids, random_sizes(rng, ids.shape[1]))
        torch.testing.assert_close(cached, expected, atol=2e-6, rtol=1e-5)
        torch.testing.assert_close(plain(model, ids), expected, atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("window", [1, 2, 5, 23, 24, 25, 1000])
def test_any_chunking_equals_the_sliding_window_model(window):
    rng, base = random.Random(window), windowed_oracle(window)
    model = seeded(gpt_with_kv_cache_optimized.GPTModel, kv_window_size=window)
    assert model.kv_window_size == min(window, 24)
    for trial in range(20):
        ids = torch.randint(61, (rng.randint(1, 3), rng.randint(1, 24)))
        expected = plain(base, ids)
        model.reset_kv_cache()
        torch.testing.assert_close(in_chunks(model, ids, random_sizes(rng, ids.shape[1])), expected, atol=2e-6, rtol=1e-5)
        torch.testing.assert_close(plain(model, ids), expected, atol=2e-6, rtol=1e-5)
        assert model.trf_blocks[0].att.cache_k.shape == (ids.shape[0], 4, min(window, 24), 4)


@each
def test_a_window_in_the_configuration_changes_the_optimized_model_only(module):
    ids = torch.randint(61, (2, 20))
    same = torch.allclose(plain(seeded(module.GPTModel, kv_window_size=3), ids), plain(seeded(GPTModel), ids), atol=2e-6)
    assert same == (module is not gpt_with_kv_cache_optimized)


@each
@pytest.mark.parametrize("qkv_bias", [False, True])
def test_a_seed_gives_the_weights_of_chapter_4_under_the_same_names(module, qkv_bias):
    base, model = seeded(GPTModel, qkv_bias=qkv_bias), seeded(module.GPTModel, qkv_bias=qkv_bias)
    assert list(base.state_dict()) == list(model.state_dict())
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(model.state_dict().values(), base.state_dict().values()))
    model(torch.ones(1, 3, dtype=torch.long), use_cache=True)  # a filled cache is not part of the state dict
    base.load_state_dict(model.state_dict(), strict=True)
    model.load_state_dict(base.state_dict(), strict=True)


def generate(module, model, *arguments, **options):
    own = module is gpt_with_kv_cache_object
    return (module.generate_text_simple if own else kv_cache.generate_text_simple_cached)(model, *arguments, **options)


@each
@pytest.mark.parametrize("use_cache", [True, False])
def test_generated_ids_are_those_of_chapter_4_again_and_again(module, use_cache):
    base, model = seeded(GPTModel), seeded(module.GPTModel)
    for b, length, new in ((1, 1, 23), (3, 5, 10), (2, 24, 0), (1, 7, 17)):
        ids = torch.randint(61, (b, length), dtype=torch.int32 if b == 3 else torch.int64)
        expected = generate_text_simple(base, ids, new, CFG["context_length"])
        found = generate(module, model, ids, new, use_cache=use_cache)
        assert torch.equal(found, expected) and found.dtype == ids.dtype


@each
def test_n_tokens_cost_one_pass_over_the_prompt_and_n_minus_1_steps(module):
    model, seen = seeded(module.GPTModel), []
    model.register_forward_hook(lambda _, inputs, logits: seen.append((inputs[0].shape[1], logits.shape[1])))
    ids = torch.randint(61, (2, 6))
    generate(module, model, ids, 5)
    assert seen == [(6, 1)] + [(1, 1)] * 4  # logits of the last token alone
    seen.clear()
    generate(module, model, ids, 5, use_cache=False)
    assert [read for read, _ in seen] == [6, 7, 8, 9, 10]
    seen.clear()
    assert torch.equal(generate(module, model, ids, 0), ids) and not seen


@each
def test_new_tokens_are_capped_at_the_context_with_a_warning(module):
    model, ids = seeded(module.GPTModel), torch.randint(61, (2, 20))
    with pytest.warns(UserWarning, match="20 \\+ 9 tokens do not fit the context of 24: stopping after 4"):
        found = generate(module, model, ids, 9)
    assert torch.equal(found, generate(module, model, ids, 4)) and found.shape == (2, 24)
    for use_cache in (True, False):
        with pytest.warns(UserWarning, match="context of 22"):
            assert generate(module, model, ids, 9, context_size=22, use_cache=use_cache).shape == (2, 22)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        generate(module, model, ids, 4, context_size=1000)
    with pytest.warns(UserWarning, match="eval"):
        generate(module, model.train(), ids, 1)


@each
def test_without_use_cache_nothing_is_read_or_changed(module):
    model, ids = seeded(module.GPTModel), torch.randint(61, (1, 12))
    first = in_chunks(model, ids[:, :5], 5)
    before = copy.deepcopy({name: value for name, value in model.named_buffers() if "cache" in name})
    torch.testing.assert_close(plain(model, torch.randint(61, (3, 24)))[0, 0].shape, torch.Size([61]))
    torch.testing.assert_close(plain(model, ids[:, :5]), first, atol=2e-6, rtol=1e-5)
    for name, value in before.items():
        assert torch.equal(value, model.get_buffer(name))
    assert getattr(model, "current_pos", getattr(model, "ptr_current_pos", None)) == 5
    torch.testing.assert_close(in_chunks(model, ids[:, 5:], 7), plain(model, ids)[:, 5:], atol=2e-6, rtol=1e-5)


@each
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_the_cache_has_the_dtype_of_the_keys_and_moves_with_the_model(module, dtype):
    model, ids = seeded(module.GPTModel).to(dtype), torch.randint(61, (2, 9))
    atol = 0.05 if dtype == torch.bfloat16 else 1e-12
    cached = in_chunks(model, ids, [4, 1, 4])
    torch.testing.assert_close(cached, plain(model, ids), atol=atol, rtol=0.05 if dtype == torch.bfloat16 else 1e-9)
    if module is gpt_with_kv_cache_object:
        pairs = [pair for pair in model.own_cache.get_all()]
    else:
        pairs = [(block.att.cache_k, block.att.cache_v) for block in model.trf_blocks]
        assert model.to("meta").trf_blocks[0].att.cache_k.device.type == "meta"
    assert {part.dtype for pair in pairs for part in pair} == {dtype}


def test_the_shapes_and_positions_of_the_caches_are_those_of_the_interface():
    ids = torch.randint(61, (2, 7))
    clear, fast = seeded(gpt_with_kv_cache.GPTModel), seeded(gpt_with_kv_cache_optimized.GPTModel, kv_window_size=5)
    for model in (clear, fast):
        assert model.trf_blocks[0].att.cache_k is None and model.trf_blocks[0].att.cache_v is None
        in_chunks(model, ids, [3, 4])
    att = clear.trf_blocks[-1].att
    assert att.cache_k.shape == att.cache_v.shape == (2, 7, 4, 4) and att.ptr_current_pos == clear.current_pos == 7
    att = fast.trf_blocks[-1].att
    assert att.cache_k.shape == att.cache_v.shape == (2, 4, 5, 4) and att.ptr_current_pos == 5 and fast.ptr_current_pos == 7
    assert (att.max_seq_len, att.window_size) == (24, 5)
    for model in (clear, fast):
        model.reset_kv_cache()
        assert model.trf_blocks[0].att.cache_k is None and model.trf_blocks[0].att.ptr_current_pos == 0
        assert not [name for name in model.state_dict() if "cache" in name]


@each
def test_a_text_that_cannot_be_continued_is_refused_and_the_cache_stays_usable(module):
    model, ids = seeded(module.GPTModel), torch.randint(61, (2, 24))
    in_chunks(model, ids[:, :20], 20)
    for wrong, message in (
        (ids[:, :5], "20 cached \\+ 5 new tokens are more than the context_length 24"),
        (ids[:1, :1], "reset"),
        (torch.full((2, 1), 61), "vocabulary"),
        (torch.ones(2, 1), "whole numbers"),
        (ids[0], "shape"),
    ):
        with pytest.raises(ValueError, match=message):
            model(wrong, use_cache=True)
    torch.testing.assert_close(in_chunks(model, ids[:, 20:], 4), plain(model, ids)[:, 20:], atol=2e-6, rtol=1e-5)
    model.reset_kv_cache()
    assert in_chunks(model, ids[:1], 24).shape == (1, 24, 61)


@each
def test_prompts_that_cannot_be_generated_from_are_refused_in_one_line(module):
    model = seeded(module.GPTModel)
    for arguments in (
        (torch.ones(1, 25, dtype=torch.long), 1),
        (torch.ones(1, 0, dtype=torch.long), 1),
        (torch.ones(4, dtype=torch.long), 1),
        (torch.ones(1, 4, dtype=torch.long), -1),
        (torch.ones(1, 4, dtype=torch.long), 1, 0),
    ):
        with pytest.raises(ValueError) as error:
            generate(module, model, *arguments)
        assert "\n" not in str(error.value)


def test_sizes_that_cannot_work_are_refused():
    for module in (gpt_with_kv_cache, gpt_with_kv_cache_optimized):
        with pytest.raises(ValueError, match="10 is not divisible by num_heads 4"):
            module.MultiHeadAttention(10, 10, 8, 0.0, 4)
    for options in ({"window_size": 0}, {"max_seq_len": 0}, {"window_size": -3}):
        with pytest.raises(ValueError, match="at least 1"):
            gpt_with_kv_cache_optimized.MultiHeadAttention(8, 8, 8, 0.0, 4, **options)
    assert gpt_with_kv_cache_optimized.MultiHeadAttention(8, 8, 8, 0.0, 4, max_seq_len=6, window_size=9).window_size == 6


@each
def test_gradients_of_the_uncached_model_are_those_of_chapter_4(module):
    base, model, ids = seeded(GPTModel), seeded(module.GPTModel), torch.randint(61, (2, 10))
    for m in (base, model):
        m(ids).square().mean().backward()
    for mine, theirs in zip(model.parameters(), base.parameters()):
        torch.testing.assert_close(mine.grad, theirs.grad, atol=1e-6, rtol=1e-4)


def test_the_transposed_storage_changes_the_order_in_memory_and_nothing_else():
    model = seeded(gpt_with_kv_cache_optimized.GPTModel, qkv_bias=True)
    before, ids = copy.deepcopy(model.state_dict()), torch.randint(61, (2, 10))
    expected, sizes = plain(model, ids), [parameter.numel() for parameter in model.parameters()]
    assert gpt_with_kv_cache_optimized.transpose_storage(model) is model
    linear = [layer.weight for layer in model.modules() if isinstance(layer, torch.nn.Linear)]
    assert len(linear) == 3 * 6 + 1 and all(weight.T.is_contiguous() for weight in linear)
    assert [parameter.untyped_storage().nbytes() // 4 for parameter in model.parameters()] == sizes
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    torch.testing.assert_close(plain(model, ids), expected, atol=2e-6, rtol=1e-5)
    model.load_state_dict(before, strict=True)
    assert all(weight.T.is_contiguous() for weight in linear)
