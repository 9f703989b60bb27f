"""Properties of chapter 3's attention classes, against PyTorch's fused attention and plain loops."""

import math
import subprocess
import sys
from pathlib import Path

import multihead_attention as module
import pytest
import torch
import torch.nn.functional as F
from multihead_attention import (
    CausalAttention,
    MultiHeadAttention,
    MultiHeadAttentionWrapper,
    SelfAttention_v1,
    SelfAttention_v2,
    count_parameters,
    difference_from_sdpa,
    softmax_naive,
)

SIZES = [(4, 3, 1, 5, 2), (7, 12, 3, 9, 1), (16, 8, 4, 6, 3)]  # d_in, d_out, num_heads, num_tokens, b


def attention_by_loops(q, k, v) -> torch.Tensor:
    """Causal attention of one head in double precision with nothing but loops: (num_tokens, d) each."""
    q, k, v = (part.double().tolist() for part in (q, k, v))
    rows = []
    for i in range(len(q)):
        powers = [math.exp(sum(a * b for a, b in zip(q[i], k[j])) / math.sqrt(len(q[i]))) for j in range(i + 1)]
        rows.append([sum(p * v[j][c] for j, p in enumerate(powers)) / sum(powers) for c in range(len(v[0]))])
    return torch.tensor(rows, dtype=torch.float64)


def causal_models(d_in=6, d_out=8, num_heads=2, context_length=7, dropout=0.0):
    return [
        CausalAttention(d_in, d_out, context_length, dropout),
        MultiHeadAttentionWrapper(d_in, d_out, context_length, dropout, num_heads),
        MultiHeadAttention(d_in, d_out, context_length, dropout, num_heads),
    ]


def test_naive_softmax_equals_torch_and_overflows_where_the_chapter_says():
    x = torch.randn(5, 3)
    torch.testing.assert_close(softmax_naive(x), torch.softmax(x, dim=0))
    assert softmax_naive(torch.tensor([1000.0, 1001.0])).isnan().all()


@pytest.mark.parametrize("qkv_bias", [False, True])
@pytest.mark.parametrize(("d_in", "d_out", "num_heads", "num_tokens", "b"), SIZES)
def test_multi_head_equals_fused_attention(d_in, d_out, num_heads, num_tokens, b, qkv_bias):
    attention = MultiHeadAttention(d_in, d_out, num_tokens + 2, 0.0, num_heads, qkv_bias)
    assert difference_from_sdpa(attention, torch.randn(b, num_tokens, d_in)) < 1e-5


def test_difference_from_sdpa_can_be_large():
    attention = MultiHeadAttention(6, 8, 7, 0.0, 2)
    attention.mask.zero_()  # now it looks ahead
    assert difference_from_sdpa(attention, torch.randn(1, 7, 6)) > 1e-3


def test_one_head_equals_plain_loops():
    head, x = CausalAttention(5, 4, 6, 0.0), torch.randn(1, 6, 5)
    by_loops = attention_by_loops(head.W_query(x)[0], head.W_key(x)[0], head.W_value(x)[0])
    torch.testing.assert_close(head(x)[0].double(), by_loops, atol=1e-5, rtol=1e-5)


def test_wrapper_joins_its_heads_in_order():
    wrapper, x = MultiHeadAttentionWrapper(6, 3, 5, 0.0, 4), torch.randn(2, 5, 6)
    for i, head in enumerate(wrapper.heads):
        torch.testing.assert_close(wrapper(x)[..., 3 * i : 3 * i + 3], head(x))


def test_both_self_attentions_equal_unmasked_fused_attention():
    x = torch.randn(6, 5)
    v1, v2 = SelfAttention_v1(5, 3), SelfAttention_v2(5, 3, qkv_bias=True)
    torch.testing.assert_close(v1(x), F.scaled_dot_product_attention(x @ v1.W_query, x @ v1.W_key, x @ v1.W_value))
    torch.testing.assert_close(v2(x), F.scaled_dot_product_attention(v2.W_query(x), v2.W_key(x), v2.W_value(x)))


def test_version_1_draws_uniform_numbers_in_the_order_query_key_value():
    torch.manual_seed(5)
    v1 = SelfAttention_v1(4, 3)
    torch.manual_seed(5)
    for parameter in (v1.W_query, v1.W_key, v1.W_value):
        assert torch.equal(parameter, torch.rand(4, 3))


def test_a_seed_gives_the_published_order_of_weights():
    torch.manual_seed(5)
    attention = MultiHeadAttention(6, 8, 4, 0.0, 2)
    torch.manual_seed(5)
    for linear in (attention.W_query, attention.W_key, attention.W_value):
        assert torch.equal(linear.weight, torch.nn.Linear(6, 8, bias=False).weight)
    out = torch.nn.Linear(8, 8)
    assert torch.equal(attention.out_proj.weight, out.weight) and torch.equal(attention.out_proj.bias, out.bias)


@pytest.mark.parametrize("which", [0, 1, 2])
def test_a_changed_token_leaves_earlier_outputs_bit_equal(which):
    model, x = causal_models()[which], torch.randn(2, 7, 6)
    for j in range(7):
        changed = x.clone()
        changed[:, j] = 100 * torch.randn(2, 6)
        assert torch.equal(model(x)[:, :j], model(changed)[:, :j])
        assert not torch.equal(model(x)[:, j], model(changed)[:, j])


@pytest.mark.parametrize("which", [0, 1, 2])
def test_gradient_to_later_inputs_is_exactly_zero(which):
    model, x = causal_models()[which], torch.randn(1, 7, 6, requires_grad=True)
    for i in range(7):
        gradient = torch.autograd.grad(model(x)[0, i].sum(), x)[0][0]
        assert (gradient[i + 1 :] == 0).all() and (gradient[i] != 0).any()


