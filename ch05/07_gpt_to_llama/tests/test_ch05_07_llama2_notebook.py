"""What converting-gpt-to-llama2.ipynb defines, against Hugging Face's Llama, PyTorch's own layers, and llama.py."""

import llama
import pytest
import torch
from llama_oracles import definitions_of, hugging_face
from torch import nn

TINY = {"vocab_size": 89, "context_length": 96, "emb_dim": 48, "n_heads": 6, "n_layers": 3, "hidden_dim": 80, "dtype": torch.float32}


@pytest.fixture(scope="module")
def nb():
    return definitions_of("converting-gpt-to-llama2.ipynb")


def meta_rows(weight, heads):
    """Split-half rows to adjacent pairs, written row by row: independent of the notebook's reshapes."""
    head_dim = weight.shape[0] // heads
    order = [head * head_dim + partner * head_dim // 2 + pair
             for head in range(heads) for pair in range(head_dim // 2) for partner in range(2)]
    return weight[order]


def meta_checkpoint(reference, heads):
    """Hugging Face's weights as Meta would have saved them: other names, query and key rows in adjacent pairs."""
    rename = {"self_attn.q_proj": "attention.wq", "self_attn.k_proj": "attention.wk", "self_attn.v_proj": "attention.wv",
              "self_attn.o_proj": "attention.wo", "mlp.gate_proj": "feed_forward.w1", "mlp.up_proj": "feed_forward.w3",
              "mlp.down_proj": "feed_forward.w2", "input_layernorm": "attention_norm", "post_attention_layernorm": "ffn_norm",
              "model.embed_tokens": "tok_embeddings", "model.norm": "norm", "lm_head": "output", "model.layers": "layers"}
    params = {"rope.freqs": torch.zeros(4)}  # Meta's files hold it, and the loader needs it not
    for name, tensor in reference.state_dict().items():
        tensor = tensor.clone()
        if "q_proj" in name or "k_proj" in name:
            tensor = meta_rows(tensor, heads)
        for theirs, metas in rename.items():
            name = name.replace(theirs, metas)
        params[name] = tensor
    return params


@pytest.fixture(scope="module")
def pair(nb):
    """(our model, Hugging Face's, Meta's checkpoint of its weights), the norms' weights not all 1."""
    torch.manual_seed(5)
    reference = hugging_face(TINY)
    with torch.no_grad():
        for name, parameter in reference.named_parameters():
            if "norm" in name:
                parameter.uniform_(0.5, 1.5)
    params, model = meta_checkpoint(reference, TINY["n_heads"]), nb.Llama2Model(TINY).eval()
    nb.load_weights_into_llama(model, {"n_layers": 3, "hidden_dim": 80}, params)  # a part of the configuration is enough
    return model, reference, params


@torch.no_grad()
def test_logits_equal_hugging_faces_up_to_the_last_position_through_metas_names_and_row_order(pair):
    model, reference, _ = pair
    ids = torch.randint(0, TINY["vocab_size"], (2, TINY["context_length"]))
    assert torch.allclose(model(ids), reference(ids).logits, atol=1e-5)


@torch.no_grad()
def test_without_permute_only_the_first_position_is_right(pair, nb):
    model, reference, params = pair
    broken = nb.Llama2Model(TINY).eval()
    unpermuted = {name: meta_rows(w, 6) if name.endswith(("wq.weight", "wk.weight")) else w for name, w in params.items()}
    nb.load_weights_into_llama(broken, TINY, unpermuted)  # as if the rows had stayed in adjacent pairs
    ids = torch.randint(0, TINY["vocab_size"], (1, 20))
    ours, theirs = broken(ids)[0], reference(ids).logits[0]
    assert torch.allclose(ours[0], theirs[0], atol=1e-5)
    assert not torch.allclose(ours[1:], theirs[1:], atol=1e-3)


@pytest.mark.parametrize(("heads", "rows"), [(1, 4), (2, 12), (6, 48), (32, 4096)])
def test_permute_and_back_is_the_identity_and_follows_the_row_rule(nb, heads, rows):
    w = torch.arange(rows, dtype=torch.float32)[:, None].expand(rows, 3)
    permuted = nb.permute(w, heads, rows, 3)
    head_dim = rows // heads
    expected = [head * head_dim + pair for head in range(heads) for pair in [*range(0, head_dim, 2), *range(1, head_dim, 2)]]
    assert permuted[:, 0].int().tolist() == expected
    assert torch.equal(meta_rows(permuted, heads), w) and torch.equal(nb.unpermute(permuted, heads, rows, 3), w)


@pytest.mark.parametrize(("heads", "rows", "columns"), [(2, 12, 4), (5, 12, 3), (4, 12, 3)])
def test_permute_refuses_what_cannot_be_split_into_pairs(nb, heads, rows, columns):
    with pytest.raises(ValueError):
        nb.permute(torch.zeros(12, 3), heads, rows, columns)


@torch.no_grad()
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_rms_norm_equals_pytorchs_and_keeps_the_type(nb, scale):
    ours, theirs = nb.RMSNorm(40), nn.RMSNorm(40, eps=1e-5)
    ours.weight.uniform_(-1, 1)
    theirs.weight.copy_(ours.weight)
    x = scale * torch.randn(2, 7, 40)
    assert torch.allclose(ours(x), theirs(x), rtol=1e-5, atol=1e-6)
    assert ours.weight.dtype == torch.float32 and ours(x.half()).dtype == torch.float16
    assert torch.isfinite(ours(torch.full((1, 1, 40), 1000.0).half())).all()  # squares beyond float16's range
    assert nb.RMSNorm(4, eps=0.5)(torch.zeros(1, 1, 4)).abs().sum() == 0


@torch.no_grad()
def test_silu_and_swiglu_equal_the_formula(nb):
    x = torch.linspace(-20, 20, 401)
    assert torch.allclose(nb.SiLU()(x), nn.functional.silu(x), atol=1e-6)
    ff, fast = nb.FeedForward(TINY), llama.FeedForward(TINY)
    fast.load_state_dict(ff.state_dict())
    x = torch.randn(2, 5, 48)
    assert torch.allclose(ff(x), fast(x), atol=1e-6)


@torch.no_grad()
def test_both_pairings_agree_after_the_permutation(nb):
    head_dim, tokens = 16, 64
    cos, sin = nb.precompute_rope_params(head_dim, context_length=80)
    x = torch.randn(2, 3, tokens, head_dim)
    order = [*range(0, head_dim, 2), *range(1, head_dim, 2)]
    assert torch.allclose(nb.compute_rope(x[..., order], cos, sin), nb.rotate_adjacent(x, cos, sin)[..., order], atol=1e-5)
    q, k = torch.randn(2, 2, 3, tokens, head_dim)
    split = nb.compute_rope(q[..., order], cos, sin) @ nb.compute_rope(k[..., order], cos, sin).mT
    adjacent = nb.rotate_adjacent(q, cos, sin) @ nb.rotate_adjacent(k, cos, sin).mT
    assert torch.allclose(split, adjacent, atol=1e-4)
    complex_pairs = torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous())  # the original paper's view: one number a pair
    turned = complex_pairs * torch.polar(torch.ones(tokens, 8), torch.atan2(sin, cos)[:tokens, :8])
    assert torch.allclose(torch.view_as_real(turned).flatten(3), nb.rotate_adjacent(x, cos, sin), atol=1e-5)


@torch.no_grad()
def test_rope_equals_llama_py_keeps_lengths_and_sees_distance_only(nb):
    tables = nb.precompute_rope_params(64, 100_000, 300)
    for ours, theirs in zip(tables, llama.compute_rope_params(64, 100_000, 300), strict=True):
        assert ours.shape == (300, 64) and ours.dtype == torch.float32 and torch.equal(ours, theirs)
        assert torch.equal(ours[:, :32], ours[:, 32:])
    x = torch.randn(1, 2, 200, 64)
    rotated = nb.compute_rope(x, *tables)
    assert torch.equal(rotated, llama.apply_rope(x, *tables))
    assert torch.allclose(rotated.norm(dim=-1), x.norm(dim=-1), rtol=1e-5)
    q, k = (nb.compute_rope(torch.randn(1, 1, 1, 64).expand(1, 1, 200, 64), *tables)[0, 0] for _ in range(2))
    scores = q @ k.T
    assert torch.allclose(scores[1:, 1:], scores[:-1, :-1], atol=1e-4)
    assert nb.compute_rope(x.bfloat16(), *tables).dtype == torch.bfloat16


def test_odd_head_widths_uneven_heads_and_long_texts_are_named(nb):
    with pytest.raises(ValueError, match="even, not 7"):
        nb.precompute_rope_params(7)
    with pytest.raises(ValueError, match="even, not 5"):
        nb.compute_rope(torch.zeros(1, 1, 2, 5), torch.zeros(2, 5), torch.zeros(2, 5))
    with pytest.raises(ValueError, match="48 is not divisible by num_heads 5"):
        nb.MultiHeadAttention(48, 48, 16, 5)
    with pytest.raises(ValueError, match="17 tokens are more than the 16"):
        nb.MultiHeadAttention(48, 48, 16, 6)(torch.zeros(1, 17, 48))
    model = nb.Llama2Model({**TINY, "n_layers": 1})
    for ids in (torch.zeros(1, 97, dtype=torch.long), torch.tensor([[89]])):
        with pytest.raises(ValueError):
            model(ids)


def test_tables_are_not_saved_and_no_layer_stores_a_square_mask(nb):
    model = nb.Llama2Model(TINY)
    assert not [name for name in model.state_dict() if name.endswith(("cos", "sin", "mask"))]
    assert all(buffer.shape == (96, 8) for buffer in model.buffers())
    assert list(model.trf_blocks[0].state_dict()) == [
        "att.W_query.weight", "att.W_key.weight", "att.W_value.weight", "att.out_proj.weight",
        "ff.fc1.weight", "ff.fc2.weight", "ff.fc3.weight", "norm1.weight", "norm2.weight",
    ]


def test_the_7b_model_has_exactly_metas_number_of_parameters_and_the_stated_memory(nb):
    with torch.device("meta"):
        model = nb.Llama2Model(nb.LLAMA2_CONFIG_7B)
        larger = nb.Llama2Model({**nb.LLAMA2_CONFIG_7B, "emb_dim": 5120, "n_heads": 40, "n_layers": 40, "hidden_dim": 13_824})
    assert nb.count(model) == 6_738_415_616 and nb.count(larger) == 13_015_864_320
    tables = sum(buffer.numel() * buffer.element_size() for buffer in model.buffers())
    assert tables == 128 * 2**20
    assert nb.calc_model_memory_size(model) == pytest.approx((2 * 4 * 6_738_415_616 + tables) / 2**30)
    assert nb.calc_model_memory_size(model, torch.bfloat16) == pytest.approx((2 * 2 * 6_738_415_616 + tables) / 2**30)


def test_every_number_type_runs(nb):
    model = nb.Llama2Model({**TINY, "dtype": torch.bfloat16, "n_layers": 1})
    assert model(torch.zeros(1, 3, dtype=torch.long)).dtype == torch.bfloat16


def test_the_loader_names_missing_wrong_and_unused_tensors(nb, pair):
    params, model = pair[2], nb.Llama2Model(TINY)
    with pytest.raises(KeyError, match="2 tensors are missing, first layers.1.ffn_norm.weight"):
        nb.load_weights_into_llama(model, TINY, {k: v for k, v in params.items() if "ffn_norm" not in k or "layers.0" in k})
    for name in ("layers.2.attention.wq.weight", "norm.weight"):
        with pytest.raises(ValueError):
            nb.load_weights_into_llama(model, TINY, {**params, name: torch.zeros(47, 48)})
    with pytest.warns(UserWarning, match="1 tensors were not used, first extra.weight"):
        nb.load_weights_into_llama(model, TINY, {**params, "extra.weight": torch.zeros(1)})


def test_a_wrong_shape_or_depth_leaves_the_model_as_it_was(nb, pair):
    model = nb.Llama2Model(TINY)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(ValueError, match=r"ffn_norm\.weight: the model needs \(48,\), the weights have \(47,\)"):
        nb.load_weights_into_llama(model, TINY, {**pair[2], "layers.2.ffn_norm.weight": torch.zeros(47)})  # the last but few
    with pytest.raises(ValueError, match="n_layers 2, the model has 3"):
        nb.load_weights_into_llama(model, {**TINY, "n_layers": 2}, pair[2])
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_the_configuration_says_whether_head_and_embedding_are_one(nb, pair):
    without = {name: w for name, w in pair[2].items() if name != "output.weight"}
    model = nb.Llama2Model(TINY)
    nb.load_weights_into_llama(model, {**TINY, "tied": True}, without)
    assert model.out_head.weight is model.tok_emb.weight
    with pytest.raises(ValueError, match="one tensor"):  # the head would overwrite the embedding
        nb.load_weights_into_llama(model, TINY, pair[2])
    with pytest.raises(KeyError, match="1 tensors are missing, first output.weight"):
        nb.load_weights_into_llama(nb.Llama2Model(TINY), TINY, without)
    with pytest.warns(UserWarning, match=r"1 tensors were not used, first output\.weight"):
        nb.load_weights_into_llama(nb.Llama2Model(TINY), {**TINY, "tied": True}, pair[2])


def test_a_checkpoint_file_of_metas_form_loads_and_a_missing_one_is_one_line(nb, pair, tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match="accept the license"):
        nb.load_llama2(tmp_path, TINY)
    torch.save(pair[2], tmp_path / "consolidated.00.pth")
    with pytest.raises(FileNotFoundError, match="no tokenizer file"):
        nb.load_llama2(tmp_path, TINY)
    monkeypatch.setitem(nb.load_llama2.__globals__, "LlamaTokenizer", str)
    model, _ = nb.load_llama2(tmp_path, TINY)
    ids = torch.randint(0, 89, (1, 30))
    assert torch.equal(model(ids), pair[0](ids))


def test_the_tokenizer_wraps_sentencepiece_or_says_how_to_get_it(nb, tmp_path):
    with pytest.raises(FileNotFoundError, match="no tokenizer file"):
        nb.LlamaTokenizer(tmp_path / "tokenizer.model")
    try:
        import sentencepiece
    except ImportError:
        (tmp_path / "tokenizer.model").write_bytes(b"")
        with pytest.raises(ImportError, match="pip install sentencepiece"):
            nb.LlamaTokenizer(tmp_path / "tokenizer.model")
        return
    lines = tmp_path / "lines.txt"
    lines.write_text("\n".join(f"the tide clock strikes {number} and the boats come home" for number in range(200)), encoding="utf-8")
    sentencepiece.SentencePieceTrainer.train(
        input=str(lines), model_prefix=str(tmp_path / "tokenizer"), vocab_size=320, model_type="bpe", byte_fallback=True,
        character_coverage=1.0, hard_vocab_limit=False, minloglevel=2,
    )
    tokenizer = nb.LlamaTokenizer(tmp_path / "tokenizer.model")
    ids = tokenizer.encode("the tide ☂")
    assert tokenizer.decode(ids) == "the tide ☂" and tokenizer.encode("the tide ☂", bos=True, eos=True) == [1, *ids, 2]


def test_the_chat_prompt_puts_the_system_message_inside_the_first_turn(nb):
    assert nb.llama2_chat_prompt("Hi") == "[INST] Hi [/INST]"
    assert nb.llama2_chat_prompt("Hi", "Be brief.") == "[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nHi [/INST]"
