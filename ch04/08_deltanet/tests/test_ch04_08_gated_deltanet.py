"""Gated DeltaNet: loops = steps = chunks = another library, gradients included; stepwise = whole text however it is cut."""

import random

import pytest
import torch
import torch.nn.functional as F
from gated_deltanet import GatedDeltaNet, GatedMultiHeadAttention, GPTModel, delta_rule, delta_rule_steps, is_deltanet, l2norm
from plot_memory_estimates_gated_deltanet import calc_bytes_total_mix
from previous_chapters import generate_text_simple_cached

CFG = {"vocab_size": 61, "context_length": 40, "emb_dim": 16, "n_heads": 4, "n_layers": 5, "drop_rate": 0.1, "qkv_bias": False}
CLOSE = {"atol": 5e-6, "rtol": 1e-4}
strides = pytest.mark.parametrize("stride", [-1, 0, 1, 3])


def seeded(stride, **changes):
    torch.manual_seed(7)
    return GPTModel({**CFG, "deltanet_stride": stride, **changes}).eval()


@torch.no_grad()
def plain(model, ids):
    return model(ids)


@torch.no_grad()
def in_chunks(model, ids, sizes):
    return torch.cat([model(piece, use_cache=True) for piece in ids.split(sizes, dim=1)], dim=1)


def random_sizes(rng, total):
    sizes = []
    while sum(sizes) < total:
        sizes.append(rng.randint(1, min(39, total - sum(sizes))))
    return sizes


def by_loops(layer, x):
    """Every text, head, token, row and column of the state on its own, from the definition."""
    width, rows = layer.head_dim, []
    for text in x:
        states = [[[torch.zeros((), dtype=x.dtype)] * width for _ in range(width)] for _ in range(layer.num_heads)]
        for token in text:
            heads = []
            for head, state in enumerate(states):
                part = slice(head * width, (head + 1) * width)
                query, key, value = (w(token)[part] for w in (layer.W_query, layer.W_key, layer.W_value))
                query, key = (vector / (vector @ vector + 1e-6).sqrt() for vector in (query, key))
                alpha = torch.exp(-layer.A_log[head].exp() * torch.log(1 + torch.exp(layer.W_alpha(token)[head] + layer.dt_bias[head])))
                beta = 1 / (1 + torch.exp(-layer.W_beta(token)[head]))
                state[:] = [[alpha * entry for entry in row] for row in state]
                delta = [beta * (value[j] - sum(key[i] * state[i][j] for i in range(width))) for j in range(width)]
                state[:] = [[state[i][j] + key[i] * delta[j] for j in range(width)] for i in range(width)]
                y = torch.stack([sum(query[i] * state[i][j] for i in range(width)) for j in range(width)]) / width**0.5
                y = layer.norm_scale * y / (y.square().mean() + 1e-6).sqrt()
                gate = layer.W_gate(token)[part]
                heads.append(y * gate / (1 + torch.exp(-gate)))
            rows.append(layer.out_proj(torch.cat(heads)))
    return torch.stack(rows).view(*x.shape[:2], -1)


@pytest.mark.parametrize(("chunk_size", "qkv_bias"), [(1, True), (3, False), (4, True), (9, False), (64, True)])
def test_values_and_gradients_of_steps_and_chunks_are_those_of_plain_loops(chunk_size, qkv_bias):
    torch.manual_seed(3)
    layer, x = GatedDeltaNet(10, 12, 0.0, 4, qkv_bias).double(), torch.randn(2, 9, 10, dtype=torch.float64, requires_grad=True)
    layer.chunk_size = chunk_size
    torch.nn.init.normal_(layer.norm_scale)
    expected, mine = by_loops(layer, x), layer(x)
    torch.testing.assert_close(mine, expected, atol=1e-10, rtol=1e-8)
    weights = [x, *layer.parameters()]
    theirs = torch.autograd.grad(expected.square().sum(), weights)
    torch.testing.assert_close(torch.autograd.grad(mine.square().sum(), weights), theirs, atol=1e-9, rtol=1e-7)


