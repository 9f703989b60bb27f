"""Train small variants of a GPT on the course's story, side by side: same batches, same seeds, one thread, a log and a plot.

The models read characters, so that the vocabulary has some 60 entries and nearly all computing happens in the blocks. The
last tenth of the story is held out. compare_gqa.py is the first user; the folders 05 to 08 borrow this module.
"""

import argparse
import json
import platform
import statistics
import sys
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn as nn
import torch.nn.functional as F
from previous_chapters import STORY_FILE, OneLineParser, count_parameters, int_at_least, processor_name, read_text, use_course_style
from tqdm import tqdm

STORY_CFG = {"vocab_size": 0, "context_length": 128, "emb_dim": 64, "n_heads": 4, "n_layers": 4, "drop_rate": 0.0, "qkv_bias": False}
BATCH, RATE, EVALUATIONS = 16, 3e-3, 10


def story_characters() -> tuple[torch.Tensor, torch.Tensor, int]:
    """(characters to train on, held-out last tenth, how many different ones), as numbers. Folder 04 of chapter 4."""
    text = read_text(STORY_FILE)
    letters = {letter: number for number, letter in enumerate(sorted(set(text)))}
    ids = torch.tensor([letters[letter] for letter in text])
    cut = len(ids) * 9 // 10
    return ids[:cut], ids[cut:], len(letters)


@torch.no_grad()
def held_out_loss(model: nn.Module, ids: torch.Tensor, context_length: int) -> float:
    """Mean loss per character, the text cut into pieces of context_length that do not overlap. Folder 04 of chapter 4."""
    pieces = ids[: (len(ids) - 1) // context_length * context_length + 1]
    inputs, targets = pieces[:-1].view(-1, context_length), pieces[1:].view(-1, context_length)  # (pieces, num_tokens)
    model.eval()
    loss = F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten())
    model.train()
    return loss.item()


def train_once(model: nn.Module, seed: int, steps: int, bar: tqdm, extra_loss: Callable | None = None) -> list[float]:
    """Train `model` in place; returns the held-out loss at EVALUATIONS even distances. Folder 04 of chapter 4.

    The batches depend on the seed alone, so all variants see the same ones. The rate rises for a tenth of the steps and then
    falls in a straight line. extra_loss(model): is added to each batch's loss, if given.
    """
    train, held_out, _ = story_characters()
    draw = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.1)
    window, losses = model.cfg["context_length"] + 1, []
    for step in range(1, steps + 1):
        starts = torch.randint(len(train) - window, (BATCH,), generator=draw)
        batch = torch.stack([train[start : start + window] for start in starts])  # (b, window)
        loss = F.cross_entropy(model(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())
        if extra_loss is not None:
            loss = loss + extra_loss(model)
        for group in optimizer.param_groups:
            group["lr"] = RATE * min(1.0, step / (0.1 * steps), (steps - step + 1) / (0.9 * steps))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        bar.update()
        if step * EVALUATIONS // steps > (step - 1) * EVALUATIONS // steps:
            losses.append(round(held_out_loss(model, held_out, model.cfg["context_length"]), 4))
    return losses


def compare_on_story(builders: dict[str, Callable], seeds: list[int], steps: int, extra_loss: Callable | None = None) -> dict:
    """Train each variant once a seed, in turns, on one thread; returns the log. Folder 04 of chapter 4.

    builders: name -> function that takes a configuration and returns a model.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    cfg = {**STORY_CFG, "vocab_size": story_characters()[2]}
    log = {"processor": processor_name(), "python": platform.python_version(), "torch": torch.__version__, "cfg": cfg}
    log |= {"steps": steps, "batch": BATCH, "rate": RATE, "seeds": seeds, "runs": {}}
    with tqdm(total=len(seeds) * len(builders) * steps, unit="step", file=sys.stderr, leave=False) as bar:
        for seed in seeds:
            for name, build in builders.items():
                bar.set_description(f"{name}, seed {seed}")
                torch.manual_seed(seed)
                model = build(cfg)
                run = log["runs"].setdefault(name, {"parameters": count_parameters(model), "held_out": []})
                run["held_out"].append(train_once(model, seed, steps, bar, extra_loss))
    torch.set_num_threads(threads)
    return log


def comparison_rows(log: dict) -> list[str]:
    """The log as lines of a Markdown table: parameters, best held-out loss of each seed, their mean. Folder 04 of chapter 4."""
    rows = ["| variant | parameters | lowest held-out loss, each seed | mean |", "|---|---|---|---|"]
    for name, run in log["runs"].items():
        best = [min(losses) for losses in run["held_out"]]
        cells = (name, f"{run['parameters']:,}", ", ".join(f"{loss:.3f}" for loss in best), f"{statistics.mean(best):.3f}")
        rows.append(f"| {' | '.join(cells)} |")
    return rows


def draw_comparison(log: dict, title: str, output: Path):
    """Save the held-out loss against the steps: the mean of the seeds as a line, their range as a band. Folder 04 of chapter 4."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    use_course_style()
    fig, ax = plt.subplots(figsize=(6.5, 3.4))
    steps = [log["steps"] * (number + 1) // EVALUATIONS for number in range(EVALUATIONS)]
    for (name, run), mark in zip(log["runs"].items(), "os^Dv<>p" * 4):
        columns = list(zip(*run["held_out"]))
        (line,) = ax.plot(steps, [statistics.mean(column) for column in columns], marker=mark, markersize=4, label=name)
        ax.fill_between(steps, [min(c) for c in columns], [max(c) for c in columns], color=line.get_color(), alpha=0.15)
    ax.set(xlabel="training steps", ylabel="held-out loss per character", title=title)
    ax.legend()
    fig.savefig(output, dpi=100)
    plt.close(fig)
    return fig


def run_comparison(description: str, builders: dict, title: str, argv: list[str] | None, extra_loss: Callable | None = None) -> int:
    """Command line of a comparison: train, write log and plot, print the table; with --draw_only from the log alone.

    Returns 0, or exits with code 2 and one line on bad input. Folder 04 of chapter 4.
    """
    parser = OneLineParser(description)
    parser.add_argument("--steps", type=int_at_least(EVALUATIONS), default=500, help="updates of each run")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3], help="one run of each variant a seed")
    parser.add_argument("--log", type=Path, default=Path("story-comparison.json"), help="file of the result")
    parser.add_argument("--figure", type=Path, default=Path("story-comparison.png"), help="file of the plot")
    parser.add_argument("--draw_only", action="store_true", help="read the log instead of training")
    args = parser.parse_args(argv)
    for path in (args.log, args.figure):
        if not path.parent.is_dir():
            parser.error(f"no such folder: {path.parent}")
    if args.draw_only:
        log = read_log(parser, args.log)
    else:
        log = compare_on_story(builders, args.seeds, args.steps, extra_loss)
        args.log.write_text(json.dumps(log, indent=1) + "\n", encoding="utf-8")
    draw_comparison(log, title, args.figure)
    print("\n".join(comparison_rows(log)))
    return 0


def read_log(parser: argparse.ArgumentParser, path: Path) -> dict:
    """The log of a comparison; exits with code 2 and one line if it is missing or is none. Folder 04 of chapter 4."""
    try:
        log = json.loads(read_text(path))
        return {**log, "runs": log["runs"]}
    except (ValueError, TypeError, KeyError) as error:
        parser.error(f"{path} is no log of a comparison: {error}")
