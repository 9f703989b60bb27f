"""gpt.py: equal to independent implementations, seeded as promised, clear about bad input.

Run it:  pytest ch04/01_main-chapter-code/tests/test_ch04_gpt.py
"""

import copy
import random
import subprocess
import sys
import warnings
from pathlib import Path

import gpt
import pytest
import torch
import torch.nn as nn

TINY = {"vocab_size": 50, "context_length": 12, "emb_dim": 16, "n_heads": 4, "n_layers": 2, "drop_rate": 0.0, "qkv_bias": False}
SIZES = {  # name: total, tied, float32 MiB, tied with QKV bias
    "gpt2-small": (163_009_536, 124_412_160, 621.83, 124_439_808),
    "gpt2-medium": (406_212_608, 354_749_440, 1549.58, 354_823_168),
    "gpt2-large": (838_220_800, 773_891_840, 3197.56, 774_030_080),
    "gpt2-xl": (1_637_792_000, 1_557_380_800, 6247.68, 1_557_611_200),
}


def tiny_model(seed=123, noise=0.0, **changes):
    torch.manual_seed(seed)
    model = gpt.GPTModel({**TINY, **changes}).eval()
    for parameter in model.parameters():
        parameter.data += noise * torch.randn_like(parameter)
    return model


def count(module):
    return sum(p.numel() for p in module.parameters())


def ids_of(b, num_tokens, vocab_size=50):
    return torch.randint(0, vocab_size, (b, num_tokens))


# ---- counts ----


@pytest.mark.parametrize("name", SIZES)
def test_parameter_counts_of_the_four_sizes(name):
    total, tied, mib, tied_with_bias = SIZES[name]
    cfg = {**gpt.GPT_CONFIG_124M, **gpt.MODEL_SIZES[name]}
    with torch.device("meta"):
        model, biased = gpt.GPTModel(cfg), gpt.GPTModel({**cfg, "qkv_bias": True})
    assert count(model) == total
    assert round(gpt.memory_in_mib(cfg), 2) == mib
    assert count(gpt.tie_weights(model)) == tied
    assert count(gpt.tie_weights(biased)) == tied_with_bias


def test_parameter_counts_of_the_parts():
    with torch.device("meta"):
        model = gpt.GPTModel(gpt.GPT_CONFIG_124M)
    block = model.trf_blocks[0]
    assert (count(block.att), count(block.ff), count(block.norm1) + count(block.norm2)) == (2_360_064, 4_722_432, 3_072)
    assert (count(block), count(model.trf_blocks)) == (7_085_568, 85_026_816)
    assert (count(model.tok_emb), count(model.pos_emb), count(model.final_norm)) == (38_597_376, 786_432, 1_536)
    assert gpt.GPT_CONFIG_124M == {
        "vocab_size": 50257, "context_length": 1024, "emb_dim": 768, "n_heads": 12, "n_layers": 12, "drop_rate": 0.1, "qkv_bias": False
    }  # fmt: skip


# ---- seeded compatibility ----


@pytest.mark.parametrize("qkv_bias", [False, True])
def test_random_numbers_are_drawn_in_the_promised_order(qkv_bias):
    """The weights equal those of plain PyTorch layers made one after the other from the same seed."""
    model = tiny_model(seed=7, qkv_bias=qkv_bias)
    torch.manual_seed(7)
    d = 16
    expected = [nn.Embedding(50, d), nn.Embedding(12, d)]
    for _ in range(2):
        expected += [nn.Linear(d, d, bias=qkv_bias) for _ in range(3)] + [nn.Linear(d, d), nn.Linear(d, 4 * d), nn.Linear(4 * d, d)]
    expected.append(nn.Linear(d, 50, bias=False))
    got = [model.tok_emb, model.pos_emb]
    for block in model.trf_blocks:
        got += [block.att.W_query, block.att.W_key, block.att.W_value, block.att.out_proj, block.ff.layers[0], block.ff.layers[2]]
    got.append(model.out_head)
    for ours, theirs in zip(got, expected, strict=True):
        assert {name: value.tolist() for name, value in ours.named_parameters()} == {n: v.tolist() for n, v in theirs.named_parameters()}


