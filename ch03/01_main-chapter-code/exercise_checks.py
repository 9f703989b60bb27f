"""Checks for the exercises of chapter 3. In the notebook: `check_3_4(causal_softmax)`; from a shell, for a file of your own:

    python exercise_checks.py 3.4 my_answer.py

Each check compares an answer with a judge that computes in another way, mostly PyTorch's fused attention.
"""

import ast
import functools
import inspect
import random
import sys
import textwrap
import weakref
from collections.abc import Callable
from unittest import mock

import torch
import torch.nn as nn
import torch.nn.functional as F
from multihead_attention import CausalAttention, MultiHeadAttention, MultiHeadAttentionWrapper, SelfAttention_v1, SelfAttention_v2
from previous_chapters import exercise, expect_close, expect_equal, fail, passed, run_checks
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

NO_ERROR = "no error"
FUSED = {F.scaled_dot_product_attention, F.multi_head_attention_forward}


def picture(make_tables: Callable[[], dict[str, torch.Tensor]], alt: str, same_colors: bool = False) -> None:
    """Draw tables side by side as heat maps, title above each; one line instead if there is nothing that can be drawn."""
    import matplotlib.pyplot as plt
    from previous_chapters import show, use_course_style

    try:
        tables = {title: torch.as_tensor(table).detach().float() for title, table in make_tables().items()}
    except Exception as error:
        if isinstance(error, NotImplementedError) and str(error).startswith("exercise "):
            print("nothing to draw yet: solve the exercise, then run this cell again")
            return
        print(f"no picture: {type(error).__name__}: {str(error).partition(chr(10))[0]} (the check below says more)")
        return
    if wrong := [f"{title}: {tuple(table.shape)}" for title, table in tables.items() if table.dim() != 2]:
        print(f"no picture: a table has two dimensions, but these shapes came back: {', '.join(wrong)}")
        return
    use_course_style()
    top = max(float(table.max()) for table in tables.values()) if same_colors else None
    fig, axes = plt.subplots(1, len(tables), figsize=(2.6 * len(tables), 2.6), squeeze=False)
    for ax, (title, table) in zip(axes[0], tables.items()):
        ax.imshow(table, vmin=0, vmax=top)
        ax.set(title=title, xlabel="column", ylabel="row", xticks=range(table.shape[1]), yticks=range(table.shape[0]))
    show(fig, alt=alt)


def error_of(call: Callable) -> tuple[str, str]:
    """Name and text of the error that a call raises, or NO_ERROR and no text."""
    try:
        call()
    except NotImplementedError:
        raise
    except Exception as error:
        return type(error).__name__, str(error)
    return NO_ERROR, ""


def expect_refusal(call: Callable, numbers: tuple[int, int], question: str) -> None:
    """Fail unless a call raises a ValueError whose text has both numbers."""
    name, text = error_of(call)
    expect_equal("ValueError", name, f"{numbers[0]} columns, {numbers[1]} heads", question)
    if not all(str(number) in text for number in numbers):
        fail(f"a message with {numbers[0]} and {numbers[1]}", repr(text), "the text of the ValueError", "which numbers disagree?")


def loops(source: str) -> bool:
    """Whether Python code repeats something: a `for`, a `while`, a comprehension, or a call of `map`."""
    repeating = (ast.For, ast.While, ast.comprehension)
    return any(isinstance(node, repeating) or isinstance(node, ast.Name) and node.id == "map" for node in ast.walk(ast.parse(source)))


def expect_no_loop(answer: Callable) -> None:
    """Fail if an answer's source, where Python can find it, contains a loop."""
    try:
        found = loops(textwrap.dedent(inspect.getsource(answer)))
    except (OSError, TypeError, SyntaxError):
        return
    if found:
        fail("no Python loop", "a loop", "the code of your answer", "which tensor operation does it for all entries at once?")


