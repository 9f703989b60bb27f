"""The checks accept right answers, written in two ways, and reject wrong ones with a question."""

import contextlib
import io
from pathlib import Path

import exercise_checks
import nbformat
import pytest
import torch
from kv_cache import KVCache
from previous_chapters import CHECKS, CheckFailed

NOTEBOOK = nbformat.read(Path(exercise_checks.__file__).with_name("exercise-solutions.ipynb"), as_version=4)
SOLUTIONS = dict(zip(CHECKS, (c.source for c in NOTEBOOK.cells if c.cell_type == "code" and "solution" in c.metadata.get("tags", []))))


def run_check(number: str, source: str) -> None:
    check, answer = CHECKS[number]
    names = {"__name__": "answer", "torch": torch, "KVCache": KVCache}
    with contextlib.redirect_stdout(io.StringIO()):
        exec(compile(source, f"answer {number}", "exec"), names)
        check(names[answer])


SECOND = {  # an independent answer to each exercise
    "1": """
def tokens_that_fit(cfg, rows, free_bytes, bytes_per_number):
    tokens = 0
    while tokens < cfg["context_length"]:
        numbers = 2 * cfg["n_layers"] * rows * (tokens + 1) * cfg["n_heads"] * (cfg["emb_dim"] // cfg["n_heads"])
        if numbers * bytes_per_number > free_bytes:
            break
        tokens += 1
    return tokens
""",
    "2": """
def blocked_keys(num_cached, num_new, window=None):
    allowed = torch.ones(num_new, num_cached + num_new, dtype=torch.bool).tril(diagonal=num_cached)
    if window is not None:
        allowed = allowed.triu(diagonal=num_cached - window + 1)
    return ~allowed
""",
    "3": """
def continue_text(model, cache, cached_ids, new_ids):
    n = min(cached_ids.shape[1], new_ids.shape[1] - 1)
    equal = (cached_ids[0, :n] == new_ids[0, :n]).int()
    cache.crop(int(equal.cumprod(dim=0).sum()))
    return model(new_ids[:, len(cache):], cache=cache, only_last=True)[:, 0]
""",
    "4": """
def beam_search(model, ids, num_beams, new_tokens):
    cache = KVCache(3)
    first = torch.log_softmax(model(ids, cache=cache, only_last=True)[0, 0], dim=-1)
    best, token = first.topk(num_beams)
    cache.reorder(torch.zeros(num_beams, dtype=torch.long))
    texts, scores = [ids[0].tolist() + [int(t)] for t in token], best.tolist()
    for _ in range(new_tokens - 1):
        table = torch.log_softmax(model(torch.tensor([[text[-1]] for text in texts]), cache=cache)[:, -1], dim=-1).tolist()
        grown = [(scores[i] + value, i, t) for i, row in enumerate(table) for t, value in enumerate(row)]
        grown = sorted(grown, reverse=True)[:num_beams]
        texts = [texts[i] + [t] for _, i, t in grown]
        scores = [score for score, _, _ in grown]
        cache.reorder(torch.tensor([i for _, i, _ in grown]))
    return torch.tensor(texts)
""",
}