def test_norms_start_neutral_and_draw_nothing():
    state = torch.get_rng_state()
    norm = gpt.LayerNorm(8)
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(norm.scale, torch.ones(8)) and torch.equal(norm.shift, torch.zeros(8)) and norm.eps == 1e-5


def test_fused_qkv_projection_draws_the_same_numbers():
    torch.manual_seed(5)
    three = torch.cat([nn.Linear(16, 16, bias=False).weight for _ in range(3)])
    torch.manual_seed(5)
    assert torch.equal(three, nn.Linear(16, 48, bias=False).weight)


def test_dummy_model_draws_embeddings_then_head():
    torch.manual_seed(3)
    dummy = gpt.DummyGPTModel(TINY)
    torch.manual_seed(3)
    for part, layer in [(dummy.tok_emb, nn.Embedding(50, 16)), (dummy.pos_emb, nn.Embedding(12, 16)), (dummy.out_head, nn.Linear(16, 50))]:
        assert torch.equal(part.weight, layer.weight)
    assert [name for name, _ in dummy.named_children()] == [name for name, _ in tiny_model().named_children()]
    assert dummy(ids_of(2, 5)).shape == (2, 5, 50)


def test_state_dict_names():
    names = [name for name, _ in tiny_model(n_layers=1).named_parameters()]
    block = ["att.W_query.weight", "att.W_key.weight", "att.W_value.weight", "att.out_proj.weight", "att.out_proj.bias"]
    block += [f"ff.layers.{i}.{kind}" for i in (0, 2) for kind in ("weight", "bias")]
    block += [f"norm{i}.{kind}" for i in (1, 2) for kind in ("scale", "shift")]
    inner = [f"trf_blocks.0.{name}" for name in block]
    assert names == ["tok_emb.weight", "pos_emb.weight", *inner, "final_norm.scale", "final_norm.shift", "out_head.weight"]
    assert set(tiny_model(n_layers=1).state_dict()) == set(names), "the causal mask is not saved"


# ---- parts against independent implementations ----


@pytest.mark.parametrize("shape", [(2, 3, 8), (1, 8, 8), (8, 1, 8)])
def test_layer_norm_equals_pytorchs(shape):
    ours, theirs = gpt.LayerNorm(8), nn.LayerNorm(8)
    ours.scale.data.normal_()
    ours.shift.data.normal_()
    theirs.load_state_dict({"weight": ours.scale.data, "bias": ours.shift.data})
    for x in [torch.randn(shape), 5 + torch.randn(shape), 1e-3 * torch.randn(shape), torch.full(shape, 4.0)]:
        torch.testing.assert_close(ours(x), theirs(x), atol=1e-5, rtol=1e-5)


def test_gelu_equals_pytorchs_tanh_form_and_its_gradient():
    x = torch.linspace(-8, 8, 401, requires_grad=True)
    other = x.detach().clone().requires_grad_()
    ours, theirs = gpt.GELU()(x), nn.GELU(approximate="tanh")(other)
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-5)
    ours.sum().backward()
    theirs.sum().backward()
    torch.testing.assert_close(x.grad, other.grad, atol=1e-5, rtol=1e-5)
    assert (ours - nn.GELU()(other)).abs().max() > 1e-4, "the exact form is another function"


