"""The checks grade right and wrong answers: worked and second solutions pass, every mutant is rejected with a question."""

import re
from pathlib import Path

import exercise_checks
import nbformat
import previous_chapters
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
        heading = re.match(r"## Exercise (A\.\d)", cell.source)
        number = heading[1] if heading else number
        if tagged(cell, "solution") and number not in solutions:
            solutions[number] = imports + "\n\n\n" + cell.source
    return solutions


SOLUTIONS = worked_solutions()

# Written independently of the worked answers.
SECOND = {
    "A.1": """
import platform, sys
from pathlib import Path
def describe_python():
    major, minor, _ = platform.python_version_tuple()
    return dict(executable=str(sys.executable), version=major + "." + minor, in_venv=not sys.prefix == sys.base_prefix,
                supported=major == "3" and int(minor) in range(10, 14))
""",
    "A.2": r"""
import re
def failures(report):
    return re.findall(r"^\[FAIL\] ([^:]*):.*\n[^\n]*?FIX: *(.*?) *$", report, flags=re.M)
""",
    "A.3": """
def count_by_hand(sizes):
    return sum((sizes[i - 1] + 1) * sizes[i] for i in range(1, len(sizes)))
""",
    "A.4": """
def time_call(call, synchronize, clock, repeats):
    call(); synchronize(); call(); synchronize()
    seconds = 0.0
    for _ in range(repeats):
        begin = clock()
        call()
        synchronize()
        seconds += clock() - begin
    return seconds / repeats
""",
    "A.5": """
import torch
def train_step(model, features, labels, learning_rate):
    trained = [p for p in model.parameters() if p.requires_grad]
    log_probabilities = torch.log_softmax(model(features), dim=1)
    loss = -log_probabilities[range(len(labels)), labels].mean()
    slopes = torch.autograd.grad(loss, trained, allow_unused=True)
    for parameter, slope in zip(trained, slopes):
        if slope is not None:
            parameter.data.add_(slope, alpha=-learning_rate)
    return float(loss.detach())
""",
}

# One edit to the worked answer: (exercise, what stands there, what a mutant has instead).
MUTANTS = [
    ("A.1", "sys.prefix != sys.base_prefix", "sys.prefix == sys.base_prefix"),
    ("A.1", "sys.prefix != sys.base_prefix", "True"),
    ("A.1", "sys.prefix != sys.base_prefix", "False"),
    ("A.1", "(3, 10) <= pair <= (3, 13)", "'3.10' <= f'{pair[0]}.{pair[1]}' <= '3.13'"),
    ("A.1", "(3, 10) <= pair <= (3, 13)", "(3, 10) <= pair"),
    ("A.1", "(3, 10) <= pair <= (3, 13)", "pair <= (3, 13)"),
    ("A.1", "(3, 10) <= pair <= (3, 13)", "(3, 10) <= pair < (3, 13)"),
    ("A.1", "(3, 10) <= pair <= (3, 13)", "10 <= pair[1] <= 13"),
    ("A.1", 'f"{pair[0]}.{pair[1]}"', "'%d.%d.%d' % sys.version_info[:3]"),
    ("A.1", 'f"{pair[0]}.{pair[1]}"', "pair"),
    ("A.1", '"executable": sys.executable', '"executable": "python"'),
    ("A.1", '"executable": sys.executable,', ""),
    ("A.2", '.partition(":")[0]', ""),
    ("A.2", '.partition(":")[0]', '.rpartition(":")[0]'),
    ("A.2", 'startswith("[FAIL] ")', 'count("[FAIL] ")'),
    ("A.2", 'line.startswith("[FAIL] ")', '"FIX:" in following'),
    ("A.2", 'partition("FIX:")[2]', 'rpartition("FIX:")[2]'),
    ("A.2", ".strip()", ""),
    ("A.2", 'following.partition("FIX:")[2].strip()', "following.strip()"),
    ("A.2", "found.append((name, fix))", "return [(name, fix)]"),
    ("A.2", "return found", "return dict(found)"),
    ("A.2", "return found", "return print(found)"),
    ("A.3", "inputs * outputs + outputs", "inputs * outputs"),
    ("A.3", "inputs * outputs + outputs", "inputs * outputs + inputs"),
    ("A.3", "inputs * outputs + outputs", "inputs * outputs + 1"),
    ("A.3", "zip(sizes, sizes[1:])", "zip(sizes[::2], sizes[1::2])"),
    ("A.3", "return total", "return 752"),
    ("A.3", "return total", "return print(total)"),
    ("A.3", "return total", "sizes.clear()\n    return total"),
    ("A.3", "return total", "return float(total)"),
    ("A.4", "    call()\n    synchronize()\n    start", "    start"),
    ("A.4", "    call()\n    synchronize()\n    start", "    call()\n    start"),
    ("A.4", "    synchronize()\n    return", "    return"),
    ("A.4", " / repeats", ""),
    ("A.4", "range(repeats)", "range(1)"),
    ("A.4", "clock() - start", "time.perf_counter() - start"),
    ("A.4", "start = clock()", "start = 0.0"),
    ("A.4", "return (clock", "return print(clock"),
    ("A.5", "        parameter.grad = None", "        pass"),
    ("A.5", "parameter -= ", "parameter += "),
    ("A.5", "parameter -= ", "parameter = parameter - "),
    ("A.5", "learning_rate * parameter.grad", "0.5 * parameter.grad"),
    ("A.5", "learning_rate * parameter.grad", "learning_rate * parameter.grad.sign()"),
    ("A.5", "            if parameter.grad is not None:\n                ", "            "),
    ("A.5", "return loss.item()", "return loss"),
    ("A.5", "return loss.item()", "return torch.nn.functional.cross_entropy(model(features), labels).item()"),
    ("A.5", "return loss.item()", "print(loss.item())"),
    ("A.5", "cross_entropy(model(features), labels)", "cross_entropy(torch.softmax(model(features), dim=1), labels)"),
    ("A.5", "cross_entropy(model(features), labels)", "cross_entropy(model(features), labels, reduction='sum')"),
    ("A.5", "model.parameters():\n            if", "list(model.parameters())[:2]:\n            if"),
]

