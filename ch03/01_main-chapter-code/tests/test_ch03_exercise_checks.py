"""Every check accepts the worked solution and a second one, and rejects one-edit mistakes with a question."""

from pathlib import Path

import exercise_checks
import nbformat
import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F
from multihead_attention import MultiHeadAttention, MultiHeadAttentionWrapper
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


def gpt2_attention(qkv_bias):
    return MultiHeadAttention(768, 768, 1024, 0.0, 12, qkv_bias), 4 * 768**2 + 768 * (4 if qkv_bias else 1)


def causal_softmax(scores):
    allowed = torch.ones_like(scores, dtype=torch.bool).tril()
    shifted = scores - torch.where(allowed, scores, -torch.inf).amax(-1, keepdim=True)
    powers = torch.where(allowed, shifted, -torch.inf).exp()
    return powers / powers.sum(-1, keepdim=True)


def padding_mask(lengths, num_tokens):
    rows = [[[j > i or j >= n for j in range(num_tokens)] for i in range(num_tokens)] for n in lengths.tolist()]
    return torch.tensor(rows)


def window_mask(num_tokens, window):
    mask = torch.ones(num_tokens, num_tokens, dtype=torch.bool)
    for i in range(num_tokens):
        mask[i, max(0, i - window + 1) : i + 1] = False
    return mask


def split_heads(x, num_heads):
    if x.shape[-1] % num_heads:
        raise ValueError("not whole")
    return torch.stack(x.split(x.shape[-1] // num_heads, dim=-1), dim=1)


def attention_flops(b, num_tokens, d_in, d_out, num_heads):
    return b * num_tokens * d_out * (6 * d_in + 4 * num_tokens + 2 * d_out)


def streaming_attention(query, pairs):
    keys, values = (torch.stack(part) for part in zip(*pairs))
    return F.scaled_dot_product_attention(query[None], keys, values)[0]


SECOND = {"3.1": copy_weights, "3.2": wrapper_of_width, "3.3": gpt2_attention, "3.4": causal_softmax, "3.5": padding_mask}
SECOND |= {"3.6": window_mask, "3.7": split_heads, "3.8": attention_flops, "3.9": streaming_attention}

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
    ],
    "3.3": [
        ("num_heads=12", "num_heads=64"),
        ("context_length=1024", "context_length=256"),
        (", qkv_bias=qkv_bias)", ")"),
        ("output = width * width + width", "output = width * width"),
        ("(3 * width if qkv_bias else 0)", "0"),
        ("return attention, projections + output", "return attention, projections + output + 1024 * 1024"),
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
    ],
    "3.5": [
        ("future | is_padding[:, None, :]", "future | is_padding[:, :, None]"),
        ("future | is_padding[:, None, :]", "future & is_padding[:, None, :]"),
        ("future | is_padding[:, None, :]", "~(future | is_padding[:, None, :])"),
        (">= lengths", "> lengths"),
        ("diagonal=1", "diagonal=0"),
        ("return future | is_padding[:, None, :]", "return (future | is_padding[:, None, :]).float()"),
    ],
    "3.6": [
        ("distance >= window", "distance > window"),
        ("(distance < 0) | ", ""),
        ("(distance < 0)", "(distance <= 0)"),
        ("position[:, None] - position", "position - position[:, None]"),
        ("return (distance < 0) | (distance >= window)", "return (distance >= 0) & (distance < window)"),
        ("(distance < 0) | (distance >= window)", "distance.abs() >= window"),
    ],
    "3.7": [
        ("num_tokens, num_heads, d_out // num_heads).transpose(1, 2)", "num_heads, num_tokens, d_out // num_heads)"),
        (".transpose(1, 2)", ""),
        ("num_tokens, num_heads, d_out // num_heads).transpose(1, 2)", "num_tokens, d_out // num_heads, num_heads).permute(0, 3, 1, 2)"),
        (".transpose(1, 2)", ".transpose(2, 3)"),
        (
            'raise ValueError(f"d_out {d_out} is not divisible by num_heads {num_heads}")',
            "x = x[..., : d_out // num_heads * num_heads]; d_out = x.shape[-1]",
        ),
    ],
    "3.8": [
        ("3 * 2 * (b", "3 * (b"),
        ("b * num_heads * 2 * num_tokens * head_dim * num_tokens", "b * num_heads * 2 * num_tokens * d_out * num_tokens"),
        ("weighted_sum + output", "weighted_sum"),
        ("* d_out * d_out", "* d_in * d_out"),
        ("b * num_heads * 2 * num_tokens * num_tokens * head_dim", "b * num_heads * num_tokens * (num_tokens + 1) * head_dim"),
    ],
    "3.9": [
        ("/ len(query) ** 0.5", ""),
        ("total = total * shrink +", "total = total +"),
        ("weight_sum = weight_sum * shrink +", "weight_sum = weight_sum +"),
        ("torch.exp(highest - new_highest)", "torch.exp(new_highest - highest)"),
        ('float("-inf")', "0.0"),
        ("new_highest = torch.maximum(highest, score)", "new_highest = torch.tensor(0.0)"),
    ],
}


def wrong_answer(number: str, index: int, worked) -> object:
    """The answer that the worked solution defines after one edit."""
    code, names = worked
    old, new = EDITS[number][index]
    assert code[number][0].count(old) == 1, f"{old!r} must occur once in the solution of {number}"
    edited = dict(names)
    exec(code[number][0].replace(old, new), edited)
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
        raise NotImplementedError

    exercise_checks.picture(unsolved, alt="never drawn")
    assert "nothing to draw yet" in capsys.readouterr().out


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