def test_outputs_stay_inside_the_range_of_the_values():
    head, x = CausalAttention(6, 8, 7, 0.0), torch.randn(3, 7, 6)
    values, out = head.W_value(x), head(x)
    assert (out <= values.amax(1, keepdim=True) + 1e-6).all() and (out >= values.amin(1, keepdim=True) - 1e-6).all()


@pytest.mark.parametrize("which", [0, 2])
def test_mask_is_boolean_not_saved_and_cut_to_the_input(which):
    model = causal_models()[which]
    assert model.mask.dtype == torch.bool and model.mask.shape == (7, 7)
    assert torch.equal(model.mask, torch.arange(7)[None, :] > torch.arange(7)[:, None])
    assert not any("mask" in key for key in model.state_dict())
    assert "mask" in dict(model.named_buffers())
    for num_tokens in (1, 4, 7):
        assert model(torch.randn(2, num_tokens, 6)).shape == (2, num_tokens, 8)
    assert model.to(torch.float64).mask.dtype == torch.bool


def test_state_dicts_move_between_wrapper_free_classes_with_strict_loading():
    source, target = MultiHeadAttention(6, 8, 7, 0.0, 2), MultiHeadAttention(6, 8, 9, 0.1, 4)
    target.load_state_dict(source.state_dict(), strict=True)  # mask size and heads are no part of the saved numbers
    assert torch.equal(target.W_key.weight, source.W_key.weight)


def test_dropout_acts_in_training_only_and_keeps_the_mean():
    model, x = CausalAttention(6, 8, 7, 0.5), torch.randn(1, 7, 6)
    assert not torch.equal(model(x), model(x))
    with torch.no_grad():
        mean = torch.stack([model(x) for _ in range(4000)]).mean(dim=0)
    model.eval()
    assert torch.equal(model(x), model(x))
    torch.testing.assert_close(mean, model(x).detach(), atol=0.08, rtol=0)


@pytest.mark.parametrize("which", [0, 1, 2])
@pytest.mark.parametrize(("shape", "numbers"), [((1, 8, 6), ("8", "7")), ((1, 5, 4), ("4", "6")), ((5, 6), ("5", "6"))])
def test_wrong_inputs_are_refused_with_both_numbers(which, shape, numbers):
    with pytest.raises(ValueError) as error:
        causal_models()[which](torch.zeros(shape))
    assert all(number in str(error.value) for number in numbers)


def test_indivisible_width_is_refused_with_both_numbers():
    with pytest.raises(ValueError, match="d_out 10 is not divisible by num_heads 4"):
        MultiHeadAttention(6, 10, 7, 0.0, 4)


def test_parameter_counts_follow_the_formulas_and_skip_frozen_ones():
    for qkv_bias, published in ((False, 2_360_064), (True, 2_362_368)):
        assert count_parameters(MultiHeadAttention(768, 768, 8, 0.0, 12, qkv_bias)) == published
    d_in, d = 5, 12
    assert count_parameters(MultiHeadAttentionWrapper(d_in, d // 3, 8, 0.0, 3)) == 3 * d_in * d
    attention = MultiHeadAttention(d_in, d, 8, 0.0, 3)
    assert count_parameters(attention) == 3 * d_in * d + d * d + d
    attention.out_proj.requires_grad_(False)
    assert count_parameters(attention) == 3 * d_in * d


# ---- command line ---------------------------------------------------------------------------------------------------

SMALL = ["--batch_size", "2", "--context_length", "5", "--d_in", "6", "--d_out", "8", "--num_heads", "2", "--device", "cpu"]


def test_command_line_prints_shapes_count_and_difference(capsys):
    assert module.main([*SMALL, "--qkv_bias", "--dropout", "0.3"]) == 0
    out = capsys.readouterr().out
    assert "(2, 5, 6) -> output (2, 5, 8)" in out and "parameters: 240" in out
    assert float(out.rsplit(" ", 1)[1]) < 1e-5


@pytest.mark.parametrize(
    ("option", "value", "named"),
    [
        ("--num_heads", "3", "d_out 8"),
        ("--num_heads", "0", "0 is too small"),
        ("--batch_size", "-1", "-1 is too small"),
        ("--context_length", "x", "not a whole number"),
        ("--dropout", "1.0", "[0, 1)"),
        ("--dropout", "-0.1", "[0, 1)"),
        ("--dropout", "nan", "[0, 1)"),
        ("--dropout", "much", "not a number"),
        ("--device", "abacus", "available"),
        ("--seed", "1.5", "invalid int value"),
    ],
)
def test_bad_option_is_one_line_and_exit_code_2(option, value, named, capsys):
    with pytest.raises(SystemExit) as stop:
        module.main([*SMALL, f"{option}={value}"])
    error = capsys.readouterr().err.strip()
    assert stop.value.code == 2
    assert "\n" not in error.replace("device: cpu\n", "") and named in error and "Traceback" not in error


def test_importing_prints_nothing_and_the_script_runs():
    script = "import multihead_attention, runpy, sys; print('imported'); runpy.run_path('multihead_attention.py', run_name='__main__')"
    folder = Path(module.__file__).parent
    run = subprocess.run([sys.executable, "-c", script, *SMALL], cwd=folder, capture_output=True, text=True, timeout=120)
    lines = run.stdout.splitlines()
    assert run.returncode == 0, run.stderr
    assert lines[0] == "imported" and len(lines) == 4
