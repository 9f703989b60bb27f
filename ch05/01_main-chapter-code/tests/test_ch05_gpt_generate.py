"""Sampling follows the probabilities, cuts per row, stops per row, survives extreme logits; bad input is one line."""

import json
import math

import gpt_generate
import pytest
import torch
import torch.nn as nn
from gpt_generate import generate, keep_top_k, print_sampled_tokens, softmax_with_temperature, trim_input_tensor
from previous_chapters import GPT_CONFIG_124M, GPTModel, generate_text_simple

CFG = {**GPT_CONFIG_124M, "vocab_size": 40, "context_length": 12, "emb_dim": 16, "n_heads": 2, "n_layers": 1}


class FixedLogits(nn.Module):
    """A "model" that answers every position of row r with logits[r]."""

    def __init__(self, logits: torch.Tensor):
        super().__init__()
        self.logits = logits

    def forward(self, idx: torch.Tensor) -> torch.Tensor:
        return self.logits[:, None].expand(len(idx), idx.shape[1], -1)  # (b, num_tokens, vocab_size)


class Counter(nn.Module):
    """Row r predicts its last id plus one, so that each row reaches any id at its own time."""

    def forward(self, idx: torch.Tensor) -> torch.Tensor:
        return nn.functional.one_hot((idx + 1) % 40, 40).float()  # (b, num_tokens, vocab_size)


@pytest.fixture
def model():
    torch.manual_seed(123)
    return GPTModel(CFG).eval()


def within_binomial_error(counts, probas, draws):
    spread = (draws * probas * (1 - probas)).sqrt()
    return bool(((counts - draws * probas).abs() <= 5 * spread + 1).all())


@pytest.mark.parametrize("temperature", [0.3, 1.0, 4.0])
@pytest.mark.parametrize("top_k", [None, 1, 3, 9, 50])
def test_counts_are_within_binomial_error_of_the_softmax(temperature, top_k):
    logits = torch.tensor([[4.1, 3.6, 2.2, 2.9, 0.4, 1.1, 3.3, -0.7, -2.5]])
    out = generate(FixedLogits(logits.expand(4000, -1)), torch.zeros(4000, 1, dtype=torch.long), 1, 5, temperature, top_k)
    kept = logits.clone()
    if top_k is not None:
        for token in logits[0].argsort(descending=True)[top_k:]:
            kept[0, token] = -math.inf
    probas = torch.softmax(kept[0].double() / temperature, dim=0)
    counts = out[:, 1].bincount(minlength=9)
    assert within_binomial_error(counts, probas, 4000) and (counts[probas == 0] == 0).all()


def test_top_k_is_per_row_at_any_height():
    logits = torch.stack([torch.arange(6.0), torch.arange(6.0).flip(0) - 1000, torch.zeros(6)])
    kept = keep_top_k(logits, 2)
    assert kept.isfinite().tolist() == [[False] * 4 + [True] * 2, [True] * 2 + [False] * 4, [True] * 6]  # ties all stay
    assert torch.equal(kept[kept.isfinite()], logits[kept.isfinite()])
    assert torch.equal(keep_top_k(logits, 6), logits) and torch.equal(keep_top_k(logits, 99), logits)


def test_every_row_of_a_batch_draws_from_its_own_top_k():
    logits = torch.randn(3, 40) + torch.tensor([[0.0], [-50.0], [300.0]])
    out = generate(FixedLogits(logits), torch.zeros(3, 1, dtype=torch.long), 200, 5, temperature=1.5, top_k=3)
    for row, allowed in zip(out[:, 1:], logits.topk(3).indices):
        assert set(row.tolist()) == set(allowed.tolist())


@pytest.mark.parametrize("logits", [[3e38, 1e38, -3e38], [-3e38, -3e38, -3e38], [1e-45, 0.0, 0.0], [5.0, -math.inf, 4.0]])
@pytest.mark.parametrize("temperature", [1e-30, 0.1, 1.0, 1e30])
def test_extreme_logits_give_probabilities(logits, temperature):
    probas = softmax_with_temperature(torch.tensor([logits]), temperature)
    assert probas.isfinite().all() and abs(probas.sum().item() - 1) < 1e-5
    generate(FixedLogits(torch.tensor([logits])), torch.zeros(1, 1, dtype=torch.long), 3, 5, temperature, top_k=2)


