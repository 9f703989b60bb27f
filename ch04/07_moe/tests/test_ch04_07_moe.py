"""A mixture of experts: equal to a plain loop over tokens, gradients included; to the dense network where it must be; cached = uncached."""

import random

import gpt_with_kv_ffn
import gpt_with_kv_mha
import gpt_with_kv_moe
import pytest
import torch
from gpt_with_kv_moe import FeedForward, MoEFeedForward, expert_shares, load_balancing_loss, moe_layers
from previous_chapters import generate_text_simple_cached

CFG = {"vocab_size": 61, "context_length": 24, "emb_dim": 16, "n_heads": 4, "n_layers": 3, "drop_rate": 0.1, "qkv_bias": False}
EXPERTS = {"hidden_dim": 12, "num_experts": 5, "num_experts_per_tok": 2, "num_shared_experts": 0}
CLOSE = {"atol": 2e-6, "rtol": 1e-5}
choices = pytest.mark.parametrize(("experts", "top_k", "shared"), [(1, 1, 0), (5, 1, 0), (5, 2, 0), (4, 4, 0), (5, 2, 2)])


def layer(experts=5, top_k=2, shared=0):
    return MoEFeedForward({**CFG, **EXPERTS, "num_experts": experts, "num_experts_per_tok": top_k, "num_shared_experts": shared})


def seeded(**changes):
    torch.manual_seed(7)
    return gpt_with_kv_moe.GPTModel({**CFG, **EXPERTS, **changes}).eval()


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


def swiglu(token, fc1, fc2, fc3):
    gate = fc1 @ token
    return fc3 @ (gate / (1 + torch.exp(-gate)) * (fc2 @ token))


def by_loops(moe, x):
    """Every token on its own, from the definition: sort the experts by score, take the first, weigh them by exp(score)."""
    rows = []
    for token in x.flatten(0, 1):
        scores = [moe.gate.weight[expert] @ token for expert in range(moe.num_experts)]
        best = sorted(range(moe.num_experts), key=lambda expert: -scores[expert].item())[: moe.num_experts_per_tok]
        total = sum(scores[expert].exp() for expert in best)
        experts = [[part[expert].weight for part in (moe.fc1, moe.fc2, moe.fc3)] for expert in best]
        parts = [scores[expert].exp() / total * swiglu(token, *weights) for expert, weights in zip(best, experts, strict=True)]
        if moe.shared is not None:  # the shared experts one by one: slices of the wide network
            wide, width = moe.shared, EXPERTS["hidden_dim"]
            for start in range(0, wide.fc1.out_features, width):
                part = slice(start, start + width)
                parts.append(swiglu(token, wide.fc1.weight[part], wide.fc2.weight[part], wide.fc3.weight[:, part]))
        rows.append(sum(parts))
    return torch.stack(rows).view_as(x)


@choices
def test_values_and_gradients_are_those_of_plain_loops(experts, top_k, shared):
    moe, x = layer(experts, top_k, shared).double(), torch.randn(2, 7, 16, dtype=torch.float64, requires_grad=True)
    expected, mine = by_loops(moe, x), moe(x)
    torch.testing.assert_close(mine, expected)
    weights = [x, *moe.parameters()]
    theirs = torch.autograd.grad(expected.square().sum(), weights, allow_unused=True)
    found = torch.autograd.grad(mine.square().sum(), weights, allow_unused=True)
    for weight, one, two in zip(weights, found, theirs, strict=True):  # an expert that no token chose has no gradient in either
        torch.testing.assert_close(torch.zeros_like(weight) if one is None else one, torch.zeros_like(weight) if two is None else two)
    assert (found[1].abs().max() > 1e-9) == (top_k > 1)  # the router learns through its weights, and a single weight is always 1


@pytest.mark.parametrize(("experts", "top_k"), [(1, 1), (4, 1), (4, 3)])
def test_experts_with_the_same_weights_are_the_dense_network(experts, top_k):
    dense, moe, x = FeedForward({**CFG, **EXPERTS}), layer(experts, top_k), torch.randn(2, 7, 16)
    for name, weight in dense.named_parameters():
        for expert in getattr(moe, name.split(".")[0]):
            expert.weight.data.copy_(weight.data)
    torch.testing.assert_close(moe(x), dense(x), **CLOSE)
    part = dense.fc1(x)
    torch.testing.assert_close(dense(x), dense.fc3(part * part.sigmoid() * dense.fc2(x)), **CLOSE)
    assert all(weight.shape == (12, 16) for weight in (dense.fc1.weight, dense.fc2.weight)) and len(dense.state_dict()) == 3


def test_models_draw_the_same_numbers_before_their_first_feed_forward_and_no_experts_are_the_dense_model():
    moe, none = seeded(), seeded(num_experts=0)
    torch.manual_seed(7)
    full = gpt_with_kv_mha.GPTModel(CFG)
    torch.manual_seed(7)
    dense = gpt_with_kv_ffn.GPTModel({**CFG, **EXPERTS}).eval()
    for model in (moe, dense):
        for mine, theirs in zip(model.trf_blocks[0].att.parameters(), full.trf_blocks[0].att.parameters(), strict=True):
            assert torch.equal(mine, theirs)
    ids = torch.randint(61, (2, 9))
    assert torch.equal(plain(none, ids), plain(dense, ids)) and not moe_layers(none)
    assert len(moe_layers(moe)) == len(moe_layers(seeded(num_experts=1, num_experts_per_tok=1))) == 3
    dense.load_state_dict(none.state_dict(), strict=True)
    names = [name.split(".")[0] for name, _ in layer().named_parameters()]
    assert names == ["gate"] + [name for name in ("fc1", "fc2", "fc3") for _ in range(5)]


