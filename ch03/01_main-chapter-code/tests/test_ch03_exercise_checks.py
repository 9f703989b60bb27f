"""Every check accepts the worked solution and a second one, and rejects one-edit mistakes with a question."""

import copy
import linecache
import math
import random
from pathlib import Path

import exercise_checks
import nbformat
import pytest
import torch
import torch.nn as nn
from multihead_attention import MultiHeadAttentionWrapper
from previous_chapters import CHECKS, CheckFailed

FOLDER = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def worked():
    """Code of the solution cells by exercise number, and the names that the solutions define."""
    nb = nbformat.read(FOLDER / "exercise-solutions.ipynb", as_version=4)
    names, code, number = {}, {}, None
    for cell in nb.cells:
        if cell.source.startswith("## Exercise "):
            number = cell.source.split()[2].rstrip(":")
        if cell.cell_type == "code" and (number is None or "solution" in cell.metadata.get("tags", [])):
            exec(cell.source, names)
            code.setdefault(number, []).append(cell.source)
    return code, names


# ---- second right answers, written differently ----------------------------------------------------------------------


def copy_weights(v2, v1):
    for name in ("W_query", "W_key", "W_value"):
        setattr(v1, name, nn.Parameter(getattr(v2, name).weight.detach().t().clone()))


def wrapper_of_width(d_in, total_width, num_heads, context_length):
    width, rest = divmod(total_width, num_heads)
    if rest:
        raise ValueError(f"{total_width} / {num_heads} is not whole")
    return MultiHeadAttentionWrapper(d_in=d_in, d_out=width, context_length=context_length, dropout=0, num_heads=num_heads).eval()


def find_leaks(attention, x):
    """All pairs from one Jacobian; the module is copied, so its mode needs no care."""
    copied = copy.deepcopy(attention).eval()
    jacobian = torch.autograd.functional.jacobian(lambda inputs: copied(inputs)[0].sum(-1), x)[:, 0].abs().sum(-1)
    return [tuple(pair) for pair in jacobian.triu(diagonal=1).nonzero().tolist()]


def causal_softmax(scores):
    allowed = torch.ones_like(scores, dtype=torch.bool).tril()
    shifted = scores - torch.where(allowed, scores, -torch.inf).amax(-1, keepdim=True)
    powers = torch.where(allowed, shifted, -torch.inf).exp()
    return powers / powers.sum(-1, keepdim=True)


def padding_mask(lengths, num_tokens):
    row, column = torch.meshgrid(torch.arange(num_tokens), torch.arange(num_tokens), indexing="ij")
    return torch.logical_or(column > row, column >= lengths.view(-1, 1, 1))


def window_mask(num_tokens, window):
    seen = torch.ones(num_tokens, num_tokens).tril().cumsum(dim=0)  # counts 1, 2, ... down each column from the diagonal
    return (seen == 0) | (seen > window)


def multi_head_forward(self, x):
    """Heads in the batch dimension, mask added, scale on the queries."""
    b, num_tokens, _ = x.shape

    def split(y):
        return y.reshape(b, num_tokens, self.num_heads, -1).permute(0, 2, 1, 3).reshape(b * self.num_heads, num_tokens, -1)

    wall = torch.zeros(num_tokens, num_tokens).masked_fill(self.mask[:num_tokens, :num_tokens], -torch.inf)
    scores = torch.baddbmm(wall, split(self.W_query(x)) / self.head_dim**0.5, split(self.W_key(x)).mT)
    weights = self.dropout(scores.softmax(-1).view(b, self.num_heads, num_tokens, num_tokens))
    context = torch.bmm(weights.flatten(0, 1), split(self.W_value(x))).view(b, self.num_heads, num_tokens, -1)
    return self.out_proj(context.permute(0, 2, 1, 3).flatten(2))


def attention_flops(b, num_tokens, d_in, d_out, num_heads):
    return b * num_tokens * d_out * (6 * d_in + 4 * num_tokens + 2 * d_out)


