"""Checks for the exercises of appendix D; call them in the notebook, or: python exercise_checks.py D.1 my_answer.py

Each check runs your answer on several inputs and compares with something computed in another way: the rates that
`train_model` uses, PyTorch's own clipping, or plain loops. A failed check ends with a question to think about.
"""

import contextlib
import io
import math
import random
import sys

import torch
import torch.nn as nn
from previous_chapters import GPT_CONFIG_124M, GPTModel, exercise, expect_close, expect_equal, fail, passed, run_checks
from training_loop import train_model

TINY_CONFIG = {**GPT_CONFIG_124M, "vocab_size": 20, "context_length": 4, "emb_dim": 4, "n_heads": 1, "n_layers": 1}


class TinyTokenizer:
    """Enough of a tokenizer for the samples that train_model prints."""

    def encode(self, text: str, allowed_special: set[str]) -> list[int]:
        return [1, 2]

    def decode(self, ids: list[int]) -> str:
        return str(ids)


def rates_of_train_model(total_steps: int, warmup_steps: int, peak_lr: float, initial_lr: float, min_lr: float) -> list[float]:
    """Train a tiny model for one epoch and return the rates it used."""
    model = GPTModel(TINY_CONFIG)
    optimizer = torch.optim.AdamW(model.parameters(), lr=peak_lr)
    ids = torch.randint(20, (total_steps, 1, 5))  # (total_steps, 1, 5)
    batches = [(row[:, :-1], row[:, 1:]) for row in ids]
    with contextlib.redirect_stdout(io.StringIO()):
        *_, rates = train_model(
            model, batches, batches[:1], optimizer, torch.device("cpu"), 1, total_steps, 1, "", TinyTokenizer(),
            warmup_steps, initial_lr, min_lr,
        )  # fmt: skip
    return rates


@exercise("D.1", answer="make_schedule")
def check_D_1(make_schedule):
    """Against the rates that train_model records; steps asked for out of order and twice."""
    torch.manual_seed(123)
    for total_steps, warmup_steps, peak_lr, initial_lr, min_lr in (
        (20, 4, 0.01, 1e-3, 1e-4), (12, 0, 0.5, 0.1, 0.05), (9, 8, 0.02, 0.01, 1e-3), (7, 7, 0.1, 0.02, 0.0), (1, 0, 0.1, 0.01, 0.01),
    ):  # fmt: skip
        rates = rates_of_train_model(total_steps, warmup_steps, peak_lr, initial_lr, min_lr)
        where = f"{total_steps=}, {warmup_steps=}, {peak_lr=}, {initial_lr=}, {min_lr=}"
        schedule = make_schedule(total_steps, warmup_steps, peak_lr, initial_lr, min_lr)
        if not callable(schedule):
            fail("a function of the step", type(schedule).__name__, where, "does make_schedule return a function, defined inside it?")
        question = "where does the warm-up begin and end, and at which step is the decay over?"
        for step, rate in enumerate(rates):
            expect_close(1.0, schedule(step) / rate if rate else 1.0 + schedule(step), f"rate / train_model's, {step=}, {where}", question)
        steps = list(range(total_steps)) * 2
        random.Random(123).shuffle(steps)
        for step in steps:
            question = "does the rate depend on the step alone, or also on how often you were asked?"
            expect_close(schedule(step), make_schedule(total_steps, warmup_steps, peak_lr, initial_lr, min_lr)(step), where, question)
    passed("D.1")


def model_with_gradients(size: float) -> nn.Sequential:
    """Three layers, of which the last has no gradient."""
    model = nn.Sequential(nn.Linear(5, 7), nn.Linear(7, 3), nn.Linear(3, 2))
    for parameter in model[:2].parameters():
        parameter.grad = size * torch.randn_like(parameter)
    return model


