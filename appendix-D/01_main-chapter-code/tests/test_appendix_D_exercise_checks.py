"""The checks grade right and wrong answers: worked and second solutions pass, every mutant is rejected with a question."""

import re
from pathlib import Path

import exercise_checks
import nbformat
import pytest
from previous_chapters import CHECKS, CheckFailed

NOTEBOOK = Path(exercise_checks.__file__).with_name("exercise-solutions.ipynb")


def worked_solutions() -> dict:
    """Exercise number -> source of the cell that defines the answer, behind the imports of the first cell."""
    cells = nbformat.read(NOTEBOOK, as_version=4).cells
    imports = next(cell.source for cell in cells if cell.cell_type == "code")
    solutions, number = {}, None
    for cell in cells:
        heading = re.match(r"## Exercise (D\.\d+)", cell.source)
        number = heading[1] if heading else number
        if "solution" in cell.metadata.get("tags", []):
            solutions[number] = imports + "\n\n\n" + cell.source
    return solutions


SOLUTIONS = worked_solutions()

# Written independently of the worked answers.
SECOND = {
    "D.1": """
def make_schedule(total_steps, warmup_steps, peak_lr, initial_lr, min_lr):
    warm = torch.linspace(initial_lr, peak_lr, warmup_steps + 1, dtype=torch.float64)[:-1]
    angles = torch.linspace(0, math.pi, max(1, total_steps - warmup_steps), dtype=torch.float64)
    rates = warm.tolist() + (peak_lr - (peak_lr - min_lr) * torch.sin(angles / 2) ** 2).tolist()
    return lambda step: rates[step]
""",
    "D.2": """
def clip_by_hand(model, max_norm):
    parameters = [parameter for parameter in model.parameters() if parameter.grad is not None]
    norm = torch.cat([parameter.grad.flatten() for parameter in parameters]).norm()
    for parameter in parameters:
        parameter.grad = parameter.grad * torch.clamp(max_norm / (norm + 1e-6), max=1.0) if norm.isfinite() else None
    return norm.item()
""",
    "D.3": """
def compare_variants(runs, variant, baseline, peak_lr):
    import statistics
    differences = []
    for run in runs:
        for other in runs:
            if run["peak_lr"] == other["peak_lr"] == peak_lr and run["seed"] == other["seed"]:
                if (run["variant"], other["variant"]) == (variant, baseline):
                    differences.append(run["train_loss"] - other["train_loss"])
    mean, error = statistics.mean(differences), statistics.stdev(differences) / len(differences) ** 0.5
    return mean, error, "better" if mean < -3 * error else "worse" if mean > 3 * error else "undecided"
""",
}