class Forbid(TorchFunctionMode):
    """While it is active, a call of one of `functions` (None: of any PyTorch function) fails the check."""

    def __init__(self, functions: set | None, rule: str):
        super().__init__()
        self.functions, self.rule = functions, rule

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if self.functions is None or func in self.functions:
            fail(self.rule, f"a call of {getattr(func, '__name__', func)}", "the code of your answer", "which rule does the task set?")
        return func(*args, **(kwargs or {}))


def fused_heads(attention: MultiHeadAttention, x: torch.Tensor, factor: float = 1.0) -> torch.Tensor:
    """What `attention` should return, by the fused function; its heads are cut out as slices of columns."""
    parts = [W(x).chunk(attention.num_heads, dim=-1) for W in (attention.W_query, attention.W_key, attention.W_value)]
    heads = [F.scaled_dot_product_attention(q, k, v, is_causal=True) for q, k, v in zip(*parts)]
    return attention.out_proj(factor * torch.cat(heads, dim=-1))


@exercise("3.1", answer="copy_weights")
def check_3_1(copy_weights: Callable) -> None:
    """Both classes give what the fused function gives with version 2's weights, and own their numbers."""
    for d_in, d_out in ((3, 3), (5, 2)):
        torch.manual_seed(123)
        v1, v2, x = SelfAttention_v1(d_in, d_out), SelfAttention_v2(d_in, d_out), torch.randn(4, d_in)
        expected = F.scaled_dot_product_attention(v2.W_query(x), v2.W_key(x), v2.W_value(x))  # (4, d_out)
        copy_weights(v2, v1)
        where = f"output of v1 for d_in {d_in}, d_out {d_out}"
        question = "nn.Linear stores (d_out, d_in): did you copy all three, each to its own name, transposed?"
        expect_close(expected, v1(x), where, question)
        expect_close(expected, v2(x), where.replace("v1", "v2"), "which of the two is the source, and must it change?")
        with torch.no_grad():
            for linear in (v2.W_query, v2.W_key, v2.W_value):
                linear.weight.add_(1.0)
        question = "do both layers hold the same memory? What would training one do to the other?"
        expect_close(expected, v1(x), "output of v1 after v2 was changed", question)
    passed("3.1")


@exercise("3.2", answer="wrapper_of_width")
def check_3_2(wrapper_of_width: Callable) -> None:
    """Shape, values head by head, and outputs inside the range of the values."""
    for d_in, total_width, num_heads, context_length in ((5, 12, 3, 6), (4, 6, 1, 9)):
        torch.manual_seed(123)
        wrapper = wrapper_of_width(d_in, total_width, num_heads, context_length=context_length)
        where = f"d_in {d_in}, total_width {total_width}, num_heads {num_heads}"
        if not isinstance(wrapper, MultiHeadAttentionWrapper):
            fail("a MultiHeadAttentionWrapper", type(wrapper).__name__, where, "did you return the module itself?")
        expect_equal(num_heads, len(wrapper.heads), f"number of heads, {where}", "which argument is which in the constructor?")
        got = wrapper.heads[0].mask.shape[0]
        expect_equal(context_length, got, f"context_length, {where}", "did you pass it on?")
        has_bias = wrapper.heads[0].W_query.bias is not None
        expect_equal(False, has_bias, f"bias in the projections, {where}", "which option of the wrapper adds a bias?")
        x = torch.randn(2, 6, d_in)  # (2, 6, d_in)
        out = wrapper(x)
        question = "is d_out the width of one head or of all heads together?"
        expect_equal((2, 6, total_width), tuple(out.shape), f"shape of the output, {where}", question)
        values = torch.cat([head.W_value(x) for head in wrapper.heads], dim=-1)  # (2, 6, total_width)
        fused = [F.scaled_dot_product_attention(h.W_query(x), h.W_key(x), h.W_value(x), is_causal=True) for h in wrapper.heads]
        expect_close(torch.cat(fused, dim=-1), out, f"output, {where}", "is dropout 0, so that no weight is lost?")
        inside = bool(((out <= values.amax(1, keepdim=True) + 1e-5) & (out >= values.amin(1, keepdim=True) - 1e-5)).all())
        expect_equal(True, inside, "every output between minimum and maximum of its values", "is this a weighted average?")
    question = "10 columns cannot be shared evenly by 4 heads: what should a caller be told?"
    expect_refusal(lambda: wrapper_of_width(7, 10, 4, 6), (10, 4), question)
    passed("3.2")


