"""The checks accept right answers, written in two ways, and reject wrong ones with a question.

Run it:  pytest ch07/01_main-chapter-code/tests/test_ch07_exercise_checks.py
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
from previous_chapters import CHECKS, CheckFailed

FOLDER = Path(exercise_checks.__file__).parent
NOTEBOOK = nbformat.read(FOLDER / "exercise-solutions.ipynb", as_version=4)
IMPORTS = next(cell.source for cell in NOTEBOOK.cells if cell.cell_type == "code").partition("use_course_style()")[0]


def solution(number: str) -> str:
    """The first `solution` cell below the heading of the exercise."""
    inside = False
    for cell in NOTEBOOK.cells:
        heading = re.match(r"## Exercise (\d\.\d)", cell.source)
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
    "7.1": """
class Phi3Style:
    def prompt(self, entry):
        asked = entry["instruction"] if entry["input"] == "" else f"{entry['instruction']}\\n{entry['input']}"
        return f"<|user|>\\n{asked}\\n<|assistant|>:\\n"

    def training_text(self, entry):
        return "".join([self.prompt(entry), entry["output"]])

    def extract(self, text, entry):
        before, prompt, answer = text.partition(self.prompt(entry))
        if before or not prompt:
            raise ValueError(text)
        return answer.strip()
""",
    "7.2": """
def prompt_weighted_loss(model, batch, prompt_weight):
    total, count = 0.0, 0.0
    for prompt_length, ids in batch:
        text = torch.tensor([ids + [50256]])
        losses = -model(text[:, :-1])[0].log_softmax(dim=-1).gather(1, text[0, 1:, None])[:, 0]
        weights = torch.where(torch.arange(1, len(ids) + 1) < prompt_length, float(prompt_weight), 1.0)
        total = total + losses @ weights
        count += weights.sum().item()
    return total / count
""",
    "7.3": """
def batches_of_like_length(lengths, batch_size, seed):
    rng = random.Random(seed)
    order = list(range(len(lengths)))
    rng.shuffle(order)
    order.sort(key=lambda i: -lengths[i])
    batches = []
    while order:
        batches.append(order[:batch_size])
        order = order[batch_size:]
    return rng.sample(batches, len(batches))
""",
    "7.4": """
def prepare_lora(model, rank, alpha):
    def count():
        return sum(p.numel() * p.requires_grad for p in model.parameters())
    given = count()
    for parameter in model.parameters():
        parameter.requires_grad = False
    frozen = count()
    replace_linear_with_lora(model, rank, alpha)
    return given, frozen, count()
