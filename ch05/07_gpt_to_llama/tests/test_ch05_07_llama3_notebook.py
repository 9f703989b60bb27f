"""What converting-llama2-to-llama3.ipynb defines, against llama.py and Hugging Face's Llama, and counted on the meta device."""

import inspect
import math

import llama
import pytest
import torch
import torch.nn.functional as F
from llama_oracles import definitions_of, hugging_face
from safetensors.torch import save_file

SCALING = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_context_length": 32}
TINY = {"vocab_size": 97, "context_length": 128, "emb_dim": 48, "n_heads": 6, "n_layers": 3, "hidden_dim": 80, "n_kv_groups": 2,
        "rope_base": 500_000.0, "rope_freq": None, "dtype": torch.float32}


@pytest.fixture(scope="module")
def nb():
    return definitions_of("converting-llama2-to-llama3.ipynb")


VARIANTS = pytest.mark.parametrize("changes", [{}, {"rope_freq": SCALING}, {"n_kv_groups": 6}, {"n_kv_groups": 1}, {"rope_base": 10_000.0}])


@VARIANTS
@torch.no_grad()
def test_the_model_draws_and_computes_what_llama_py_does(nb, changes):
    cfg = {**TINY, **changes, "unknown_key": 1}
    torch.manual_seed(5)
    ours = nb.Llama3Model(cfg).eval()
    torch.manual_seed(5)
    reference = llama.Llama3Model(cfg).eval()
    assert list(ours.state_dict()) == list(reference.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(ours.state_dict().values(), reference.state_dict().values(), strict=True))
    ids = torch.randint(0, 97, (2, 128))
    assert torch.allclose(ours(ids), reference(ids), atol=1e-5)


@VARIANTS
@torch.no_grad()
def test_logits_equal_hugging_faces_up_to_the_last_position(nb, changes):
    cfg = {**TINY, **changes}
    reference = hugging_face(cfg)
    model = nb.Llama3Model(cfg).eval()
    nb.load_weights_into_llama(model, cfg, reference.state_dict())
    ids = torch.randint(0, 97, (2, 128))
    assert torch.allclose(model(ids), reference(ids).logits, atol=1e-5)


@pytest.mark.parametrize("freq", [None, SCALING, {**SCALING, "factor": 32.0, "original_context_length": 8192}])
@pytest.mark.parametrize("head_dim, base", [(64, 500_000.0), (128, 10_000)])
def test_rope_tables_equal_llama_pys_and_the_rule_hand_by_hand(nb, head_dim, base, freq):
    cos, sin = nb.precompute_rope_params(head_dim, base, 300, freq)
    expected = llama.compute_rope_params(head_dim, base, 300, freq)
    assert torch.equal(cos, expected[0]) and torch.equal(sin, expected[1]) and cos.dtype == torch.float32
    rule = [nb.slowed(theta, freq) if freq else theta for theta in nb.thetas(head_dim, base)]
    angle = torch.atan2(sin[1], cos[1]).tolist()
    assert angle == pytest.approx(rule + rule, abs=1e-6)


def test_rope_parameters_have_the_published_signature_and_refuse_odd_widths(nb):
    defaults = {name: p.default for name, p in inspect.signature(nb.precompute_rope_params).parameters.items() if name != "head_dim"}
    assert defaults == {"theta_base": 10_000, "context_length": 4096, "freq_config": None}
    with pytest.raises(ValueError, match="even"):
        nb.precompute_rope_params(7)


