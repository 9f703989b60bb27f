"""The checks grade right and wrong answers: worked and second solutions pass, every mutant is rejected with a question."""

import math
import re
from pathlib import Path

import check_tools
import exercise_checks
import nbformat
import pytest
import torch

NOTEBOOK = Path(exercise_checks.__file__).with_name("exercise-solutions.ipynb")


def tagged(cell, tag):
    return cell.cell_type == "code" and tag in cell.metadata.get("tags", [])


def worked_solutions() -> dict:
    """Exercise number -> source of the solution cell that defines the answer; what the first cell imports stands before it."""
    cells = nbformat.read(NOTEBOOK, as_version=4).cells
    imports = next(cell.source for cell in cells if cell.cell_type == "code")
    solutions, number = {}, None
    for cell in cells:
        heading = re.match(r"## Exercise (2\.\d)", cell.source)
        number = heading[1] if heading else number
        if tagged(cell, "solution") and number not in solutions:
            solutions[number] = imports + "\n\n\n" + cell.source
    return solutions


SOLUTIONS = worked_solutions()

# Written independently of the worked answers.
SECOND = {
    "2.1": """
def take_apart(text, tokenizer):
    ids = tokenizer.encode(text)
    pieces = tokenizer.decode_tokens_bytes(ids)
    texts = [piece.decode("utf-8", errors="replace") for piece in pieces]
    return list(zip(ids, texts, tokenizer.encode_batch(texts)))
""",
    "2.2": """
def predict_loader(token_ids, batch_size, max_length, stride, drop_last):
    windows, start = [], 0
    while start + max_length + 1 <= len(token_ids):
        windows.append(token_ids[start : start + max_length + 1])
        start += stride
    batches = [windows[i : i + batch_size] for i in range(0, len(windows), batch_size)]
    batches = [batch for batch in batches if len(batch) == batch_size or not drop_last]
    first = batches[0] if batches else []
    return [w[:-1] for w in first], [w[1:] for w in first], len(batches)
""",
    "2.3": """
class LosslessTokenizer:
    def __init__(self, text):
        self.vocabulary = sorted(set(self.split(text)))
    def split(self, text):
        pieces, word, i = [], "", 0
        while i < len(text):
            size = 2 if text[i : i + 2] == "--" else 1
            while text[i].isspace() and text[i : i + size + 1].isspace() and i + size < len(text):
                size += 1
            if size > 1 or text[i] in ",.:;?_!()'" + chr(34) or text[i].isspace():
                pieces += [word, text[i : i + size]]
                word = ""
            else:
                word += text[i]
            i += size
        return [piece for piece in pieces + [word] if piece]
    def encode(self, text):
        for piece in self.split(text):
            if piece not in self.vocabulary:
                raise KeyError(f"unknown: {piece}")
        return [self.vocabulary.index(piece) for piece in self.split(text)]
    def decode(self, ids):
        text = ""
        for token_id in ids:
            text = text + self.vocabulary[token_id]
        return text
""",
    "2.4": """
import torch
def lookup_by_matmul(weight, token_ids):
    rows = torch.eye(len(weight), dtype=weight.dtype)[token_ids.reshape(-1)]
    return torch.einsum("nv,vd->nd", rows, weight).reshape(*token_ids.shape, -1)
""",
    "2.5": """
def utf8_bytes(code_point):
    for length, limit in enumerate((0x80, 0x800, 0x10000, 0x110000), start=1):
        if code_point < limit:
            break
    if length == 1:
        return [code_point]
    lead = (0xFF00 >> length) & 0xFF
    shifts = range(6 * (length - 1), -1, -6)
    return [(lead if shift == shifts[0] else 0x80) | ((code_point >> shift) & 0x3F) for shift in shifts]
""",
    "2.6": """
def merge_step(token_ids, new_id):
    pairs = list(zip(token_ids, token_ids[1:]))
    if not pairs:
        return None, token_ids[:]
    best = sorted(set(pairs), key=lambda pair: (-pairs.count(pair), pairs.index(pair)))[0]
    merged, rest = [], token_ids[::-1]
    while rest:
        token = rest.pop()
        if rest and (token, rest[-1]) == best:
            rest.pop()
            token = new_id
        merged.append(token)
    return best, merged
""",
    "2.7": """
import torch
def sinusoidal_positions(num_positions, emb_dim):
    frequency = torch.exp(-torch.log(torch.tensor(10000.0)) * torch.arange(0, emb_dim, 2) / emb_dim)
    angles = torch.outer(torch.arange(num_positions).float(), frequency)
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)
""",
    "2.8": """
import torch
def pack_documents(documents, tokenizer, max_length):
    stream = [i for d in documents for i in tokenizer.encode_ordinary(d) + [tokenizer.eot_token]]
    x, y = [], []
    for end in range(max_length, len(stream), max_length):
        x.append(stream[end - max_length : end])
        y.append(stream[end - max_length + 1 : end + 1])
    return torch.tensor(x, dtype=torch.long).view(-1, max_length), torch.tensor(y, dtype=torch.long).view(-1, max_length)
""",
}