@pytest.mark.parametrize("chunk_size", [1, 7, 32, 100])
def test_the_rule_is_that_of_qwen3_next_in_transformers(chunk_size):
    """With a state from before and over several chunks; there, tokens come before heads, and queries are divided inside."""
    modeling = pytest.importorskip("transformers.models.qwen3_next.modeling_qwen3_next")
    torch.manual_seed(5)
    queries, keys, values = torch.randn(3, 2, 3, 70, 8)
    queries, keys = l2norm(queries), l2norm(keys)
    log_alpha, beta, state = -torch.rand(2, 3, 70), torch.rand(2, 3, 70), torch.randn(2, 3, 8, 8)
    outputs, last = delta_rule(queries / 8**0.5, keys, values, log_alpha, beta, state, chunk_size)
    swapped = [part.transpose(1, 2) for part in (queries, keys, values, log_alpha, beta)]
    theirs, their_last = modeling.torch_recurrent_gated_delta_rule(*swapped, initial_state=state, output_final_state=True)
    torch.testing.assert_close(outputs, theirs.transpose(1, 2), **CLOSE)
    torch.testing.assert_close(last, their_last, **CLOSE)


@pytest.mark.parametrize("qkv_bias", [False, True])
def test_gated_attention_is_the_fused_call_times_the_gate(qkv_bias):
    att, x = GatedMultiHeadAttention(10, 24, 7, 0.0, 4, qkv_bias), torch.randn(2, 7, 10, requires_grad=True)
    query, key, value = (w(x).view(2, 7, 4, 6).transpose(1, 2) for w in (att.W_query, att.W_key, att.W_value))
    fused = F.scaled_dot_product_attention(query, key, value, is_causal=True).transpose(1, 2).reshape(2, 7, 24)
    expected, mine = att.out_proj(fused / (1 + torch.exp(-att.W_gate(x)))), att(x)
    torch.testing.assert_close(mine, expected, **CLOSE)
    weights = [x, *att.parameters()]
    theirs = torch.autograd.grad(expected.square().sum(), weights)
    torch.testing.assert_close(torch.autograd.grad(mine.square().sum(), weights), theirs, atol=1e-5, rtol=1e-4)
    with pytest.raises(ValueError, match="0 cached \\+ 8 new tokens do not fit into context_length 7"):
        att(torch.randn(1, 8, 10))


@strides
def test_any_cutting_of_a_text_gives_the_logits_of_the_whole_and_the_estimated_bytes(stride):
    rng, model = random.Random(1), seeded(stride)
    for trial in range(12):
        ids = torch.randint(61, (rng.randint(1, 4), rng.randint(1, 40)))
        model.reset_kv_cache()
        stepwise = in_chunks(model, ids, random_sizes(rng, ids.shape[1]))
        torch.testing.assert_close(stepwise, plain(model, ids), **CLOSE)
        in_memory = sum(buffer.untyped_storage().nbytes() for buffer in model.buffers())
        assert in_memory == calc_bytes_total_mix(*ids.shape, 16, 5, 4, 4, stride)


@strides
def test_rows_may_be_reordered_and_a_text_can_be_taken_back_only_without_a_state(stride):
    rng, model = random.Random(2), seeded(stride)
    for trial in range(6):
        read = rng.randint(2, 30)
        ids, length = torch.randint(61, (3, 40)), rng.randint(1, read - 1)
        model.reset_kv_cache()
        in_chunks(model, ids[:, :read], random_sizes(rng, read))
        model.crop_kv_cache(read)  # nothing to take back
        if stride:  # refused before any layer has forgotten something
            with pytest.raises(ValueError, match=f"cannot go back to {length} tokens: the state holds all {read} in one"):
                model.crop_kv_cache(length)
            length = read
        model.crop_kv_cache(length)
        rows = torch.tensor([2, 0, 2, 1])
        model.reorder_kv_cache(rows)
        text = torch.cat([ids[rows, :length], torch.randint(61, (4, 40 - length))], dim=1)
        stepwise = in_chunks(model, text[:, length:], random_sizes(rng, 40 - length))
        torch.testing.assert_close(stepwise, plain(model, text)[:, length:], **CLOSE)


@strides
def test_without_use_cache_nothing_is_read_or_changed_and_a_wrong_text_is_refused(stride):
    model, ids = seeded(stride), torch.randint(61, (2, 40))
    in_chunks(model, ids[:, :35], 35)
    plain(model, torch.randint(61, (3, 40)))
    for wrong, message in ((ids[:, :6], "35 cached \\+ 6 new"), (ids[:1, :1], "reset"), (torch.full((2, 1), 61), "vocabulary")):
        with pytest.raises(ValueError, match=message):
            model(wrong, use_cache=True)
    torch.testing.assert_close(in_chunks(model, ids[:, 35:], 5), plain(model, ids)[:, 35:], **CLOSE)


