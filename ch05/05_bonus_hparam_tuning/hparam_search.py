"""Search for better settings: grid or random search over a table of values, every trial kept in a file at once.

A trial trains a GPT with one setting of each kind and measures its validation loss. The file of results survives an
interruption and is the input of --resume; --confirm trains the best settings again with other seeds.

Run it:  python hparam_search.py --tiny --method random --max_trials 24 --output runs/tiny.jsonl
"""

import argparse
import json
import math
import random
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn as nn
from previous_chapters import (
    GPT_CONFIG_124M,
    STORY_FILE,
    GPTModel,
    OneLineParser,
    calc_loss_batch,
    evaluate_model,
    gpt2_tokenizer,
    int_at_least,
    pick_device,
    positive_float,
    read_text,
)
from story_data import SmallVocabulary, create_loaders
from torch.utils.data import DataLoader
from tqdm import tqdm

HPARAM_GRID = {
    "batch_size": [2, 4, 8, 16],
    "drop_rate": [0.0, 0.1, 0.2],
    "warmup_iters": [10, 20, 30],
    "weight_decay": [0.1, 0.01, 0.0],
    "peak_lr": [1e-4, 5e-4, 1e-3, 5e-3],
    "initial_lr": [5e-5, 1e-4],
    "min_lr": [5e-5, 1e-5, 1e-4],
    "n_epochs": [5, 10, 15, 20, 25],
}
FULL_CONFIG = {**GPT_CONFIG_124M, "context_length": 256}
FEW_WINDOWS = 10  # fewer validation windows than this decide nothing


def train_model(
    model: nn.Module, train_loader: DataLoader, val_loader: DataLoader, optimizer: torch.optim.Optimizer, device: torch.device,
    n_epochs: int, eval_iter: int | None, warmup_iters: int = 10, initial_lr: float = 3e-05, min_lr: float = 1e-6,
) -> tuple[float, float]:  # fmt: skip
    """Train in place and return the final (train_loss, val_loss) over eval_iter batches each (None: all).

    The rate rises in a straight line from initial_lr to the optimizer's own rate in warmup_iters updates, then falls along half
    a cosine to min_lr; after the warm-up, gradients are clipped to the norm 1.0. Stops early, with NaN, when the loss is no
    number any more. ValueError if the warm-up does not fit into the training.
    """
    total = n_epochs * len(train_loader)
    if warmup_iters >= total:
        raise ValueError(f"a warm-up of {warmup_iters} updates does not fit into a training of {total}")
    peak_lr = optimizer.param_groups[0]["lr"]
    model.train()
    step = 0
    for _ in range(n_epochs):
        for input_batch, target_batch in train_loader:
            if step < warmup_iters:
                lr = initial_lr + step * (peak_lr - initial_lr) / warmup_iters
            else:
                progress = (step - warmup_iters) / max(1, total - 1 - warmup_iters)
                lr = min_lr + 0.5 * (peak_lr - min_lr) * (1 + math.cos(math.pi * progress))
            for group in optimizer.param_groups:
                group["lr"] = lr
            optimizer.zero_grad()
            loss = calc_loss_batch(input_batch, target_batch, model, device)
            if not math.isfinite(loss.item()):
                return math.nan, math.nan
            loss.backward()
            if step >= warmup_iters:
                nn.utils.clip_grad_norm_(model.parameters(), max_norm=1.0)
            optimizer.step()
            step += 1
    return evaluate_model(model, train_loader, val_loader, device, eval_iter)


def read_grid(path: str | Path | None) -> dict[str, list]:
    """Return HPARAM_GRID with the lists of a JSON file in place of its own; ValueError for a key or list it cannot use."""
    if path is None:
        return HPARAM_GRID
    try:
        changes = json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is no JSON: {error}") from None
    if not isinstance(changes, dict):
        raise ValueError(f"{path} must hold an object: name of a setting -> list of values")
    for key, values in changes.items():
        if key not in HPARAM_GRID:
            raise ValueError(f"unknown setting {key!r} in the grid; known are {', '.join(HPARAM_GRID)}")
        if not isinstance(values, list) or not values:
            raise ValueError(f"the grid's {key!r} must be a list with at least one value")
        if not all(isinstance(value, int | float) and not isinstance(value, bool) and value >= 0 for value in values):
            raise ValueError(f"the grid's {key!r} must hold numbers of at least 0, got {values}")
    return {**HPARAM_GRID, **changes}


def tiny_config(text: str) -> dict:
    """A model that is trained in seconds: two small blocks, and a vocabulary of the text's own tokens."""
    sizes = {"context_length": 32, "emb_dim": 48, "n_heads": 4, "n_layers": 2}
    return {**GPT_CONFIG_124M, **sizes, "vocab_size": len(SmallVocabulary(gpt2_tokenizer(), parts_of(text)).old_ids)}


def count_of(grid: dict[str, list]) -> int:
    """How many combinations a grid has."""
    return math.prod(len(values) for values in grid.values())