@pytest.mark.parametrize("temperature", [0, -0.1, -math.inf, math.nan])
def test_softmax_refuses_what_is_no_temperature(temperature):
    with pytest.raises(ValueError, match="positive"):
        softmax_with_temperature(torch.randn(3), temperature)


def test_temperature_zero_and_top_k_one_are_greedy(model):
    idx = torch.randint(40, (3, 5))
    greedy = generate_text_simple(model, idx, 20, 12)
    assert torch.equal(generate(model, idx, 20, 12), greedy)
    assert torch.equal(generate(model, idx, 20, 12, temperature=5.0, top_k=1), greedy)
    assert torch.equal(generate(model, idx, 20, 12, temperature=0.0, top_k=7), greedy)


def test_batch_rows_are_what_each_row_alone_gives(model):
    idx = torch.randint(40, (4, 6))
    together = generate(model, idx, 15, 12)
    alone = torch.cat([generate(model, row[None], 15, 12) for row in idx])
    assert torch.equal(together, alone)


def test_input_is_not_changed_and_new_tokens_follow_it(model):
    idx = torch.randint(40, (2, 5))
    before = idx.clone()
    out = generate(model, idx, 7, 12, temperature=1.0)
    assert torch.equal(idx, before) and torch.equal(out[:, :5], idx) and out.shape == (2, 12)
    assert torch.equal(generate(model, idx, 0, 12), idx)


def test_context_is_cropped(model):
    idx = torch.randint(40, (1, 30))
    assert torch.equal(generate(model, idx, 5, 12)[:, 30:], generate(model, idx[:, -12:], 5, 12)[:, 12:])


def test_end_of_text_stops_each_row_before_appending_it():
    start = torch.tensor([[1], [4], [9]])
    out = generate(Counter(), start, 20, 5, eos_id=7)
    # row 0 writes 2..6, row 1 writes 5 and 6, row 2 counts on to 20 new tokens
    assert out[0].tolist() == [1, 2, 3, 4, 5, 6] + [7] * 15
    assert out[1].tolist() == [4, 5, 6] + [7] * 18
    assert out[2].tolist() == list(range(9, 30))
    both = generate(Counter(), start[:2], 20, 5, eos_id=7)
    assert both.tolist() == [[1, 2, 3, 4, 5, 6], [4, 5, 6, 7, 7, 7]]
    assert generate(Counter(), torch.tensor([[6]]), 20, 5, eos_id=7).tolist() == [[6]]


def test_prompt_may_contain_the_end_of_text():
    assert generate(Counter(), torch.tensor([[7]]), 2, 5, eos_id=7).tolist() == [[7, 8, 9]]


@pytest.mark.parametrize(
    "bad", [{"temperature": -1.0}, {"temperature": math.nan}, {"temperature": math.inf}, {"top_k": 0}, {"top_k": -3}]
)
def test_generate_refuses_bad_settings(model, bad):
    with pytest.raises(ValueError, match="temperature"):
        generate(model, torch.zeros(1, 2, dtype=torch.long), 3, 12, **bad)


@pytest.mark.parametrize(("max_new_tokens", "context_size"), [(-1, 12), (3, 0)])
def test_generate_refuses_bad_lengths(model, max_new_tokens, context_size):
    with pytest.raises(ValueError, match="need max_new_tokens"):
        generate(model, torch.zeros(1, 2, dtype=torch.long), max_new_tokens, context_size)


@pytest.mark.parametrize("ids", [[[40]], [[-1]], [[]]])
def test_ids_outside_the_vocabulary_are_refused(model, ids):
    with pytest.raises(ValueError):
        generate(model, torch.tensor(ids, dtype=torch.long), 3, 12)


@pytest.mark.parametrize(("length", "context", "new", "kept"), [(10, 8, 3, 5), (4, 8, 3, 4), (10, 8, 7, 1), (10, 8, 0, 8)])
def test_trim_keeps_the_last_columns_and_at_least_one(length, context, new, kept):
    ids = torch.arange(2 * length).view(2, length)
    trimmed = trim_input_tensor(ids, context, new)
    assert torch.equal(trimmed, ids[:, length - kept :])
    assert trimmed.shape[1] + new <= context


