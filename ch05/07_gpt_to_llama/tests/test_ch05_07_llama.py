"""llama.py against Hugging Face's LlamaForCausalLM, cached against uncached, padded against alone."""

import base64
import copy
from pathlib import Path

import llama
import pytest
import torch
from llama import KVCache, Llama3Model, Llama3ModelFast, apply_rope, compute_rope_params, generate_text_basic_stream, generate_text_simple
from llama_oracles import hugging_face

SCALING = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_context_length": 32}
TINY = {"vocab_size": 97, "context_length": 128, "emb_dim": 48, "n_heads": 6, "n_layers": 3, "hidden_dim": 80, "n_kv_groups": 2,
        "rope_base": 10_000.0, "rope_freq": None, "dtype": torch.float32}
BOTH = pytest.mark.parametrize("model_class", [Llama3Model, Llama3ModelFast])


def tiny(model_class=Llama3ModelFast, **changes):
    torch.manual_seed(5)
    return model_class({**TINY, **changes}).eval()


@BOTH
@pytest.mark.parametrize("changes", [{}, {"rope_freq": SCALING}, {"n_kv_groups": 6}, {"n_kv_groups": 1}, {"rope_base": 500_000.0}])
@torch.no_grad()
def test_logits_equal_hugging_faces_up_to_the_last_position(model_class, changes):
    cfg = {**TINY, **changes}
    reference = hugging_face(cfg)
    model = tiny(model_class, **changes)
    llama.load_weights_into_llama(model, cfg, reference.state_dict())
    ids = torch.randint(0, cfg["vocab_size"], (2, cfg["context_length"]))
    assert torch.allclose(model(ids), reference(ids).logits, atol=1e-5)


@pytest.mark.slow
@torch.no_grad()
def test_smollm2_equals_hugging_face_from_the_same_file():
    model, tokenizer = llama.load_smollm2()
    assert sum(p.numel() for p in model.parameters()) == 134_515_008
    reference = hugging_face(llama.SMOLLM2_CONFIG_135M, tied=True)
    names = llama.HuggingFaceNames(*llama.read_gguf(llama.find_smollm2()))
    assert reference.load_state_dict({name: names[name] for name in names}, strict=False).unexpected_keys == []
    page = Path(llama.__file__).with_name("README.md").read_text(encoding="utf-8")
    ids = torch.tensor([tokenizer.encode(page)[:600]])
    assert ids.shape == (1, 600)
    ours, theirs = model(ids)[0], reference(ids).logits[0]
    assert torch.allclose(ours[:64], theirs[:64], atol=1e-3)
    assert torch.allclose(ours[-64:], theirs[-64:], atol=1e-3)
    prompt = torch.tensor([tokenizer.encode_chat([{"role": "user", "content": "What is the capital of France?"}])])
    answer = torch.cat(list(generate_text_basic_stream(model, prompt, 30, eos_token_id=tokenizer.eos_token_id)), dim=1)
    assert "Paris" in tokenizer.decode(answer[0])


@BOTH
@pytest.mark.parametrize("chunks", [[1] * 20, [7, 1, 1, 11], [19, 1], [5, 15]])
@torch.no_grad()
def test_cached_equals_uncached_however_the_text_is_cut(model_class, chunks):
    model = tiny(model_class, rope_freq=SCALING)
    ids = torch.randint(0, 97, (3, sum(chunks)))
    cache = KVCache(n_layers=3)
    parts = [model(part, cache=cache) for part in ids.split(chunks, dim=1)]
    assert len(cache) == model.current_pos == 20
    assert torch.allclose(torch.cat(parts, dim=1), model(ids), atol=1e-5)
    cache.reset()
    assert len(cache) == 0 and cache.get_all() == [None] * 3
    assert torch.allclose(model(ids, cache=cache), model(ids), atol=1e-5)


