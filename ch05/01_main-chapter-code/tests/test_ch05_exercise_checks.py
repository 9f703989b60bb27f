"""The checks grade right and wrong answers: worked and second solutions pass, every mutant is rejected with a question."""

import itertools
import random
import re
from pathlib import Path

import exercise_checks
import nbformat
import pytest
import torch
from previous_chapters import CHECKS, CheckFailed

NOTEBOOK = Path(exercise_checks.__file__).with_name("exercise-solutions.ipynb")


def worked_solutions() -> dict:
    """Exercise number -> source of the solution cell that defines the answer, behind the imports of the first cell."""
    cells = nbformat.read(NOTEBOOK, as_version=4).cells
    imports = next(cell.source for cell in cells if cell.cell_type == "code")
    solutions, number = {}, None
    for cell in cells:
        heading = re.match(r"## Exercise (5\.\d+)", cell.source)
        number = heading[1] if heading else number
        if cell.cell_type == "code" and "solution" in cell.metadata.get("tags", []) and number not in solutions:
            solutions[number] = imports + "\n\n\n" + cell.source
    return {**solutions, "5.9b": solutions["5.9"], "5.10b": solutions["5.10"]}  # two answers in one cell


SOLUTIONS = worked_solutions()

# Written independently of the worked answers.
SECOND = {
    "5.1": """
def draw_word(logits, word, temperature, draws):
    weights = [math.exp(z / temperature) for z in logits.tolist()]
    exact = weights[word] / sum(weights)
    return exact, int((torch.rand(draws) < exact).sum())
""",
    "5.2": """
def text_statistics(token_ids):
    seen, repeated = set(), 0
    for left, right in zip(token_ids[:-1], token_ids[1:]):
        repeated += (left, right) in seen
        seen.add((left, right))
    return len(dict.fromkeys(token_ids)) / len(token_ids), repeated / (len(token_ids) - 1)
""",
    "5.3": """
def always_repeats(temperature, top_k):
    if top_k is not None and top_k < 2:
        return True
    return not temperature
""",
    "5.4": """
def one_more_epoch(path, gpt_config, train_loader, val_loader, tokenizer):
    saved = torch.load(path, weights_only=True)
    model = GPTModel(gpt_config)
    model.load_state_dict(saved["model_state_dict"])
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.5)
    optimizer.load_state_dict(saved["optimizer_state_dict"])
    model.train()
    torch.set_rng_state(saved["rng"])
    done, now = saved["state"]["batch"], torch.get_rng_state()
    if done:
        torch.set_rng_state(saved["state"]["epoch_rng"])
    batches = iter(train_loader)
    for _ in range(done):
        next(batches)
    if done:
        torch.set_rng_state(now)
    for inputs, targets in batches:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs).flatten(0, 1), targets.flatten()).backward()
        optimizer.step()
    return model
""",
    "5.5": """
def text_loss(model, token_ids, context_length):
    was_training, losses = model.training, []
    model.eval()
    for start in range(0, len(token_ids) - 1, context_length):
        piece = torch.tensor([token_ids[start : start + context_length + 1]])
        logits = model(piece[:, :-1]).detach()
        picked = logits.gather(2, piece[:, 1:, None])[0, :, 0]
        losses += (logits[0].logsumexp(-1) - picked).tolist()
    model.train(was_training)
    return sum(losses) / len(losses)
""",
    "5.6": """
def find_misplaced(model, params):
    right = GPTModel(config_of_model(model))
    load_weights_into_gpt(right, params)
    wrong = []
    for (name, ours), theirs in zip(right.state_dict().items(), model.state_dict().values()):
        if (ours - theirs).abs().max() > 0:
            wrong.append(name)
    wrong.sort()
    return wrong
""",
    "5.7": """
def perplexity(logits, targets):
    losses = [logits[b, t].logsumexp(0) - logits[b, t, targets[b, t]] for b in range(len(logits)) for t in range(logits.shape[1])]
    return torch.stack(losses).mean().exp().item()
""",
    "5.8": """
def keep_top_p(logits, top_p):
    kept = torch.full_like(logits, float("-inf"))
    for row, values in enumerate(logits):
        probas, order = torch.softmax(values.double(), 0).sort(descending=True)
        count = int((probas.cumsum(0) < top_p).sum()) + 1
        kept[row, order[:count]] = values[order[:count]]
    return kept
""",
    "5.9": """
def diagnose(train_losses, val_losses):
    best, lowest = 0, float("inf")
    for index, loss in enumerate(val_losses):
        if loss < lowest:
            best, lowest = index, loss
    bad = any(loss != loss or abs(loss) == float("inf") for loss in [*train_losses, *val_losses])
    if bad or not train_losses[-1] < train_losses[0]:
        return ["diverged", best]
    return ["overfitting" if val_losses[-1] - lowest > 0.1 else "learning", best]
""",
    "5.9b": """
def recited(model, token_ids, prompt_length):
    mode, ids = model.training, token_ids[:prompt_length]
    model.eval()
    with torch.no_grad():
        while len(ids) < len(token_ids):
            guess = model(torch.tensor([ids]))[0, -1].argmax().item()
            if guess != token_ids[len(ids)]:
                break
            ids = ids + [guess]
    model.train(mode)
    return len(ids) - prompt_length
""",
    "5.10": """
def clip_gradients(parameters, max_norm):
    with_gradient = [p for p in parameters if p.grad is not None]
    norm = torch.cat([p.grad.flatten() for p in with_gradient]).norm()
    for p in with_gradient:
        p.grad = p.grad * torch.clamp(max_norm / (norm + 1e-6), max=1.0)
    return norm.item()
""",
    "5.10b": """
def train_from_scratch(cfg, loader, num_epochs, lr, max_norm):
    torch.manual_seed(123)
    model = GPTModel(cfg).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.1)
    for inputs, targets in [batch for _ in range(num_epochs) for batch in loader]:
        optimizer.zero_grad()
        logits = model(inputs)
        nn.functional.cross_entropy(logits.transpose(1, 2), targets).backward()
        nn.utils.clip_grad_norm_(model.parameters(), max_norm)
        optimizer.step()
    return model
""",
}

