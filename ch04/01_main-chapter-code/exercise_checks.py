"""Checks for the exercises of chapter 4. In a notebook: check_4_1(your_function). From a shell:

python exercise_checks.py 4.1 my_answer.py
"""

import sys

import torch
import torch.nn as nn
from gpt import GPT_CONFIG_124M, MODEL_SIZES, FeedForward, GPTModel, generate_text_simple, tie_weights
from previous_chapters import MultiHeadAttention, exercise, expect_close, expect_equal, fail, passed, run_checks
from torch.utils.flop_counter import FlopCounterMode

TINY = {"vocab_size": 40, "context_length": 12, "emb_dim": 16, "n_heads": 4, "n_layers": 3, "drop_rate": 0.0, "qkv_bias": False}


def attempt(function, *args):
    """Return function(*args), or None while its exercise is not solved: lets a picture be drawn with your part left out."""
    try:
        return function(*args)
    except NotImplementedError:
        return None


def random_model(seed: int, **changes) -> GPTModel:
    """A tiny GPT in eval mode with random noise on every parameter, norms and biases too, so that forgetting one shows."""
    torch.manual_seed(seed)
    model = GPTModel({**TINY, **changes}).eval()
    for parameter in model.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    return model


def random_ids(b: int, num_tokens: int) -> torch.Tensor:
    return torch.randint(0, TINY["vocab_size"], (b, num_tokens))  # (b, num_tokens)


@exercise("4.1", answer="count_block")
def check_4_1(count_block):
    """Oracle: the modules themselves, counted without allocating them."""
    for emb_dim, qkv_bias in [(8, False), (8, True), (12, False), (768, True), (768, False)]:
        with torch.device("meta"):
            attention = MultiHeadAttention(emb_dim, emb_dim, 4, 0.0, 4, qkv_bias)
            feed_forward = FeedForward({"emb_dim": emb_dim})
        got = count_block(emb_dim, qkv_bias)
        where = f"count_block({emb_dim}, {qkv_bias})"
        if not isinstance(got, tuple) or len(got) != 2:
            fail("a tuple of two numbers", repr(got), where, "does your function return attention first and feed-forward second?")
        if not all(isinstance(value, int) for value in got):
            fail("two whole numbers", repr(got), where, "a division with / gives a float: did one slip in?")
        for name, module, value in zip(["attention", "feed-forward"], [attention, feed_forward], got):
            expected = sum(p.numel() for p in module.parameters())
            question = "which of the linear layers have a bias, how long is it, and does qkv_bias change that?"
            expect_equal(expected, value, f"{where}, {name}", question)
    passed("4.1", "at width 768 the feed-forward network has twice the parameters of attention")


@exercise("4.2", answer="get_config")
def check_4_2(get_config):
    """The four sizes, the base left alone, extra keys kept, unknown names refused."""
    base = {**GPT_CONFIG_124M, "drop_rate": 0.0, "note": "mine"}
    before = dict(base)
    for name, size in MODEL_SIZES.items():
        expect_equal({**before, **size}, get_config(base, name), f"get_config(base, {name!r})", "do all other keys keep the base's values?")
        expect_equal(before, base, "the base configuration afterwards", "did you change the dictionary you were given, or a copy of it?")
    expect_equal({**before, **MODEL_SIZES["gpt2-small"]}, get_config(base), "get_config(base)", "which size is the default?")
    wider = {**before, **MODEL_SIZES["gpt2-xl"]}
    question = "if the base is a large model, does the small size still set all three numbers?"
    expect_equal(before, get_config(wider, "gpt2-small"), "base of size XL, name gpt2-small", question)
    try:
        got = get_config(base, "gpt2-huge")
    except ValueError:
        passed("4.2")
        return
    except KeyError:
        fail("ValueError", "KeyError", "get_config(base, 'gpt2-huge')", "does the name reach a dictionary before you have looked at it?")
    fail("ValueError", repr(got), "get_config(base, 'gpt2-huge')", "what should a name that does not exist do?")


