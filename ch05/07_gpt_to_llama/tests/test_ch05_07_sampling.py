"""sampling.py: equal to Hugging Face's logits processors, filters that keep what they promise, draws that follow the odds.

Run it:  pytest ch05/07_gpt_to_llama/tests/test_ch05_07_sampling.py
"""

import pytest
import torch
from llama import Llama3ModelFast, generate_text_basic_stream
from previous_chapters import keep_top_k
from sampling import keep_min_p, keep_top_p, make_sampler, penalize_repetition
from transformers.generation.logits_process import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)


def random_logits(b=16, vocab_size=300, seed=0, scale=3.0):
    draws = torch.Generator().manual_seed(seed)
    return scale * torch.randn(b, vocab_size, generator=draws), torch.randint(0, vocab_size, (b, 40), generator=draws)


@pytest.fixture
def odds(monkeypatch):
    """make_sampler's probabilities instead of a draw: what it hands to torch.multinomial."""
    seen = []
    monkeypatch.setattr(torch, "multinomial", lambda p, num_samples, generator: seen.append(p) or torch.zeros(len(p), 1).long())
    return seen


@pytest.mark.parametrize("ours, theirs", [
    (lambda logits, ids: penalize_repetition(logits, ids, 1.3), RepetitionPenaltyLogitsProcessor(1.3)),
    (lambda logits, ids: penalize_repetition(logits, ids, 0.7), RepetitionPenaltyLogitsProcessor(0.7)),
    *[(lambda logits, ids, k=k: keep_top_k(logits, k), TopKLogitsWarper(k)) for k in (1, 5, 300, 900)],
    *[(lambda logits, ids, p=p: keep_top_p(logits, p), TopPLogitsWarper(p)) for p in (0.05, 0.5, 0.9, 0.999, 1.0)],
    *[(lambda logits, ids, p=p: keep_min_p(logits, p), MinPLogitsWarper(p)) for p in (0.0, 0.02, 0.3, 1.0)],
])
def test_each_step_equals_hugging_faces(ours, theirs):
    for seed, scale in enumerate((0.1, 1.0, 4.0)):
        logits, ids = random_logits(seed=seed, scale=scale)
        before = logits.clone()
        assert torch.equal(ours(logits, ids), theirs(ids, logits.clone()))
        assert torch.equal(logits, before)  # the caller's logits stay as they are


@pytest.mark.parametrize("settings", [
    {"temperature": 0.7}, {"temperature": 1.6, "top_k": 20}, {"temperature": 0.8, "top_p": 0.9}, {"temperature": 2.5, "min_p": 0.1},
    {"temperature": 1.3, "top_k": 50, "top_p": 0.8, "min_p": 0.05, "repetition_penalty": 1.2},
])
def test_all_steps_together_equal_hugging_faces_in_its_order(settings, odds):
    logits, ids = random_logits(seed=7)
    kinds = {"repetition_penalty": RepetitionPenaltyLogitsProcessor, "temperature": TemperatureLogitsWarper, "top_k": TopKLogitsWarper,
             "top_p": TopPLogitsWarper, "min_p": MinPLogitsWarper}
    theirs = LogitsProcessorList([kind(settings[name]) for name, kind in kinds.items() if name in settings])
    make_sampler(**settings)(logits, ids)
    expected = torch.softmax(theirs(ids, logits.clone()), dim=-1)
    assert torch.equal(odds[0] > 0, expected > 0) and torch.allclose(odds[0], expected, atol=1e-6)


@pytest.mark.parametrize("p", [0.1, 0.5, 0.75, 0.95])
def test_top_p_keeps_the_smallest_set_that_reaches_p(p):
    logits, _ = random_logits(b=200, vocab_size=8, scale=1.5)
    probas = torch.softmax(logits, dim=-1)
    kept = keep_top_p(logits, p) > -torch.inf
    for row, mine in zip(probas.tolist(), kept.tolist(), strict=True):
        ranked = sorted(row, reverse=True)
        size = next(size for size in range(1, 9) if sum(ranked[:size]) >= p - 1e-6)
        assert sum(mine) == size and min(value for value, keep in zip(row, mine, strict=True) if keep) == ranked[size - 1]


def test_of_equal_logits_top_p_keeps_the_first_ones():
    logits = torch.zeros(2, 1000)
    logits[1, 400] = 20.0
    kept = keep_top_p(logits, 0.4995) > -torch.inf
    assert kept[0].nonzero().flatten().tolist() == list(range(500)) and kept[1].nonzero().flatten().tolist() == [400]


def test_neutral_settings_change_nothing(odds):
    logits, ids = random_logits(vocab_size=5000, scale=8.0)  # a wide range: the small probabilities vanish in rounding
    plain = torch.softmax(logits, dim=-1)
    make_sampler(1.0, top_k=5000, top_p=1.0, min_p=0.0, repetition_penalty=1.0)(logits, ids)
    assert torch.allclose(odds[0], plain, atol=1e-7) and torch.equal(odds[0] > 0, plain > 0)


