"""Direct preference optimization (DPO, arXiv 2305.18290): a tuned model learns which of two answers people prefer.

It adds to chapter 7 batches of answer pairs, the log-probability of an answer, and a loss that compares it with what a frozen
copy of the model says. tone.py measures what that changes: the manner of the answers, and what else.

Run it:  python dpo_from_scratch.py                    (the chapter's tuned gpt2-mini; a short fine-tuning first where it is missing)
         python dpo_from_scratch.py --beta 0.5          (a policy that stays nearer to the frozen copy)
"""

import contextlib
import copy
import json
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from dpo_loss import compute_dpo_loss_batch
from instructions import (
    RESPONSE_HEADER,
    answer_entries,
    create_loaders,
    format_input,
    load_tuned_gpt,
    split_data,
    train_on_answers,
)
from matplotlib.figure import Figure
from preference_batches import PAIRS_FILE, create_preference_loaders, drop_identical, load_pairs
from previous_chapters import (
    COLORS,
    MODELS_DIR,
    OneLineParser,
    PrintAboveBar,
    adamw,
    generate,
    gpt2_tokenizer,
    int_at_least,
    load_pretrained_gpt,
    pick_device,
    positive_float,
    save_atomically,
)
from tone import learn_tones, report_lines, tone_accuracy, tone_report, with_checks
from torch import nn
from torch.utils.data import DataLoader
from tqdm import tqdm

FOLDER = Path(__file__).resolve().parent
TUNED_FILES = (
    FOLDER.parent / "01_main-chapter-code" / "instruction-model" / "gpt2-mini-sft-standalone.pth",
    FOLDER.parent / "01_main-chapter-code" / "gpt2-mini-sft.pth",
    FOLDER / "gpt2-mini-sft.pth",
)


# ---- training ----


@torch.no_grad()
def compute_dpo_loss_loader(
    data_loader: DataLoader,
    policy_model: nn.Module,
    reference_model: nn.Module,
    beta: float,
    num_batches: int | None = None,
    reduction: str = "mean",
) -> tuple[float, float, float]:
    """Return (loss, chosen reward, rejected reward), means over the pairs of the first num_batches batches; NaN without any. Section 4."""
    totals, count = [0.0, 0.0, 0.0], 0
    for number, batch in enumerate(data_loader):
        if number == num_batches:
            break
        pairs = len(batch["chosen"])
        values = compute_dpo_loss_batch(batch, policy_model, reference_model, beta, reduction)
        totals, count = [total + value.item() * pairs for total, value in zip(totals, values)], count + pairs
    return tuple(total / count if count else float("nan") for total in totals)


def evaluate_dpo_loss_loader(
    policy_model: nn.Module,
    reference_model: nn.Module,
    train_loader: DataLoader,
    val_loader: DataLoader,
    beta: float,
    eval_iter: int | None,
    reduction: str = "mean",
) -> dict[str, float]:
    """Return train_loss, train_chosen_reward, train_rejected_reward, val_loss, ... over eval_iter batches each. Section 5."""
    policy_model.eval()
    result = {}
    with torch.random.fork_rng():  # how often we measure does not change the order of the batches
        for name, loader in (("train", train_loader), ("val", val_loader)):
            loss, chosen, rejected = compute_dpo_loss_loader(loader, policy_model, reference_model, beta, eval_iter, reduction)
            result[f"{name}_loss"] = loss
            result[f"{name}_chosen_reward"] = chosen
            result[f"{name}_rejected_reward"] = rejected
    policy_model.train()
    return result


def frozen_copy(model: nn.Module) -> nn.Module:
    """Return a copy of its own weights that never learns: without gradients, without dropout. Section 3."""
    return copy.deepcopy(model).eval().requires_grad_(False)


def record(tracking: dict[str, list], values: dict[str, float], step: int, tokens_seen: int) -> None:
    """Append the values of evaluate_dpo_loss_loader to the lists of `tracking`, and print losses and margins. Section 5."""
    margins = {}
    for name in ("train", "val"):
        tracking[f"{name}_losses"].append(values[f"{name}_loss"])
        tracking[f"{name}_chosen_rewards"].append(values[f"{name}_chosen_reward"])
        tracking[f"{name}_rejected_rewards"].append(values[f"{name}_rejected_reward"])
        margins[name] = values[f"{name}_chosen_reward"] - values[f"{name}_rejected_reward"]
    tracking["tokens_seen"].append(tokens_seen)
    losses = f"train loss {values['train_loss']:.3f}, val loss {values['val_loss']:.3f}"
    print(f"step {step:4d}: {losses}, train margin {margins['train']:.2f}, val margin {margins['val']:.2f}")


