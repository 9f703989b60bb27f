"""All nine variants equal the fused call, values and gradients, for random sizes; masks, initialization, what they refuse."""

import pytest
import torch
import torch.nn.functional as F
from mha_implementations import (
    MIN_TORCH_VERSION,
    VARIANTS,
    Ch03_MHA,
    Ch03_MHA_Wrapper,
    MHAEinsum,
    MHAPyTorchClass,
    MHAPyTorchFlexAttention,
    MHAPyTorchScaledDotProduct,
    MHAPyTorchSDPAWithoutFlash,
    MultiHeadAttentionCombinedQKV,
    build_variants,
    causal,
    copy_weights,
    normalize_version,
)
from previous_chapters import CausalAttention, MultiHeadAttention

COMBINED = [MultiHeadAttentionCombinedQKV, MHAPyTorchScaledDotProduct, MHAPyTorchSDPAWithoutFlash, MHAPyTorchFlexAttention]
pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")


def fused(source: Ch03_MHA, x: torch.Tensor) -> torch.Tensor:
    """The oracle: PyTorch's call between the projections of chapter 3's class."""
    b, num_tokens, _ = x.shape
    heads = [w(x).view(b, num_tokens, source.num_heads, -1).transpose(1, 2) for w in (source.W_query, source.W_key, source.W_value)]
    return source.out_proj(F.scaled_dot_product_attention(*heads, is_causal=True).transpose(1, 2).reshape(b, num_tokens, -1))


@pytest.mark.parametrize("qkv_bias", [False, True])
@pytest.mark.parametrize(("seed", "d_in", "d_out", "heads", "num_tokens"), [(1, 24, 24, 3, 19), (2, 10, 24, 4, 13), (3, 40, 16, 1, 1)])
def test_values_and_gradients_are_those_of_the_fused_call(seed, d_in, d_out, heads, num_tokens, qkv_bias):
    torch.manual_seed(seed)
    variants, x = build_variants(d_in, d_out, 20, heads, qkv_bias), torch.randn(2, num_tokens, d_in, requires_grad=True)
    assert set(variants) == set(VARIANTS) - (set() if d_in == d_out else {"mha", "mha_no_weights"})
    source = variants["chapter3"]
    with torch.no_grad():
        source.out_proj.bias.normal_()  # zeros would hide a bias that is not copied
        for variant in variants.values():
            copy_weights(source, variant)
    expected = fused(source, x)
    (true_gradient,) = torch.autograd.grad(expected.square().sum(), x)
    for name, variant in variants.items():
        with torch.no_grad():
            for mode in (True, False):  # nn.MultiheadAttention takes another path in evaluation
                torch.testing.assert_close(variant.train(mode)(x), expected, atol=1e-5, rtol=0, msg=name)
        if name != "flex":  # no backward pass on a CPU
            (gradient,) = torch.autograd.grad(variant.train()(x).square().sum(), x)
            torch.testing.assert_close(gradient, true_gradient, atol=2e-5, rtol=1e-5, msg=name)


