"""The checks accept right answers, written in two ways, and reject wrong ones with a question.

Run it:  pytest ch06/01_main-chapter-code/tests/test_ch06_exercise_checks.py
"""

import contextlib
import io
import re
import subprocess
import sys
from pathlib import Path

import exercise_checks
import nbformat
import pandas as pd
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
    "6.1": """
@torch.inference_mode()
def padded_logits(texts, model, tokenizer, max_length, pad_token_id=50256):
    batch = torch.full((len(texts), max_length), pad_token_id)
    for row, text in zip(batch, texts):
        ids = torch.tensor(tokenizer.encode_ordinary(text)[:max_length], dtype=torch.int64)
        row[: len(ids)] = ids
    was_training = model.training
    model.eval()
    last = model(batch)[:, max_length - 1, :]
    model.train(was_training)
    return last
""",
    "6.2": """
def choose_trainable(model, part):
    if part == "head":
        wanted = lambda name: name.split(".")[0] == "out_head"
    elif part == "last_block":
        last = f"trf_blocks.{len(model.trf_blocks) - 1}."
        wanted = lambda name: name.startswith((last, "final_norm.", "out_head."))
    elif part == "all":
        wanted = lambda name: True
    else:
        raise ValueError(part)
    count = 0
    for name, parameter in model.named_parameters():
        parameter.requires_grad = wanted(name)
        if parameter.requires_grad:
            count += parameter.numel()
    return count
""",
    "6.3": """
def heard_positions(model, input_ids, position):
    embedded = []
    hook = model.tok_emb.register_forward_hook(lambda layer, args, out: embedded.append(out.requires_grad_()))
    was_training = model.training
    model.eval()
    logits = model(input_ids)[0, position]
    slopes = sum(torch.autograd.grad(logit, embedded[0], retain_graph=True)[0][0].abs().sum(dim=-1) for logit in logits)
    hook.remove()
    model.train(was_training)
    return [j for j, slope in enumerate(slopes.tolist()) if slope > 0]
""",
    "6.4": """
def choose_threshold(probas, labels, lost_per_hundred=1):
    ham = [p for p, label in zip(probas.tolist(), labels.tolist()) if label == 0]
    for threshold in [0.0] + sorted(ham):
        if 100 * sum(p > threshold for p in ham) <= lost_per_hundred * len(ham):
            return threshold
""",
    "6.5": """
import re
def without_repeats(train_texts, test_texts, right):
    form = lambda text: re.sub("[ \\\\t\\\\n]+", " ", text.strip()).upper()
    train = list(map(form, train_texts))
    repeats, hits, count = [], 0, 0
    for position, (text, good) in enumerate(zip(test_texts, right)):
        if form(text) in train:
            repeats += [position]
        else:
            count += 1
            hits += good
    return repeats, (hits / count if count else float("nan"))
""",
    "6.6": """
def mean_logits(model, input_batch, pad_token_id=50256):
    outputs = []
    for ids, row in zip(input_batch, model(input_batch)):
        keep = (ids != pad_token_id).nonzero().flatten()
        outputs.append(row[keep].mean(dim=0) if len(keep) else row[0])
    return torch.stack(outputs)
""",
    "6.7": """
def cache_features(model, data_loader):
    kept, labels = [], []
    hook = model.out_head.register_forward_pre_hook(lambda layer, args: kept.append(args[0]))
    was_training = model.training
    model.eval()
    rows = []
    for ids, target in data_loader:
        with torch.no_grad():
            model(ids)
        lengths = (ids != 50256).sum(dim=1).clamp(min=1)
        rows += [hidden[length - 1] for hidden, length in zip(kept.pop(), lengths)]
        labels += target.tolist()
    hook.remove()
    model.train(was_training)
    return torch.stack(rows), torch.tensor(labels)
""",
}