""",
}

MUTANTS = {  # one edit each of the worked solution: (what stands there, what replaces it)
    "7.1": [
        ('if entry["input"]:', "if True:"),
        ('            lines.append(entry["input"])', "            pass"),
        ("<|assistant|>:\\n", "<|assistant|>\\n"),
        ("<|assistant|>:\\n", "<|assistant|>:"),
        ('lines = ["<|user|>", ', 'lines = ["<|user|>", "", '),
        ("\\n<|assistant|>", "\\n\\n<|assistant|>"),
        ('self.prompt(entry) + entry["output"]', 'self.prompt(entry).strip() + entry["output"]'),
        ('self.prompt(entry) + entry["output"]', 'self.prompt(entry) + " " + entry["output"]'),
        ("return text[len(prompt) :].strip()", "return text[len(prompt) :]"),
        ("return text[len(prompt) :].strip()", 'return text.split("<|assistant|>:")[-1].strip()'),
        ("return text[len(prompt) :].strip()", 'return text.replace(prompt, "").replace("<|assistant|>:", "").strip()'),
        ("if not text.startswith(prompt):", "if False:"),
        ("if not text.startswith(prompt):", "if prompt not in text:"),
        ("if not text.startswith(prompt):", 'if not text.startswith("<|user|>"):'),
        ("prompt = self.prompt(entry)\n", 'prompt = self.prompt({**entry, "input": ""})\n'),
        ('lines = ["<|user|>"', 'entry["instruction"] = entry["instruction"].strip() + " "\n        lines = ["<|user|>"'),
    ],
    "7.2": [
        (": prompt_length - 1]", ": prompt_length]"),
        (": prompt_length - 1]", ": prompt_length - 2]"),
        ("= prompt_weight\n", "= 0.0\n"),
        ("= prompt_weight\n", "*= 1.0\n"),
        ("weights = (targets != -100).float()", "weights = torch.ones_like(targets).float()"),
        ("(targets != -100)", "(targets != 50256)"),
        ("(targets != -100)", "((targets != -100) & (targets != 50256))"),
        ("/ weights.sum()", "/ (targets != -100).sum()"),
        ("/ weights.sum()", "/ weights.numel()"),
        ("/ weights.sum()", "/ len(batch)"),
        ("(losses * weights).sum() / weights.sum()", "((losses * weights).sum(dim=1) / weights.sum(dim=1)).mean()"),
        ("(losses * weights).sum() / weights.sum()", "((losses * weights).sum() / weights.sum()).detach()"),
        ("(losses * weights).sum() / weights.sum()", "((losses * weights).sum() / weights.sum()).item()"),
        ("[ids for _, ids in batch]", "[ids[length - 1 :] for length, ids in batch]"),
        ("[ids for _, ids in batch]", "[ids + [50256] for _, ids in batch]"),
        ("for row, (prompt_length, _) in enumerate(batch):", "for row, (prompt_length, _) in enumerate(batch[:1]):"),
        ("inputs, targets = ", "batch[0][1].append(50256)\n    inputs, targets = "),
        ('reduction="none"', 'reduction="none", ignore_index=50256'),
    ],
    "7.3": [
        ("lengths[index])", "index)"),
        ("sorted(range(len(lengths)), key=lambda index: lengths[index])", "list(range(len(lengths)))"),
        ("sorted(range(len(lengths)), key=lambda index: lengths[index])", "sorted(lengths)"),
        ("    random.Random(seed).shuffle(batches)\n", ""),
        ("random.Random(seed).shuffle(batches)", "random.shuffle(batches)"),
        ("random.Random(seed).shuffle(batches)", "random.seed(seed)\n    random.shuffle(batches)"),
        ("random.Random(seed).shuffle(batches)", "random.Random(1).shuffle(batches)"),
        ("    batches = [", "    random.Random(seed).shuffle(order)\n    batches = ["),
        ("random.Random(seed).shuffle(batches)", "[random.Random(seed).shuffle(batch) for batch in batches]"),
        ("range(0, len(order), batch_size)", "range(0, len(order) - batch_size + 1, batch_size)"),
        ("order[start : start + batch_size]", "order[start : start + batch_size + 1]"),
        ("order[start : start + batch_size]", "order[start:]"),
        ("    order = sorted", "    lengths.sort()\n    order = sorted"),
        ("random.Random(seed).shuffle(batches)", "batches = random.Random(seed).choices(batches, k=len(batches))"),
        ("range(0, len(order), batch_size)]", "range(0, len(order), batch_size)][::-1]\n    return batches"),
    ],
    "7.4": [
        ("    model.requires_grad_(False)\n", ""),
        ("    counts.append(trainable())\n    return", "    model.requires_grad_(False)\n    counts.append(trainable())\n    return"),
        ("rank=rank, alpha=alpha", "rank=alpha, alpha=rank"),
        ("alpha=alpha)", "alpha=alpha * rank)"),
        ("alpha=alpha)", "alpha=rank)"),
        ("rank=rank", "rank=16 if rank == 16 else 2"),
        ("replace_linear_with_lora(model,", "replace_linear_with_lora(model.trf_blocks,"),
        ("alpha=alpha)", 'alpha=alpha, targets=("att",))'),
        (" if parameter.requires_grad)", ")"),
        ("sum(parameter.numel() for", "sum(1 for"),
        ("    model.requires_grad_(False)\n", "    model.trf_blocks.requires_grad_(False)\n"),
        ("    return tuple(counts)", "    model.tok_emb.requires_grad_(True)\n    return tuple(counts)"),
        ("return tuple(counts)", "return 406_286_336, 0, 7_898_384"),
        ("    return tuple(counts)", "    nn.init.normal_(model.out_head.lora.B)\n    return tuple(counts)"),
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


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        ((": prompt_length - 1]", ": prompt_length]"), "first token"),
        ((": prompt_length - 1]", ": prompt_length - 2]"), "the one before it"),
        (("(targets != -100)", "((targets != -100) & (targets != 50256))"), "end token behind each answer"),
        (("/ weights.sum()", "/ (targets != -100).sum()"), "sum of the weights, or by the number"),
        (
            ("(losses * weights).sum() / weights.sum()", "((losses * weights).sum(dim=1) / weights.sum(dim=1)).mean()"),
            "each text the same say",
        ),
    ],
)
def test_the_question_names_the_mistake_that_was_made(edit, words):
    with pytest.raises(CheckFailed, match=words):
        run_check("7.2", solution("7.2").replace(*edit))


@pytest.mark.parametrize("number", CHECKS)
def test_an_unsolved_stub_is_called_unsolved(number):
    def stub(*args):
        raise NotImplementedError(f"exercise {number}")

    with pytest.raises(CheckFailed, match="not solved yet"):
        CHECKS[number][0](stub)


@pytest.mark.parametrize("number", CHECKS)
def test_an_answer_that_returns_nothing_is_rejected(number):
    with pytest.raises(CheckFailed):
        CHECKS[number][0](lambda *args: None)


def test_pictures_survive_answers_of_a_wrong_kind():
    """A picture cell says in one line that there is none, and never stops the notebook."""
    names, said = {"__name__": "answer"}, io.StringIO()
    exec(IMPORTS, names)
    entries = [{"instruction": "Name a color.", "input": "", "output": "Blue."}] * 8
    names.update(tokenizer=names["gpt2_tokenizer"](), train_data=entries, val_data=entries)
    names["load_pretrained_gpt"] = lambda *args: (exercise_checks.random_gpt(1), None)
    names["MEDIUM"] = exercise_checks.TINY
    with contextlib.redirect_stdout(said):
        for wrong in (None, 7):
            names.update({answer: lambda *args, wrong=wrong: wrong for _, answer in CHECKS.values()})
            for cell in NOTEBOOK.cells:
                if "picture" in cell.metadata.get("tags", []):
                    exec(cell.source, names)
    assert said.getvalue().count("no picture: ") >= 2 * len(CHECKS) - 2


def test_every_exercise_has_mutants():
    assert MUTANTS.keys() == SECOND.keys() == CHECKS.keys()
    assert all(len(edits) >= 4 for edits in MUTANTS.values())


def test_command_line_of_the_checks(tmp_path):
    answer = tmp_path / "answer.py"
    script = FOLDER / "exercise_checks.py"
    answer.write_text(SECOND["7.1"], encoding="utf-8")
    good = subprocess.run([sys.executable, str(script), "7.1", str(answer)], capture_output=True, text=True)
    assert good.returncode == 0 and "passed" in good.stdout
    with pytest.raises(SystemExit) as stopped:
        exercise_checks.run_checks(["7.99", str(answer)])
    assert stopped.value.code == 2


def test_the_medium_model_is_gpt2_355m():
    with torch.device("meta"):
        assert sum(p.numel() for p in exercise_checks.GPTModel(exercise_checks.MEDIUM).parameters()) == 406_286_336