def test_bfloat16_logits_are_filtered_with_the_exactness_of_float32(odds):
    logits, ids = random_logits(vocab_size=5000, scale=1.0)
    for dtype in (torch.float32, torch.bfloat16):  # sums of 5,000 small probabilities in bfloat16 stop far below 1
        make_sampler(1.0, top_p=0.9)(logits.bfloat16().to(dtype), ids)
    assert odds[1].dtype == torch.float32 and torch.equal(odds[0], odds[1])


def test_temperature_0_is_greedy_after_the_penalty():
    logits = torch.tensor([[3.0, 2.9, -1.0], [-0.1, -1.0, -0.2]])
    ids = torch.tensor([[0, 2], [0, 0]])
    assert make_sampler()(logits, ids).tolist() == [[0], [0]]
    assert make_sampler(repetition_penalty=1.1)(logits, ids).tolist() == [[1], [0]]  # -0.1 becomes -0.11
    assert make_sampler(repetition_penalty=3.0)(logits, ids).tolist() == [[1], [2]]  # a negative logit sinks too
    assert make_sampler(temperature=0.7, top_k=1, generator=torch.Generator().manual_seed(0))(logits, ids).tolist() == [[0], [0]]


def test_draws_follow_the_probabilities_among_the_kept():
    row = torch.tensor([2.0, 1.0, 0.0, -1.0])
    logits, ids = row.repeat(20_000, 1), torch.zeros(20_000, 1, dtype=torch.long)
    for settings, kept in (({"top_k": 3}, 3), ({"top_p": 0.9}, 2), ({"min_p": 0.2}, 2), ({}, 4)):
        drawn = make_sampler(0.7, generator=torch.Generator().manual_seed(0), **settings)(logits, ids)
        shares = torch.bincount(drawn[:, 0], minlength=4) / len(logits)
        assert torch.allclose(shares[:kept], torch.softmax(row[:kept] / 0.7, dim=0), atol=0.015), settings
        assert shares[kept:].sum() == 0


def test_a_seed_fixes_the_draws_and_the_global_numbers_stay():
    logits, ids = random_logits()
    torch.manual_seed(4)
    first, second = (make_sampler(1.0, generator=torch.Generator().manual_seed(9))(logits, ids) for _ in range(2))
    after = torch.rand(1)
    torch.manual_seed(4)
    assert torch.equal(first, second) and torch.equal(after, torch.rand(1))
    assert not torch.equal(first, make_sampler(1.0, generator=torch.Generator().manual_seed(10))(logits, ids))


@pytest.mark.parametrize("temperature", [1e-30, 1e-4, 50.0, 1e30])
def test_extreme_temperatures_and_logits_give_an_id(temperature):
    logits = torch.tensor([[3e38, -3e38, 0.0], [1.0, 1.0 + 1e-6, -torch.inf]])
    for dtype in (torch.float32, torch.bfloat16):
        drawn = make_sampler(temperature, top_k=2, top_p=0.9, min_p=0.1)(logits.to(dtype), torch.zeros(2, 1, dtype=torch.long))
        assert drawn[0] == 0 and drawn[1] < 2


@pytest.mark.parametrize("settings, message", [
    ({"temperature": -0.1}, "temperature is -0.1"), ({"temperature": float("nan")}, "temperature is nan"),
    ({"temperature": float("inf")}, "temperature is inf"), ({"top_k": 0}, "top_k is 0; it must be at least 1"),
    ({"top_p": 0.0}, "top_p is 0.0"), ({"top_p": 1.01}, "top_p is 1.01"), ({"min_p": -0.1}, "min_p is -0.1"),
    ({"min_p": 2.0}, "min_p is 2.0"),
    ({"repetition_penalty": 0.0}, "repetition_penalty is 0.0"), ({"repetition_penalty": float("nan")}, "repetition_penalty is nan"),
])
def test_bad_settings_are_named_in_one_line(settings, message):
    with pytest.raises(ValueError, match=message) as error:
        make_sampler(**settings)
    assert "\n" not in str(error.value)


def test_a_penalty_breaks_the_loop_of_a_greedy_model():
    torch.manual_seed(3)
    cfg = {"vocab_size": 50, "context_length": 64, "emb_dim": 32, "n_heads": 4, "n_layers": 1, "hidden_dim": 64, "n_kv_groups": 2,
           "rope_base": 10_000.0, "dtype": torch.float32}
    model = Llama3ModelFast(cfg).eval()

    def different(choose):
        return len({int(ids) for ids in generate_text_basic_stream(model, torch.tensor([[1, 2, 3]]), 40, choose=choose)})

    assert different(make_sampler(repetition_penalty=1e6)) == 40 > 2 * different(make_sampler())