# One edit to the worked answer: (exercise, what stands there, what a mutant has instead).
MUTANTS = [
    ("2.1", "tokenizer.encode(piece)", "[token_id]"),
    ("2.1", "tokenizer.encode(piece)", "tokenizer.encode(' ' + piece)"),
    ("2.1", "tokenizer.decode([token_id])", "tokenizer.decode([token_id]).strip()"),
    ("2.1", "tokenizer.encode(text)", "sorted(tokenizer.encode(text))"),
    ("2.1", "tokenizer.encode(text)", "gpt2_tokenizer().encode(text)"),
    ("2.1", "tokenizer.encode(piece)", "gpt2_tokenizer().encode(piece)"),
    ("2.1", "return rows", "return print(rows)"),
    ("2.1", "tokenizer.encode(text)", "tokenizer.encode(text.strip())"),
    ("2.2", "len(token_ids) - max_length", "len(token_ids) - max_length + 1"),
    ("2.2", "max_length, stride)\n", "max_length, max_length)\n"),
    ("2.2", "len(starts) // batch_size if drop_last", "-(-len(starts) // batch_size) if drop_last"),
    ("2.2", "else -(-len(starts) // batch_size)", "else len(starts) // batch_size"),
    ("2.2", "token_ids[start + 1 : start + max_length + 1]", "token_ids[start : start + max_length]"),
    ("2.2", " if num_batches else []", ""),
    ("2.2", "token_ids[start : start + max_length] for", "list(range(start, start + max_length)) for"),
    ("2.2", "return inputs", "token_ids.clear()\n    return inputs"),
    ("2.2", "return inputs, targets, num_batches", "return print(inputs, targets, num_batches)"),
    ("2.3", " if piece]", " if piece.strip()]"),
    ("2.3", " if piece]", "]"),
    ("2.3", "|--", ""),
    ("2.3", "[piece for", "[piece.strip() for"),
    ("2.3", "_!", "!"),
    ("2.3", '"".join', '" ".join'),
    ("2.3", "sorted(set(self.split(text)))", "list(dict.fromkeys(self.split(text)))"),
    ("2.3", "self.str_to_int[piece]", "self.str_to_int.get(piece, 0)"),
    ("2.3", "[self.str_to_int[piece] for piece in self.split(text)]", "[i for p, i in self.str_to_int.items() if p in self.split(text)]"),
    ("2.3", "self.int_to_str = dict(enumerate(pieces))", "LosslessTokenizer.int_to_str = dict(enumerate(pieces))"),
    ("2.3", "return [piece for", "return [text] * (len(text) > 0) or [piece for"),
    ("2.4", "num_classes=weight.shape[0]", "num_classes=-1"),
    ("2.4", "@ weight", "@ weight.detach()"),
    ("2.4", "@ weight", "@ weight.flip(0)"),
    ("2.4", "(token_ids, num", "(token_ids.flatten(), num"),
    ("2.4", ".to(weight.dtype)", ""),
    ("2.4", ".to(weight.dtype)", ".float()"),
    ("2.4", "one_hot.to(weight.dtype) @ weight", "weight[token_ids]"),
    ("2.4", "one_hot.to(weight.dtype) @ weight", "torch.nn.functional.embedding(token_ids, weight)"),
    ("2.4", "return one_hot", "token_ids.zero_()\n    return one_hot"),
    ("2.5", "code_point < 128:", "code_point <= 128:"),
    ("2.5", "code_point < 2048", "code_point <= 2048"),
    ("2.5", "code_point < 65536", "code_point < 65535"),
    ("2.5", "tail.insert(0, ", "tail.append("),
    ("2.5", "128 + code_point % 64", "code_point % 64"),
    ("2.5", "3: 224", "3: 192"),
    ("2.5", "return [code_point]", "return list(chr(code_point).encode())"),
    ("2.5", "code_point = code_point // 64", "code_point = code_point // 64 % 64"),
    ("2.6", "tuple(token_ids[i : i + 2]) == best", "tuple(token_ids[i : i + 2]) == best and new_id not in merged"),
    ("2.6", "i += 2", "i += 1"),
    ("2.6", "max(counts, key=counts.get)", "max(reversed(counts), key=counts.get)"),
    ("2.6", "max(counts, key=counts.get)", "max(sorted(counts), key=counts.get)"),
    ("2.6", "zip(token_ids, token_ids[1:])", "zip(token_ids[::2], token_ids[1::2])"),
    ("2.6", "return best, merged", "token_ids[:] = merged\n    return best, merged"),
    ("2.6", "merged.append(new_id)", "merged.append(256)"),
    ("2.6", "merged.append(new_id)", "merged.append(max(token_ids) + 1)"),
    ("2.6", "return None, list(token_ids)", "return (0, 0), list(token_ids)"),
    ("2.7", "2 * i / emb_dim", "i / emb_dim"),
    ("2.7", "angles = positions", "angles = positions.clamp(max=49)"),
    ("2.7", "emb_dim // 2)", "emb_dim // 2).clamp(max=7)"),
    ("2.7", "return table", "return table.round(decimals=3)"),
    ("2.7", "torch.arange(num_positions,", "torch.arange(1, num_positions + 1,"),
    ("2.7", "torch.sin", "torch.tan"),
    ("2.7", "10000 **", "1000 **"),
    ("2.7", "table[:, 1::2] = ", "table[:, 1::2] = -"),
    ("2.7", "return table", "return torch.cat([table[:, 0::2], table[:, 1::2]], dim=1)"),
    ("2.8", "        stream.append(tokenizer.eot_token)", "        stream.append(tokenizer.eot_token)\n    stream.pop()"),
    ("2.8", "        stream.append(tokenizer.eot_token)", "        stream.insert(0, tokenizer.eot_token)"),
    ("2.8", "disallowed_special=()", "allowed_special='all'"),
    ("2.8", "ids[1:]", "ids[:-1]"),
    ("2.8", "max(len(stream) - 1, 0)", "len(stream)"),
    ("2.8", "torch.int64", "torch.float32"),
    ("2.8", "tokenizer.eot_token", "50256"),
    ("2.8", "for document in documents", "for document in filter(None, documents)"),
    ("2.8", "tokenizer.encode(document, disallowed_special=())", "gpt2_tokenizer().encode(document, disallowed_special=())"),
    ("2.8", "    num_windows =", "    documents.clear()\n    num_windows ="),
]