@pytest.mark.parametrize(
    "make", [seeded, lambda: seeded(num_experts=0), lambda: seeded(num_shared_experts=1)], ids=["moe", "dense", "shared"]
)
def test_any_chunking_crop_and_order_gives_the_logits_without_a_cache(make):
    rng, model = random.Random(1), make()
    for trial in range(8):
        b, read = rng.randint(1, 4), rng.randint(2, 20)
        ids, length = torch.randint(61, (b, 24)), rng.randint(1, read)
        model.reset_kv_cache()
        torch.testing.assert_close(in_chunks(model, ids[:, :read], random_sizes(rng, read)), plain(model, ids[:, :read]), **CLOSE)
        model.crop_kv_cache(length)
        rows = torch.randint(b, (rng.randint(1, 5),))
        model.reorder_kv_cache(rows)
        text = torch.cat([ids[rows, :length], torch.randint(61, (len(rows), 24 - length))], dim=1)
        cached = in_chunks(model, text[:, length:], random_sizes(rng, 24 - length))
        torch.testing.assert_close(cached, plain(model, text)[:, length:], **CLOSE)
    expected = generate_text_simple_cached(model, ids[:, :3], 12, use_cache=False)
    for again in range(2):  # generation resets what the run before left
        assert torch.equal(generate_text_simple_cached(model, ids[:, :3], 12), expected)


def test_bfloat16_and_autocast():
    model, ids = seeded(num_shared_experts=1).to(torch.bfloat16), torch.randint(61, (2, 9))
    for block in model.trf_blocks:  # a router that rounding cannot change: it sees no difference between experts, so the first ones win
        block.ff.gate.weight.data.zero_()
    logits = in_chunks(model, ids, [4, 1, 4])
    torch.testing.assert_close(logits, plain(model, ids), atol=0.05, rtol=0.05)
    assert logits.dtype == model.trf_blocks[0].att.cache_k.dtype == torch.bfloat16
    moe, x = layer(), torch.randn(2, 7, 16)
    with torch.autocast("cpu", torch.bfloat16):
        moe(x).square().mean().backward()
    assert moe.gate.weight.grad.dtype == torch.float32 and moe.gate.weight.grad.abs().sum() > 0


def test_the_load_balancing_loss_is_one_for_equal_shares_and_its_formula_otherwise():
    moe = layer(4, 2)
    even = torch.tensor([[9.0, 9, 0, 0], [0, 9, 9, 0], [0, 0, 9, 9], [9, 0, 0, 9]])
    moe.routing = (even, even.topk(2).indices)
    assert expert_shares(moe).tolist() == [0.25] * 4 and load_balancing_loss(moe).item() == pytest.approx(1.0)
    one = torch.tensor([[50.0, 0, 0, 0]] * 3)
    moe.routing = (one, one.topk(1).indices)
    assert load_balancing_loss(moe).item() == pytest.approx(4.0)  # all choices and all probability on one of 4
    scores = torch.randn(30, 4)
    moe.routing = (scores, scores.topk(2).indices)
    counts, probabilities = [0] * 4, [0.0] * 4
    for row in scores.tolist():
        total = sum(torch.tensor(row).exp().tolist())
        for expert in range(4):
            counts[expert] += sorted(row, reverse=True).index(row[expert]) < 2
            probabilities[expert] += torch.tensor(row[expert]).exp().item() / total / 30
    expected = 4 * sum(count / 60 * probability for count, probability in zip(counts, probabilities, strict=True))
    assert load_balancing_loss(moe).item() == pytest.approx(expected, rel=1e-5)
    assert load_balancing_loss(seeded(num_experts=0)) == 0.0


def test_descending_the_load_balancing_loss_alone_evens_out_the_use_of_experts():
    torch.manual_seed(3)
    moe, x = layer(4, 2), torch.randn(2, 20, 16) + 0.5
    moe.gate.weight.data[0] += 0.5  # nearly every token chooses the first expert
    optimizer, largest = torch.optim.Adam(moe.gate.parameters(), lr=0.02), []
    for step in range(60):
        moe(x)
        largest.append(expert_shares(moe).max().item())
        optimizer.zero_grad()
        load_balancing_loss(moe).backward()
        optimizer.step()
    assert largest[0] > 0.45 and largest[-1] < 0.32  # of two choices each, one half is the most that an expert can have


def test_routing_keeps_no_graph_outside_training():
    model, ids = seeded(), torch.randint(61, (2, 9))
    model(ids)
    assert not any(moe.routing[0].requires_grad for moe in moe_layers(model))
    model.train()(ids)
    assert all(moe.routing[0].requires_grad for moe in moe_layers(model))
    assert [tuple(part.shape) for part in moe_layers(model)[0].routing] == [(18, 5), (18, 2)]


@pytest.mark.parametrize(("experts", "top_k"), [(3, 4), (3, 0), (1, 2)])
def test_a_choice_that_the_experts_do_not_allow_is_refused(experts, top_k):
    with pytest.raises(ValueError, match=f"{top_k} is not between 1 and num_experts {experts}"):
        layer(experts, top_k)