def train_model_dpo_simple(
    policy_model: nn.Module,
    reference_model: nn.Module,
    train_loader: DataLoader,
    val_loader: DataLoader,
    optimizer: torch.optim.Optimizer,
    num_epochs: int,
    beta: float,
    eval_freq: int,
    eval_iter: int | None,
    start_context: str,
    tokenizer,
    reduction: str = "mean",
    after_step: Callable | None = None,
) -> dict[str, list]:
    """Train the policy for num_epochs; prints its answer to start_context after each. Section 5.

    Returns lists with a value before the first update and after every eval_freq updates: train_losses, train_chosen_rewards,
    train_rejected_rewards, val_losses, val_chosen_rewards, val_rejected_rewards, tokens_seen.
    """
    kinds = ("losses", "chosen_rewards", "rejected_rewards")
    tracking = {f"{name}_{kind}": [] for name in ("train", "val") for kind in kinds} | {"tokens_seen": []}
    what = (policy_model, reference_model, train_loader, val_loader, beta, eval_iter, reduction)
    step, tokens_seen = 0, 0
    record(tracking, evaluate_dpo_loss_loader(*what), step, tokens_seen)
    for _ in range(num_epochs):
        policy_model.train()
        for batch in train_loader:
            optimizer.zero_grad()
            loss, _, _ = compute_dpo_loss_batch(batch, policy_model, reference_model, beta, reduction)
            loss.backward()  # changes the policy alone: the frozen copy has no gradients
            optimizer.step()
            step += 1
            tokens_seen += batch["chosen"].numel() + batch["rejected"].numel()
            if step % eval_freq == 0:
                record(tracking, evaluate_dpo_loss_loader(*what), step, tokens_seen)
            if after_step is not None:
                after_step()
        policy_model.eval()
        print("   ", sample_answer(policy_model, start_context, tokenizer))
    return tracking


def sample_answer(model: nn.Module, start_context: str, tokenizer, max_new_tokens: int = 40) -> str:
    """Return the model's greedy continuation of a prompt, up to its end token. Section 3."""
    device, context_size = model.pos_emb.weight.device, model.pos_emb.num_embeddings
    prompt = torch.tensor([tokenizer.encode_ordinary(start_context)], device=device)  # (1, num_tokens)
    ids = generate(model, prompt, max_new_tokens, context_size, eos_id=tokenizer.eot_token)
    return tokenizer.decode(ids[0, prompt.shape[1] :].tolist()).strip()


def plot_losses(epochs_seen: list, tokens_seen: list, train_losses: list, val_losses: list, label: str = "loss") -> Figure:
    """Plot training and validation values over epochs, with a second axis in tokens; returns the figure. Section 6."""
    fig = Figure(figsize=(6.5, 3.2), layout="constrained")
    ax = fig.subplots()
    ax.plot(epochs_seen, train_losses, color=COLORS["blue"], label="training")
    ax.plot(epochs_seen, val_losses, color=COLORS["red"], linestyle="--", label="validation")
    ax.set(xlabel="epochs", ylabel=label)
    ax.legend(frameon=False)
    tokens_per_epoch = tokens_seen[-1] / epochs_seen[-1]
    top = ax.secondary_xaxis("top", functions=(lambda e: e * tokens_per_epoch, lambda t: t / tokens_per_epoch))
    top.set_xlabel("tokens seen")
    return fig


# ---- command line ----


def find_tuned(path: str | None = None) -> Path | None:
    """Return the file of the chapter's tuned model: the one named, the neighbor's, or one of this folder; None if there is none."""
    if path is not None:
        return Path(path)
    return next((file for file in TUNED_FILES if file.is_file()), None)


def tuned_policy(settings: dict, train_data: list[dict], val_data: list[dict], tokenizer, device) -> tuple[nn.Module, dict]:
    """Return (the tuned gpt2-mini, its configuration): from settings["weights"], or one that learns chosen answers here. Section 3."""
    weights = find_tuned(settings["weights"])
    if weights is not None:
        return load_tuned_gpt(weights, device)
    model, cfg = load_pretrained_gpt({}, "mini", settings["models_dir"])
    model.to(device)
    entries = [{**pair, "output": pair["chosen"]} for pair in train_data if pair.get("check", True)]  # of the course's: the plain tasks
    loaders = create_loaders(entries, val_data, tokenizer, 8, cfg["context_length"], device)
    epochs = settings["sft_epochs"]
    print(f"no tuned model found: gpt2-mini learns the chosen answers for {epochs} epochs first")
    with tqdm(total=epochs * len(loaders[0]), unit="updates", mininterval=1) as bar:
        train_on_answers(model, *loaders, adamw(model, 1e-3, 0.1, device), epochs, 10**9, 1, bar.update)
    return model.eval(), cfg


def answers_and_tones(model, entries: list[dict], tokenizer, device, tones: dict) -> tuple[list[str], dict]:
    """Return (answers to the entries, what tone_report counts of them)."""
    answers, ended = answer_entries(model, entries, tokenizer, device, 60)
    return answers, tone_report(entries, answers, ended, tones)


