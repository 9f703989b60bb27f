"""The checks accept right answers, written in two ways, and reject wrong ones with a question.

Run it:  pytest appendix-E/01_main-chapter-code/tests/test_appendix_E_exercise_checks.py
"""

import contextlib
import io
import re
import subprocess
import sys
from pathlib import Path

import exercise_checks
import nbformat
import pytest
import torch
from compare_lora import LOG_FILE, read_log
from previous_chapters import CHECKS, CheckFailed

FOLDER = Path(exercise_checks.__file__).parent
NOTEBOOK = nbformat.read(FOLDER / "exercise-solutions.ipynb", as_version=4)
IMPORTS = next(cell.source for cell in NOTEBOOK.cells if cell.cell_type == "code").partition("use_course_style()")[0]


def solution(number: str) -> str:
    """The first `solution` cell below the heading of the exercise."""
    inside = False
    for cell in NOTEBOOK.cells:
        heading = re.match(r"## Exercise (E\.\d)", cell.source)
        inside = heading[1] == number if heading else inside
        if inside and cell.cell_type == "code" and "solution" in cell.metadata.get("tags", []):
            return cell.source
    raise LookupError(number)


def run_check(number: str, source: str) -> None:
    check, answer = CHECKS[number]
    names = {"__name__": "answer"}
    with contextlib.redirect_stdout(io.StringIO()):
        exec(compile(IMPORTS + "\n" + source, f"answer {number}", "exec"), names)
        check(names[answer])


SECOND = {  # an independent answer to each exercise
    "E.1": """
from lora import LinearWithLoRA

def rank_table(base, ranks, keep, train, measure):
    def one(rank):
        alpha = {"scale": float(rank), "alpha": 16.0}[keep]
        torch.manual_seed(7)  # whatever happens before the adapters are made
        model = copy.deepcopy(base)
        for parameter in model.parameters():
            parameter.requires_grad = False
        torch.manual_seed(123)
        for block in model.trf_blocks:
            for part, names in ((block.att, ("W_query", "W_key", "W_value", "out_proj")), (block.ff.layers, ("0", "2"))):
                for name in names:
                    setattr(part, name, LinearWithLoRA(getattr(part, name), rank, alpha))
        model.out_head = LinearWithLoRA(model.out_head, rank, alpha)
        count = 0
        for name, parameter in model.named_parameters():
            count += parameter.numel() * name.endswith(("lora.A", "lora.B"))
        before = time.time()
        train(model)
        return dict(seconds=time.time() - before, accuracy=measure(model), rank=rank, alpha=alpha, trained=count)
    return [one(rank) for rank in ranks]
""",
    "E.2": """
@torch.no_grad()
def fold(linear, A, B, alpha, sign=1):
    change = torch.zeros_like(linear.weight)
    for column, row in zip(A.T, B):
        change += torch.outer(row, column)
    linear.weight.add_(change, alpha=sign * alpha / len(B))
""",
    "E.3": """
def count_adapters(cfg, place, rank, num_classes=2):
    d, blocks = cfg["emb_dim"], cfg["n_layers"]
    if place == "attention":
        return 8 * blocks * d * rank
    if place == "feed-forward":
        return 10 * blocks * d * rank
    if place == "head":
        return rank * d + rank * num_classes
    if place == "all":
        return rank * (18 * blocks * d + d + num_classes)
    raise ValueError(place)
""",
}