def hugging_face_twin(model, cfg):
    """GPT2LMHeadModel with the same weights; its linear layers store the transpose."""
    transformers = pytest.importorskip("transformers")
    settings = transformers.GPT2Config(
        vocab_size=cfg["vocab_size"], n_positions=cfg["context_length"], n_embd=cfg["emb_dim"], n_layer=cfg["n_layers"],
        n_head=cfg["n_heads"], attn_pdrop=0.0, resid_pdrop=0.0, embd_pdrop=0.0, tie_word_embeddings=False,
        bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    weights = {"transformer.wte.weight": model.tok_emb.weight, "transformer.wpe.weight": model.pos_emb.weight}
    for i, block in enumerate(model.trf_blocks):
        qkv = [block.att.W_query, block.att.W_key, block.att.W_value]
        biases = [w.bias if w.bias is not None else torch.zeros(cfg["emb_dim"]) for w in qkv]
        parts = {
            "ln_1": (block.norm1.scale, block.norm1.shift), "ln_2": (block.norm2.scale, block.norm2.shift),
            "attn.c_attn": (torch.cat([w.weight for w in qkv]).T, torch.cat(biases)),
            "attn.c_proj": (block.att.out_proj.weight.T, block.att.out_proj.bias),
            "mlp.c_fc": (block.ff.layers[0].weight.T, block.ff.layers[0].bias),
            "mlp.c_proj": (block.ff.layers[2].weight.T, block.ff.layers[2].bias),
        }  # fmt: skip
        for name, (weight, bias) in parts.items():
            weights |= {f"transformer.h.{i}.{name}.weight": weight, f"transformer.h.{i}.{name}.bias": bias}
    weights |= {"transformer.ln_f.weight": model.final_norm.scale, "transformer.ln_f.bias": model.final_norm.shift}
    twin = transformers.GPT2LMHeadModel(settings).eval()
    twin.load_state_dict({**weights, "lm_head.weight": model.out_head.weight}, strict=True)
    return twin


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("qkv_bias", [False, True])
def test_logits_equal_hugging_faces_gpt2(seed, qkv_bias):
    chance = random.Random(seed)
    n_heads = chance.choice([1, 2, 4])
    cfg = {
        "vocab_size": chance.randint(20, 90), "context_length": chance.randint(8, 40), "emb_dim": n_heads * chance.choice([4, 8, 12]),
        "n_heads": n_heads, "n_layers": chance.randint(1, 4), "drop_rate": 0.1, "qkv_bias": qkv_bias,
    }  # fmt: skip
    model = tiny_model(seed, noise=0.1, **cfg)
    twin = hugging_face_twin(model, cfg)
    for num_tokens in [1, 2, cfg["context_length"] // 2, cfg["context_length"]]:
        ids = ids_of(2, num_tokens, cfg["vocab_size"])
        with torch.no_grad():
            torch.testing.assert_close(model(ids), twin(ids).logits, atol=1e-4, rtol=0)


def with_pytorch_parts(module):
    for name, part in list(module.named_children()):
        if isinstance(part, gpt.LayerNorm):
            setattr(module, name, nn.LayerNorm(len(part.scale)))
        elif isinstance(part, gpt.GELU):
            setattr(module, name, nn.GELU(approximate="tanh"))
        else:
            with_pytorch_parts(part)
    return module


def test_pytorchs_norm_and_gelu_leave_greedy_text_unchanged():
    model, idx = tiny_model(), ids_of(2, 3)
    ours = gpt.generate_text_simple(model, idx, 30, 12)
    assert torch.equal(ours, gpt.generate_text_simple(with_pytorch_parts(copy.deepcopy(model)), idx, 30, 12))


def test_later_tokens_never_change_earlier_logits():
    model, ids = tiny_model(noise=0.3), ids_of(1, 9)
    changed = ids.clone()
    changed[0, 5] = (changed[0, 5] + 1) % 50
    difference = (model(ids) - model(changed)).abs().amax(dim=(0, 2))
    assert (difference[:5] == 0).all() and (difference[5:] > 1e-4).all()


# ---- shortcuts ----


def test_shortcuts_only_where_widths_are_equal():
    net = gpt.ExampleDeepNeuralNetwork([3, 3, 1], use_shortcut=True)
    x = torch.randn(2, 3)
    hidden = x + net.layers[0](x)
    torch.testing.assert_close(net(x), net.layers[1](hidden))
    torch.manual_seed(1)
    plain = gpt.ExampleDeepNeuralNetwork([3, 3, 1], use_shortcut=False)
    torch.testing.assert_close(plain(x), plain.layers[1](plain.layers[0](x)))


def test_print_gradients_starts_from_zero_each_time(capsys):
    net, x = gpt.ExampleDeepNeuralNetwork([4] * 5 + [1], use_shortcut=True), torch.randn(1, 4)
    gpt.print_gradients(net, x)
    gpt.print_gradients(net, x)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 10 and lines[:5] == lines[5:] and lines[0].startswith("layers.0.0.weight: ")


# ---- tying ----


def shares_storage(model):
    return model.out_head.weight.data_ptr() == model.tok_emb.weight.data_ptr() and model.out_head.weight is model.tok_emb.weight


def test_tied_tables_stay_one_tensor():
    model = gpt.tie_weights(tiny_model())
    assert shares_storage(model)
    assert shares_storage(model.to(torch.float64)) and shares_storage(model.to("cpu", torch.float32))
    assert shares_storage(copy.deepcopy(model))
    other = gpt.tie_weights(tiny_model(seed=9))
    model.load_state_dict(other.state_dict(), strict=True)
    assert shares_storage(model) and torch.equal(model.out_head.weight, other.tok_emb.weight)
    model(ids_of(2, 4)).sum().backward()
    assert model.tok_emb.weight.grad is model.out_head.weight.grad and shares_storage(model)


# ---- bad input ----


@pytest.mark.parametrize(
    ("ids", "words"),
    [
        (torch.zeros(1, 13, dtype=torch.int64), ["13", "12"]),
        (torch.zeros(1, 0, dtype=torch.int64), ["at least one token"]),
        (torch.zeros(0, 3, dtype=torch.int64), ["at least one token"]),
        (torch.zeros(3, dtype=torch.int64), ["(b, num_tokens)", "(3,)"]),
        (torch.zeros(1, 3), ["whole numbers", "float32"]),
        (torch.zeros(1, 3, dtype=torch.bool), ["whole numbers", "bool"]),
        (torch.tensor([[50]]), ["50", "49"]),
        (torch.tensor([[-1, 3]]), ["-1", "49"]),
    ],
)
def test_bad_ids_are_value_errors_with_both_numbers(ids, words):
    with pytest.raises(ValueError) as caught:
        tiny_model()(ids)
    assert all(word in str(caught.value) for word in words)


def test_bad_generation_arguments():
    model = tiny_model()
    for idx, new, context in [(ids_of(1, 3), -1, 12), (ids_of(1, 3), 2, 0), (ids_of(1, 3)[0], 2, 12), (ids_of(1, 0), 2, 12)]:
        with pytest.raises(ValueError):
            gpt.generate_text_simple(model, idx, new, context)


def test_configuration_names_missing_keys_and_ignores_unknown_ones():
    with pytest.raises(ValueError, match="n_heads, qkv_bias"):
        gpt.GPTModel({key: value for key, value in TINY.items() if key not in ("n_heads", "qkv_bias")})
    assert count(tiny_model(kv_window_size=3)) == count(tiny_model())
    with pytest.raises(ValueError, match="16.*3"):
        tiny_model(n_heads=3)


# ---- generation ----


def test_generation_is_the_greedy_loop_and_crops():
    model, idx = tiny_model(noise=0.3), ids_of(2, 4)
    out = gpt.generate_text_simple(model, idx, 20, 6)
    assert out.shape == (2, 24) and out.dtype == idx.dtype and torch.equal(out[:, :4], idx)
    for place in range(4, 24):
        with torch.no_grad():
            probabilities = model(out[:, max(0, place - 6) : place])[:, -1].softmax(dim=-1)
        assert torch.equal(probabilities.argmax(dim=-1), out[:, place])
    assert gpt.generate_text_simple(model, idx.int(), 3, 6).dtype == torch.int32
    assert torch.equal(gpt.generate_text_simple(model, idx, 0, 6), idx)


def test_generation_warns_in_train_mode_only():
    model, idx = tiny_model(), ids_of(1, 3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        gpt.generate_text_simple(model, idx, 1, 12)
    with pytest.warns(UserWarning, match="eval"):
        gpt.generate_text_simple(model.train(), idx, 1, 12)


def test_generation_keeps_no_gradients():
    assert not gpt.generate_text_simple(tiny_model(), ids_of(1, 3), 2, 12).requires_grad


# ---- command line ----


@pytest.fixture
def tiny_size(monkeypatch):
    monkeypatch.setitem(gpt.MODEL_SIZES, "tiny", {"emb_dim": 16, "n_layers": 1, "n_heads": 2})


def test_main_prints_prompt_ids_shape_output_and_text(tiny_size, capsys):
    assert gpt.main(["--model_name", "tiny", "--prompt", "Bosun barked", "--max_new_tokens", "4"]) == 0
    first = capsys.readouterr()
    lines = first.out.splitlines()
    assert [line.split(":")[0] for line in lines[:4]] == ["prompt", "ids", "shape", "output ids"]
    assert lines[0] == "prompt: Bosun barked" and "text: Bosun barked" in first.out
    assert gpt.main(["--model_name", "tiny", "--prompt", "Bosun barked", "--max_new_tokens", "4"]) == 0
    assert capsys.readouterr().out == first.out, "one seed gives one text"


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["--model_name", "gpt2-huge"], "gpt2-huge"),
        (["--max_new_tokens", "-1"], "-1"),
        (["--max_new_tokens", "many"], "many"),
        (["--prompt", ""], "prompt"),
        (["--prompt", "tide " * 1100], "1024"),
        (["--device", "tpu"], "tpu"),
    ],
)
def test_bad_options_end_in_one_line_and_exit_code_2(arguments, word, tiny_size, capsys):
    with pytest.raises(SystemExit) as stopped:
        gpt.main(["--model_name", "tiny", *arguments])
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and len(error.strip().splitlines()) == 1 and word in error