@BOTH
@torch.no_grad()
def test_a_padded_row_equals_the_row_alone(model_class):
    model = tiny(model_class)
    rows = [torch.randint(0, 97, (1, length)) for length in (4, 9, 1)]
    longest = max(row.shape[1] for row in rows)
    ids, mask = torch.zeros(3, longest, dtype=torch.long), torch.zeros(3, longest, dtype=torch.long)
    for number, row in enumerate(rows):
        ids[number, longest - row.shape[1] :], mask[number, longest - row.shape[1] :] = row[0], 1
    logits = model(ids, attention_mask=mask)
    assert torch.isfinite(logits).all()
    for number, row in enumerate(rows):
        assert torch.allclose(logits[number, -row.shape[1] :], model(row)[0], atol=1e-5)
    batch = torch.cat(list(generate_text_basic_stream(model, ids, 12, attention_mask=mask)), dim=1)
    for number, row in enumerate(rows):
        assert batch[number].tolist() == generate_text_simple(model, row, 12)[0, row.shape[1] :].tolist()


@torch.no_grad()
def test_plain_and_fast_share_weights_names_and_random_draws():
    plain, fast = tiny(Llama3Model), tiny(Llama3ModelFast)
    assert list(plain.state_dict()) == list(fast.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(plain.state_dict().values(), fast.state_dict().values(), strict=True))
    assert not any(name.endswith(("cos", "sin")) for name in plain.state_dict())
    ids = torch.randint(0, 97, (2, 40))
    assert torch.allclose(plain(ids), fast(ids), atol=1e-5)
    last = fast(ids, only_last=True)
    assert last.shape == (2, 1, 97) and torch.allclose(last, fast(ids)[:, -1:], atol=1e-5)


def test_parameters_are_created_key_first():
    names = [name for name, _ in tiny().named_parameters()]
    assert names[0] == "tok_emb.weight" and names[-1] == "out_head.weight"
    assert [name.split(".", 2)[2] for name in names[1:8]] == [
        "att.W_key.weight", "att.W_value.weight", "att.W_query.weight", "att.out_proj.weight",
        "ff.fc1.weight", "ff.fc2.weight", "ff.fc3.weight",
    ]


def test_published_sizes_count_on_the_meta_device():
    sizes = [(llama.LLAMA32_CONFIG_1B, 1_498_482_688, 1_235_814_400), (llama.LLAMA32_CONFIG_3B, 3_606_752_256, 3_212_749_824)]
    for cfg, total, unique in sizes:
        with torch.device("meta"):
            model = Llama3Model({**cfg, "context_length": 32})
        assert sum(p.numel() for p in model.parameters()) == total
        model.out_head.weight = model.tok_emb.weight
        assert sum(p.numel() for p in model.parameters()) == unique


def test_rope_keeps_lengths_and_sees_distances_only():
    cos, sin = compute_rope_params(16, 10_000.0, 64)
    assert cos.shape == (64, 16) and torch.equal(cos[:, :8], cos[:, 8:])
    q, k = torch.randn(1, 1, 1, 16), torch.randn(1, 1, 1, 16)
    rotated = apply_rope(q, cos, sin, 37)
    assert torch.allclose(rotated.norm(), q.norm(), atol=1e-5)
    scores = [float((apply_rope(q, cos, sin, i + 9) * apply_rope(k, cos, sin, i)).sum()) for i in (0, 5, 40)]
    assert scores == pytest.approx([scores[0]] * 3, abs=1e-4)
    assert abs(scores[0] - float((apply_rope(q, cos, sin, 3) * apply_rope(k, cos, sin, 0)).sum())) > 1e-3
    many = torch.randn(2, 3, 5, 16)
    rows = torch.cat([apply_rope(many[:1], cos, sin, 4), apply_rope(many[1:], cos, sin, 11)])
    assert torch.allclose(apply_rope(many, cos, sin, torch.tensor([4, 11])), rows)