def main(settings: dict) -> dict:
    """Tune with pairs as the settings say, report on the test entries before and after, write results; returns the reports.

    Raises ValueError or OSError, in one line, for input it cannot use.
    """
    folder, device, tokenizer = Path(settings["output_dir"]), pick_device(settings["device"]), gpt2_tokenizer()
    if folder.exists() and any(folder.iterdir()) and not settings["overwrite"]:
        raise ValueError(f"{folder} exists: add --overwrite to replace it, or name another folder")
    data = load_pairs(settings["data"])
    train_data, test_data, val_data = split_data(with_checks(data) if Path(settings["data"]) == PAIRS_FILE else data)
    table = learn_tones(train_data)
    (train_pairs, dropped), (val_pairs, _) = drop_identical(train_data[: settings["num_pairs"]]), drop_identical(val_data)
    print(f"{len(train_pairs)} training pairs, {dropped} dropped because their answers are equal")
    torch.manual_seed(settings["seed"])
    policy, cfg = tuned_policy(settings, train_data, val_data, tokenizer, device)
    reference, max_length = frozen_copy(policy), cfg["context_length"]
    reports, answers = {}, {}
    answers["before"], reports["before"] = answers_and_tones(policy, test_data, tokenizer, device, table)
    loaders = create_preference_loaders(train_pairs, val_pairs, tokenizer, settings["batch_size"], max_length, device)
    optimizer = adamw(policy, settings["learning_rate"], 0.01, device)
    torch.manual_seed(settings["seed"])
    prompt = format_input(val_data[0]) + RESPONSE_HEADER
    with tqdm(total=settings["num_epochs"] * len(loaders[0]), unit="updates", mininterval=1) as bar:
        with contextlib.redirect_stdout(PrintAboveBar(sys.stdout)):
            sizes = (settings["num_epochs"], settings["beta"], settings["eval_freq"], settings["eval_iter"])
            how = (prompt, tokenizer, settings["reduction"], bar.update)
            tracking = train_model_dpo_simple(policy, reference, *loaders, optimizer, *sizes, *how)
    answers["after"], reports["after"] = answers_and_tones(policy, test_data, tokenizer, device, table)
    folder.mkdir(parents=True, exist_ok=True)
    save_atomically({"model_state_dict": policy.state_dict(), "gpt_config": cfg}, folder / "gpt2-mini-dpo.pth")
    log = {"tracking": tracking, "reports": reports, "answers": answers}
    (folder / "log.json").write_text(json.dumps(log, indent=1, ensure_ascii=False) + "\n", encoding="utf-8", newline="\n")
    print(report_lines(reports, tone_accuracy(test_data, table)))
    return reports


def command_line(argv: list[str] | None = None) -> int:
    """Parse the options, call `main`; returns 0, or exits with code 2 and one line on bad input."""
    parser = OneLineParser("Tune gpt2-mini with pairs of preferred and less preferred answers (DPO).")
    parser.add_argument("--weights", help="file of a tuned gpt2-mini; None: the chapter's, else a short fine-tuning first")
    parser.add_argument("--data", default=str(PAIRS_FILE), help="JSON list of entries with chosen and rejected answers")
    parser.add_argument("--num_pairs", type=int_at_least(1), help="train on the first N pairs only; None: all")
    parser.add_argument("--beta", type=positive_float, default=0.1, help="how firmly the frozen copy holds the policy")
    parser.add_argument("--reduction", choices=("mean", "sum"), default="sum", help="log-probability of an answer: sum or mean of its ids")
    parser.add_argument("--learning_rate", type=positive_float, default=3e-4, help="of AdamW")
    parser.add_argument("--num_epochs", type=int_at_least(1), default=1, help="passes over the pairs")
    parser.add_argument("--batch_size", type=int_at_least(1), default=8, help="pairs per update")
    parser.add_argument("--eval_freq", type=int_at_least(1), default=20, help="updates from one measurement to the next")
    parser.add_argument("--eval_iter", type=int_at_least(1), default=5, help="batches per measurement")
    parser.add_argument("--sft_epochs", type=int_at_least(1), default=2, help="epochs of the fine-tuning where no tuned model is found")
    parser.add_argument("--models_dir", default=str(MODELS_DIR), help="folder of downloaded weights")
    parser.add_argument("--output_dir", default=str(FOLDER / "preference-model"), help="folder for all results")
    parser.add_argument("--overwrite", action="store_true", help="replace the results in output_dir")
    parser.add_argument("--seed", type=int, default=123, help="random seed")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps")
    try:
        main(vars(parser.parse_args(argv)))
    except (ValueError, OSError) as error:
        parser.error(" ".join(str(error).split()))
    except KeyboardInterrupt:
        parser.exit(130, "stopped; nothing is kept of an unfinished training\n")
    return 0


if __name__ == "__main__":
    sys.exit(command_line())