@strides
def test_generation_is_the_same_stepwise_and_counts_its_passes(stride):
    model, ids, seen = seeded(stride), torch.randint(61, (2, 6)), []
    expected = generate_text_simple_cached(model, ids, 9, use_cache=False)
    hook = model.register_forward_hook(lambda _, inputs, logits: seen.append(inputs[0].shape[1]))
    for again in range(2):  # generation resets what the run before left
        assert torch.equal(generate_text_simple_cached(model, ids, 9), expected)
    hook.remove()
    assert seen == ([6] + [1] * 8) * 2


def test_states_have_the_number_type_of_the_keys_and_are_not_saved():
    model, ids = seeded(3).to(torch.bfloat16), torch.randint(61, (2, 9))
    torch.testing.assert_close(in_chunks(model, ids, [4, 1, 4]), plain(model, ids), atol=0.06, rtol=0.06)
    state = model.trf_blocks[0].att.state
    assert state.dtype == torch.bfloat16 and state.shape == (2, 4, 4, 4)
    seeded(3).load_state_dict(model.float().state_dict(), strict=True)


def test_layers_are_split_three_to_one_and_an_incomplete_group_has_no_full_layer():
    for n_layers, full in ((48, 12), (16, 4), (13, 3), (3, 0)):
        kinds = [type(block.att) for block in seeded(3, n_layers=n_layers).trf_blocks]
        assert kinds.count(GatedMultiHeadAttention) == full and kinds[3::4] == [GatedMultiHeadAttention] * full
    assert [is_deltanet(layer, 1) for layer in range(3)] == [True, False, True]
    assert not any(is_deltanet(n, 0) for n in range(9)) and all(is_deltanet(n, -1) for n in range(9))
    default = {name: size for name, size in CFG.items()}
    assert list(GPTModel(default).state_dict()) == list(seeded(3).state_dict())


@pytest.mark.parametrize("num_heads", [1, 2, 16])
def test_gates_stay_between_0_and_1_and_their_gradients_finite(num_heads):
    layer, x = GatedDeltaNet(16, 16, 0.0, num_heads), torch.randn(2, 50, 16)
    assert layer.A_log.isfinite().all() and layer.dt_bias.eq(1).all()
    for size in (1.0, 1e3):  # inputs so large that a token may wipe out the whole state
        alpha = layer.log_alpha(size * x).exp()
        assert ((alpha >= 0) & (alpha <= 1)).all()
        layer(size * x).square().mean().backward()
        assert all(weight.grad.isfinite().all() for weight in layer.parameters())
    zeros = torch.zeros(3, 4, requires_grad=True)
    l2norm(zeros).sum().backward()
    assert zeros.grad.isfinite().all() and torch.allclose(l2norm(torch.randn(5, 8)).norm(dim=-1), torch.ones(5))


def test_dropout_and_weights_in_the_order_of_their_draws():
    layer = GatedDeltaNet(8, 16, 0.5, 4, qkv_bias=True)
    names = [name for name, _ in layer.named_parameters() if name.endswith("weight")]
    assert names == [f"{name}.weight" for name in ("W_query", "W_key", "W_value", "W_gate", "W_beta", "W_alpha", "out_proj")]
    assert layer.W_query.bias is not None and layer.W_gate.bias is layer.W_beta.bias is layer.W_alpha.bias is None
    dropped = []
    layer.out_proj.register_forward_hook(lambda _, inputs, output: dropped.append((inputs[0] == 0).float().mean().item()))
    x = torch.randn(2, 50, 8)
    layer.train()(x), layer.eval()(x)
    assert 0.4 < dropped[0] < 0.6 and dropped[1] == 0
    for build in (lambda: GatedDeltaNet(8, 10, 0.0, 4), lambda: GatedMultiHeadAttention(8, 10, 5, 0.0, 4)):
        with pytest.raises(ValueError, match="10 is not divisible by num_heads 4"):
            build()


def test_the_last_write_is_read_back_whatever_the_state_held():
    keys, values = l2norm(torch.randn(2, 3, 30, 8)), torch.randn(2, 3, 30, 8)
    kept, all_of_it = torch.zeros(2, 3, 30), torch.ones(2, 3, 30)
    outputs, _ = delta_rule_steps(keys, keys, values, kept, all_of_it, torch.randn(2, 3, 8, 8))
    torch.testing.assert_close(outputs, values, atol=1e-4, rtol=1e-4)
    outputs, _ = delta_rule_steps(keys, 2 * keys, values, kept, all_of_it, torch.randn(2, 3, 8, 8))
    assert outputs[:, :, -1].abs().mean() > 1e3  # keys longer than sqrt(2): each correction overshoots
