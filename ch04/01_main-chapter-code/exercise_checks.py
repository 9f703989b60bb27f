"""Checks for the exercises of chapter 4. In a notebook: check_4_1(your_function). From a shell:

python exercise_checks.py 4.1 my_answer.py
"""

import contextlib
import copy
import dis
import math
import sys
from collections.abc import Callable, Iterator
from unittest import mock

import torch
import torch.nn as nn
import torch.nn.functional as F
from gpt import GPT_CONFIG_124M, MODEL_SIZES, FeedForward, GPTModel, generate_text_simple, tie_weights
from previous_chapters import MultiHeadAttention, exercise, expect_close, expect_equal, fail, passed, run_checks
from torch.utils.flop_counter import FlopCounterMode

TINY = {"vocab_size": 40, "context_length": 12, "emb_dim": 16, "n_heads": 4, "n_layers": 3, "drop_rate": 0.0, "qkv_bias": False}


@contextlib.contextmanager
def refused(owner: object, name: str, where: str, task: str) -> Iterator[None]:
    """Fail if, inside the `with`, the answer calls `owner.name`, which the task rules out."""

    def refuse(*args, **kwargs):
        fail("an answer of your own", f"a call of {getattr(owner, '__name__', owner)}.{name}", where, task)

    with mock.patch.object(owner, name, refuse):
        yield


def without_modules(where: str) -> contextlib.AbstractContextManager:
    """Fail if the answer builds a module inside the `with`."""
    return refused(nn.Module, "__init__", where, "the task asks for the arithmetic itself: can you do it without building any module?")


def has_loop(function: Callable) -> bool:
    """Whether the function's own code contains a loop or a comprehension."""
    waiting = [function.__code__]
    while waiting:
        code = waiting.pop()
        if any(instruction.opname in ("FOR_ITER", "JUMP_BACKWARD") for instruction in dis.get_instructions(code)):
            return True
        waiting += [constant for constant in code.co_consts if isinstance(constant, type(code))]
    return False


def question_for(got: object, slips: dict[str, int], otherwise: str) -> str:
    """The question of the slip that leads to this wrong number, or one for all other cases."""
    return next((question for question, value in slips.items() if value == got), otherwise)


def random_model(seed: int, **changes) -> GPTModel:
    """A tiny GPT in eval mode with random noise on every parameter, norms and biases too, so that forgetting one shows."""
    torch.manual_seed(seed)
    model = GPTModel({**TINY, **changes}).eval()
    for parameter in model.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    return model


def random_ids(b: int, num_tokens: int) -> torch.Tensor:
    return torch.randint(0, TINY["vocab_size"], (b, num_tokens))  # (b, num_tokens)


def slips_of_4_1(d: int, qkv_bias: bool) -> tuple[dict[str, int], dict[str, int]]:
    """Wrong counts of attention and of the feed-forward network, each under the question it deserves."""
    attention = {
        "does the output projection have a bias, and how long is it?": 4 * d**2 + 3 * d * qkv_bias,
        "what does qkv_bias=True add, and to how many projections?": 4 * d**2 + d,
        "which projections have a bias when qkv_bias is False?": 4 * d**2 + 4 * d,
        "three projections in, and is there not one more behind them?": 3 * d**2 + (d + 3 * d * qkv_bias),
    }
    feed_forward = {
        "do both layers have a bias?": 8 * d**2,
        "a bias is as long as the output of its layer: how long are these two?": 8 * d**2 + 2 * d,
        "one layer expands; does the other, which contracts, not have as many weights?": 4 * d**2 + 4 * d,
    }
    return attention, feed_forward