@exercise("4.2b", answer="calculate_size")
def check_4_2b(calculate_size):
    """Oracle: the published counts, and a tied model counted by PyTorch."""
    known = {"gpt2-small": (163_009_536, 124_412_160, 621.83), "gpt2-xl": (1_637_792_000, 1_557_380_800, 6247.68)}
    for name, expected in known.items():
        with torch.device("meta"):
            got = calculate_size(GPTModel({**GPT_CONFIG_124M, **MODEL_SIZES[name]}))
        if not isinstance(got, tuple | list) or len(got) != 3:
            fail("three numbers", repr(got), f"calculate_size of {name}", "do you return total, tied and MiB, in this order?")
        for part, want, value in zip(["total", "tied", "MiB"], expected, got):
            question = "is MiB 2**20 bytes, at 4 bytes a parameter?" if part == "MiB" else "which one table is shared when tied?"
            expect_close(want, value, f"{name}, {part}", question, atol=0.01)
    tied = tie_weights(random_model(1))
    count = sum(p.numel() for p in tied.parameters())
    question = "a tied model holds the table once: do you subtract it a second time?"
    expect_equal((count, count), tuple(calculate_size(tied))[:2], "a model that is tied already", question)
    passed("4.2b")


@exercise("4.3", answer="ThreeRateGPTModel")
def check_4_3(ThreeRateGPTModel):
    """A rate of 1 silences its place completely, so each place has an oracle without any random number."""
    source, ids = random_model(2), random_ids(2, 7)
    rates = ["drop_rate_emb", "drop_rate_attn", "drop_rate_shortcut"]
    base = {key: value for key, value in TINY.items() if key != "drop_rate"}
    embedded = source.tok_emb(ids) + source.pos_emb(torch.arange(7))  # (2, 7, 16)
    no_attention = embedded  # (2, 7, 16)
    for block in source.trf_blocks:
        no_attention = no_attention + block.att.out_proj.bias  # weights all zero: only the bias is left
        no_attention = no_attention + block.ff(block.norm2(no_attention))  # (2, 7, 16)
    expected = {
        "drop_rate_emb": source.trf_blocks(torch.zeros_like(embedded)),
        "drop_rate_attn": no_attention,
        "drop_rate_shortcut": embedded,
        "no rate": source.trf_blocks(embedded),
    }
    for place, x in expected.items():
        model = ThreeRateGPTModel({**base, **dict.fromkeys(rates, 0.0), **({} if place == "no rate" else {place: 1.0})})
        model.load_state_dict(source.state_dict())
        logits = source.out_head(source.final_norm(x))  # (2, 7, 40)
        question = f"which dropout module gets {place}, in every block, and do the other places keep rate 0?"
        expect_close(logits, model.train()(ids), f"train mode, {place} = 1 and the others 0", question, atol=1e-4)
        expect_close(source(ids), model.eval()(ids), f"eval mode, {place} = 1", "does your dropout stop in eval mode?", atol=1e-4)
    passed("4.3")


@exercise("4.4", answer="RMSNorm")
def check_4_4(RMSNorm):
    """Oracle: torch.nn.RMSNorm, on ordinary, tiny, constant and shifted inputs."""
    ours, oracle = RMSNorm(10), nn.RMSNorm(10, eps=1e-5)
    question = "does your class keep exactly one trainable vector, `scale`, as nn.Parameter?"
    expect_equal(["scale"], [name for name, _ in ours.named_parameters()], "names of the parameters", question)
    expect_close(torch.ones(10), ours.scale, "scale at the start", "should the norm stretch anything before it is trained?")
    oracle.weight.data.normal_()
    ours.scale.data.copy_(oracle.weight.data)
    questions = {
        "ordinary numbers": "is it the root of the MEAN of the squares, over the last dimension?",
        "numbers around 5": "RMSNorm does not subtract the mean: does yours?",
        "numbers around 0.001": "does eps stand under the root, added to the mean of the squares?",
        "all zero": "what keeps 0 / 0 away?",
    }
    x = torch.randn(2, 5, 10)  # (2, 5, 10)
    for name, values in zip(questions, [x, x + 5, x / 1000, x * 0]):
        expect_close(oracle(values), ours(values), name, questions[name], atol=1e-5)
    square = torch.randn(3, 10, 10)  # (3, 10, 10)
    expect_close(oracle(square), ours(square), "a square input", "do you keep the averaged dimension (keepdim=True)?")
    passed("4.4")