# One edit each: exercise -> (what stands in the worked solution, what the mutant says instead).
MUTANTS = {
    "5.1": [
        ("softmax_with_temperature(logits, temperature)", "softmax_with_temperature(logits, 1.0)"),
        ("softmax_with_temperature(logits, temperature)", "softmax_with_temperature(logits, 1 / temperature)"),
        ("softmax_with_temperature(logits, temperature)", "torch.softmax(logits, -1) / temperature"),
        ("(drawn == word).sum().item()", "round(draws * probas[word].item())"),
        ("(drawn == word).sum().item()", "round(random.gauss(draws * probas[word].item(), 0.5))"),
        ("(drawn == word).sum().item()", "round(draws * probas[word].item()) + next(tick) % 2"),
        ("(drawn == word).sum().item()", "(drawn != word).sum().item()"),
        ("(drawn == word).sum().item()", "(drawn == word).float().mean().item()"),
    ],
    "5.2": [
        ("len(set(token_ids)) / len(token_ids)", "len(set(token_ids)) / len(pairs)"),
        ("len(set(token_ids)) / len(token_ids)", "1 - len(set(token_ids)) / len(token_ids)"),
        ("1 - len(set(pairs)) / len(pairs)", "len(set(pairs)) / len(pairs)"),
        ("1 - len(set(pairs)) / len(pairs)", "1 - len(set(pairs)) / len(token_ids)"),
        ("zip(token_ids, token_ids[1:])", "zip(token_ids, token_ids[2:])"),
        ("zip(token_ids, token_ids[1:])", "zip(token_ids[::2], token_ids[1::2])"),
    ],
    "5.3": [
        ("temperature == 0 or top_k == 1", "temperature == 0 and top_k == 1"),
        ("temperature == 0 or top_k == 1", "temperature == 0"),
        ("temperature == 0 or top_k == 1", "top_k == 1"),
        ("temperature == 0 or top_k == 1", "temperature < 1 or top_k == 1"),
        ("temperature == 0 or top_k == 1", "temperature < 0.4 or top_k == 1"),
        ("temperature == 0 or top_k == 1", "temperature < 0.02 or top_k == 1"),
        ("temperature == 0 or top_k == 1", "temperature == 0 or top_k is not None"),
    ],
    "5.4": [
        ("    state = restore_checkpoint(torch.load(path, weights_only=True), model, optimizer)\n", "    state = TrainingState()\n"),
        ('"Nell", tokenizer, state)', '"Nell", tokenizer)'),
        ("state.epoch + 1", "state.epoch + 2"),
        ("state.epoch + 1", "1"),
        ("    device =", "    torch.manual_seed(123)\n    device ="),
        ("    device =", "    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.1)\n    device ="),
        ("lr=0.01", "lr=0.001"),
        ("return model", "return state"),
    ],
    "5.5": [
        ("    model.eval()\n", ""),
        (', reduction="sum"', ""),
        ("/ len(targets)", "/ len(token_ids)"),
        ("token_ids[1:]", "token_ids[:-1]"),
        ("total += ", "total += 0 if len(right) < context_length < len(targets) else "),
        ("logits = model(window[None])[0]", "logits = model(window[None, :1].expand(1, len(window)))[0]"),
        (".split(context_length), targets.split(context_length)", ".split(context_length - 1 or 1), targets.split(context_length - 1)"),
    ],
    "5.6": [
        ("load_weights_into_gpt(right, params)", "load_weights_into_gpt(model, params)"),
        ("    right = GPTModel(config_of_model(model))\n", "    right = model\n"),
        ("    load_weights_into_gpt(right, params)\n", ""),
        ("sorted(", "list("),
        ("not torch.equal(parameter, ours[name])", "not torch.allclose(parameter, ours[name], atol=10.0)"),
        ("not torch.equal(parameter, ours[name])", "abs(parameter.sum() - ours[name].sum()) > 1e-3"),
        ("not torch.equal(parameter, ours[name])", "parameter.shape != ours[name].shape"),
        ("not torch.equal(parameter, ours[name])", 'name.endswith("weight") and not torch.equal(parameter, ours[name])'),
        ("not torch.equal(parameter, ours[name])", 'name.startswith("trf") and not torch.equal(parameter, ours[name])'),
        ("    ours = dict", "    model.train()\n    ours = dict"),
    ],
    "5.7": [
        ("logits - logits.max(dim=-1, keepdim=True).values", "logits"),
        ("logits - logits.max(dim=-1, keepdim=True).values", "logits.sub_(logits.max(dim=-1, keepdim=True).values)"),
        ("    log_probas =", "    log_probas = shifted.softmax(dim=-1).gather(-1, targets[..., None]).log()\n    unused ="),
        ("    return", "    return nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten()).exp().item()\n    return"),
        ("    return", "    return math.exp(-torch.log_softmax(logits, -1).gather(-1, targets[..., None]).mean())\n    return"),
        ("logits.max(dim=-1, keepdim=True)", "logits.max(dim=1, keepdim=True)"),
        ("math.exp(-log_probas.mean())", "log_probas.exp().mean().item() ** -1"),
        ("math.exp(-log_probas.mean())", "math.exp(-log_probas.sum())"),
        ("math.exp(-log_probas.mean())", "2 ** (-log_probas.mean().item())"),
        ("math.exp(-log_probas.mean())", "-log_probas.mean().item()"),
        (".sum(dim=-1).log()", ".mean(dim=-1).log()"),
    ],
    "5.8": [
        ("probas.cumsum(dim=-1) - probas >= top_p", "probas.cumsum(dim=-1) >= top_p"),
        ("probas.cumsum(dim=-1) - probas >= top_p", "probas < 1 - top_p"),
        ("probas.cumsum(dim=-1) - probas >= top_p", "probas.cumsum(dim=-1) - probas > top_p"),
        ("    cut =", "    [row.argmax() for row in logits for _ in range(row.numel())]\n    cut ="),
        ("    cut =", "    [value for row in logits.tolist() for value in row]\n    cut ="),
        ("cut.scatter(-1, order, cut)", "cut"),
        ("cut.scatter(-1, order, cut)", "cut.gather(-1, order)"),
        ("descending=True", "descending=False"),
        ("logits.masked_fill", "logits.masked_fill_"),
        ('float("-inf")', "0.0"),
        ("cumsum(dim=-1)", "cumsum(dim=0)"),
    ],
    "5.9": [
        ("> val_losses[best] + 0.1", "> val_losses[best]"),
        ("> val_losses[best] + 0.1", "> min(val_losses[0], val_losses[best] + 1)"),
        ("> val_losses[best] + 0.1", "> train_losses[-1] + 0.1"),
        (">= train_losses[0]", "> train_losses[0]"),
        ("train_losses + val_losses", "train_losses"),
        ("train_losses + val_losses", "val_losses"),
        ("not all(map(math.isfinite, train_losses + val_losses)) or ", ""),
        ("if math.isfinite(loss)]", "]"),
        ("min(finite, key=lambda index: val_losses[index], default=0)", "len(val_losses) - 1"),
        ("min(finite, key", "min(finite[::-1], key"),
        (", default=0", ""),
        ('return "diverged", best', 'return "diverged", 0'),
    ],
    "5.9b": [
        ("    model.eval()\n", ""),
        ("    model.train(was_training)\n", ""),
        ("    model.train(was_training)\n", "    model.train()\n"),
        ("    return count", "    return sum(a == b for a, b in zip(written[prompt_length:], token_ids[prompt_length:]))"),
        ("    return count", "    return count + prompt_length"),
        ("    return count", "    return min(count, len(token_ids) - prompt_length - 1)"),
        ("    return count", "    return count / max(1, len(token_ids) - prompt_length)"),
        ("token_ids[:prompt_length]", "token_ids[: prompt_length - 1] or token_ids[:1]"),
    ],
    "5.10": [
        ("if norm > max_norm", "if True"),
        ("if norm > max_norm", "if norm < max_norm"),
        ("gradient.mul_(max_norm / norm)", "gradient.clamp_(-max_norm, max_norm)"),
        ("gradient.mul_(max_norm / norm)", "gradient.mul_(max_norm / gradient.norm())"),
        ("gradient.mul_(max_norm / norm)", "gradient.mul_(norm / max_norm)"),
        ("gradient.mul_(max_norm / norm)", "gradient = gradient * (max_norm / norm)"),
        ("math.sqrt(", "(lambda x: x)("),
        (" if parameter.grad is not None]", "]"),
        ("    norm = ", "    return nn.utils.clip_grad_norm_(parameters, max_norm).item()\n    norm = "),
        ("    return norm", "    return min(norm, max_norm)"),
    ],
    "5.10b": [
        ("            clip_gradients(list(model.parameters()), max_norm)\n            optimizer.step()", "            optimizer.step()"),
        ("            optimizer.step()\n", ""),
        ("            optimizer.zero_grad()\n", ""),
        ("    torch.manual_seed(123)\n", ""),
        ("range(num_epochs)", "range(1)"),
        ("lr=lr", "lr=1e-3"),
        ("max_norm)\n            optimizer", "1.0)\n            optimizer"),
        ("weight_decay=0.1", "weight_decay=0.5"),
        ("torch.optim.AdamW(", "torch.optim.Adam("),
        ("    return model", "    return optimizer"),
    ],
}


def answer_of(number: str, source: str):
    """Run the source of an answer and return the function that the exercise asks for."""
    names = {"random": random, "tick": itertools.count()}
    exec(compile(source, f"answer to {number}", "exec"), names)
    return names[CHECKS[number][1]]


def check(number: str, source: str) -> None:
    CHECKS[number][0](answer_of(number, source))


def test_every_check_has_a_solution_a_second_one_and_at_least_four_mutants():
    assert set(CHECKS) == set(SOLUTIONS) == set(SECOND) == set(MUTANTS)
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


def test_checks_draw_no_seed_from_outside_and_leave_no_files(tmp_path):
    torch.manual_seed(5)
    check("5.4", SOLUTIONS["5.4"])
    assert not list(tmp_path.iterdir())