def test_tied_weights_stay_tied_through_moves_copies_and_files(tmp_path):
    model = tiny()
    weights = {name: tensor for name, tensor in hugging_face(TINY, tied=True).state_dict().items() if name != "lm_head.weight"}
    llama.load_weights_into_llama(model, TINY, weights)
    for tied in (model, copy.deepcopy(model), model.to(torch.float64)):
        assert tied.out_head.weight is tied.tok_emb.weight
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    again = tiny(dtype=torch.float64)
    again.out_head.weight = again.tok_emb.weight
    again.load_state_dict(torch.load(tmp_path / "weights.pth", weights_only=True))
    assert again.out_head.weight is again.tok_emb.weight and torch.equal(again.tok_emb.weight, model.tok_emb.weight)


def test_loading_reports_what_does_not_fit():
    weights = hugging_face(TINY).state_dict()
    with pytest.raises(KeyError, match="k_proj"):
        llama.load_weights_into_llama(tiny(), TINY, {name: w for name, w in weights.items() if "layers.1.self_attn.k_proj" not in name})
    wrong = {**weights, "model.layers.2.mlp.up_proj.weight": torch.zeros(3, 4)}
    with pytest.raises(ValueError, match=r"layers\.2\.mlp\.up_proj.*\(80, 48\).*\(3, 4\)"):
        llama.load_weights_into_llama(tiny(), TINY, wrong)
    with pytest.warns(UserWarning, match="not used"):
        llama.load_weights_into_llama(tiny(), TINY, {**weights, "extra.weight": torch.zeros(1)})
    with pytest.warns(UserWarning, match="float64"):
        llama.load_weights_into_llama(tiny(), TINY, {name: w.double() for name, w in weights.items()})


def test_a_bad_shape_or_a_wrong_number_of_layers_leaves_the_model_as_it_was():
    weights, model = hugging_face(TINY).state_dict(), tiny()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    last = {**weights, "lm_head.weight": torch.zeros(5, 5)}
    for params, param_config, message in ((last, TINY, "lm_head"), (weights, {**TINY, "n_layers": 2}, "n_layers 2.*3 blocks")):
        with pytest.raises(ValueError, match=message):
            llama.load_weights_into_llama(model, param_config, params)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


@torch.no_grad()
def test_a_head_of_its_own_is_neither_lost_nor_written_over_the_embedding():
    reference, ids = hugging_face(TINY), torch.randint(0, 97, (1, 9))
    model = tiny()
    model.out_head.weight = model.tok_emb.weight
    llama.load_weights_into_llama(model, TINY, reference.state_dict())
    assert model.out_head.weight is not model.tok_emb.weight
    assert torch.allclose(model(ids), reference(ids).logits, atol=1e-5)
    with pytest.raises(ValueError, match="tied: True"):
        llama.load_weights_into_llama(tiny(), {**TINY, "tied": True}, reference.state_dict())
    headless = {name: tensor for name, tensor in reference.state_dict().items() if name != "lm_head.weight"}
    with pytest.raises(ValueError, match="tied: False"):
        llama.load_weights_into_llama(tiny(), {**TINY, "tied": False}, headless)
    repeated = {**headless, "lm_head.weight": headless["model.embed_tokens.weight"].clone()}
    llama.load_weights_into_llama(model, {**TINY, "tied": True}, repeated)
    assert model.out_head.weight is model.tok_emb.weight


@BOTH
@torch.no_grad()
def test_another_number_type_changes_the_weights_and_not_the_angles(model_class):
    model = tiny(model_class)
    cos, ids = model.cos.clone(), torch.randint(0, 97, (1, 40))
    expected = model(ids)
    assert model.bfloat16() is model and model.tok_emb.weight.dtype == torch.bfloat16
    assert torch.equal(model.cos, cos) and torch.equal(model.sin, tiny().sin)
    assert model(ids).dtype == torch.bfloat16
    assert (model(ids).float() - expected).abs().max() < 0.05 * expected.abs().max()
    with torch.device("meta"):
        empty = model_class(TINY)
    assert torch.equal(empty.to_empty(device="cpu").cos, cos)


@BOTH
@pytest.mark.parametrize("row", [[1, 1, 1, 0], [1, 0, 1, 1], [0, 0, 0, 0], [0, 1, 1, 0]])
def test_padding_anywhere_but_at_the_left_is_refused(model_class, row):
    mask = torch.tensor([[1, 1, 1, 1], row])
    with pytest.raises(ValueError, match="at the left"):
        tiny(model_class)(torch.zeros(2, 4, dtype=torch.long), attention_mask=mask)