# Wrong answers that are no edit of the worked one.
WRONG = [
    (
        "2.2",
        """
import torch
from dataloader import GPTDatasetV1
from torch.utils.data import DataLoader
class Numbers:
    def encode(self, text, allowed_special=()):
        return [int(number) for number in text.split()]
def rows(token_ids, batch_size, max_length, stride, drop_last):
    loader = DataLoader(GPTDatasetV1(" ".join(map(str, token_ids)), Numbers(), max_length, stride), batch_size, drop_last=drop_last)
    first = next(iter(loader), (torch.empty(0), torch.empty(0)))
    return first[0].tolist(), first[1].tolist(), len(loader)
def predict_loader(token_ids, batch_size, max_length, stride, drop_last):
    return rows(token_ids, batch_size, max_length, stride, drop_last)
""",
        "without DataLoader, GPTDatasetV1, torch",
    ),
    (
        "2.6",
        """
from collections import Counter
def merge_step(token_ids, new_id):
    counts = Counter(zip(token_ids, token_ids[1:]))
    if not counts:
        return None, token_ids
    best = max(counts, key=counts.get)
    text = " ".join(map(str, token_ids)).replace(f"{best[0]} {best[1]}", str(new_id))
    return best, [int(number) for number in text.split()]
""",
        "behind the pair",
    ),
    (
        "2.6",
        """
def merge_step(token_ids, new_id):
    counts, i = {}, 0
    while i + 1 < len(token_ids):
        pair = tuple(token_ids[i : i + 2])
        counts[pair] = counts.get(pair, 0) + 1
        i += 1 + (pair[0] == pair[1])
    if not counts:
        return None, token_ids
    best, merged, i = max(counts, key=counts.get), [], 0
    while i < len(token_ids):
        hit = tuple(token_ids[i : i + 2]) == best
        merged.append(new_id if hit else token_ids[i])
        i += 1 + hit
    return best, merged
""",
        "overlapping pairs count",
    ),
]


