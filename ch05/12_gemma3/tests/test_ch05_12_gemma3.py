"""gemma3.py against Hugging Face's Gemma3ForCausalLM, cached against uncached across the window's edge, padded against alone."""

import copy
import random

import gemma3
import pytest
import torch
from gemma3 import (
    GEMMA3_CONFIG_1B,
    GEMMA3_CONFIG_4B,
    GEMMA3_CONFIG_270M,
    FeedForward,
    Gemma3Model,
    RMSNorm,
    SlidingKVCache,
    generate_text_basic_stream,
    generate_text_simple,
    load_weights_into_gemma,
)
from gemma3_oracles import FULL, SLIDING, TINY, hugging_face
from previous_chapters import KVCache
from torch.nn.functional import gelu

LINEAR = {"factor": 8.0, "low_freq_factor": 1e6, "high_freq_factor": 2e6, "original_context_length": 96}


def tiny(**changes):
    """A random model whose norms are random too, so that a norm left out or at a wrong place shows."""
    torch.manual_seed(5)
    model = Gemma3Model({**TINY, **changes}).eval()
    for parameter in model.parameters():
        if parameter.dim() == 1:
            torch.nn.init.normal_(parameter, std=0.3)
    return model


CACHES = pytest.mark.parametrize("new_cache", [lambda: KVCache(TINY["n_layers"], TINY["context_length"]), lambda: SlidingKVCache(TINY)])


@pytest.mark.parametrize("changes", [
    {}, {"n_kv_groups": 1}, {"n_kv_groups": 4}, {"query_pre_attn_scalar": 16}, {"sliding_window": 1}, {"sliding_window": 96},
    {"layer_types": [FULL] * 4}, {"layer_types": [SLIDING] * 4}, {"rope_freq": LINEAR},
])
@torch.no_grad()
def test_logits_equal_hugging_faces_up_to_the_last_position(changes):
    cfg = {**TINY, **changes}
    reference, model = hugging_face(cfg), tiny(**changes)
    load_weights_into_gemma(model, cfg, reference.state_dict())
    ids = torch.randint(0, cfg["vocab_size"], (2, cfg["context_length"]))
    assert torch.allclose(model(ids), reference(ids).logits, atol=1e-5)


@torch.no_grad()
def test_a_padded_batch_equals_hugging_faces():
    reference, model = hugging_face(TINY), tiny()
    load_weights_into_gemma(model, TINY, reference.state_dict())
    ids, mask = torch.randint(0, 97, (3, 20)), torch.ones(3, 20, dtype=torch.long)
    mask[0, :13], mask[2, :1] = 0, 0
    ours = model(ids, attention_mask=mask)
    theirs = reference(ids, attention_mask=mask, position_ids=(mask.cumsum(dim=1) - 1).clamp(min=0)).logits
    assert torch.isfinite(ours).all() and torch.allclose(ours[mask == 1], theirs[mask == 1], atol=1e-5)


@CACHES
@torch.no_grad()
def test_cached_equals_uncached_however_the_text_is_cut(new_cache):
    model, rng = tiny(), random.Random(1)
    cache = new_cache()
    for _ in range(12):  # the same cache again and again: reset must leave nothing behind
        ids, chunks = torch.randint(0, 97, (rng.randint(1, 3), rng.randint(1, 40))), []
        while sum(chunks) < ids.shape[1]:
            chunks.append(rng.choice([1, 1, 1, 2, 6, 7, 8, 15]))
        parts = [model(part, cache=cache) for part in ids.split([*chunks[:-1], ids.shape[1] - sum(chunks[:-1])], dim=1)]
        assert len(cache) == model.current_pos == ids.shape[1]
        assert torch.allclose(torch.cat(parts, dim=1), model(ids), atol=1e-5)
        cache.reset()
        assert len(cache) == 0