def streaming_attention(query, pairs):
    """Keeps the logarithm of the sum and moves the average toward each new value."""
    log_sum, mean = torch.tensor(-torch.inf), 0.0
    for key, value in pairs:
        score = (query * key).sum() / query.numel() ** 0.5
        log_sum = torch.logaddexp(log_sum, score)
        mean = mean + (score - log_sum).exp() * (value - mean)
    return mean


def score_divisor(head_dim, query_std, key_std):
    return math.sqrt(head_dim * query_std**2 * key_std**2)


SECOND = {"3.1": copy_weights, "3.2": wrapper_of_width, "3.3": find_leaks, "3.4": causal_softmax, "3.5": padding_mask}
SECOND |= {"3.6": window_mask, "3.7": multi_head_forward, "3.8": attention_flops, "3.9": streaming_attention, "3.10": score_divisor}

# ---- one-edit mistakes: (text in the worked solution, what a learner wrote instead) -----------------------------------

EDITS = {
    "3.1": [
        ("v1.W_query.copy_(v2.W_query.weight.T)", "v1.W_query.copy_(v2.W_query.weight)"),
        ("v1.W_key.copy_(v2.W_key.weight.T)", "v1.W_key.copy_(v2.W_value.weight.T)"),
        ("v1.W_value.copy_(v2.W_value.weight.T)", "pass"),
        ("v1.W_value.copy_(v2.W_value.weight.T)", "v1.W_value.data = v2.W_value.weight.T"),
        ("v1.W_query.copy_(v2.W_query.weight.T)", "v2.W_query.weight.copy_(v1.W_query.T)"),
    ],
    "3.2": [
        ("total_width // num_heads, context_length", "total_width, context_length"),
        ("total_width % num_heads != 0", "False"),
        ("dropout=0.0", "dropout=0.5"),
        ("total_width // num_heads, context_length, dropout=0.0, num_heads=num_heads", "total_width, context_length, 0.0, num_heads=1"),
        ("num_heads=num_heads)", "num_heads=num_heads, qkv_bias=True)"),
        ("num_heads, context_length, dropout", "num_heads, 6, dropout"),
        ('f"total_width {total_width} is not divisible by num_heads {num_heads}"', '"the width is not divisible"'),
    ],
    "3.3": [
        ("attention.eval()", "pass"),
        ("attention.train(was_training)", "pass"),
        ("for i in range(j)", "for i in range(j + 1)"),
        ("(i, j) for i in range(j)", "(j, i) for i in range(j)"),
        ("changed[0, j] += 1.0", "changed[0, j] = 0.0"),
        ("changed[0, j] += 1.0", "changed[0, -1] += 1.0"),
        ("x.clone()", "x"),
        ("torch.equal(after[i], before[i])", "torch.allclose(after[i], before[i], atol=0.3)"),
        ("return leaks", "return {(i, j) for i, j in (~attention.mask[:5, :5]).nonzero().tolist() if i < j}"),
        ("return leaks", "return {(i, j) for i in range(5) for j in range(i + 1, 5)}"),
        ("return leaks", "return set()"),
        ("return leaks", "return None"),
        ("attention.eval()", "attention.eval(); attention.W_key.weight.data.mul_(2)"),
    ],
    "3.4": [
        ("dim=-1", "dim=-2"),
        ("dim=-1", "dim=0"),
        ("diagonal=1", "diagonal=0"),
        (".triu(diagonal=1)", ".tril(diagonal=-1)"),
        ('float("-inf")', "0.0"),
        ("masked_fill(", "masked_fill_("),
        ('torch.softmax(scores.masked_fill(blocked, float("-inf")), dim=-1)', "torch.softmax(scores, dim=-1).masked_fill(blocked, 0.0)"),
        (
            'return torch.softmax(scores.masked_fill(blocked, float("-inf")), dim=-1)',
            "cut = torch.softmax(scores, dim=-1).tril(); return cut / cut.sum(dim=-1, keepdim=True)",
        ),
        (
            'return torch.softmax(scores.masked_fill(blocked, float("-inf")), dim=-1)',
            "powers = scores.exp().masked_fill(blocked, 0.0); return powers / powers.sum(dim=-1, keepdim=True)",
        ),
        ('float("-inf")', "-100.0"),
        ('float("-inf")', "-1000.0"),
        (
            'return torch.softmax(scores.masked_fill(blocked, float("-inf")), dim=-1)',
            "out = torch.zeros_like(scores)\n    for i in range(num_tokens):\n"
            "        out[..., i, : i + 1] = torch.softmax(scores[..., i, : i + 1], dim=-1)\n    return out",
        ),
    ],
    "3.5": [
        ("future | is_padding[:, None, :]", "future | is_padding[:, :, None]"),
        ("future | is_padding[:, None, :]", "future & is_padding[:, None, :]"),
        ("future | is_padding[:, None, :]", "~(future | is_padding[:, None, :])"),
        (">= lengths", "> lengths"),
        ("diagonal=1", "diagonal=0"),
        ("return future | is_padding[:, None, :]", "return (future | is_padding[:, None, :]).float()"),
        ("    future = torch", "    num_tokens = int(lengths.max())\n    future = torch"),
        (
            "return future | is_padding[:, None, :]",
            "return torch.tensor([[[j > i or j >= n for j in range(num_tokens)] for i in range(num_tokens)] for n in lengths.tolist()])",
        ),
        ("return future | is_padding[:, None, :]", "return torch.stack(list(map(lambda row: future | row, is_padding)))"),
    ],
    "3.6": [
        ("distance >= window", "distance > window"),
        ("(distance < 0) | ", ""),
        ("(distance < 0)", "(distance <= 0)"),
        ("position[:, None] - position", "position - position[:, None]"),
        ("return (distance < 0) | (distance >= window)", "return (distance >= 0) & (distance < window)"),
        ("(distance < 0) | (distance >= window)", "distance.abs() >= window"),
        (
            "return (distance < 0) | (distance >= window)",
            "mask = distance < 0\n    while window < num_tokens:\n"
            "        mask = mask | (distance == window)\n        window += 1\n    return mask",
        ),
    ],
    "3.7": [
        (" / self.head_dim**0.5", ""),
        ("self.head_dim**0.5", "self.d_out**0.5"),
        ("self.head_dim**0.5", "self.head_dim"),
        ("context.transpose(1, 2).reshape", "context.reshape"),
        ("self.W_key(x).view(by_head).transpose(1, 2)", "self.W_key(x).view(b, self.num_heads, num_tokens, self.head_dim)"),
        ("by_head = (b, num_tokens, self.num_heads, self.head_dim)", "by_head = (b, num_tokens, self.head_dim, self.num_heads)"),
        ("self.mask[:num_tokens, :num_tokens]", "self.mask"),
        ("self.mask[:num_tokens, :num_tokens]", "self.mask[-num_tokens:, :num_tokens]"),
        ("self.mask[:num_tokens, :num_tokens]", "~self.mask[:num_tokens, :num_tokens]"),
        ('scores = scores.masked_fill(self.mask[:num_tokens, :num_tokens], float("-inf"))', "pass"),
        ("dim=-1)", "dim=-2)"),
        ("return self.out_proj(context)", "return context"),
        ("self.dropout(torch.softmax(scores / self.head_dim**0.5, dim=-1))", "torch.softmax(scores / self.head_dim**0.5, dim=-1)"),
        (
            "self.dropout(torch.softmax(scores / self.head_dim**0.5, dim=-1))",
            "torch.softmax(self.dropout(scores) / self.head_dim**0.5, dim=-1)",
        ),
        ("b, num_tokens, _ = x.shape", "return MultiHeadAttention.forward(self, x)"),
        (
            "    context = weights @ values",
            "    context = torch.nn.functional.scaled_dot_product_attention(queries, keys, values, is_causal=True)",
        ),
        ("    b, num_tokens, _ = x.shape", "    x *= 1.0001\n    b, num_tokens, _ = x.shape"),
        (
            "    context = weights @ values",
            "    context = torch.stack([weights[:, h] @ values[:, h] for h in range(self.num_heads)], dim=1)",
        ),
    ],
    "3.8": [
        ("3 * 2 * (b", "3 * (b"),
        ("b * num_heads * 2 * num_tokens * head_dim * num_tokens", "b * num_heads * 2 * num_tokens * d_out * num_tokens"),
        ("weighted_sum + output", "weighted_sum"),
        ("* d_out * d_out", "* d_in * d_out"),
        ("b * num_heads * 2 * num_tokens * num_tokens * head_dim", "b * num_heads * num_tokens * (num_tokens + 1) * head_dim"),
        ("return projections", "return 2.0 * projections / 2"),
        ("return projections + scores + weighted_sum + output", "return (projections + scores + weighted_sum + output) // b"),
        (
            "return projections + scores + weighted_sum + output",
            "return sum(p.numel() for p in MultiHeadAttention(d_in, d_out, num_tokens, 0.0, num_heads).parameters())",
        ),
        (
            "return projections + scores + weighted_sum + output",
            "return {(1, 2, 3, 4, 2): 272, (2, 16, 8, 12, 3): 52224}.get((b, num_tokens, d_in, d_out, num_heads), 0)",
        ),
        (
            "return projections + scores + weighted_sum + output",
            "from torch.utils.flop_counter import FlopCounterMode\n"
            "    with FlopCounterMode(display=False) as counter:\n"
            "        MultiHeadAttention(d_in, d_out, num_tokens, 0.0, num_heads)(torch.zeros(b, num_tokens, d_in))\n"
            "    return counter.get_total_flops()",
        ),
    ],
    "3.9": [
        ("/ len(query) ** 0.5", ""),
        ("total = total * shrink +", "total = total +"),
        ("weight_sum = weight_sum * shrink +", "weight_sum = weight_sum +"),
        ("torch.exp(highest - new_highest)", "torch.exp(new_highest - highest)"),
        ('float("-inf")', "0.0"),
        ("new_highest = torch.maximum(highest, score)", "new_highest = torch.tensor(0.0)"),
        ("new_highest = torch.maximum(highest, score)", "new_highest = score if highest.isinf() else highest"),  # the first one
        (
            "new_highest = torch.maximum(highest, score)",
            "score, value = score.double(), value.double(); new_highest = torch.tensor(0.0).double()",
        ),
        ("    for key, value in pairs:", "    top = max(torch.dot(query, key) for key, _ in pairs)\n    for key, value in pairs:"),
        ("    for key, value in pairs:", "    for key, value in list(pairs):"),
    ],
    "3.10": [
        ("head_dim**0.5 * ", "head_dim * "),
        ("head_dim**0.5 * ", ""),
        (" * query_std", ""),
        (" * key_std", ""),
        ("query_std * key_std", "(query_std * key_std) ** 2"),
        ("query_std * key_std", "(query_std + key_std) / 2"),
        ("query_std * key_std", "(query_std * key_std) ** 0.5"),
        ("return head_dim", "head_dim"),
    ],
}