def grade(number, source):
    """Run a source as a learner's file would be run, and call the check on the answer it defines."""
    check, answer = check_tools.CHECKS[number]
    names = {}
    exec(compile(source, "answer.py", "exec"), names)
    check(names[answer])


def test_there_is_a_check_for_every_exercise_and_the_other_way_round():
    assert set(SOLUTIONS) == set(check_tools.CHECKS) == set(SECOND) and len(SOLUTIONS) == 8


@pytest.mark.parametrize("number", SOLUTIONS)
def test_worked_solution_passes(number, capsys):
    grade(number, SOLUTIONS[number])
    assert f"exercise {number}: passed" in capsys.readouterr().out


@pytest.mark.parametrize("number", SECOND)
def test_second_solution_passes(number, capsys):
    grade(number, SECOND[number])
    assert f"exercise {number}: passed" in capsys.readouterr().out


@pytest.mark.parametrize("number, old, new", MUTANTS, ids=[f"{m[0]}-{i}" for i, m in enumerate(MUTANTS)])
def test_mutant_is_rejected(number, old, new):
    parts = SOLUTIONS[number].split("\n\n\n")
    body = next(i for i, part in enumerate(parts) if part.startswith(("def ", "class ")) and old in part)
    assert parts[body].count(old) == 1, "the edit must fit exactly one place"
    parts[body] = parts[body].replace(old, new)
    source = "\n\n\n".join(parts[: body + 1])  # without the demonstration behind the answer
    with pytest.raises(check_tools.CheckFailed) as error:
        grade(number, source)
    assert "?" in str(error.value)


@pytest.mark.parametrize("number, source, message", WRONG, ids=[f"{w[0]}-{i}" for i, w in enumerate(WRONG)])
def test_wrong_answer_is_rejected_for_its_fault(number, source, message):
    with pytest.raises(check_tools.CheckFailed) as error:
        grade(number, source)
    assert message in str(error.value) and "your code stopped" not in str(error.value)


def test_the_checks_draw_nothing_from_the_random_numbers_of_the_learner():
    before = torch.get_rng_state()
    for number in SECOND:
        grade(number, SECOND[number])
    assert torch.equal(before, torch.get_rng_state())


def test_an_answer_without_return_is_told_so():
    for number, (check, answer) in check_tools.CHECKS.items():
        if number != "2.3":  # a class
            with pytest.raises(check_tools.CheckFailed, match="got:      None\n  think:    does your function end with `return`"):
                check(lambda *args: None)


def test_at_least_four_mutants_for_every_exercise():
    assert min(sum(m[0] == number for m in MUTANTS) for number in SOLUTIONS) >= 4


@pytest.mark.parametrize("number", SOLUTIONS)
def test_stub_is_reported_as_unsolved(number):
    check, answer = check_tools.CHECKS[number]

    def stub(*args, **kwargs):
        raise NotImplementedError(f"exercise {number}")

    with pytest.raises(check_tools.CheckFailed, match=f"exercise {number} is not solved yet: write {answer}"):
        check(stub)


def test_the_command_line_knows_the_exercises(tmp_path, capsys):
    (tmp_path / "mine.py").write_text(SECOND["2.3"], encoding="utf-8")
    assert exercise_checks.run_checks(["2.3", "mine.py"]) == 0
    assert capsys.readouterr().out == "exercise 2.3: passed\n"


def test_distance_property_of_the_wave_table():
    table = torch.tensor([[f(p / 10000 ** (2 * i / 8)) for i in range(4) for f in (math.sin, math.cos)] for p in range(30)])
    products = table @ table.T
    assert all(torch.allclose(products.diagonal(k), products[0, k].expand(30 - k), atol=1e-4) for k in range(30))