@CACHES
@torch.no_grad()
def test_a_padded_row_equals_the_row_alone(new_cache):
    model = tiny()
    rows = [torch.randint(0, 97, (1, length)) for length in (4, 19, 1)]
    longest = max(row.shape[1] for row in rows)
    ids, mask = torch.zeros(3, longest, dtype=torch.long), torch.zeros(3, longest, dtype=torch.long)
    for number, row in enumerate(rows):
        ids[number, longest - row.shape[1] :], mask[number, longest - row.shape[1] :] = row[0], 1
    batch_cache, caches = new_cache(), [new_cache() for _ in rows]
    for step in range(12):  # past the window of 7, each row at another place
        logits = model(ids, batch_cache, mask)[:, -1]
        alone = torch.cat([model(row, cache)[:, -1] for row, cache in zip(rows, caches)])
        assert torch.allclose(logits, alone, atol=1e-5), step
        ids = logits.argmax(dim=1, keepdim=True)
        rows, mask = list(ids.split(1)), torch.cat([mask, torch.ones(3, 1, dtype=torch.long)], dim=1)


@CACHES
@torch.no_grad()
def test_rows_can_be_reordered_in_the_middle_of_a_text(new_cache):
    model, ids, cache = tiny(), torch.randint(0, 97, (2, 16)), new_cache()
    model(ids[:, :12], cache)
    cache.reorder(torch.tensor([1, 1, 0]))
    assert torch.allclose(model(ids[[1, 1, 0], 12:], cache), model(ids[[1, 1, 0]])[:, 12:], atol=1e-5)


@torch.no_grad()
def test_a_full_cache_crops_anywhere_and_a_sliding_one_only_within_its_window():
    model, ids = tiny(), torch.randint(0, 97, (1, 24))
    full, sliding = KVCache(4), SlidingKVCache(TINY)
    for cache in (full, sliding):
        model(ids[:, :18], cache)
    full.crop(5)
    assert torch.allclose(model(ids[:, 5:], full), model(ids)[:, 5:], atol=1e-5)
    with pytest.raises(ValueError, match="forgotten"):
        sliding.crop(15)
    sliding.crop(18)  # nothing to cut, nothing is lost
    assert torch.allclose(model(ids[:, 18:], sliding), model(ids)[:, 18:], atol=1e-5)
    sliding.crop(0)
    model(ids[:, :6], sliding)  # no more than a window: all of it is still there
    sliding.crop(2)
    assert len(sliding) == 2 and torch.allclose(model(ids[:, 2:], sliding), model(ids)[:, 2:], atol=1e-5)


@torch.no_grad()
def test_the_sliding_cache_keeps_a_window_and_no_more():
    model, cache = tiny(), SlidingKVCache(TINY)
    for part in torch.randint(0, 97, (2, 60)).split(7, dim=1):
        model(part, cache)
    kept = [pair[0].shape[2] for pair in cache.get_all()]
    assert kept == [6, 6, 60, 6] and len(cache) == 60
    stored = [pair[0].untyped_storage().nbytes() for pair in cache.get_all()]
    assert stored[0] == 2 * 2 * 6 * 16 * 4  # rows, groups, tokens, head_dim, bytes: no larger tensor is kept alive behind it


@torch.no_grad()
def test_a_single_new_token_needs_no_mask(monkeypatch):
    model, cache, built = tiny(), KVCache(4), []
    create = Gemma3Model._create_masks
    monkeypatch.setattr(Gemma3Model, "_create_masks", lambda self, *a: built.append(a[0]) or create(self, *a))
    model(torch.zeros(1, 7, dtype=torch.long), cache)
    for _ in range(9):
        model(torch.zeros(1, 1, dtype=torch.long), cache)
    assert built == []
    model(torch.zeros(1, 8, dtype=torch.long))
    assert built == [8]


def test_masks_are_what_the_rule_says_pair_by_pair():
    padding = torch.tensor([[0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1], [1] * 13])
    both = tiny()._create_masks(9, "cpu", 4, padding)
    for mask, window in zip(both, (10**9, TINY["sliding_window"])):
        assert mask.dtype == torch.bool and mask.shape == (2, 1, 9, 13)
        for b in range(2):
            for i in range(4, 13):
                for j in range(13):
                    blocked = j > i or i - j >= window or (padding[b, j] == 0 and i != j)
                    assert mask[b, 0, i - 4, j] == blocked
    assert [tuple(mask.shape) for mask in tiny()._create_masks(5, "cpu")] == [(5, 5), (5, 5)]