MUTANTS = {  # one edit each of the worked solution: (what stands there, what replaces it)
    "E.1": [
        ("copy.deepcopy(base)", "base"),
        ("        model = copy.deepcopy(base)\n", "        model = copy.deepcopy(base) if not rows else model\n"),
        ("copy.deepcopy(base)", "copy.copy(base)"),
        ("        model.requires_grad_(False)\n", ""),
        ("        replace_linear_with_lora", "        model.requires_grad_(True)\n        replace_linear_with_lora"),
        ("        torch.manual_seed(123)\n", ""),
        ("        torch.manual_seed(123)\n", "        torch.manual_seed(123 + rank)\n"),
        ("        torch.manual_seed(123)\n", "        if not rows:\n            torch.manual_seed(123)\n"),
        ('rank if keep == "scale" else 16', "rank"),
        ('rank if keep == "scale" else 16', "16"),
        ('rank if keep == "scale" else 16', '16 if keep == "scale" else rank'),
        ("(model, rank, alpha)", "(model, 16, alpha)"),
        ("(model, rank, alpha)", "(model, rank, rank)"),
        ("(model, rank, alpha)", '(model, rank, alpha, targets=("att",))'),
        ("for rank in ranks", "for rank in sorted(ranks)"),
        (" if parameter.requires_grad)", ")"),
        ("sum(parameter.numel() for", "sum(1 for"),
        ("        train(model)\n", "        measured = measure(model)\n        train(model)\n"),
        ("        train(model)\n", ""),
        ("        train(model)\n", "        train(model)\n        train(model)\n"),
        ("        train(model)\n", "        train(model)\n        measure(model)\n"),
        ("        seconds = time.perf_counter() - started\n", "        measure(model)\n        seconds = time.perf_counter() - started\n"),
        ("        started = time.perf_counter()\n        train(model)\n", "        train(model)\n        started = time.perf_counter()\n"),
        ('"seconds": seconds', '"seconds": 1000 * seconds'),
        ("measure(model)})", "measure(base)})"),
        ("return rows", "return rows[-1:]"),
    ],
    "E.2": [
        ("(A @ B).T", "(A @ B).reshape(linear.weight.shape)"),
        ("sign * alpha / A.shape[1]", "sign * alpha"),
        ("sign * alpha / A.shape[1]", "sign * alpha / A.shape[0]"),
        ("sign * alpha / A.shape[1]", "sign / A.shape[1]"),
        ("sign * alpha / A.shape[1]", "alpha / A.shape[1]"),
        ("sign * alpha / A.shape[1]", "-sign * alpha / A.shape[1]"),
        ("sign * alpha / A.shape[1]", "sign * A.shape[1] / alpha"),
        ("linear.weight += scale * (A @ B).T", "linear.weight = nn.Parameter(linear.weight + scale * (A @ B).T)"),
        ("    with torch.no_grad():\n        linear.weight +=", "    if True:\n        linear.weight.data = linear.weight.data.double() +"),
        ("    with torch.no_grad():", "    linear.requires_grad_(False)\n    with torch.no_grad():"),
        ("    with torch.no_grad():", "    linear.requires_grad_(True)\n    with torch.no_grad():"),
        ("    with torch.no_grad():\n", "    if True:\n"),
        ("        linear.weight +=", "        A *= sign * alpha / A.shape[1]\n        scale = 1\n        linear.weight +="),
        ("        linear.weight +=", "        if linear.bias is not None:\n            linear.bias += scale\n        linear.weight +="),
        ("    with torch.no_grad():", "    from lora import LinearWithLoRAMerged\n    with torch.no_grad():"),
    ],
    "E.3": [
        ("n_layers * 4 * (emb_dim + emb_dim)", "n_layers * 3 * (emb_dim + emb_dim)"),
        ("n_layers * 4 * (emb_dim + emb_dim)", "n_layers * 4 * emb_dim"),
        ("n_layers * 4 * (emb_dim + emb_dim)", "4 * (emb_dim + emb_dim)"),
        ("n_layers * 2 * (emb_dim + 4 * emb_dim)", "n_layers * 2 * (emb_dim + emb_dim)"),
        ("n_layers * 2 * (emb_dim + 4 * emb_dim)", "n_layers * (emb_dim + 4 * emb_dim)"),
        ('"head": emb_dim + num_classes', '"head": emb_dim + 2'),
        ('"head": emb_dim + num_classes', '"head": emb_dim * num_classes'),
        ("return rank * sums[place]", "return min(rank, num_classes) * sums[place]"),
        ("return rank * sums[place]", "return sums[place]"),
        ("sum(sums.values())", 'sums["attention"] + sums["feed-forward"]'),
        ("        raise ValueError(", "        return print("),
        ("    if place not in sums:", "    if False:"),
        ('emb_dim, n_layers = cfg["emb_dim"], cfg["n_layers"]', "emb_dim, n_layers = 24, 2"),
        ("    return rank", "    from lora import replace_linear_with_lora\n    replace_linear_with_lora\n    return rank"),
    ],
}


@pytest.mark.parametrize("number", CHECKS)
def test_worked_solution_passes(number):
    run_check(number, solution(number))


@pytest.mark.parametrize("number", CHECKS)
def test_second_answer_passes(number):
    run_check(number, SECOND[number])


@pytest.mark.parametrize(("number", "edit"), [(number, i) for number, edits in MUTANTS.items() for i in range(len(edits))])
def test_mutant_is_rejected_with_a_question(number, edit):
    old, new = MUTANTS[number][edit]
    source = solution(number)
    assert old in source, "the mutant no longer fits the solution"
    with pytest.raises(CheckFailed, match=r"\?") as failure:
        run_check(number, source.replace(old, new))
    assert "expected:" in str(failure.value) or "your code stopped with" in str(failure.value)


@pytest.mark.parametrize("number", CHECKS)
def test_an_unsolved_stub_is_called_unsolved(number):
    def stub(*args):
        raise NotImplementedError(f"exercise {number}")

    with pytest.raises(CheckFailed, match="not solved yet"):
        CHECKS[number][0](stub)


@pytest.mark.parametrize("number", CHECKS)
def test_an_answer_that_returns_nothing_is_rejected(number):
    with pytest.raises(CheckFailed):
        CHECKS[number][0](lambda *args, **kwargs: None)


def test_pictures_survive_answers_of_a_wrong_kind():
    """A picture cell says in one line that there is none, and never stops the notebook."""
    names, said = {"__name__": "answer"}, io.StringIO()
    exec(IMPORTS, names)
    model = exercise_checks.tiny_classifier(1)
    names.update(base=model, batch=torch.zeros(2, 5, dtype=torch.int64), labels=torch.tensor([0, 1]), log=read_log(LOG_FILE)[1])
    with contextlib.redirect_stdout(said):
        for wrong in (None, 7):
            names.update({answer: lambda *args, wrong=wrong, **kwargs: wrong for _, answer in CHECKS.values()})
            for cell in NOTEBOOK.cells:
                if "picture" in cell.metadata.get("tags", []):
                    exec(cell.source, names)
    assert said.getvalue().count("no picture: ") >= 2


def test_every_exercise_has_mutants():
    assert MUTANTS.keys() == SECOND.keys() == CHECKS.keys()
    assert all(len(edits) >= 4 for edits in MUTANTS.values())


def test_command_line_of_the_checks(tmp_path):
    answer = tmp_path / "answer.py"
    script = FOLDER / "exercise_checks.py"
    answer.write_text("import torch\n" + SECOND["E.3"], encoding="utf-8")
    good = subprocess.run([sys.executable, str(script), "E.3", str(answer)], capture_output=True, text=True)
    assert good.returncode == 0 and "passed" in good.stdout
    with pytest.raises(SystemExit) as stopped:
        exercise_checks.run_checks(["E.99", str(answer)])
    assert stopped.value.code == 2