def test_indivisible_width_ends_in_one_line(monkeypatch, capsys):
    monkeypatch.setitem(gpt.MODEL_SIZES, "odd", {"emb_dim": 16, "n_layers": 1, "n_heads": 3})
    with pytest.raises(SystemExit) as stopped:
        gpt.main(["--model_name", "odd"])
    (error,) = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("device:")]
    assert stopped.value.code == 2 and "16" in error and "3" in error


def test_large_models_announce_their_memory_first(monkeypatch, capsys):
    monkeypatch.setattr(gpt, "generate_text_simple", lambda *args: pytest.fail("not reached"))
    monkeypatch.setattr(gpt, "pick_device", lambda name: torch.device("meta"))  # allocates nothing
    original = gpt.GPTModel

    def on_meta(cfg):
        with torch.device("meta"):
            return original(cfg)

    monkeypatch.setattr(gpt, "GPTModel", on_meta)
    with pytest.raises(pytest.fail.Exception):
        gpt.main(["--model_name", "gpt2-xl"])
    assert "6.1 GiB" in capsys.readouterr().err


def test_import_is_silent_and_the_script_runs_from_anywhere():
    script = Path(gpt.__file__)
    done = subprocess.run([sys.executable, str(script), "--help"], capture_output=True, text=True)
    assert done.returncode == 0 and "untrained GPT" in done.stdout and not done.stderr
    code = "import torch; s = torch.get_rng_state(); import gpt; assert torch.equal(s, torch.get_rng_state())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=script.parent)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