def test_rmsnorm_is_the_plain_norm_times_one_plus_scale():
    norm, x = RMSNorm(12, bias=True), 7 * torch.randn(3, 5, 12)
    plain = x / torch.sqrt(x.pow(2).mean(dim=-1, keepdim=True) + 1e-6)
    assert torch.allclose(norm(x), plain, atol=1e-6)  # scale and shift begin at zero
    torch.nn.init.normal_(norm.scale), torch.nn.init.normal_(norm.shift)
    assert torch.allclose(norm(x), plain * (1 + norm.scale) + norm.shift, atol=1e-5)
    assert norm(x.bfloat16()).dtype == torch.bfloat16 and RMSNorm(12).shift is None
    large = torch.full((1, 12), 300.0, dtype=torch.float16)  # its square is beyond float16
    assert torch.allclose(RMSNorm(12)(large).float(), torch.ones(1, 12))


def test_the_feed_forward_is_gated_by_the_tanh_form_of_gelu():
    layer, x = FeedForward(TINY), torch.randn(2, 3, 48)
    gate = gelu(x @ layer.fc1.weight.T, approximate="tanh")
    assert torch.allclose(layer(x), (gate * (x @ layer.fc2.weight.T)) @ layer.fc3.weight.T, atol=1e-6)


def test_published_sizes_count_on_the_meta_device():
    sizes = [(GEMMA3_CONFIG_270M, 435_870_336, 268_098_176), (GEMMA3_CONFIG_1B, None, 999_885_952), (GEMMA3_CONFIG_4B, None, 3_880_263_168)]
    for cfg, total, unique in sizes:
        with torch.device("meta"):
            model = Gemma3Model({**cfg, "context_length": 32})
        assert total is None or sum(p.numel() for p in model.parameters()) == total
        model.out_head.weight = model.tok_emb.weight
        assert sum(p.numel() for p in model.parameters()) == unique
        assert [kind for kind in cfg["layer_types"][5::6] if kind == FULL] == [FULL] * (cfg["n_layers"] // 6)


def test_state_dict_names():
    names = list(tiny().state_dict())
    assert names[0] == "tok_emb.weight" and names[-2:] == ["final_norm.scale", "out_head.weight"]
    parts = ["W_query.weight", "W_key.weight", "W_value.weight", "out_proj.weight", "q_norm.scale", "k_norm.scale"]
    norms = ["input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm", "post_feedforward_layernorm"]
    expected = [f"att.{part}" for part in parts] + [f"ff.fc{i}.weight" for i in (1, 2, 3)] + [f"{norm}.scale" for norm in norms]
    assert [name.removeprefix("blocks.0.") for name in names[1:14]] == expected


def test_loading_reports_what_does_not_fit_and_changes_nothing_then():
    weights = hugging_face(TINY).state_dict()
    model = tiny()
    before = copy.deepcopy(model.state_dict())
    wrong = {**weights, "model.layers.3.mlp.up_proj.weight": torch.zeros(3, 4)}
    with pytest.raises(ValueError, match=r"layers\.3\.mlp\.up_proj.*\(80, 48\).*\(3, 4\)"):
        load_weights_into_gemma(model, TINY, wrong)
    with pytest.raises(KeyError, match="k_proj"):
        load_weights_into_gemma(model, TINY, {name: w for name, w in weights.items() if "layers.1.self_attn.k_proj" not in name})
    with pytest.raises(ValueError, match="tied"):
        load_weights_into_gemma(model, TINY, {**weights, "lm_head.weight": weights["lm_head.weight"] + 1})
    with pytest.raises(ValueError, match="3 layers, the model 4"):
        load_weights_into_gemma(model, {**TINY, "n_layers": 3}, weights)
    with pytest.raises(ValueError, match="no lm_head.weight"):
        load_weights_into_gemma(model, {"n_layers": 4, "tied": False}, {n: w for n, w in weights.items() if n != "lm_head.weight"})
    assert all(torch.equal(old, new) for old, new in zip(before.values(), model.state_dict().values(), strict=True))
    with pytest.warns(UserWarning, match="1 tensors are not used, first extra.weight"):
        load_weights_into_gemma(model, TINY, {**weights, "extra.weight": torch.zeros(1)})
    assert model.out_head.weight is model.tok_emb.weight
    untied = tiny()
    load_weights_into_gemma(untied, {"n_layers": 4, "tied": False}, {**weights, "lm_head.weight": weights["lm_head.weight"] + 1})
    assert torch.equal(untied.out_head.weight, untied.tok_emb.weight + 1)


def test_optional_norms_may_be_absent_and_are_named():
    weights = hugging_face(TINY).state_dict()
    optional = ("embed_tokens", "q_norm", "k_norm", "pre_feedforward_layernorm", "post_feedforward_layernorm", "model.norm", "lm_head")
    model, kept = tiny(), tiny().state_dict()
    with pytest.warns(UserWarning, match="18 tensors are absent"):
        load_weights_into_gemma(model, TINY, {name: w for name, w in weights.items() if not any(part in name for part in optional)})
    assert torch.equal(model.blocks[2].att.q_norm.scale, kept["blocks.2.att.q_norm.scale"])
    assert torch.equal(model.blocks[2].att.W_key.weight, weights["model.layers.2.self_attn.k_proj.weight"])
    plain = tiny(qk_norm=False)
    assert plain.blocks[0].att.q_norm is None
    with pytest.warns(UserWarning, match="8 tensors are not used, first model.layers.0.self_attn.k_norm.weight"):
        load_weights_into_gemma(plain, TINY, weights)


@torch.no_grad()
def test_other_dtypes_keep_the_rope_tables_in_float32():
    model, ids = tiny(), torch.randint(0, 97, (1, 30))
    expected = model(ids)
    for dtype in (torch.bfloat16, torch.float16, torch.float64):
        other = copy.deepcopy(model).to(dtype)
        assert other.cos.dtype == other.sin_local.dtype == torch.float32 and torch.equal(other.sin, model.sin)
        logits = other(ids)
        assert logits.dtype == dtype and torch.allclose(logits.float(), expected, atol=0.15)
    assert not any("cos" in name or "sin" in name for name in model.state_dict())


def test_generation_with_and_without_cache_agree():
    model = tiny()
    ids = torch.randint(0, 97, (2, 6))
    assert torch.equal(generate_text_simple(model, ids, 20), generate_text_simple(model, ids, 20, use_cache=False))
    first = [row.tolist() for row in generate_text_basic_stream(model, ids, 3)]
    assert [row.tolist() for row in generate_text_simple(model, ids, 3)[:, 6:].split(1, dim=1)] == first


@pytest.mark.parametrize("changes, message", [
    ({"n_kv_groups": 3}, "4 heads must divide by 3 groups"), ({"head_dim": 15}, "even"), ({"head_dim": None, "emb_dim": 50}, "width 50"),
    ({"layer_types": [SLIDING] * 3}, "names 3 layers, n_layers is 4"), ({"layer_types": ["local"] * 4}, "'local'"),
])
def test_impossible_sizes_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        tiny(**changes)


@pytest.mark.parametrize("ids, kwargs, message", [
    ([[97]], {}, "vocabulary of 97"), ([[-1]], {}, "vocabulary of 97"), ([[0] * 97], {}, "context of 96"), ([[]], {}, "no token"),
    ([[0] * 5], {"attention_mask": torch.ones(1, 4)}, r"is \(1, 4\), not \(1, 5\)"),
    ([[0] * 3], {"attention_mask": torch.tensor([[1, 1, 0]])}, "at the left"),
    ([[0] * 3], {"attention_mask": torch.tensor([[1, 0, 1]])}, "at the left"),
    ([[0] * 3], {"attention_mask": torch.tensor([[0, 0, 0]])}, "at the left"),
])
def test_bad_input_is_refused_in_one_line(ids, kwargs, message):
    with pytest.raises(ValueError, match=message) as error:
        tiny()(torch.tensor(ids, dtype=torch.long).view(1, -1), **kwargs)
    assert "\n" not in str(error.value)


def test_the_module_offers_what_the_folder_teaches():
    assert gemma3.load_gemma3.__defaults__ == (torch.float32,)
    assert [GEMMA3_CONFIG_270M["layer_types"].count(kind) for kind in (SLIDING, FULL)] == [15, 3]