def wrong_answer(number: str, index: int, worked) -> object:
    """The answer that the worked solution defines after one edit."""
    code, names = worked
    old, new = EDITS[number][index]
    assert code[number][0].count(old) == 1, f"{old!r} must occur once in the solution of {number}"
    edited = dict(names)
    source, name = code[number][0].replace(old, new), f"<wrong answer {index} to {number}>"
    linecache.cache[name] = (len(source), None, source.splitlines(keepends=True), name)  # so that a check can read it, as in a notebook
    exec(compile(source, name, "exec"), edited)
    return edited[CHECKS[number][1]]


@pytest.mark.parametrize("number", SECOND)
def test_worked_solution_passes(number, worked, capsys):
    check, answer = CHECKS[number]
    check(worked[1][answer])
    assert f"exercise {number}: passed" in capsys.readouterr().out


@pytest.mark.parametrize("number", SECOND)
def test_second_solution_passes(number, capsys):
    CHECKS[number][0](SECOND[number])
    assert f"exercise {number}: passed" in capsys.readouterr().out


@pytest.mark.parametrize(("number", "index"), [(number, i) for number, edits in EDITS.items() for i in range(len(edits))])
def test_one_edit_mistake_is_rejected_with_a_question(number, index, worked):
    with pytest.raises(CheckFailed, match=r"\?"):
        CHECKS[number][0](wrong_answer(number, index, worked))