@exercise("D.2", answer="clip_by_hand")
def check_D_2(clip_by_hand):
    """Norm and gradients against PyTorch's clip_grad_norm_; and gradients that are not finite."""
    for seed, (size, max_norm) in enumerate(((3.0, 1.0), (0.01, 1.0), (1.0, 0.25), (0.0, 1.0), (0.1, 5.0))):
        torch.manual_seed(seed)
        theirs = model_with_gradients(size)
        torch.manual_seed(seed)
        ours = model_with_gradients(size)
        expected = nn.utils.clip_grad_norm_(theirs.parameters(), max_norm).item()
        got = float(clip_by_hand(ours, max_norm))
        where = f"gradients of size {size}, {max_norm=}"
        expect_close(expected, got, f"returned norm, {where}", "is it one norm over the whole model, measured before clipping?", atol=1e-4)
        for (name, parameter), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
            question = "is one common factor applied to all gradients, and only when their norm is above max_norm?"
            if other.grad is not None:
                expect_close(other.grad, parameter.grad, f"gradient of {name}, {where}", question, atol=1e-6)
            else:
                expect_equal(None, parameter.grad, f"gradient of {name}, {where}", "must a parameter without a gradient get one?")
    for bad in (math.inf, -math.inf, math.nan):
        model = model_with_gradients(0.1)
        model[1].bias.grad[1] = bad
        norm = float(clip_by_hand(model, 1.0))
        where = f"one gradient is {bad}"
        expect_equal(False, math.isfinite(norm), f"whether the returned norm is finite, {where}", "what is the norm of such gradients?")
        left = [name for name, parameter in model.named_parameters() if parameter.grad is not None]
        expect_equal([], left, f"parameters that still have a gradient, {where}", "what would optimizer.step() do with them?")
    passed("D.2")


def synthetic_runs(generator: random.Random, seeds: list[int], baseline_seeds: list[int], effect: float, noise: float) -> list[dict]:
    """Runs of two variants at two rates in random order; the seeds move both variants alike, far more than `noise` does."""
    shift = {seed: generator.gauss(0, 3) for seed in seeds + baseline_seeds}
    runs = []
    for rate in (0.01, 0.1):
        for name, own_seeds, gain in (("all", seeds, effect), ("plain", baseline_seeds, 0.0)):
            for seed in own_seeds:
                loss = 5 + shift[seed] + gain + generator.gauss(0, noise) + (rate == 0.1) * generator.gauss(0, 9)
                runs.append({"variant": name, "peak_lr": rate, "seed": seed, "train_loss": loss, "val_loss": generator.gauss(6, 2)})
    generator.shuffle(runs)
    return runs


@exercise("D.3", answer="compare_variants")
def check_D_3(compare_variants):
    """Against plain loops over the seeds that both variants have; effects clear, absent, and hidden unless runs are paired."""
    generator = random.Random(123)
    for effect, noise, seeds, others in (
        (-1.0, 0.1, [1, 2, 3], [1, 2, 3]), (1.0, 0.1, [5, 6, 7, 8], [8, 7, 6, 5]), (0.0, 1.0, [1, 2, 3, 4, 5], [1, 2, 3, 4, 5]),
        (-0.5, 0.05, [3, 1, 2, 9], [1, 2, 3, 4, 7]), (0.2, 0.4, [1, 2, 3], [1, 2, 3]), (-1.0, 0.5, [1, 2, 3, 4, 5], [1, 2, 3, 4, 5]),
    ):  # fmt: skip
        runs = synthetic_runs(generator, seeds, others, effect, noise)
        differences = []
        for one in runs:
            for other in runs:
                names = (one["variant"], other["variant"], one["peak_lr"], other["peak_lr"])
                if names == ("all", "plain", 0.01, 0.01) and one["seed"] == other["seed"]:
                    differences.append(one["train_loss"] - other["train_loss"])
        n = len(differences)
        mean = sum(differences) / n
        error = math.sqrt(sum((difference - mean) ** 2 for difference in differences) / (n - 1) / n)
        verdict = "undecided" if abs(mean) <= 3 * error else "better" if mean < 0 else "worse"
        got = compare_variants(runs, "all", "plain", 0.01)
        if not isinstance(got, tuple) or len(got) != 3:
            fail("three values: mean, standard error, verdict", repr(got), "what you return", "does your function return all three?")
        where = f"all with seeds {seeds}, plain with seeds {others}"
        question = "is each run compared with the baseline's run of the same seed, at this rate only, training loss with training loss?"
        expect_close(mean, float(got[0]), f"mean difference, {where}", question)
        question = "is the variance divided by n - 1 and then by n, before the square root?"
        expect_close(error, float(got[1]), f"standard error, {where}", question)
        question = "is the mean difference compared with three standard errors, on both sides, and is a lower loss better?"
        expect_equal(verdict, got[2], f"verdict, mean {mean:.3f}, standard error {error:.3f}", question)
    passed("D.3")


if __name__ == "__main__":
    sys.exit(run_checks())