@pytest.mark.parametrize("groups", [1, 2, 3, 6])
@torch.no_grad()
def test_grouped_attention_equals_the_fused_call_head_by_head(nb, groups):
    layer = nb.GroupedQueryAttention(18, 24, 6, groups)
    x = torch.randn(2, 7, 18)
    cos, sin = nb.precompute_rope_params(4, 10_000, 16)
    mask = torch.ones(7, 7, dtype=torch.bool).triu(diagonal=1)
    q, k, v = (w(x).view(2, 7, -1, 4).transpose(1, 2) for w in (layer.W_query, layer.W_key, layer.W_value))
    q, k = llama.apply_rope(q, cos, sin), llama.apply_rope(k, cos, sin)
    heads = [F.scaled_dot_product_attention(q[:, h], k[:, h * groups // 6], v[:, h * groups // 6], is_causal=True) for h in range(6)]
    assert torch.allclose(layer(x, mask, cos, sin), layer.out_proj(torch.cat(heads, dim=2)), atol=1e-5)
    larger = torch.ones(11, 11, dtype=torch.bool).triu(diagonal=1)
    assert torch.equal(layer(x, larger, cos, sin), layer(x, mask, cos, sin))


@torch.no_grad()
def test_the_wrong_way_of_copying_heads_would_be_noticed(nb, monkeypatch):
    torch.manual_seed(5)
    model, reference = nb.Llama3Model(TINY).eval(), llama.Llama3Model(TINY).eval()
    model.load_state_dict(reference.state_dict())
    ids = torch.randint(0, 97, (1, 20))
    expected = reference(ids)
    assert torch.allclose(model(ids), expected, atol=1e-5)
    monkeypatch.setattr(torch.Tensor, "repeat_interleave", lambda self, times, dim: self.repeat(1, times, 1, 1))
    assert not torch.allclose(model(ids), expected, atol=1e-3)


@torch.no_grad()
def test_later_tokens_do_not_reach_earlier_rows(nb):
    model = nb.Llama3Model(TINY).eval()
    ids = torch.randint(0, 97, (1, 30))
    changed = ids.clone()
    changed[0, 20] = (changed[0, 20] + 1) % 97
    gap = (model(ids) - model(changed)).abs().amax(dim=(0, 2))
    assert (gap[:20] == 0).all() and (gap[20:] > 1e-5).all()


def test_published_sizes_count_on_the_meta_device(nb):
    sizes = [(nb.LLAMA2_CONFIG_7B, 6_738_415_616), (nb.LLAMA3_CONFIG_8B, 8_030_261_248), (nb.LLAMA31_CONFIG_8B, 8_030_261_248),
             (nb.LLAMA32_CONFIG, 1_498_482_688), (llama.LLAMA32_CONFIG_3B, 3_606_752_256)]
    for cfg, total in sizes:
        with torch.device("meta"):
            model = nb.Llama3Model(cfg)
        assert nb.count_unique_parameters(model) == total
        tables = 2 * cfg["context_length"] * (cfg["emb_dim"] // cfg["n_heads"]) * 4  # float32 whatever the weights are
        assert nb.calc_model_memory_size(model, torch.bfloat16) == pytest.approx((2 * total * 2 + tables) / 1024**3)
        assert nb.calc_model_memory_size(model) == pytest.approx((2 * total * 4 + tables) / 1024**3)
    with torch.device("meta"):
        counts = [sum(p.numel() for p in nb.GroupedQueryAttention(4096, 4096, 32, groups).parameters()) for groups in (32, 8)]
    assert counts == [67_108_864, 41_943_040]


def test_cache_bytes_are_those_of_a_real_cache(nb):
    cache = llama.KVCache(TINY["n_layers"])
    with torch.no_grad():
        llama.Llama3Model(TINY)(torch.zeros(1, 25, dtype=torch.long), cache)
    real = sum(tensor.numel() * tensor.element_size() for pair in cache.get_all() for tensor in pair)
    assert nb.kv_cache_bytes(TINY, 25, bytes_per_number=4) == real
    per_token = nb.kv_cache_bytes(nb.LLAMA32_CONFIG, 1)
    assert (per_token, math.ceil(2 * 1_235_814_400 / per_token), math.ceil(2 * 1_235_814_400 / (4 * per_token))) == (32_768, 75_429, 18_858)


@torch.no_grad()
def test_shards_load_lazily_and_a_missing_one_leaves_the_model_as_it_was(nb, tmp_path, capsys):
    reference = hugging_face(TINY)
    items = [(name, tensor.clone()) for name, tensor in reference.state_dict().items()]
    (tmp_path / "Tiny").mkdir()
    for part in range(4):
        save_file(dict(items[part::4]), tmp_path / "Tiny" / f"model-{part + 1:05}-of-00004.safetensors")
    model = nb.load_local_llama("Tiny", TINY, home=tmp_path)
    ids = torch.randint(0, 97, (2, 50))
    assert not model.training and torch.allclose(model(ids), reference(ids).logits, atol=1e-5)
    (tmp_path / "Tiny" / "model-00002-of-00004.safetensors").unlink()
    fresh = nb.Llama3Model(TINY).eval()
    before = {name: tensor.clone() for name, tensor in fresh.state_dict().items()}
    with pytest.raises(KeyError, match="missing"):
        nb.load_weights_into_llama(fresh, TINY, nb.Shards(tmp_path / "Tiny"))
    assert all(torch.equal(before[name], tensor) for name, tensor in fresh.state_dict().items())
    assert nb.load_local_llama("Nowhere", TINY, home=tmp_path) is None
    assert "hf download meta-llama/Nowhere" in capsys.readouterr().out


def test_loading_ties_the_head_and_names_what_does_not_fit(nb):
    weights = hugging_face(TINY).state_dict()
    model = nb.Llama3Model(TINY)
    nb.load_weights_into_llama(model, {"n_layers": 3}, {name: w for name, w in weights.items() if name != "lm_head.weight"})
    assert model.out_head.weight is model.tok_emb.weight
    assert nb.count_unique_parameters(model) == sum(p.numel() for p in nb.Llama3Model(TINY).parameters()) - 97 * 48
    fresh = nb.Llama3Model(TINY)
    before = {name: tensor.clone() for name, tensor in fresh.state_dict().items()}
    with pytest.raises(ValueError, match=r"layers\.2\.mlp\.up_proj.*\(80, 48\).*\(3, 4\)"):
        nb.load_weights_into_llama(fresh, TINY, {**weights, "model.layers.2.mlp.up_proj.weight": torch.zeros(3, 4)})
    with pytest.raises(ValueError, match="n_layers 2, the model has 3"):
        nb.load_weights_into_llama(fresh, {"n_layers": 2}, weights)
    with pytest.raises(ValueError, match="tied: True"):
        nb.load_weights_into_llama(fresh, {**TINY, "tied": True}, weights)
    assert all(torch.equal(before[name], tensor) for name, tensor in fresh.state_dict().items())
    with pytest.warns(UserWarning, match="not used"):
        nb.load_weights_into_llama(nb.Llama3Model(TINY), TINY, {**weights, "extra.weight": torch.zeros(1)})
    with pytest.warns(UserWarning, match="float64"):
        nb.load_weights_into_llama(nb.Llama3Model(TINY), TINY, {name: w.double() for name, w in weights.items()})
    left = torch.nn.Parameter(torch.zeros(2))
    assert nb.assign(left, torch.ones(2)) is left and left.tolist() == [1, 1]


@pytest.mark.parametrize("changes, message", [({"emb_dim": 50}, "divide"), ({"n_kv_groups": 4}, "groups"), ({"emb_dim": 42}, "even")])
def test_impossible_sizes_and_ids_are_refused(nb, changes, message):
    with pytest.raises(ValueError, match=message):
        nb.Llama3Model({**TINY, **changes})
    with pytest.raises(ValueError, match="97"):
        nb.Llama3Model(TINY)(torch.tensor([[97]]))
    with pytest.raises(ValueError, match="128"):
        nb.Llama3Model(TINY)(torch.zeros(1, 129, dtype=torch.long))


def test_the_width_rule_gives_the_published_hidden_dims(nb):
    settings = {(4096, 1.0, 256): nb.LLAMA2_CONFIG_7B, (4096, 1.3, 1024): nb.LLAMA3_CONFIG_8B, (2048, 1.5, 256): llama.LLAMA32_CONFIG_1B,
                (3072, 1.0, 256): llama.LLAMA32_CONFIG_3B}
    for setting, cfg in settings.items():
        assert nb.feed_forward_width(*setting) == cfg["hidden_dim"]


def test_the_public_names_of_tokenizer_and_chat_are_llama_pys(nb):
    assert nb.Tokenizer is llama.Llama3Tokenizer and nb.ChatFormat is llama.ChatFormat and nb.clean_text is llama.clean_text


@torch.no_grad()
def test_a_wrong_base_errs_more_and_more_with_the_position(nb):
    """Exercise 2, on random weights: position 0 is exact, late positions are farther off than early ones."""
    right, wrong = nb.Llama3Model(TINY).eval(), nb.Llama3Model({**TINY, "rope_base": 10_000.0}).eval()
    wrong.load_state_dict(right.state_dict())
    torch.nn.init.normal_(right.trf_blocks[0].att.W_query.weight)
    torch.nn.init.normal_(right.trf_blocks[0].att.W_key.weight)
    wrong.load_state_dict(right.state_dict())
    ids = torch.randint(0, 97, (16, 128))
    gap = (right(ids) - wrong(ids)).abs().mean(dim=(0, 2))
    assert gap[0] == 0 and gap[1:5].mean() < gap[20:40].mean()
