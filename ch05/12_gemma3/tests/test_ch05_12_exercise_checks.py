"""The checks accept right answers, written in two ways, and reject wrong ones with a question."""

import contextlib
import io
from pathlib import Path

import exercise_checks
import nbformat
import pytest
import torch
from gemma3 import FULL, SLIDING
from previous_chapters import CHECKS, CheckFailed

NOTEBOOK = nbformat.read(Path(exercise_checks.__file__).with_name("exercise-solutions.ipynb"), as_version=4)
SOLUTIONS = dict(zip(CHECKS, (c.source for c in NOTEBOOK.cells if c.cell_type == "code" and "solution" in c.metadata.get("tags", []))))


def run_check(number: str, source: str) -> None:
    check, answer = CHECKS[number]
    names = {"__name__": "answer", "torch": torch, "FULL": FULL, "SLIDING": SLIDING}
    with contextlib.redirect_stdout(io.StringIO()):
        exec(compile(source, f"answer {number}", "exec"), names)
        check(names[answer])


SECOND = {  # an independent answer to each exercise
    "1": """
def tokens_that_fit(cfg, free_bytes, bytes_per_number):
    used, tokens = 0, 0
    while tokens < cfg["context_length"]:
        growing = [kind for kind in cfg["layer_types"] if kind == FULL or tokens < cfg["sliding_window"] - 1]
        used += len(growing) * 2 * cfg["n_kv_groups"] * cfg["head_dim"] * bytes_per_number
        if used > free_bytes:
            break
        tokens += 1
    return tokens
""",
    "2": """
def ring_positions(num_read, size):
    rounds, rest = divmod(num_read, size)
    slots = torch.arange(size)
    positions = slots + size * torch.where(slots < rest, rounds, rounds - 1)
    return torch.where(positions < 0, -1, positions)
""",
}

MUTANTS = [  # (exercise, what is replaced in the worked solution, by what)
    ("1", "2 * cfg", "cfg"),
    ("1", 'cfg["n_kv_groups"]', 'cfg["n_heads"]'),
    ("1", ' * cfg["head_dim"]', ' * (cfg["emb_dim"] // cfg["n_heads"])'),
    ("1", " * bytes_per_number", " * 4"),
    ("1", 'cfg["sliding_window"] - 1', 'cfg["sliding_window"]'),
    ("1", 'cfg["sliding_window"] - 1', "511"),
    ("1", "count(FULL)", "count(SLIDING)"),
    ("1", 'len(cfg["layer_types"])', "18"),
    ("1", "    elif full_layers == 0:\n        tokens = cfg[\"context_length\"]\n", ""),
    ("1", "free_bytes < kept * early", "True"),
    ("1", "free_bytes < kept * early", "False"),
    ("1", "kept + (free_bytes", "(free_bytes"),
    ("1", "(free_bytes - kept * early) // late", "free_bytes // late"),
    ("1", "// late", "/ late"),
    ("1", 'return min(tokens, cfg["context_length"])', "return tokens"),
    ("2", "newest = num_read - 1", "newest = num_read"),
    ("2", "(newest - slots) % size", "(slots - newest) % size"),
    ("2", "newest - (newest - slots) % size", "slots"),
    ("2", "newest - (newest - slots) % size", "newest - slots"),
    ("2", "positions.clamp(min=-1)", "positions"),
    ("2", "positions.clamp(min=-1)", "positions.clamp(min=0)"),
    ("2", "positions.clamp(min=-1)", "positions.clamp(min=-1).sort().values"),
    ("2", "positions.clamp(min=-1)", "positions.clamp(min=-1).float()"),
    ("2", "positions.clamp(min=-1)", "positions.clamp(min=-1).tolist()"),
    ("2", "torch.arange(size)", "torch.arange(min(size, num_read))"),
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
    (tmp_path / "answer.py").write_text("import torch\n" + SECOND["2"], encoding="utf-8")
    assert exercise_checks.run_checks(["2", str(tmp_path / "answer.py")]) == 0
    assert "exercise 2: passed" in capsys.readouterr().out


def test_the_numbers_that_a_passed_check_names(capsys):
    names = {"FULL": FULL}
    exec(SOLUTIONS["1"], names)
    fits, config = names["tokens_that_fit"], exercise_checks.GEMMA3_CONFIG_270M
    assert fits(config, 10**8, 2) == pytest.approx(30_000, rel=0.01)
    assert fits({**config, "layer_types": [FULL] * 18}, 10**8, 2) == pytest.approx(5_400, rel=0.01)