@exercise("4.1", answer="count_block")
def check_4_1(count_block):
    """Oracle: the modules themselves, counted without allocating them."""
    for emb_dim, qkv_bias in [(8, False), (8, True), (12, False), (20, True), (768, True), (768, False)]:
        with torch.device("meta"):
            parts = MultiHeadAttention(emb_dim, emb_dim, 4, 0.0, 4, qkv_bias), FeedForward({"emb_dim": emb_dim})
        where = f"count_block({emb_dim}, {qkv_bias})"
        with without_modules(where):
            got = count_block(emb_dim, qkv_bias)
        if not isinstance(got, tuple) or len(got) != 2:
            fail("a tuple of two numbers", repr(got), where, "does your function return attention first and feed-forward second?")
        if not all(isinstance(value, int) for value in got):
            fail("two whole numbers", repr(got), where, "a division with / gives a float: did one slip in?")
        for name, module, value, slips in zip(["attention", "feed-forward"], parts, got, slips_of_4_1(emb_dim, qkv_bias)):
            expected = sum(p.numel() for p in module.parameters())
            question = question_for(value, slips, "which linear layers are there, with how many inputs and outputs, and which have a bias?")
            expect_equal(expected, value, f"{where}, {name}", question)
    passed("4.1", "at width 768 the feed-forward network has twice the parameters of attention")


@exercise("4.2", answer="get_config")
def check_4_2(get_config):
    """The four sizes, base and table of sizes left alone, extra keys kept, unknown names refused."""
    base = {**GPT_CONFIG_124M, "drop_rate": 0.0, "note": "mine"}
    before, sizes = dict(base), copy.deepcopy(MODEL_SIZES)
    try:
        for name, size in sizes.items():
            question = "do all other keys keep the base's values?"
            expect_equal({**before, **size}, get_config(base, name), f"get_config(base, {name!r})", question)
            question = "did you change the dictionary you were given, or a copy of it?"
            expect_equal(before, base, "the base configuration afterwards", question)
            expect_equal(sizes, MODEL_SIZES, "MODEL_SIZES afterwards", question)
    finally:
        MODEL_SIZES.update(sizes)
    expect_equal({**before, **sizes["gpt2-small"]}, get_config(base), "get_config(base)", "which size is the default?")
    wider = {**before, **sizes["gpt2-xl"]}
    question = "if the base is a large model, does the small size still set all three numbers?"
    expect_equal(before, get_config(wider, "gpt2-small"), "base of size XL, name gpt2-small", question)
    for name in ["gpt2-huge", "small", ""]:
        where = f"get_config(base, {name!r})"
        try:
            got = get_config(base, name)
        except ValueError:
            continue
        except KeyError:
            fail("ValueError", "KeyError", where, "does the name reach a dictionary before you have looked at it?")
        fail("ValueError", repr(got), where, "what should a name that does not exist do?")
    passed("4.2")


@exercise("4.2b", answer="calculate_size")
def check_4_2b(calculate_size):
    """Oracle: the published counts, and small models, tied and not, counted by PyTorch."""

    def sizes_of(model, where):
        got = calculate_size(model)
        if not isinstance(got, tuple | list) or len(got) != 3:
            fail("three numbers", repr(got), where, "do you return total, tied and MiB, in this order?")
        return got

    known = {"gpt2-small": (163_009_536, 124_412_160, 621.83), "gpt2-xl": (1_637_792_000, 1_557_380_800, 6247.68)}
    for name, expected in known.items():
        with torch.device("meta"):
            got = sizes_of(GPTModel({**GPT_CONFIG_124M, **MODEL_SIZES[name]}), f"calculate_size of {name}")
        for part, want, value in zip(["total", "tied", "MiB"], expected, got):
            question = "is MiB 2**20 bytes, at 4 bytes a parameter?" if part == "MiB" else "which one table is shared when tied?"
            expect_close(want, value, f"{name}, {part}", question, atol=0.01)
    small = random_model(1)
    small.out_head.weight.data.copy_(small.tok_emb.weight.data)
    total = sum(p.numel() for p in small.parameters())
    got = sizes_of(small, "calculate_size of a small model")
    question = "two tables with equal numbers are still two: do you ask for equal values, or for the same Parameter?"
    expect_equal((total, total - small.out_head.weight.numel()), tuple(got[:2]), "an untied model with equal tables", question)
    question = "does your function tie the model it was given? It should only look"
    expect_equal(False, small.out_head.weight is small.tok_emb.weight, "is the model tied afterwards?", question)
    tied = tie_weights(random_model(1))
    count = sum(p.numel() for p in tied.parameters())
    question = "a tied model holds the table once: do you subtract it a second time?"
    expect_equal((count, count), tuple(sizes_of(tied, "a tied model")[:2]), "a model that is tied already", question)
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
        cfg = {**base, **dict.fromkeys(rates, 0.0), **({} if place == "no rate" else {place: 1.0})}
        before = dict(cfg)
        model = ThreeRateGPTModel(cfg)
        expect_equal(before, cfg, "the configuration afterwards", "did you change the dictionary you were given, or a copy of it?")
        model.load_state_dict(source.state_dict())
        logits = source.out_head(source.final_norm(x))  # (2, 7, 40)
        question = f"which dropout module gets {place}, in every block, and do the other places keep rate 0?"
        expect_close(logits, model.train()(ids), f"train mode, {place} = 1 and the others 0", question, atol=1e-4)
        expect_close(source(ids), model.eval()(ids), f"eval mode, {place} = 1", "does your dropout stop in eval mode?", atol=1e-4)
    for place in rates:
        half = ThreeRateGPTModel({**base, **dict.fromkeys(rates, 0.0), place: 0.5}).train()
        half.load_state_dict(source.state_dict())
        got = half(ids)  # (2, 7, 40)
        for kind, x in [("with this place silent", expected[place]), ("without dropout", expected["no rate"])]:
            if torch.allclose(got, source.out_head(source.final_norm(x)), atol=1e-4):
                question = "is the rate used as it is, or only whether it is 0?"
                fail("something random in between", f"the output {kind}", f"train mode, {place} = 0.5", question)
    passed("4.3")