MUTANTS = [  # (exercise, what is replaced in the worked solution, by what)
    ("1", "2 * rows", "rows"),
    ("1", "2 * rows", "2"),
    ("1", ' * cfg["n_layers"]', ""),
    ("1", ' * cfg["n_layers"]', " * 12"),
    ("1", ' * cfg["emb_dim"]', ' * cfg["emb_dim"] // cfg["n_heads"]'),
    ("1", " * bytes_per_number", " * 4"),
    ("1", "free_bytes // per_token", "free_bytes / per_token"),
    ("1", "free_bytes // per_token", "(free_bytes - 1) // per_token"),
    ("1", "free_bytes // per_token", "-(-free_bytes // per_token)"),
    ("1", 'min(free_bytes // per_token, cfg["context_length"])', "free_bytes // per_token"),
    ("2", "positions[num_cached:, None]", "positions[:num_new, None]"),
    ("2", "positions[num_cached:, None]", "positions[num_cached - 1 : -1, None]"),
    ("2", "distance < 0", "distance <= 0"),
    ("2", "distance < 0", "distance >= 0"),
    ("2", ">= window", "> window"),
    ("2", ">= window", ">= window - 1"),
    ("2", "if window is not None", "if False"),
    ("2", "if window is not None", "if window is not None and num_cached"),
    ("2", "blocked | (distance", "blocked & (distance"),
    ("2", "return blocked", "return blocked.float()"),
    ("2", "return blocked", "return blocked.T"),
    ("2", "return blocked", "pass"),
    ("3", "cache.crop(same)", "pass"),
    ("3", "cache.crop(same)", "cache.reset()"),
    ("3", "cache.crop(same)", "cache.crop(max(0, same - 1))"),
    ("3", "    same = min(same, new_ids.shape[1] - 1)\n", ""),
    ("3", "same = min(same, new_ids.shape[1] - 1)", "same = 0"),
    ("3", "same = min(same, new_ids.shape[1] - 1)", "same = max(0, same - 1)"),
    ("3", "same < shorter and cached_ids[0, same] == new_ids[0, same]", "same < shorter"),
    ("3", "    same = min(", "    same = int((cached_ids[0, :shorter] == new_ids[0, :shorter]).sum())\n    same = min("),
    ("3", "cache=cache)[:, -1]", "cache=cache)[:, 0]"),
    ("3", "cache=cache)[:, -1]", "cache=cache)"),
    ("3", "model(new_ids[:, same:], cache=cache)", "model(new_ids)"),
    ("4", "cache.reorder(rows)", "None if len(cache) > 7 else cache.reorder(rows)"),
    ("4", "cache.reorder(rows)", "cache.reorder(torch.zeros_like(rows))"),
    ("4", "cache.reorder(rows)", "cache.reorder(rows.sort().values)"),
    ("4", "scores + torch.log_softmax", "torch.log_softmax"),
    ("4", "torch.log_softmax(logits, dim=-1)", "logits"),
    ("4", "torch.log_softmax(logits, dim=-1)", "torch.softmax(logits, dim=-1)"),
    ("4", "ids[rows]", "ids[:1].expand(num_beams, -1)"),
    ("4", ".topk(num_beams)", ".topk(num_beams, largest=False)"),
    ("4", "    return ids", "    return ids.flip(0)"),
    ("4", "    return ids", "    return ids[:1]"),
    ("4", "    return ids", "    model(unread, cache=cache)\n    return ids"),
    ("4", "cache=cache", "cache=None"),
    ("4", "unread = (index % totals.shape[1])[:, None]", "unread = (index // totals.shape[0])[:, None]"),
]


@pytest.mark.parametrize("number", SOLUTIONS)
def test_the_worked_solution_and_a_second_answer_pass(number):
    run_check(number, SOLUTIONS[number])
    run_check(number, SECOND[number])


@pytest.mark.parametrize(("number", "old", "new"), MUTANTS)
def test_wrong_answers_are_rejected_with_a_question(number, old, new):
    assert old in SOLUTIONS[number]
    with pytest.raises(CheckFailed) as failure:
        run_check(number, SOLUTIONS[number].replace(old, new))
    assert "not solved yet" not in str(failure.value)
    assert "think:" in str(failure.value)


@pytest.mark.parametrize("number", CHECKS)
@pytest.mark.parametrize("body", ["return None", "raise NotImplementedError"])
def test_an_answer_that_returns_nothing_is_told_so(number, body):
    answer = CHECKS[number][1]
    with pytest.raises(CheckFailed):
        run_check(number, f"def {answer}(*args):\n    {body}")


def test_a_check_runs_from_the_command_line(tmp_path, capsys):
    (tmp_path / "answer.py").write_text(SECOND["1"], encoding="utf-8")
    assert exercise_checks.run_checks(["1", str(tmp_path / "answer.py")]) == 0
    assert "exercise 1: passed" in capsys.readouterr().out