class MaskedTooLate(CausalAttention):
    """A perfect mask behind softmax, without renormalizing: what is left of a row tells of the future."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scores = self.W_query(x) @ self.W_key(x).transpose(1, 2)
        weights = torch.softmax(scores / self.d_out**0.5, dim=-1)
        return weights.masked_fill(self.mask[: x.shape[1], : x.shape[1]], 0.0) @ self.W_value(x)


class SoftmaxOverQueries(CausalAttention):
    """A perfect mask, and softmax over the wrong dimension: each weight is divided by a sum over later queries."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scores = self.W_query(x) @ self.W_key(x).transpose(1, 2)
        scores = scores.masked_fill(self.mask[: x.shape[1], : x.shape[1]], float("-inf"))
        return torch.softmax(scores / self.d_out**0.5, dim=-2) @ self.W_value(x)


@exercise("3.3", answer="find_leaks")
def check_3_3(find_leaks: Callable) -> None:
    """Four modules of which it is known, by how they are made, who sees whom; the holes of one are drawn anew each time."""
    torch.manual_seed(123)
    pairs = [(i, j) for i in range(5) for j in range(i + 1, 5)]
    holed, holes = CausalAttention(4, 3, 8, 0.0), sorted(random.Random().sample(pairs, 3))
    for hole in holes:
        holed.mask[hole] = False
    cases = [
        ("three holes in the mask", holed, holes, "does every pair get its turn: each later key, each earlier query?"),
        ("softmax, then a perfect mask", MaskedTooLate(4, 3, 8, 0.0), pairs, "did you look at outputs, or at the mask?"),
        ("softmax over the wrong dimension", SoftmaxOverQueries(4, 3, 8, 0.0), pairs, "how small may a leak be?"),
        ("causal, in training mode, dropout 0.5", CausalAttention(4, 3, 8, 0.5), [], "do two calls with one input give one output?"),
    ]
    for where, module, expected, question in cases:
        x = torch.randn(1, 5, 4)  # (1, 5, 4)
        x[0, 4] = 0.0
        given, before = x.clone(), {name: tensor.clone() for name, tensor in module.state_dict().items()}
        got = find_leaks(module, given)
        if not isinstance(got, set | list | tuple):
            fail("a set of pairs (query, key)", type(got).__name__, where, "did you return the set?")
        expect_equal(expected, sorted(tuple(map(int, pair)) for pair in set(got)), f"leaks: {where}", question)
        expect_equal(True, module.training, f"training mode afterwards: {where}", "in which mode did you get the module?")
        expect_equal(x, given, f"the x passed in: {where}", "did you change x itself, or a copy?")
        for name, tensor in module.state_dict().items():
            expect_equal(before[name], tensor, f"{name}: {where}", "is a test allowed to change what it tests?")
    passed("3.3")


@exercise("3.4", answer="causal_softmax")
def check_3_4(causal_softmax: Callable) -> None:
    """The fused function with identity keys and values returns its weights: the judge."""
    torch.manual_seed(123)
    one, batch = torch.tensor([[0.0, 3.0], [1.0, 2.0]]), torch.randn(3, 2, 5, 5)
    future = torch.tensor([[0.0, 300.0, 0.0], [0.0, 1.0, 300.0], [0.0, 1.0, 2.0]])
    past = torch.tensor([[30_000.0, 0.0, 0.0], [300.0, 299.0, 0.0], [0.0, 1.0, 2.0]])
    questions = {
        "two tokens": "row 0 may see column 0 alone: did the mask act before softmax, over the right dimension, diagonal kept?",
        "shape (3, 2, 5, 5)": "is the softmax over the last dimension, whatever stands in front?",
        "scores of 300 in the future": "what is e to the power of -300 in 32 bits, and what do you then divide by?",
        "scores of 300 and 30,000 in the past": "what is e to the power of 300 in 32 bits?",
        "scores of -300 and -30,000 in the past": "your fill must lose against every visible score: is it low enough?",
    }
    expect_no_loop(causal_softmax)
    for (where, question), scores in zip(questions.items(), (one, batch, future, past, -past)):
        eye, given = torch.eye(scores.shape[-1]).expand(scores.shape), scores.clone()
        expected = F.scaled_dot_product_attention(scores, eye, eye, is_causal=True, scale=1.0)
        expect_close(expected, causal_softmax(given), where, question)
        expect_equal(scores, given, f"the scores passed in, {where}", "masked_fill_ or masked_fill: which one changes its input?")
    passed("3.4")