RMS_TASK = "the task asks for the arithmetic itself: which three operations does the function do?"


class SpecifiedRMSNorm(nn.Module):
    """The loop of the exercise's specification, token by token: the oracle before torch 2.4, which brought nn.RMSNorm."""

    def __init__(self, emb_dim: int, eps: float = 1e-5):
        super().__init__()
        self.eps, self.weight = eps, nn.Parameter(torch.ones(emb_dim))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        roots = [math.sqrt(sum(value * value for value in token) / len(token) + self.eps) for token in x.reshape(-1, x.shape[-1]).tolist()]
        return self.weight * x / torch.tensor(roots).view(*x.shape[:-1], 1)  # (..., emb_dim)


@exercise("4.4", answer="RMSNorm")
def check_4_4(RMSNorm):
    """Oracle: torch.nn.RMSNorm where this torch has it, on ordinary, tiny, constant and shifted inputs."""
    Oracle = getattr(nn, "RMSNorm", SpecifiedRMSNorm)
    ours, oracle = RMSNorm(10), Oracle(10, eps=1e-5)
    question = "does your class keep exactly one trainable vector, `scale`, as nn.Parameter?"
    expect_equal(["scale"], [name for name, _ in ours.named_parameters()], "names of the parameters", question)
    expect_close(torch.ones(10), ours.scale, "scale at the start", "should the norm stretch anything before it is trained?")
    oracle.weight.data.normal_()
    ours.scale.data.copy_(oracle.weight.data)
    if has_loop(RMSNorm.forward):
        question = "which tensor operation does the loop's work for all tokens at once?"
        fail("no loop", "a loop in forward", "the code of RMSNorm.forward", question)
    questions = {
        "ordinary numbers": "is it the root of the MEAN of the squares, over the last dimension?",
        "numbers around 5": "RMSNorm does not subtract the mean: does yours?",
        "numbers around 0.001": "does eps stand under the root, added to the mean of the squares?",
        "all zero": "what keeps 0 / 0 away?",
        "a square input": "do you keep the averaged dimension (keepdim=True)?",
        "a single token, shape (10,)": "does your class ask for a certain number of dimensions?",
    }
    x = torch.randn(2, 5, 10)  # (2, 5, 10)
    for name, values in zip(questions, [x, x + 5, x / 1000, x * 0, torch.randn(3, 10, 10), x[0, 0]]):
        expected, before = oracle(values), values.clone()
        with contextlib.ExitStack() as forbidden:
            for owner in (F, torch):
                if hasattr(owner, "rms_norm"):
                    forbidden.enter_context(refused(owner, "rms_norm", name, RMS_TASK))
            expect_close(expected, ours(values), name, questions[name], atol=1e-5)
        expect_equal(before, values, f"the input afterwards, {name}", "does an operation work in place (/=, pow_, ...)?")
    other = RMSNorm(10, eps=0.1)
    expect_close(Oracle(10, eps=0.1)(x), other(x), "eps=0.1", "is the argument eps used, or a number written into forward?", atol=1e-5)
    result, oracle = other(x), Oracle(10, eps=0.1)
    question = "does the result still depend on scale for PyTorch, or did detach, no_grad or a list come between?"
    expect_equal(True, result.requires_grad, "can scale be trained?", question)
    result.sum().backward()
    oracle(x).sum().backward()
    expect_close(oracle.weight.grad, other.scale.grad, "the gradient of scale", question, atol=1e-4)
    passed("4.4")