@pytest.mark.parametrize("new", [8, 9])
def test_trim_refuses_an_answer_as_long_as_the_context(new):
    with pytest.raises(AssertionError, match="below context_len"):
        trim_input_tensor(torch.zeros(1, 3), 8, new)


def test_printed_counts_add_up(capsys):
    print_sampled_tokens(torch.tensor([0.5, 0.25, 0.25, 0.0]), ["a", "b", "c", "d"])
    rows = [line.split(" x ") for line in capsys.readouterr().out.splitlines()]
    assert [word for _, word in rows] == ["a", "b", "c", "d"]
    counts = torch.tensor([int(count) for count, _ in rows])
    assert counts.sum() == 1000 and within_binomial_error(counts, torch.tensor([0.5, 0.25, 0.25, 0.0]), 1000)


# ---- the command line ----

@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights")
    cfg = {**CFG, "vocab_size": 50257, "emb_dim": 4, "qkv_bias": False}
    torch.manual_seed(123)
    torch.save(GPTModel(cfg).state_dict(), folder / "model.pth")
    (folder / "config.json").write_text(json.dumps(cfg), encoding="utf-8")
    return folder / "model.pth"


def call(weights, *more):
    return gpt_generate.command_line(["--weights", str(weights), "--device", "cpu", "--max_new_tokens", "3", *more])


def test_command_line_prints_prompt_and_answer(weights, capsys):
    assert call(weights, "--prompt", "Nell sang") == 0
    first = capsys.readouterr()
    assert first.out.startswith("Nell sang") and f"PyTorch {torch.__version__}" in first.err
    outputs = set()
    for seed in ("1", "1", "2"):
        call(weights, "--prompt", "Nell sang", "--temperature", "2", "--seed", seed)
        outputs.add(capsys.readouterr().out)
    assert len(outputs) == 2


BAD_CALLS = {
    "negative temperature": (["--temperature", "-1"], "temperature"),
    "nan temperature": (["--temperature", "nan"], "temperature"),
    "inf temperature": (["--temperature", "inf"], "temperature"),
    "top_k 0": (["--top_k", "0"], "top_k"),
    "tokens -1": (["--max_new_tokens", "-1"], "max_new_tokens"),
    "empty prompt": (["--prompt", ""], "empty"),
    "long prompt": (["--prompt", "the tide " * 30], "more than the context_length 12"),
    "end of text outside": (["--eos_id", "50257"], "outside the vocabulary"),
    "end of text negative": (["--eos_id", "-1"], "eos_id"),
    "missing weights": (["--weights", "no-such.pth"], "does not exist"),
    "unknown device": (["--device", "abacus"], "abacus"),
    "seed text": (["--seed", "x"], "seed"),
}


@pytest.mark.parametrize("name", BAD_CALLS)
def test_bad_call_is_one_line(name, weights, capsys):
    more, needed = BAD_CALLS[name]
    with pytest.raises(SystemExit) as caught:
        call(weights, *more)
    err = capsys.readouterr().err
    assert caught.value.code == 2 and err.count("\n") == 1 and needed in err, err


@pytest.mark.parametrize(
    "damage", ["truncated", "empty", "html", "other config", "config not json", "config lacks keys", "no config", "list", "extra key"]
)
def test_weights_that_do_not_fit_are_one_line(damage, weights, tmp_path, capsys):
    content, config = weights.read_bytes(), json.loads(weights.with_name("config.json").read_text(encoding="utf-8"))
    target, text = tmp_path / "model.pth", json.dumps(config)
    if damage == "truncated":
        content = content[: len(content) // 2]
    elif damage == "empty":
        content = b""
    elif damage == "html":
        content = b"<html>not found</html>"
    elif damage == "other config":
        text = json.dumps({**config, "emb_dim": 8})
    elif damage == "config not json":
        text = "{emb_dim: 4"
    elif damage == "config lacks keys":
        text = json.dumps({"emb_dim": 4})
    target.write_bytes(content)
    if damage == "list":
        torch.save([1, 2], target)
    elif damage == "extra key":
        torch.save({**torch.load(weights, weights_only=True), "rings": torch.zeros(19)}, target)
    if damage != "no config":
        (tmp_path / "config.json").write_text(text, encoding="utf-8")
    with pytest.raises(SystemExit) as caught:
        call(target)
    err = capsys.readouterr().err
    assert caught.value.code == 2 and err.count("\n") == 1 and tmp_path.name in err, err