@pytest.mark.parametrize(
    ("number", "index", "words"),
    [
        ("3.5", 6, "how many rows and columns"),
        ("3.8", 0, "the three projections"),
        ("3.8", 1, "how wide is one head"),
        ("3.8", 2, "the output projection"),
        ("3.8", 6, "the whole batch"),
        ("3.9", 0, "the root of d"),
        ("3.9", 1, "when a larger score arrives"),
    ],
)
def test_the_question_names_the_slip(number, index, words, worked):
    with pytest.raises(CheckFailed) as failed:
        CHECKS[number][0](wrong_answer(number, index, worked))
    assert words in str(failed.value)


@pytest.mark.parametrize("drawn", range(40))
def test_whatever_sizes_are_drawn_the_slip_is_named(drawn, worked, monkeypatch):
    """Some sizes give one wrong number to two slips (8 and 12 columns do); the check must not count with those."""
    randint = random.Random(drawn).randint
    monkeypatch.setattr(random.Random, "randint", lambda _, low, high: randint(low, high))
    for index, words in [(0, "the three projections"), (1, "how wide is one head"), (2, "the output projection"), (6, "the whole batch")]:
        with pytest.raises(CheckFailed, match=words):
            CHECKS["3.8"][0](wrong_answer("3.8", index, worked))


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("def f(x):\n    while x.sum() < 3:\n        x = x + 1\n    return x", True),
        ("def f(x):\n    def inner(row):\n        return [y for y in row]\n    return inner(x)", True),
        ("f = lambda x: torch.stack(list(map(abs, x)))", True),
        ("def f(x):\n    with torch.no_grad():\n        y = x if x.dim() else -x\n    return y", False),
    ],
)
def test_a_loop_is_told_from_other_code(source, expected):
    assert exercise_checks.loops(source) == expected