def combination(grid: dict[str, list], number: int) -> dict:
    """Combination `number` of a grid, counted from 0: the last setting changes fastest."""
    chosen = {}
    for key, values in reversed(grid.items()):
        number, place = divmod(number, len(values))
        chosen[key] = values[place]
    return dict(reversed(chosen.items()))


def order_of_trials(grid: dict[str, list], method: str, seed: int) -> Iterator[int]:
    """Numbers of all combinations, each once: in order for "grid", shuffled by `seed` for "random"."""
    numbers = range(count_of(grid))
    return iter(numbers if method == "grid" else random.Random(seed).sample(numbers, len(numbers)))


def parts_of(text: str) -> tuple[str, str]:
    """The first 90 % of a text's characters and the rest."""
    split = int(0.9 * len(text))
    return text[:split], text[split:]


def loaders_of(text: str, cfg: dict, batch_size: int) -> tuple[DataLoader, DataLoader]:
    """Return loaders over the first 90 % of a text and over the rest; windows of cfg["context_length"] that do not overlap.

    A model with fewer tokens than GPT-2 gets a vocabulary of the text's own tokens. ValueError for a text that is too short.
    """
    tokenizer = (
        gpt2_tokenizer() if cfg["vocab_size"] == GPT_CONFIG_124M["vocab_size"] else SmallVocabulary(gpt2_tokenizer(), parts_of(text))
    )
    try:
        return create_loaders(parts_of(text), tokenizer, cfg["context_length"], batch_size)
    except ValueError as error:
        raise ValueError(f"the text is too short to be split: {error}") from None


def run_trial(settings: dict, cfg: dict, text: str, seed: int, device: torch.device, eval_iter: int | None) -> dict:
    """Train once; returns {"train_loss", "val_loss", "seconds"}, and "error" for settings that cannot be trained.

    Losses that are no numbers come back as None, as JSON has no NaN.
    """
    started = time.perf_counter()
    torch.manual_seed(seed)
    losses, error = (math.nan, math.nan), None
    try:
        train_loader, val_loader = loaders_of(text, cfg, settings["batch_size"])
        model = GPTModel({**cfg, "drop_rate": settings["drop_rate"]}).to(device)
        optimizer = torch.optim.AdamW(model.parameters(), lr=settings["peak_lr"], weight_decay=settings["weight_decay"])
        schedule = {key: settings[key] for key in ("n_epochs", "warmup_iters", "initial_lr", "min_lr")}
        losses = train_model(model, train_loader, val_loader, optimizer, device, eval_iter=eval_iter, **schedule)
    except ValueError as problem:
        error = str(problem)
    found = {name: round(loss, 4) if math.isfinite(loss) else None for name, loss in zip(("train_loss", "val_loss"), losses)}
    return {**found, "seconds": round(time.perf_counter() - started, 1), **({"error": error} if error else {})}


def ranked(trials: list[dict]) -> list[dict]:
    """Trials with a validation loss, best first; diverged and impossible ones are left out, never best."""
    return sorted((trial for trial in trials if trial["val_loss"] is not None), key=lambda trial: trial["val_loss"])


def read_results(path: Path, header: dict) -> list[dict]:
    """Trials of an earlier run; ValueError if it had another grid, model or text. A last line that broke off is dropped."""
    lines = path.read_text(encoding="utf-8").split("\n")
    try:
        whole = [json.loads(line) for line in lines[:-1]]  # each line ends in a line break; what follows the last one broke off
        known = bool(whole) and all(isinstance(entry, dict) for entry in whole) and "grid" in whole[0]
    except json.JSONDecodeError:
        known = False
    if not known:
        raise ValueError(f"{path} holds no results of this program")
    differing = [key for key in header if whole[0].get(key) != header[key]]
    if differing:
        raise ValueError(f"{path} has another {' and '.join(differing)}: name another --output")
    path.write_text("".join(line + "\n" for line in lines[:-1]), encoding="utf-8")
    return whole[1:]