MUTANTS = {  # one edit each of the worked solution: (what stands there, what replaces it)
    "6.1": [
        ("ids + [pad_token_id] * (max_length - len(ids))", "[pad_token_id] * (max_length - len(ids)) + ids"),
        ("[:max_length] for text", " for text"),
        ("(max_length - len(ids))", "(max(map(len, rows)) - len(ids))"),
        ("[pad_token_id] *", "[50256] *"),
        ("disallowed_special=()", 'allowed_special="all"'),
        ("disallowed_special=()", ""),
        ("with measuring(model):", "with torch.no_grad():"),
        ("with measuring(model):", "model.eval()\n    with torch.no_grad():"),
        ("with measuring(model):", "if True:"),
        ("logits[:, -1]", "logits[:, 0]"),
        ("    return logits[:, -1]", "    return last_token_logits(model.eval(), torch.tensor(rows), pad_token_id)"),
        ("logits[:, -1]", "torch.softmax(logits[:, -1], dim=-1)"),
    ],
    "6.2": [
        ("    model.requires_grad_(False)\n", ""),
        ("model.trf_blocks[-1]]", "model.trf_blocks[0]]"),
        ("model.final_norm, ", ""),
        ('"last_block": [model.out_head, ', '"last_block": ['),
        ('"all": [model]', '"all": [model.trf_blocks, model.final_norm, model.out_head]'),
        (" if parameter.requires_grad)", ")"),
        ("sum(parameter.numel() for", "sum(1 for"),
        ("    if part not in parts:", "    if False:"),
        ("        raise ValueError(", "        print("),
        ("model.trf_blocks[-1]]", "model.trf_blocks[-1].att]"),
    ],
    "6.3": [
        ("(now - original).abs().max() > 1e-6", "j <= position"),
        ("    return heard", "    return list(range(position + 1))"),
        ("input_ids.clone()", "input_ids"),
        ("with measuring(model):", "with torch.no_grad():"),
        ("with measuring(model):", "model.eval()\n    if True:"),
        ("now = model(other)[0, position]", "now = model(other)[0, -1]"),
        ("(other[0, j] + 1) % model.tok_emb.num_embeddings", "other[0, j]"),
        ("(other[0, j] + 1) % model.tok_emb.num_embeddings", "other[0, j] + 1"),
        ("other[0, j] = (other[0, j] + 1)", "other[0, : j + 1] = (other[0, : j + 1] + 1)"),
        ("range(input_ids.shape[1])", "range(1, input_ids.shape[1])"),
        ("range(input_ids.shape[1])", "range(position + 1)"),
        ("heard.append(j)", "heard.append(True)"),
    ],
    "6.4": [
        ("probas[labels == 0]", "probas"),
        ("probas[labels == 0]", "probas[labels == 1]"),
        ("ham[allowed].item()", "ham[max(0, allowed - 1)].item()"),
        ("ham[allowed].item()", "ham[min(allowed + 1, len(ham) - 1)].item()"),
        ("lost_per_hundred * len(ham) // 100", "-(-lost_per_hundred * len(ham) // 100)"),
        ("lost_per_hundred * len(ham) // 100", "round(lost_per_hundred / 100 * len(ham))"),
        ("lost_per_hundred * len(ham) // 100", "len(ham) // 100"),
        ("lost_per_hundred * len(ham) // 100", "lost_per_hundred * len(probas) // 100"),
        (" if allowed < len(ham) else 0.0", " if allowed < len(ham) else ham[-1].item()"),
        ("ham[allowed].item() if allowed < len(ham) else 0.0", "torch.quantile(ham, 1 - lost_per_hundred / 100).item()"),
        ("ham = probas[labels == 0].sort", "probas[labels == 1] = 0\n    ham = probas[labels == 0].sort"),
        ("ham[allowed].item() if", "1 - ham[allowed].item() if"),
    ],
    "6.5": [
        ("text.lower().split()", "text.split()"),
        ('" ".join(text.lower().split())', "text.lower()"),
        ('" ".join(text.lower().split())', "text.lower().strip()"),
        ('" ".join(', '"".join('),
        ("{common_form(text) for text in train_texts}", '" ".join(common_form(text) for text in train_texts)'),
        ("enumerate(test_texts) if", "enumerate(train_texts) if"),
        ("sum(new) / len(new)", "sum(right) / len(right)"),
        ("sum(new) / len(new)", "sum(new) / len(right)"),
        ("if position not in repeats", "if position in repeats"),
        ("math.nan", "0.0"),
        ("{common_form(text) for text in train_texts}", "{common_form(text) for text in [*train_texts, *test_texts[1:]]}"),
        ("return repeats, ", "return len(repeats), "),
    ],
    "6.6": [
        ("mask.sum(dim=1)", "input_batch.shape[1]"),
        ("(logits * mask).sum(dim=1)", "logits.sum(dim=1)"),
        ("(logits * mask).sum(dim=1) / mask.sum(dim=1)", "logits.mean(dim=1)"),
        ("    real[:, 0] |= ~real.any(dim=1)", "    pass"),
        ("    real[:, 0] |= ~real.any(dim=1)", "    real[:, 0] = False"),
        ("input_batch != pad_token_id", "input_batch != 50256"),
        ("input_batch != pad_token_id", "input_batch == pad_token_id"),
        ("    return (logits", "    return last_token_logits(model, input_batch, pad_token_id)\n    return (logits"),
        ("    logits = model(input_batch)", "    with torch.no_grad():\n        logits = model(input_batch)"),
        (
            "    real = input_batch != pad_token_id",
            "    real = input_batch != pad_token_id\n    input_batch[input_batch == pad_token_id] = 0",
        ),
        ("    logits = model(input_batch)", "    logits = torch.cat([model(row[None]) for row in input_batch])"),
        ("mask.sum(dim=1)", "mask.sum()"),
    ],
    "6.7": [
        ("        model.out_head = head", "        pass"),
        ("        model.out_head = head", "        model.out_head = nn.Linear(8, 2)"),
        ("with measuring(model):", "with torch.no_grad():"),
        ("with measuring(model):", "model.eval()\n        with torch.no_grad():"),
        ("with measuring(model):", "if True:"),
        ("last_token_logits(model, input_batch)", "model(input_batch)[:, -1]"),
        ("last_token_logits(model, input_batch)", "model(input_batch)[:, 0]"),
        ("last_token_logits(model, input_batch)", "model(input_batch).mean(dim=1)"),
        ("nn.Identity()", "head"),
        ("return torch.cat(features), torch.cat(labels)", "return torch.cat(features), torch.cat([labels for _, labels in data_loader])"),
        ("return torch.cat(features), torch.cat(labels)", "return torch.cat(labels), torch.cat(features)"),
        ("return torch.cat(features)", "return torch.stack([f.mean(dim=0) for f in features])"),
        (
            "last_token_logits(model, input_batch), labels) for",
            "[model(input_batch), last_token_logits(model, input_batch)][1], labels) for",
        ),
        ("last_token_logits(model, input_batch)", "last_token_logits(model.trf_blocks, model.tok_emb(input_batch)[..., 0].long())"),
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
        CHECKS[number][0](lambda *args: None)


@pytest.mark.slow
def test_pictures_survive_answers_of_a_wrong_kind():
    """A picture cell says in one line that there is none, and never stops the notebook."""
    names, said = {"__name__": "answer"}, io.StringIO()
    exec(IMPORTS, names)
    batch = [(torch.randint(50257, (4, 10)), torch.tensor([0, 1, 0, 1]))]
    names.update(
        model=exercise_checks.random_classifier(1, context_length=64).eval(),
        tokenizer=names["gpt2_tokenizer"](),
        train_loader=batch,
        test_loader=batch,
        train_frame=pd.DataFrame({"Text": ["a"]}),
        test_frame=pd.DataFrame({"Text": ["a", "b", "c", "d"]}),
    )
    with contextlib.redirect_stdout(said):
        for wrong in (None, 7):
            names.update({answer: lambda *args, wrong=wrong: wrong for _, answer in CHECKS.values()})
            for cell in NOTEBOOK.cells:
                if "picture" in cell.metadata.get("tags", []):
                    exec(cell.source, names)
    assert said.getvalue().count("no picture: ") >= 2 * len(CHECKS) - 3


def test_every_exercise_has_mutants():
    assert MUTANTS.keys() == SECOND.keys() == CHECKS.keys()
    assert all(len(edits) >= 4 for edits in MUTANTS.values())


def test_command_line_of_the_checks(tmp_path):
    answer = tmp_path / "answer.py"
    script = FOLDER / "exercise_checks.py"
    answer.write_text("import torch\n" + SECOND["6.4"], encoding="utf-8")
    good = subprocess.run([sys.executable, str(script), "6.4", str(answer)], capture_output=True, text=True)
    assert good.returncode == 0 and "passed" in good.stdout
    with pytest.raises(SystemExit) as stopped:
        exercise_checks.run_checks(["6.99", str(answer)])
    assert stopped.value.code == 2