class CountUp(nn.Module):
    """A model whose next token is always the last token plus 1; it notes the shapes it was called with."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        self.calls.append(tuple(ids.shape))
        return nn.functional.one_hot((ids + 1) % 50, 50).float()


@exercise("4.5", answer="generate_until")
def check_4_5(generate_until):
    """Oracle: generate_text_simple, one row at a time, cut behind the first new stop token."""
    question = "a row that has ended is filled with stop_id; do the others go on until all have ended?"
    prompts = torch.tensor([[3, 4], [1, 2], [8, 9]])
    model = CountUp().eval()
    expected = torch.tensor([[3, 4, 5, 6, 7, 8, 9], [1, 2, 3, 4, 5, 6, 7], [8, 9, 10, 11, 12, 13, 14]])
    expect_equal(expected, generate_until(model, prompts, 5, 8, 40), "no row reaches stop_id", "is stop_id ignored until it is written?")
    expected = torch.tensor([[3, 4, 5, 6, 6, 6], [1, 2, 3, 4, 5, 6]])
    model = CountUp().eval()
    expect_equal(expected, generate_until(model, prompts[:2], 9, 8, 6), "counting up from 4 and 2, stop_id 6", question)
    expect_equal(4, len(model.calls), "calls of the model", "do you stop calling the model as soon as every row has ended?")
    got = generate_until(CountUp().eval(), torch.tensor([[6, 7]]), 3, 8, 6)
    question = "a stop_id inside the prompt is not an answer: do you look at new tokens only?"
    expect_equal(torch.tensor([[6, 7, 8, 9, 10]]), got, "stop_id 6 in the prompt", question)
    for seed in range(5):
        gpt = random_model(seed)
        ids = random_ids(3, 4)
        rows = [generate_text_simple(gpt, row[None], 15, 6)[0].tolist() for row in ids]
        stop = rows[0][9]
        ends = [row.index(stop, 4) + 1 if stop in row[4:] else len(row) for row in rows]
        filled = torch.tensor([row[:end] + [stop] * (max(ends) - end) for row, end in zip(rows, ends)])
        question = "does the model see only the last context_size ids, and do ended rows stay ended?"
        expect_equal(filled, generate_until(gpt, ids, 15, 6, stop), f"a random GPT (seed {seed}), context_size 6", question)
    passed("4.5")


@exercise("4.6", answer="forward_flops")
def check_4_6(forward_flops):
    """Oracle: PyTorch's own counter, watching a model that has shapes but no data."""
    cases = [(1, 1, {}), (1, 5, {}), (2, 12, {}), (3, 7, {"n_layers": 1}), (1, 9, {"emb_dim": 32, "n_heads": 2})]
    for b, num_tokens, changes in [*cases, (2, 4, {"vocab_size": 90})]:
        cfg = {**TINY, **changes}
        with torch.device("meta"), FlopCounterMode(display=False) as counter:
            GPTModel(cfg).eval()(torch.zeros(b, num_tokens, dtype=torch.int64))
        question = "2 per multiply-add; four projections, two products of attention, two FFN layers, the head: is one missing or extra?"
        expect_equal(counter.get_total_flops(), forward_flops(cfg, b, num_tokens), f"b={b}, num_tokens={num_tokens}, {cfg}", question)
    small = forward_flops(GPT_CONFIG_124M, 1, 1024)
    passed("4.6", f"GPT-2 small reads 1,024 tokens with {small / 1e9:.0f} billion floating-point operations")


@exercise("4.7", answer="gpt_forward")
def check_4_7(gpt_forward):
    """Oracle: GPTModel, for random weights, several lengths up to the full context, with and without QKV bias."""
    for seed, changes in enumerate([{}, {"qkv_bias": True}, {"n_heads": 1}, {"n_heads": 8, "n_layers": 1}, {"emb_dim": 32}]):
        model = random_model(seed, **changes)
        n_heads = {**TINY, **changes}["n_heads"]
        for b, num_tokens in [(1, 1), (1, 2), (2, 5), (1, 12)]:
            ids = random_ids(b, num_tokens)
            with torch.no_grad():
                expected, got = model(ids), gpt_forward(model.state_dict(), ids, n_heads)
            if num_tokens == 1:
                question = "with one token attention is only value and output projection: are norm, GELU form and shortcuts right?"
            else:
                question = "one token works: are heads split, scores divided by the root of head_dim, and later keys blocked?"
            expect_close(expected, got, f"b={b}, num_tokens={num_tokens}, {changes or 'base sizes'}", question, atol=1e-4)
    passed("4.7", "a GPT in one function")


if __name__ == "__main__":
    sys.exit(run_checks())