def append(path: Path, entry: dict) -> None:
    """Add one line to the results at once, so that an interruption loses nothing but the trial that runs."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(entry) + "\n")


def add_trial(args: argparse.Namespace, cfg: dict, text: str, trials: list[dict], number: int, settings: dict, seed: int) -> None:
    """Run one trial and keep it, in `trials` and at once in args.output."""
    trial = {"number": number, "seed": seed, "settings": settings}
    trial |= run_trial(settings, cfg, text, seed, pick_device(args.device), args.eval_iter)
    trials.append(trial)
    append(args.output, trial)


def search(args: argparse.Namespace, grid: dict, cfg: dict, text: str, trials: list[dict]) -> None:
    """Run the trials that are missing, in order, until --max_trials or --time_limit; appends each to args.output."""
    done = {trial["number"] for trial in trials if trial["seed"] == args.seed}
    deadline = time.monotonic() + 60 * (args.time_limit or math.inf)
    wanted = min(args.max_trials or count_of(grid), count_of(grid))
    numbers = [number for number, _ in zip(order_of_trials(grid, args.method, args.seed), range(wanted))]
    with tqdm(total=wanted, initial=len(done.intersection(numbers)), unit="trial", file=sys.stderr, leave=False) as bar:
        for number in numbers:
            if number in done:
                continue
            if time.monotonic() > deadline:
                print(f"time limit of {args.time_limit:g} minutes reached: {bar.n} of {wanted} trials; go on with --resume")
                break
            add_trial(args, cfg, text, trials, number, combination(grid, number), args.seed)
            bar.update()


def confirm(args: argparse.Namespace, cfg: dict, text: str, trials: list[dict]) -> list[dict]:
    """Train the args.confirm best settings of args.seed again with four other seeds; appends each run, returns all of them."""
    best = ranked([trial for trial in trials if trial["seed"] == args.seed])[: args.confirm]
    done = {(trial["number"], trial["seed"]) for trial in trials}
    runs = [(trial, seed) for trial in best for seed in range(args.seed + 1, args.seed + 5)]
    for trial, seed in tqdm(runs, unit="run", file=sys.stderr, leave=False):
        if (trial["number"], seed) not in done:
            add_trial(args, cfg, text, trials, trial["number"], trial["settings"], seed)
    return best


def report(trials: list[dict], seed: int, varied: list[str]) -> list[str]:
    """Lines to print: the five best trials of `seed`, both losses of the same trial, and how many failed."""
    own = [trial for trial in trials if trial["seed"] == seed]
    best = ranked(own)
    lines = [f"{len(own)} trials, {len(own) - len(best)} of them diverged or impossible; best validation loss first:"]
    for trial in best[:5]:
        chosen = ", ".join(f"{key} {trial['settings'][key]:g}" for key in varied)
        lines.append(f"  val {trial['val_loss']:.3f}, train {trial['train_loss']:.3f}: {chosen}")
    return lines


def confirmation(trials: list[dict], best: list[dict]) -> list[str]:
    """Lines to print: for each of the best trials its first loss, and mean and range over the other seeds."""
    lines = ["the best settings with other seeds:"]
    for place, trial in enumerate(best, start=1):
        others = [t["val_loss"] for t in trials if t["number"] == trial["number"] and t["seed"] != trial["seed"]]
        losses = [loss for loss in others if loss is not None]
        spread = f"mean {statistics.mean(losses):.3f}, from {min(losses):.3f} to {max(losses):.3f}" if losses else "all diverged"
        lines.append(f"  number {place} of the search: {trial['val_loss']:.3f}; other seeds: {spread}")
    return lines


def parse(argv: list[str] | None) -> tuple[OneLineParser, argparse.Namespace]:
    parser = OneLineParser("Search for the settings with which a GPT reaches the lowest validation loss.")
    parser.add_argument("--data", default=str(STORY_FILE), help="UTF-8 text file; its last tenth is for validation")
    parser.add_argument("--method", choices=("grid", "random"), default="random", help="in order, or in random order")
    parser.add_argument("--max_trials", type=int_at_least(1), help="stop after this many trials in all (default: the whole grid)")
    parser.add_argument("--time_limit", type=positive_float, help="start no further trial after so many minutes")
    parser.add_argument("--grid", help="JSON file: name of a setting -> list of values, in place of the program's own")
    parser.add_argument("--output", type=Path, default=Path("runs/results.jsonl"), help="file of results, one trial a line")
    parser.add_argument("--resume", action="store_true", help="go on with the trials that --output does not have yet")
    parser.add_argument("--confirm", type=int_at_least(1), help="train so many of the best again with four other seeds")
    parser.add_argument("--tiny", action="store_true", help="a tiny model with a context of 32 tokens instead of GPT-2 small with 256")
    parser.add_argument("--eval_iter", type=int_at_least(1), help="batches for each loss (default: all)")
    parser.add_argument("--seed", type=int, default=123, help="seed of every trial, and of the random order")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, mps")
    return parser, parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Command line of this file; returns 0, or exits with code 2 and one line on bad input."""
    parser, args = parse(argv)
    try:
        grid = read_grid(args.grid)
        text = read_text(args.data)
        cfg = tiny_config(text) if args.tiny else FULL_CONFIG
        windows = len(loaders_of(text, cfg, batch_size=1)[1].dataset)
        header = {"grid": grid, "model": cfg, "characters": len(text), "data": Path(args.data).name}
        if args.output.exists() and not args.resume:
            raise ValueError(f"{args.output} exists: add --resume to go on with it, or name another --output")
        args.output.parent.mkdir(parents=True, exist_ok=True)
        trials = read_results(args.output, header) if args.output.exists() else []
    except (ValueError, OSError) as error:
        parser.error(str(error))
    if not args.output.exists():
        append(args.output, header)
    print(f"{count_of(grid):,} combinations, {min(args.max_trials or math.inf, count_of(grid)):,} to try")
    if windows < FEW_WINDOWS:
        print(f"warning: {windows} validation windows decide little; take a longer text or a shorter context", file=sys.stderr)
    search(args, grid, cfg, text, trials)
    print("\n".join(report(trials, args.seed, [key for key, values in grid.items() if len(values) > 1])))
    if args.confirm:
        print("\n".join(confirmation(trials, confirm(args, cfg, text, trials))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
