"""The checks grade right and wrong answers: worked and second solutions pass, every mutant is rejected with a question."""

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
    return solutions


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
def load_gpt2(model_size, models_dir):
    model, cfg = load_pretrained_gpt({}, model_size, models_dir)
    return model, cfg
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
def mean_loss(batches, model):
    model.eval()
    losses = [nn.functional.cross_entropy(model(x).flatten(0, 1), y.flatten(), reduction="none").detach() for x, y in batches]
    model.train()
    return torch.cat(losses).mean().item() if losses else float("nan")
""",
    "5.10": """
def clip_gradients(parameters, max_norm):
    with_gradient = [p for p in parameters if p.grad is not None]
    norm = torch.cat([p.grad.flatten() for p in with_gradient]).norm()
    for p in with_gradient:
        p.grad = p.grad * torch.clamp(max_norm / (norm + 1e-6), max=1.0)
    return norm.item()
""",
}

# One edit each: exercise -> (what stands in the worked solution, what the mutant says instead).
MUTANTS = {
    "5.1": [
        ("softmax_with_temperature(logits, temperature)", "softmax_with_temperature(logits, 1.0)"),
        ("softmax_with_temperature(logits, temperature)", "softmax_with_temperature(logits, 1 / temperature)"),
        ("softmax_with_temperature(logits, temperature)", "torch.softmax(logits, -1) / temperature"),
        ("(drawn == word).sum().item()", "round(draws * probas[word].item())"),
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
        ("    load_weights_into_gpt(model, params)\n", ""),
        ("return model.eval(), cfg", "return model.train(), {**cfg, 'drop_rate': 0.1}"),
        ('"qkv_bias": True', '"qkv_bias": False'),
        ("settings[theirs] for", 'settings[theirs] if ours != "n_heads" else 2 for'),
        ("settings[theirs] for", 'settings[theirs] if ours != "context_length" else 1024 for'),
        ('"drop_rate": 0.0', '"drop_rate": 0.1'),
        ("return model.eval(), cfg", "return model.eval(), {}"),
    ],
    "5.7": [
        ("logits - logits.max(dim=-1, keepdim=True).values", "logits"),
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
        ("cut.scatter(-1, order, cut)", "cut"),
        ("cut.scatter(-1, order, cut)", "cut.gather(-1, order)"),
        ("descending=True", "descending=False"),
        ("logits.masked_fill", "logits.masked_fill_"),
        ('float("-inf")', "0.0"),
        ("cumsum(dim=-1)", "cumsum(dim=0)"),
    ],
    "5.9": [
        (" * targets.numel()", ""),
        ("count += targets.numel()", "count += 1"),
        ("    model.eval()\n", ""),
        ("    model.train()\n", ""),
        ("else math.nan", "else 0.0"),
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
        ("    return norm", "    return min(norm, max_norm)"),
    ],
}


def answer_of(number: str, source: str):
    """Run the source of an answer and return the function that the exercise asks for."""
    names = {}
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