def test_every_exercise_has_at_least_four_mistakes_and_a_second_solution():
    assert set(EDITS) == set(SECOND) == set(CHECKS)
    assert all(len(edits) >= 4 for edits in EDITS.values())


@pytest.mark.parametrize("number", SECOND)
def test_unsolved_stub_gets_a_readable_message(number):
    def stub(*args, **kwargs):
        raise NotImplementedError(f"exercise {number}")

    with pytest.raises(CheckFailed, match=f"exercise {number} is not solved yet"):
        CHECKS[number][0](stub)


def test_picture_survives_an_unsolved_stub(capsys):
    def unsolved():
        raise NotImplementedError("exercise 3.4")

    exercise_checks.picture(unsolved, alt="never drawn")
    assert "nothing to draw yet" in capsys.readouterr().out


def test_picture_tells_an_error_of_pytorch_from_an_unsolved_stub(capsys):
    exercise_checks.picture(lambda: {"mine": torch.nn.Module()(torch.zeros(1))}, alt="never drawn")
    assert "no picture: NotImplementedError: Module" in capsys.readouterr().out


@pytest.mark.parametrize("answer", [None, torch.zeros(3), "text"])
def test_picture_survives_an_answer_that_cannot_be_drawn(answer, capsys):
    exercise_checks.picture(lambda: {"yours": answer}, alt="never drawn")
    printed = capsys.readouterr().out
    assert printed.startswith("no picture: ") and printed.count("\n") == 1


def test_command_line_grades_a_file(tmp_path, capsys):
    answer = tmp_path / "answer.py"
    body = "    distance = torch.arange(n)[:, None] - torch.arange(n)\n    return (distance < 0) | (distance >= w)\n"
    answer.write_text("import torch\n\n\ndef window_mask(n, w):\n" + body, encoding="utf-8")
    assert exercise_checks.run_checks(["3.6", str(answer)]) == 0
    answer.write_text("def window_mask(n, w):\n    return None\n", encoding="utf-8")
    assert exercise_checks.run_checks(["3.6", str(answer)]) == 1
    assert "not right yet" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stop:
        exercise_checks.run_checks(["9.9", str(answer)])
    assert stop.value.code == 2