# One edit each: exercise -> (what stands in the worked solution, what the mutant says instead).
MUTANTS = {
    "D.1": [
        ("total_steps - 1 - warmup_steps", "total_steps - warmup_steps"),
        ("max(1, total_steps - 1 - warmup_steps)", "(total_steps - 1 - warmup_steps)"),
        ("step < warmup_steps", "step <= warmup_steps - 2"),
        ("initial_lr + step *", "step *"),
        ("(peak_lr - initial_lr) / warmup_steps", "peak_lr / warmup_steps"),
        ("step * (peak_lr", "(step + 1) * (peak_lr"),
        ("min_lr + 0.5", "0.5"),
        ("0.5 * (peak_lr - min_lr) * (1 + math.cos(math.pi * progress))", "(peak_lr - min_lr) * (1 - progress)"),
        ("0.5 * (peak_lr - min_lr)", "(peak_lr - min_lr)"),
        ("(step - warmup_steps) /", "step /"),
        ("    def rate(step):", "    count = iter(range(10**6))\n\n    def rate(step):\n        step = next(count)"),
        ("\n    return rate", "\n    return rate(0)"),
        ("\n    return rate", "\n    pass"),
    ],
    "D.2": [
        ("elif norm > max_norm:", "else:"),
        ("norm > max_norm", "norm < max_norm"),
        ("gradient.mul_(max_norm / norm)", "gradient.clamp_(-max_norm, max_norm)"),
        ("gradient.mul_(max_norm / norm)", "gradient.mul_(max_norm / gradient.norm())"),
        ("gradient.mul_(max_norm / norm)", "gradient = gradient * (max_norm / norm)"),
        ("gradient.mul_(max_norm / norm)", "gradient.mul_(norm / max_norm)"),
        ("math.sqrt(", "float("),
        ("gradient.square().sum().item()", "gradient.abs().sum().item()"),
        (" if parameter.grad is not None]", "]"),
        ("math.isfinite(norm)", "norm == norm"),
        ("not math.isfinite(norm)", "math.isnan(norm)"),
        ("if not math.isfinite(norm):", "if False:"),
        ("        model.zero_grad(set_to_none=True)", "        model.zero_grad(set_to_none=False)"),
        ("    return norm", "    return min(norm, max_norm)"),
        ("    return norm", "    pass"),
    ],
    "D.3": [
        ('run["train_loss"]', 'run["val_loss"]'),
        ('(run["variant"], run["peak_lr"]) == (name, peak_lr)', 'run["variant"] == name'),
        ("losses[variant][seed] - losses[baseline][seed]", "losses[baseline][seed] - losses[variant][seed]"),
        ("losses[variant][seed] - losses[baseline][seed]", "abs(losses[variant][seed] - losses[baseline][seed])"),
        ("(n - 1) / n)", "n / n)"),
        ("(n - 1) / n)", "(n - 1))"),
        ("math.sqrt(", "float("),
        ("3 * error", "error"),
        ("if abs(mean) <= 3", "if mean <= 3"),
        ('"better" if mean < 0', '"better" if mean > 0'),
        (
            "[losses[variant][seed] - losses[baseline][seed] for seed in seeds]",
            "[a - b for a, b in zip(losses[variant].values(), losses[baseline].values())]",
        ),
        ("return mean, error, \"undecided\"", "return mean, error"),
    ],
}  # fmt: skip


def check(number: str, source: str) -> None:
    """Run the source of an answer and grade the function that the exercise asks for."""
    names = {}
    exec(compile(source, f"answer to {number}", "exec"), names)
    graded, answer = CHECKS[number]
    graded(names[answer])


def test_every_check_has_a_solution_a_second_one_and_at_least_four_mutants():
    assert set(CHECKS) == set(SOLUTIONS) == set(SECOND) == set(MUTANTS) == {"D.1", "D.2", "D.3"}
    assert all(len(mutants) >= 4 for mutants in MUTANTS.values())


@pytest.mark.parametrize("number", SOLUTIONS)
def test_worked_solution_passes(number, capsys):
    check(number, SOLUTIONS[number])
    assert f"exercise {number}: passed" in capsys.readouterr().out


@pytest.mark.parametrize("number", SECOND)
def test_second_solution_passes(number):
    imports = SOLUTIONS[number].partition("\n\n\n")[0]
    check(number, imports + "\n" + SECOND[number])


@pytest.mark.parametrize(("number", "index"), [(number, index) for number, mutants in MUTANTS.items() for index in range(len(mutants))])
def test_mutant_is_rejected_with_a_question(number, index):
    before, after = MUTANTS[number][index]
    imports, _, solution = SOLUTIONS[number].partition("\n\n\n")
    assert before in solution, f"mutant {index} of {number} edits nothing"
    with pytest.raises(CheckFailed) as caught:
        check(number, imports + "\n" + solution.replace(before, after, 1))
    message = str(caught.value)
    assert "?" in message and ("expected:" in message or "your code stopped with" in message), message


@pytest.mark.parametrize("number", SOLUTIONS)
def test_unsolved_exercise_says_what_to_do(number):
    def stub(*args):
        raise NotImplementedError(f"exercise {number}")

    with pytest.raises(CheckFailed, match="not solved yet"):
        CHECKS[number][0](stub)