class CountUp(nn.Module):
    """A model whose next token is always the last token plus 1; it notes each call: the shape, and whether gradients are kept."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        self.calls.append((tuple(ids.shape), torch.is_grad_enabled()))
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
    question = "one call for all rows at each step, and none when every row has ended: is it so?"
    expect_equal([(2, 2), (2, 3), (2, 4), (2, 5)], [shape for shape, _ in model.calls], "shapes the model was called with", question)
    question = "does the call of the model stand inside `with torch.no_grad():`?"
    expect_equal(False, model.calls[0][1], "are gradients kept while writing?", question)
    question = "with max_new_tokens 0, is there anything to write?"
    expect_equal(prompts, generate_until(CountUp().eval(), prompts, 0, 8, 6), "max_new_tokens 0", question)
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


def slips_of_4_6(cfg: dict, b: int, num_tokens: int) -> dict[str, int]:
    """Wrong totals, each under the question it deserves."""
    d, layers = cfg["emb_dim"], cfg["n_layers"]
    tokens, linear, product, head = b * num_tokens, 24 * d**2, 2 * num_tokens * d, 2 * d * cfg["vocab_size"]
    total = tokens * (layers * (linear + 2 * product) + head)
    return {
        "one multiplication and one addition: is that 1 or 2?": total // 2,
        "does the output head cost nothing?": total - tokens * head,
        "how often does the output head run: once, or once in each block?": tokens * layers * (linear + 2 * product + head),
        "scores are one product of attention: what happens to the values?": tokens * (layers * (linear + product) + head),
        "which two products of attention are not linear layers?": tokens * (layers * linear + head),
        "attention has a projection behind the heads: is it there?": tokens * (layers * (linear - 2 * d**2 + 2 * product) + head),
        "expand and contract: are both feed-forward layers there?": tokens * (layers * (linear - 8 * d**2 + 2 * product) + head),
        "how many texts are in the batch?": total // b,
    }


@exercise("4.6", answer="forward_flops")
def check_4_6(forward_flops):
    """Oracle: PyTorch's own counter, watching a model that has shapes but no data."""
    cases = [(1, 1, {}), (1, 5, {}), (2, 12, {}), (3, 7, {"n_layers": 1}), (1, 9, {"emb_dim": 32, "n_heads": 2})]
    for b, num_tokens, changes in [*cases, (2, 4, {"vocab_size": 90})]:
        cfg = {**TINY, **changes}
        with torch.device("meta"), FlopCounterMode(display=False) as counter:
            GPTModel(cfg).eval()(torch.zeros(b, num_tokens, dtype=torch.int64))
        where = f"b={b}, num_tokens={num_tokens}, {cfg}"
        with without_modules(where):
            got = forward_flops(cfg, b, num_tokens)
        question = question_for(got, slips_of_4_6(cfg, b, num_tokens), "which product, with which shapes, is missing or extra?")
        expect_equal(counter.get_total_flops(), got, where, question)
    small = forward_flops(GPT_CONFIG_124M, 1, 1024)
    passed("4.6", f"GPT-2 small reads 1,024 tokens with {small / 1e9:.0f} billion floating-point operations")


def stress(model: GPTModel, kind: str) -> GPTModel:
    """Change a model's weights so that one weak spot of an answer shows."""
    with torch.no_grad():
        if kind == "attention scores of hundreds":
            for block in model.trf_blocks:
                block.att.W_query.weight *= 300
        if kind == "tiny embeddings":
            model.tok_emb.weight *= 1e-3
            model.pos_emb.weight *= 1e-3
    return model