@exercise("3.5", answer="padding_mask")
def check_3_5(padding_mask: Callable) -> None:
    """Every entry against the specification's three nested loops."""
    expect_no_loop(padding_mask)
    for lengths, num_tokens in (([2, 3], 3), ([1, 4, 6], 6), ([3, 2], 7)):
        mask = padding_mask(torch.tensor(lengths), num_tokens)
        if not isinstance(mask, torch.Tensor) or mask.dtype != torch.bool:
            fail("a boolean tensor", getattr(mask, "dtype", type(mask).__name__), f"lengths {lengths}", "did you return the comparison?")
        expected = torch.tensor([[[j > i or j >= n for j in range(num_tokens)] for i in range(num_tokens)] for n in lengths])
        question = "keys are columns: is a pair blocked if the KEY is padding or lies in the future? Is True blocked?"
        if max(lengths) < num_tokens:
            question = "how many rows and columns does a mask have if no sentence of the batch is num_tokens long?"
        expect_equal(expected, mask, f"mask for lengths {lengths}, num_tokens {num_tokens}", question)
    passed("3.5")


@exercise("3.6", answer="window_mask")
def check_3_6(window_mask: Callable) -> None:
    """Every entry against two nested loops, for windows from 1 to more than all tokens."""
    expect_no_loop(window_mask)
    for num_tokens, window in ((4, 1), (6, 3), (3, 10)):
        mask = window_mask(num_tokens, window)
        if not isinstance(mask, torch.Tensor) or mask.dtype != torch.bool:
            fail("a boolean tensor", getattr(mask, "dtype", type(mask).__name__), f"window {window}", "did you return the comparison?")
        allowed = [[range(max(0, i - window + 1), i + 1).count(j) for j in range(num_tokens)] for i in range(num_tokens)]
        question = "how many keys may the last query see, and does the window count the query itself? Is True blocked?"
        expect_equal(torch.tensor(allowed) == 0, mask, f"num_tokens {num_tokens}, window {window}", question)
    passed("3.6")