def test_generation_stops_row_by_row_and_wastes_no_pass(monkeypatch):
    model = tiny()
    script = iter([[1, 2], [9, 3], [4, 5], [6, 9], [7, 7]])
    choose = lambda logits, token_ids: torch.tensor(next(script))[:, None]  # noqa: E731
    passes = []
    forward = Llama3ModelFast.forward
    monkeypatch.setattr(Llama3ModelFast, "forward", lambda self, *a, **k: passes.append(1) or forward(self, *a, **k))
    ids = torch.cat(list(generate_text_basic_stream(model, torch.zeros(2, 3, dtype=torch.long), 9, eos_token_id=9, choose=choose)), dim=1)
    assert ids.tolist() == [[1, 9, 9], [2, 3, 5]]
    assert len(passes) == 4
    passes.clear()
    list(generate_text_basic_stream(model, torch.zeros(1, 3, dtype=torch.long), 5))
    assert len(passes) == 5


def test_generation_with_and_without_cache_agree():
    model = tiny()
    ids = torch.randint(0, 97, (2, 6))
    assert torch.equal(generate_text_simple(model, ids, 20), generate_text_simple(model, ids, 20, use_cache=False))


@pytest.mark.parametrize("changes, message", [({"emb_dim": 50}, "divide"), ({"n_kv_groups": 4}, "groups"), ({"emb_dim": 42}, "even")])
def test_impossible_sizes_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        tiny(**changes)


def test_bad_input_is_refused_in_one_clear_error():
    model = tiny()
    with pytest.raises(ValueError, match="vocabulary of 97"):
        model(torch.tensor([[97]]))
    with pytest.raises(ValueError, match="context of 128"):
        model(torch.zeros(1, 129, dtype=torch.long))
    with pytest.raises(ValueError, match="context of 128"):
        next(generate_text_basic_stream(model, torch.zeros(1, 120, dtype=torch.long), 9))
    with pytest.raises(ValueError, match="attention_mask"):
        model(torch.zeros(2, 5, dtype=torch.long), attention_mask=torch.ones(2, 4))


@pytest.fixture
def tokenizer_file(tmp_path):
    lines = [base64.b64encode(bytes([byte])) + b" %d" % byte for byte in range(256)] + [base64.b64encode(b"he") + b" 256"]
    (tmp_path / "tokenizer.model").write_bytes(b"\n".join(lines))
    return tmp_path / "tokenizer.model"


def test_llama3_tokenizer_and_chat_format(tokenizer_file):
    tokenizer = llama.Llama3Tokenizer(tokenizer_file)
    assert tokenizer.encode("he 1234é") == [256, 32, *b"123", *b"4", *"é".encode()]
    assert tokenizer.encode("a", bos=True, eos=True) == [128000, 97, 128001]
    assert tokenizer.special["<|reserved_0|>"] == 128002 and "<|reserved_4|>" not in tokenizer.special
    assert tokenizer.encode("<|eot_id|>") == list(b"<|eot_id|>") and tokenizer.encode("<|eot_id|>", allowed_special="all") == [128009]
    chat = llama.ChatFormat(tokenizer)
    text = chat.decode(chat.encode("he?"))
    assert text == (
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nYou are a helpful assistant.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nhe?<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
    )
    assert chat.encode("x<|eot_id|>", "s").count(128009) == 2  # the user's text forges no end of turn
    assert llama.clean_text(text + "Yes.") == "Yes." and llama.clean_text("plain") == "plain"


def test_a_missing_or_broken_tokenizer_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="absent.model"):
        llama.Llama3Tokenizer(tmp_path / "absent.model")
    (tmp_path / "broken.model").write_text("not base64 !\n", encoding="utf-8")
    with pytest.raises(ValueError, match="line 1"):
        llama.Llama3Tokenizer(tmp_path / "broken.model")