@exercise("4.7", answer="gpt_forward")
def check_4_7(gpt_forward):
    """Oracle: GPTModel, for random weights, several lengths up to the full context, with and without QKV bias."""
    cases = [("", {}), ("", {"qkv_bias": True}), ("", {"n_heads": 1}), ("", {"n_heads": 8, "n_layers": 1}), ("", {"emb_dim": 32})]
    questions = {
        "attention scores of hundreds": "do you take exp of raw scores, or block later keys with something that is not minus infinity?",
        "tiny embeddings": "which eps stands under the root of your layer norm?",
    }
    for seed, (kind, changes) in enumerate([*cases, *[(kind, {"n_layers": 1}) for kind in questions]]):
        model = stress(random_model(seed, **changes), kind)
        n_heads = {**TINY, **changes}["n_heads"]
        for b, num_tokens in [(1, 1), (1, 2), (2, 5), (1, 12)]:
            ids = random_ids(b, num_tokens)
            where = f"b={b}, num_tokens={num_tokens}, {kind or changes or 'base sizes'}"
            weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
            with torch.no_grad(), without_modules(where):
                expected, got = model(ids), gpt_forward(weights, ids, n_heads)
            question = "with one token attention is only value and output projection: are norm, GELU form and shortcuts right?"
            if num_tokens > 1:
                question = "one token works: are heads split, scores divided by the root of head_dim, and later keys blocked?"
            expect_close(expected, got, where, questions.get(kind, question), atol=1e-2 if kind else 1e-4)
            kept = weights.keys() == model.state_dict().keys() and all(weights[k].equal(v) for k, v in model.state_dict().items())
            expect_equal(True, kept, "are the weights unchanged afterwards?", "does your function change or remove entries?")
    passed("4.7", "a GPT in one function")


def chain_gradients(weights: list[torch.Tensor], x: torch.Tensor, use_shortcut: bool) -> list[torch.Tensor]:
    """What exercise 4.8 asks for, by autograd."""
    stream = [x.clone().requires_grad_()]
    for weight in weights:
        bent = torch.tanh(weight @ stream[-1])  # (width)
        stream.append(stream[-1] + bent if use_shortcut else bent)
    return list(torch.autograd.grad(stream[-1].sum(), stream))


@exercise("4.8", answer="stream_gradients")
def check_4_8(stream_gradients):
    """Oracle: autograd. The answer runs in inference mode, where autograd keeps no record."""
    for seed, (width, depth) in enumerate([(3, 1), (4, 2), (5, 7), (2, 20)]):
        torch.manual_seed(seed)
        weights, x = list(torch.randn(depth, width, width)), torch.randn(width)
        for use_shortcut in (False, True):
            where = f"width {width}, {depth} layers, use_shortcut={use_shortcut}"
            given, start = [weight.clone() for weight in weights], x.clone()
            with torch.inference_mode():
                got = stream_gradients(given, start, use_shortcut)
            if not isinstance(got, list | tuple) or len(got) != depth + 1:
                found = f"{len(got)} entries" if isinstance(got, list | tuple) else type(got).__name__
                question = "one gradient for x, and one for the output of each layer: do you return them all, as a list?"
                fail(f"a list of {depth + 1} gradients", found, where, question)
            for i, expected in reversed(list(enumerate(chain_gradients(weights, x, use_shortcut)))):
                question = "h[i] acts through tanh and the weights: is the matrix transposed, and the slope taken at the right layer?"
                if use_shortcut:
                    question = "h[i] reaches h[i + 1] in two ways, and both bring gradient back: do you add them?"
                if i == depth:
                    question = "the loss is the sum of h[L]: by how much does it grow if one entry of h[L] grows by 1?"
                expect_close(expected, got[i], f"{where}, gradient for h[{i}]", question, atol=1e-4)
            kept = start.equal(x) and all(map(torch.equal, given, weights))
            expect_equal(True, kept, "are the inputs unchanged afterwards?", "which of your operations works in place?")
    passed("4.8", "backward is a walk through the layers in reverse, and a shortcut is a plus sign on the way")


if __name__ == "__main__":
    sys.exit(run_checks())