class Spy(nn.Module):
    """In the place of dropout: keeps what it gets, and returns twice that."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, weights: torch.Tensor) -> torch.Tensor:
        self.seen.append(weights.detach())
        return 2 * weights


@exercise("3.7", answer="multi_head_forward")
def check_3_7(multi_head_forward: Callable) -> None:
    """The answer as forward of a copy of the class, against the fused function; a spy in the place of dropout."""
    expect_no_loop(multi_head_forward)
    copy = type("Yours", (MultiHeadAttention,), {"forward": multi_head_forward})
    cases = [
        ((6, 8, 5, 0.0, 1), "one head", "scores, division, mask, softmax, values, out_proj: which step is missing, or out of order?"),
        ((4, 12, 5, 0.0, 3, True), "three heads", "whose numbers are in head 0, before and after? Whose width is under the root?"),
        ((6, 8, 9, 0.0, 2), "5 tokens, context_length 9", "which part of the mask belongs to a shorter input?"),
    ]
    rule = "an attention of your own"
    refuse = functools.partial(fail, rule, "a call of the class's own forward", "the code of your answer", "who is the judge?")
    with mock.patch.object(MultiHeadAttention, "forward", lambda *_: refuse()):
        for sizes, where, question in cases:
            torch.manual_seed(123)
            yours = copy(*sizes)
            x = torch.randn(2, 5, sizes[0])  # (2, 5, d_in)
            given = x.clone()
            with Forbid(FUSED, rule):
                got = yours(given)
            expect_close(fused_heads(yours, x), got, f"output, {where}", question)
            expect_equal(x, given, f"the x passed in, {where}", "did an operation that ends in _ change its input?")
        yours.dropout = spy = Spy()
        got = yours(x)
    where, question = "dropout, called through self.dropout", "which table does dropout act on: scores, weights, or context vectors?"
    expect_equal([(2, 2, 5, 5)], [tuple(seen.shape) for seen in spy.seen], f"shapes it gets, {where}", question)
    expect_close(torch.ones(2, 2, 5), spy.seen[0].sum(dim=-1), f"row sums of what it gets, {where}", question)
    expect_close(fused_heads(yours, x, factor=2.0), got, f"output if it doubles the weights, {where}", "do you use what it returns?")
    passed("3.7")


def two_slips_agree(parts: dict[str, int], b: int) -> bool:
    """Whether two different slips would give the same wrong number (scores and weighted sum always cost the same)."""
    total = sum(parts.values())
    kinds = {part for name, part in parts.items() if name != "weighted sum"}
    wrong = [total / 2, total / b, *(total - part for part in kinds), *(total - part / 2 for part in kinds)]
    return len(kinds) < 3 or len(set(wrong)) < len(wrong)


def flops_slip(got: object, parts: dict[str, int], b: int, num_heads: int) -> str:
    """The question for a wrong number of operations: which slip makes this number?"""
    total, per_pair = sum(parts.values()), parts["scores"] + parts["weighted sum"]
    if not isinstance(got, int):
        return "is a number of operations a whole number? (//, not /)"
    if got * 2 == total:
        return "each of the nk results needs m multiplications, and how many additions?"
    if got * b == total:
        return "is the whole batch counted?"
    missing = [name for name, part in parts.items() if got in (total - part, total - part // 2)]
    if missing:
        return f"the {missing[0]}: is that product there, and counted with 2nmk?"
    if got == total + (num_heads - 1) * per_pair or got in [total + (num_heads - 1) * parts[name] for name in parts]:
        return "how wide is one head: d_out, or a part of it?"
    return "an (n, m) by (m, k) product costs 2nmk: what are n, m and k in each of the six products?"


@exercise("3.8", answer="attention_flops")
def check_3_8(attention_flops: Callable) -> None:
    """PyTorch counts the operations of a real forward pass, of sizes drawn anew each time."""
    draw, counted = random.Random(), 0
    while counted < 4:
        b, num_heads, head_dim = draw.randint(3, 5), draw.randint(2, 5), draw.randint(2, 7)
        num_tokens, d_in, d_out = draw.randint(3, 30), draw.randint(3, 20), num_heads * head_dim
        projection, square = 2 * b * num_tokens * d_in * d_out, 2 * b * num_tokens**2 * d_out
        parts = {"scores": square, "weighted sum": square, "three projections": 3 * projection}
        parts["output projection"] = 2 * b * num_tokens * d_out**2
        if two_slips_agree(parts, b):
            continue  # the question must name the slip, so no two slips may give the same number
        counted += 1
        attention = MultiHeadAttention(d_in, d_out, num_tokens, 0.0, num_heads)
        with FlopCounterMode(display=False) as counter:
            attention(torch.zeros(b, num_tokens, d_in))
        with Forbid(None, "arithmetic with the five sizes"):
            got = attention_flops(b, num_tokens, d_in, d_out, num_heads)
        where = f"b={b}, num_tokens={num_tokens}, d_in={d_in}, d_out={d_out}, num_heads={num_heads}"
        expect_equal(counter.get_total_flops(), got, where, flops_slip(got, parts, b, num_heads))
    passed("3.8")


class OnePass:
    """Pairs (key, value) that can be read once; fails the check if a second pass begins, or if old pairs are kept."""

    def __init__(self, keys: torch.Tensor, values: torch.Tensor, where: str):
        self.keys, self.values, self.where, self.begun = keys, values, where, False

    def __iter__(self):
        if self.begun:
            fail("one pass over the pairs", "a second pass", self.where, "what must you have noted about a pair before the next one comes?")
        self.begun = True
        return self.read()

    def read(self):
        alive = []
        for number in range(len(self.keys)):
            key, value = self.keys[number].clone(), self.values[number].clone()
            alive = [reference for reference in alive if reference() is not None] + [weakref.ref(key), weakref.ref(value)]
            if len(alive) > 6:
                question = "which running sums replace the list?"
                fail("only the newest pair in memory", f"{len(alive) // 2} pairs at pair {number + 1}", self.where, question)
            yield key, value
            del key, value


@exercise("3.9", answer="streaming_attention")
def check_3_9(streaming_attention: Callable) -> None:
    """One pass, wherever the scores lie, must give what the fused function gives in double precision."""
    torch.manual_seed(123)
    keys, values = torch.rand(20, 9).sort(dim=0, descending=True).values, torch.randn(20, 3)  # (20, 9), (20, 3)
    query, where = torch.ones(9), "keys of length 9, the largest score first"
    expected = F.scaled_dot_product_attention(query[None], keys, values)[0]  # (3)
    got = streaming_attention(query, OnePass(keys, values, where))
    expect_close(expected, got, f"20 pairs, {where}", "is the root of d there?", atol=1e-4)
    query = torch.ones(4)
    near = torch.randint(-20, 20, (20,)) / 2
    far = torch.cat([torch.tensor([-500.0, 500.0]), 500 - torch.arange(18) / 2])
    cases = [
        ("small scores", near / 10, "must the old total AND the old sum be corrected when a larger score arrives?"),
        ("scores from -500 up to 500, the lowest first", far, "which exponent is the largest that you ever compute, and is it 0?"),
        ("scores from 500 down to -500", far.flip(0), "what happens to the sums when the next score is far smaller?"),
        ("scores near 2,000", 2000 + near, "which exponent is the largest that you ever compute, and is it 0?"),
        ("scores near -2,000", near - 2000, "if all scores are far below zero, what is your running maximum at the start?"),
    ]
    for where, scores, question in cases:
        keys = scores[:, None] / 2 + torch.tensor([2.0, -1.0, -1.5, 0.5])  # (20, 4); query . key / 2 is the score, exactly
        expected = F.scaled_dot_product_attention(query[None].double(), keys.double(), values.double())[0]  # (3)
        got = streaming_attention(query, OnePass(keys, values, where))
        expect_close(expected, got, f"20 pairs, {where}", question, atol=1e-4)
    passed("3.9")


@exercise("3.10", answer="score_divisor")
def check_3_10(score_divisor: Callable) -> None:
    """Scores of 5,000 random pairs, divided by the answer, must have the standard deviation 1."""
    generator = torch.Generator().manual_seed(123)
    for head_dim, query_std, key_std in ((64, 1.0, 1.0), (16, 1.0, 1.0), (16, 3.0, 1.0), (64, 1.0, 0.5), (128, 2.0, 2.0)):
        queries = query_std * torch.randn(5000, head_dim, generator=generator)
        keys = key_std * torch.randn(5000, head_dim, generator=generator)
        where = f"head_dim={head_dim}, query_std={query_std}, key_std={key_std}"
        got = score_divisor(head_dim, query_std, key_std)
        if not isinstance(got, int | float) or not got > 0:
            fail("a positive number", repr(got), where, "did you return the divisor?")
        spread = ((queries * keys).sum(dim=-1).std() / got).item()
        if abs(spread - 1) > 0.05:
            question = "which of the three sizes make a score larger, and by how much: itself, its root, its square?"
            fail("scores with the standard deviation 1", f"one of {spread:.2f}, after division by {got:.6g}", where, question)
    passed("3.10")


if __name__ == "__main__":
    sys.exit(run_checks())