def test_gradients_of_the_weights_agree():
    variants, x = build_variants(12, 12, 9, 3, True), torch.randn(2, 9, 12)
    for name, variant in variants.items():
        if name != "flex":
            variant(x).square().sum().backward()
    theirs = {name: p.grad for name, p in variants["chapter3"].named_parameters()}
    three = torch.cat([theirs[f"{name}.weight"] for name in ("W_query", "W_key", "W_value")])
    einsum = variants["einsum"]
    found = [
        torch.cat([einsum.W_query.grad, einsum.W_key.grad, einsum.W_value.grad], dim=1).T,
        variants["mha"].multihead_attn.in_proj_weight.grad,
    ]
    found += [variants[name].qkv.weight.grad for name in ("combined", "sdpa", "sdpa_mask")]
    found += [
        torch.cat([getattr(head, name).weight.grad for name in ("W_query", "W_key", "W_value") for head in variants["wrapper"].heads])
    ]
    for gradient in found:
        torch.testing.assert_close(gradient, three, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", VARIANTS)
def test_no_variant_sees_the_future(name):
    variant, x = build_variants(8, 8, 7, 2)[name].eval(), torch.randn(1, 7, 8)
    changed = x.clone()
    changed[0, 4] += 3
    with torch.no_grad():
        before, after = variant(x), variant(changed)
    assert torch.equal(before[0, :4], after[0, :4]) and not before.isnan().any()
    assert (before[0, 4:] - after[0, 4:]).abs().amax(dim=-1).min() > 1e-4


def test_the_mask_of_variant_6_is_right_side_up():
    torch.manual_seed(4)
    masked = MHAPyTorchSDPAWithoutFlash(6, 8, 2, 5)
    torch.manual_seed(4)
    plain, x = MHAPyTorchScaledDotProduct(6, 8, 2, 5), torch.randn(3, 5, 6)
    output = masked(x)
    torch.testing.assert_close(output, plain(x), atol=1e-6, rtol=1e-5)
    first_value = masked.proj(masked.qkv(x[:, :1]).chunk(3, dim=-1)[2])  # the first token attends to itself only
    torch.testing.assert_close(output[:, :1], first_value, atol=1e-6, rtol=1e-5)
    assert masked.allowed.dtype == torch.bool and masked.allowed[0].tolist() == [True] + 4 * [False]
    assert not any("mask" in key or "allowed" in key for key in masked.state_dict())


def test_chapter_3s_classes_are_what_they_are_called():
    assert issubclass(Ch03_MHA, MultiHeadAttention) and Ch03_MHA.forward is MultiHeadAttention.forward
    wrapper = Ch03_MHA_Wrapper(6, 4, 5, 0.0, 3)
    assert isinstance(wrapper.heads[0], CausalAttention) and wrapper(torch.randn(2, 5, 6)).shape == (2, 5, 12)
    assert wrapper.out_proj.weight.shape == (12, 12)


@pytest.mark.parametrize("combined", COMBINED)
def test_a_combined_layer_draws_the_numbers_of_three(combined):
    torch.manual_seed(6)
    theirs = Ch03_MHA(10, 8, 5, 0.0, 2)
    torch.manual_seed(6)
    mine = combined(10, 8, 2, 5)
    assert torch.equal(mine.qkv.weight, torch.cat([theirs.W_query.weight, theirs.W_key.weight, theirs.W_value.weight]))
    assert torch.equal(mine.proj.weight, theirs.out_proj.weight) and torch.equal(mine.proj.bias, theirs.out_proj.bias)
    assert len(list(mine.parameters())) == 3


def test_einsum_is_initialized_like_a_linear_layer():
    layer = MHAEinsum(400, 16, 4, 0.0, 2, qkv_bias=True)
    for name in ("W_query", "W_key", "W_value", "bias_q", "bias_k", "bias_v"):
        largest = getattr(layer, name).abs().max().item()
        assert (0.7 if name.startswith("bias") else 0.99) / 20 < largest <= 1 / 20  # 1 / sqrt(d_in): 400 inputs, not 16
    before = layer.W_key.clone()
    layer.reset_parameters()
    assert not torch.equal(before, layer.W_key)
    assert {name for name, _ in MHAEinsum(4, 4, 4, 0.0, 2).named_parameters()} >= {"W_query", "W_key", "W_value", "out_proj.weight"}


def test_dropout_acts_in_training_only():
    x = torch.randn(2, 30, 8)
    for variant in (cls(8, 8, 2, 30, dropout=0.5) for cls in (*COMBINED[:3], MHAPyTorchClass)):
        assert not torch.equal(variant(x), variant(x))
        assert torch.equal(variant.eval()(x), variant(x))
    with pytest.raises(ValueError, match="no dropout"):
        MHAPyTorchFlexAttention(8, 8, 2, 30, dropout=0.5)


def test_nn_multihead_attention_has_one_projection_each_and_one_width():
    for qkv_bias in (False, True):
        names = {name for name, _ in MHAPyTorchClass(8, 8, 2, 5, qkv_bias=qkv_bias).named_parameters()}
        assert names == {f"multihead_attn.{name}" for name in ("in_proj_weight", "out_proj.weight", "out_proj.bias")} | (
            {"multihead_attn.in_proj_bias"} if qkv_bias else set()
        )
    with pytest.raises(ValueError, match="d_in is 6 and d_out 8"):
        MHAPyTorchClass(6, 8, 2, 5)


@pytest.mark.parametrize("name", VARIANTS)
def test_inputs_that_do_not_fit_are_refused(name):
    variant = build_variants(8, 8, 5, 2)[name]
    for shape, message in (((1, 6, 8), "6 tokens are more than the context_length 5"), ((1, 5, 7), r"\(1, 5, 7\)")):
        with pytest.raises(ValueError, match=message):
            variant(torch.randn(shape))


@pytest.mark.parametrize("cls", [*COMBINED, MHAPyTorchClass])
def test_heads_that_do_not_divide_the_width_are_refused(cls):
    with pytest.raises(ValueError, match="10 is not divisible by num_heads 4"):
        cls(10, 10, 4, 5)
    with pytest.raises(ValueError, match="10 is not divisible by num_heads 4"):
        MHAEinsum(10, 10, 5, 0.0, 4)


def test_versions_compare_as_numbers():
    assert normalize_version("2.13.0+cpu") == (2, 13, 0) > normalize_version(MIN_TORCH_VERSION) > normalize_version("2.4.1")
    assert normalize_version("2.6.0.dev20241112+cu121") == (2, 6, 0) and normalize_version("2.5") == normalize_version("2.5.0")
    with pytest.raises(ValueError, match="is not a version"):
        normalize_version("two")


def test_flex_keeps_its_block_mask_and_its_rule_is_causal():
    flex = build_variants(8, 8, 40, 2)["flex"]
    with torch.no_grad():
        flex(torch.randn(1, 40, 8))
        kept = dict(flex.block_masks)
        flex(torch.randn(2, 40, 8))
        assert len(kept) == 1 and all(flex.block_masks[key] is block_mask for key, block_mask in kept.items())
        flex(torch.randn(1, 9, 8))
    assert len(flex.block_masks) == 2
    places = torch.arange(4)
    assert torch.equal(causal(0, 0, places[:, None], places), torch.ones(4, 4).tril().bool())