# Wrong answers that are no edit of the worked one.
WRONG = [
    (
        "A.3",
        """
from ddp_common import NeuralNetwork
def count_by_hand(sizes):
    return sum(p.numel() for p in NeuralNetwork(sizes[0], sizes[-1]).parameters())
""",
        "without NeuralNetwork, numel, parameters",
    ),
    (
        "A.5",
        """
import torch
def train_step(model, features, labels, learning_rate):
    optimizer = torch.optim.SGD(model.parameters(), lr=learning_rate)
    optimizer.zero_grad()
    loss = torch.nn.functional.cross_entropy(model(features), labels)
    loss.backward()
    optimizer.step()
    return loss.item()
""",
        "without SGD, optim, step",
    ),
]


def grade(number, source):
    """Run a source as a learner's file would be run, and call the check on the answer it defines."""
    check, answer = previous_chapters.CHECKS[number]
    names = {}
    exec(compile(source, "answer.py", "exec"), names)
    check(names[answer])


def answer_alone(number: str) -> tuple[list[str], int]:
    """The parts of a worked solution up to the answer, without the demonstration behind it, and where the answer is."""
    parts = SOLUTIONS[number].split("\n\n\n")
    body = next(i for i, part in enumerate(parts) if part.startswith(("def ", "class ")))
    return parts[: body + 1], body


def test_there_is_a_check_for_every_exercise_and_the_other_way_round():
    assert set(SOLUTIONS) == set(previous_chapters.CHECKS) == set(SECOND) and len(SOLUTIONS) == 5


@pytest.mark.parametrize("number", SOLUTIONS)
def test_worked_solution_passes(number, capsys):
    grade(number, "\n\n\n".join(answer_alone(number)[0]))
    assert f"exercise {number}: passed" in capsys.readouterr().out


@pytest.mark.parametrize("number", SECOND)
def test_second_solution_passes(number, capsys):
    grade(number, SECOND[number])
    assert f"exercise {number}: passed" in capsys.readouterr().out


@pytest.mark.parametrize("number, old, new", MUTANTS, ids=[f"{m[0]}-{i}" for i, m in enumerate(MUTANTS)])
def test_mutant_is_rejected(number, old, new):
    parts, body = answer_alone(number)
    assert parts[body].count(old) == 1, "the edit must fit exactly one place"
    parts[body] = parts[body].replace(old, new)
    with pytest.raises(previous_chapters.CheckFailed) as error:
        grade(number, "\n\n\n".join(parts))
    assert "?" in str(error.value)


@pytest.mark.parametrize("number, source, message", WRONG, ids=[f"{w[0]}-{i}" for i, w in enumerate(WRONG)])
def test_wrong_answer_is_rejected_for_its_fault(number, source, message):
    with pytest.raises(previous_chapters.CheckFailed) as error:
        grade(number, source)
    assert message in str(error.value) and "your code stopped" not in str(error.value)


def test_the_checks_draw_nothing_from_the_random_numbers_of_the_learner():
    before = torch.get_rng_state()
    for number in SECOND:
        grade(number, SECOND[number])
    assert torch.equal(before, torch.get_rng_state())


def test_an_answer_without_return_is_told_so():
    for number, (check, answer) in previous_chapters.CHECKS.items():
        with pytest.raises(previous_chapters.CheckFailed, match="got:      None\n  think:    does your function end with `return`"):
            check(lambda *args: None)


def test_at_least_four_mutants_for_every_exercise():
    assert min(sum(m[0] == number for m in MUTANTS) for number in SOLUTIONS) >= 4


@pytest.mark.parametrize("number", SOLUTIONS)
def test_stub_is_reported_as_unsolved(number):
    check, answer = previous_chapters.CHECKS[number]

    def stub(*args, **kwargs):
        raise NotImplementedError(f"exercise {number}")

    with pytest.raises(previous_chapters.CheckFailed, match=f"exercise {number} is not solved yet: write {answer}"):
        check(stub)


def test_the_command_line_knows_the_exercises(tmp_path, capsys):
    (tmp_path / "mine.py").write_text(SECOND["A.3"], encoding="utf-8")
    assert exercise_checks.run_checks(["A.3", "mine.py"]) == 0
    assert capsys.readouterr().out == "exercise A.3: passed\n"


def test_the_pretended_device_works_like_a_queue():
    later = exercise_checks.PretendDevice(cost=1.0, waits=False)
    later.call()
    assert later.clock() < 0.01
    later.synchronize()
    assert later.clock() == pytest.approx(50, abs=0.01)
    at_once = exercise_checks.PretendDevice(cost=1.0, waits=True)
    at_once.call()
    at_once.call()
    assert at_once.clock() == pytest.approx(51, abs=0.01)
