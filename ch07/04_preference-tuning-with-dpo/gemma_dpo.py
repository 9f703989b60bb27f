"""DPO with a real model: Gemma 3 270M, tuned on the chapter's instructions, learns to be courteous from pairs.

It is the loss of dpo_from_scratch.py with what a larger model needs: the frozen copy's log-probabilities are computed once and
kept, because they never change, so no second model stands in memory; a learning rate that rises and falls; checkpoints.

Run it (after `make gemma`, and after gemma_instruction_finetuning.py of the chapter, whose weights it starts from):
    python gemma_dpo.py                                     # a quarter of an hour on two cores, most of it for the answers
    python gemma_dpo.py --resume                            # go on where it was stopped
    python gemma_dpo.py --beta 0.5 --name "beta 0.5" --output_dir gemma-dpo-beta-0.5
"""

import contextlib
import hashlib
import json
import sys
import time
from functools import partial
from pathlib import Path

import torch
from dpo_loss import answer_logprobs, compute_dpo_loss
from gemma_dpo_report import print_reports, read_gemma_dpo_log, write_log
from instructions import (
    ABOUT,
    WEIGHTS_NAME,
    answer_entries_gemma,
    answers_of,
    asked_questions,
    fingerprint,
    gemma_loader,
    load_tuned_gemma,
    prepare_for_tuning,
    rate_factor,
    split_data,
    train,
)
from preference_batches import SIDES, PreferenceDataset, custom_collate_fn, drop_identical, load_pairs
from previous_chapters import (
    OneLineParser,
    TrainingState,
    float_from_zero,
    fused_adamw_works,
    int_at_least,
    peak_memory_gb,
    pick_device,
    positive_float,
    processor_name,
    read_checkpoint,
    remaining_batches,
    restore_checkpoint,
    save_atomically,
    save_checkpoint,
    use_precision,
)
from tone import learn_tones, tone_report, with_checks
from torch import nn
from torch.utils.data import DataLoader
from tqdm import tqdm

FOLDER = Path(__file__).resolve().parent
TUNED_FILE = FOLDER.parent / "01_main-chapter-code" / "gemma-model" / WEIGHTS_NAME
DPO_WEIGHTS, CHOSEN_WEIGHTS, LOG = "gemma-3-270m-dpo.pth", "gemma-3-270m-chosen.pth", "log.json"
CHECKPOINT, REFERENCE = "checkpoint.pth", "reference-logprobs.pth"
DECISIVE = ("pairs", "num_pairs", "sft_epochs", "num_epochs", "batch_size", "learning_rate", "beta", "reduction", "sft_weight", "seed")


# ---- which pairs ----


def begins_with_the_other(pair: dict) -> bool:
    """True if one answer of a pair is the other with something added behind, final marks and capitals aside.

    What both say cancels in the margin, so such a pair speaks of the addition alone, and the answer itself is left in peace.
    """
    shorter, longer = sorted((pair[side].casefold() for side in SIDES), key=len)
    return longer.startswith(shorter.rstrip(".!?"))


PAIRS = {
    "all": lambda pair: True,
    "shared": begins_with_the_other,
    "polite": lambda pair: begins_with_the_other(pair) and pair["rejected"] == pair["output"],
}


# ---- what the frozen copy says, once ----


class ReferencedPairs(PreferenceDataset):
    """Pairs, each item with its `reference`: the frozen model's log-probability of the chosen and of the rejected answer."""

    def __init__(self, data: list[dict], tokenizer, reference_sums: torch.Tensor, reduction: str):
        super().__init__(data, tokenizer)
        for item, sums in zip(self.encoded_texts, reference_sums.tolist(), strict=True):
            counts = [len(item[side]) - len(item["prompt"]) if reduction == "mean" else 1 for side in SIDES]
            item["reference"] = [total / count for total, count in zip(sums, counts)]


@torch.no_grad()
def reference_logprobs(model: nn.Module, dataset: PreferenceDataset, pad_token_id: int, device, batch_size: int = 8) -> torch.Tensor:
    """Sums of log-probabilities (num_pairs, 2) of all chosen and rejected answers; texts of like length share a batch."""
    texts = dataset.encoded_texts
    order = sorted(range(len(texts)), key=lambda i: max(len(texts[i][side]) for side in SIDES))
    sums = torch.zeros(len(texts), 2)  # (num_pairs, 2)
    for start in tqdm(range(0, len(order), batch_size), desc="reference", unit="batches", mininterval=1):
        positions = order[start : start + batch_size]
        batch = custom_collate_fn([texts[i] for i in positions], pad_token_id, device=device)
        for column, side in enumerate(SIDES):
            sums[positions, column] = answer_logprobs(model, batch[side], batch[f"{side}_mask"], "sum").cpu()
    return sums


def stored_reference(path: Path, model, dataset: PreferenceDataset, tokenizer, device, run: dict) -> torch.Tensor:
    """Return the sums of `path` if they belong to this run (weights, texts, precision), else compute and store them."""
    texts = hashlib.sha256(json.dumps(dataset.encoded_texts, default=str).encode()).hexdigest()
    belongs = {**run, "texts": texts}
    if path.is_file():
        stored = torch.load(path, weights_only=True)
        if stored["belongs"] == belongs:
            return stored["sums"]
    sums = reference_logprobs(model, dataset, tokenizer.eos_token_id, device)
    save_atomically({"sums": sums, "belongs": belongs}, path)
    return sums


def collate_with_reference(batch: list[dict], pad_token_id: int, device) -> dict:
    """As custom_collate_fn, with `reference` (b, 2)."""
    reference = torch.tensor([item["reference"] for item in batch], device=device)  # (b, 2)
    return {**custom_collate_fn(batch, pad_token_id, device=device), "reference": reference}


# ---- first the chosen answers alone ----


def learn_chosen(model, tokenizer, train_pairs: list[dict], val_pairs: list[dict], settings: dict, path: Path) -> dict:
    """Tune a model on the chosen answers, as chapter 7 does on outputs, and save its blocks in `path`; returns the figures of the run.

    The model of chapter 7 has never said anything courteous. Next to its plain answers, a courteous one has a probability of about
    e to the power of -60, and no usual beta bridges that; the paper, too, begins with the likelihood of what is preferred.
    """
    device, size = pick_device(settings["device"]), settings["batch_size"]
    learning_part = prepare_for_tuning(model.to(device))
    precision = use_precision(model, settings["precision"], device)
    entries = [[{**pair, "output": pair["chosen"]} for pair in pairs] for pairs in (train_pairs, val_pairs)]
    loaders = gemma_loader(entries[0], tokenizer, size, device, shuffle=True), gemma_loader(entries[1], tokenizer, size, device)
    optimizer = torch.optim.AdamW(learning_part.parameters(), lr=settings["sft_rate"], weight_decay=0.1, fused=fused_adamw_works(device))
    state, total = TrainingState(), settings["sft_epochs"] * len(loaders[0])
    started = time.perf_counter()
    with tqdm(total=total, desc="chosen answers", unit="updates", mininterval=1) as bar:
        train(model, optimizer, loaders, settings["sft_epochs"], state, total, lambda state: bar.update() and False)
    vars(model).pop("forward", None)  # answers are written in float32
    save_atomically({"blocks": learning_part.state_dict()}, path)
    return {
        "settings": {key: settings[key] for key in ("pairs", "num_pairs", "sft_epochs", "sft_rate", "batch_size", "seed")},
        "updates": total, "precision": precision, "seconds": round(time.perf_counter() - started, 1),
        "train_losses": [round(loss, 4) for loss in state.train_losses], "val_losses": [round(loss, 4) for loss in state.val_losses],
    }  # fmt: skip


# ---- loss and training ----


def preference_loss(model: nn.Module, batch: dict, beta: float, reduction: str, sft_weight: float) -> tuple:
    """Return (loss, chosen reward, rejected reward, chosen log-probability) of a batch, both sides in one pass of the model.

    With sft_weight, the chosen answers' mean loss per token is added (RPO, arXiv 2404.19733), so that they do not become unlikely.
    """
    ids = torch.cat([batch[side] for side in SIDES])  # (num_texts, num_tokens)
    mask = torch.cat([batch[f"{side}_mask"] for side in SIDES])  # (num_texts, num_tokens)
    chosen, rejected = answer_logprobs(model, ids, mask, reduction).chunk(2)  # (b) each
    loss, chosen_reward, rejected_reward = compute_dpo_loss(chosen, rejected, *batch["reference"].unbind(dim=1), beta)
    if sft_weight:
        lengths = batch["chosen_mask"].sum(dim=1) if reduction == "sum" else 1
        loss = loss - sft_weight * (chosen / lengths).mean()
    return loss, chosen_reward, rejected_reward, chosen.detach().mean()


@torch.no_grad()
def validate(model, val_loader: DataLoader, entries: list[dict], tokenizer, settings: dict, table: dict) -> dict:
    """Loss, rewards and chosen log-probability on validation pairs, and what tone_report counts of the answers to `entries`."""
    model.eval()
    names, totals, count = ("loss", "chosen_reward", "rejected_reward", "chosen_logprob"), [0.0] * 4, 0
    for batch in val_loader:
        pairs = len(batch["chosen"])
        values = preference_loss(model, batch, settings["beta"], settings["reduction"], 0.0)
        totals, count = [total + value.item() * pairs for total, value in zip(totals, values)], count + pairs
    with in_float32(model):
        answers, ended = answer_entries_gemma(model, entries, tokenizer, settings["max_new_tokens"])
    model.train()
    figures = {name: round(total / count, 4) for name, total in zip(names, totals)}
    return {**figures, "report": tone_report(entries, answers, ended, table), "answers": answers[:4]}


@contextlib.contextmanager
def in_float32(model: nn.Module):
    """Within this, the model computes without bfloat16: writing one token at a time gains nothing from it."""
    rounded = vars(model).pop("forward", None)
    try:
        yield
    finally:
        if rounded is not None:
            model.forward = rounded


def train_on_pairs(model, optimizer, train_loader: DataLoader, num_epochs: int, state: TrainingState, settings: dict, after_step) -> None:
    """Train until num_epochs are done; state.train_losses gets the four figures of each update."""
    num_updates = num_epochs * len(train_loader)
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    model.train()
    while state.epoch < num_epochs:
        for batch in remaining_batches(train_loader, state):
            for group in optimizer.param_groups:
                group["lr"] = settings["learning_rate"] * rate_factor(state.step + 1, num_updates)
            values = preference_loss(model, batch, settings["beta"], settings["reduction"], settings["sft_weight"])
            values[0].backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            optimizer.zero_grad()
            state.batch += 1
            state.step += 1
            state.tokens_seen += batch["chosen"].numel() + batch["rejected"].numel()
            state.train_losses.append([round(value.item(), 4) for value in values])
            after_step(state)
        state.epoch += 1
        state.batch = 0
    model.eval()


def create_referenced_loaders(model, tokenizer, train_pairs: list[dict], val_pairs: list[dict], settings: dict, run: dict) -> tuple:
    """Loaders of pairs with their reference for training, shuffled and in whole batches, and for validation."""
    device, pairs = next(model.parameters()).device, train_pairs + val_pairs
    where = Path(settings["reference"] or Path(settings["output_dir"]) / REFERENCE)
    sums = stored_reference(where, model, PreferenceDataset(pairs, tokenizer), tokenizer, device, run)
    items = ReferencedPairs(pairs, tokenizer, sums, settings["reduction"]).encoded_texts
    collate = partial(collate_with_reference, pad_token_id=tokenizer.eos_token_id, device=device)
    size, whole = settings["batch_size"], len(train_pairs) >= settings["batch_size"]
    train_loader = DataLoader(items[: len(train_pairs)], size, shuffle=True, drop_last=whole, collate_fn=collate)
    return train_loader, DataLoader(items[len(train_pairs) :], size, collate_fn=collate)


def tune(model, tokenizer, train_pairs: list[dict], val_pairs: list[dict], settings: dict, table: dict) -> dict:
    """Tune a model with pairs as the settings say, with checkpoints in output_dir; returns the figures of the run."""
    folder, device = Path(settings["output_dir"]), pick_device(settings["device"])
    learning_part = prepare_for_tuning(model.to(device))
    parameters = [parameter for parameter in learning_part.parameters() if parameter.requires_grad]
    precision = use_precision(model, settings["precision"], device)
    run = {"weights": file_digest(settings["start"] if settings["sft_epochs"] else settings["weights"]), "precision": precision}
    train_loader, val_loader = create_referenced_loaders(model.eval(), tokenizer, train_pairs, val_pairs, settings, run)
    optimizer = torch.optim.AdamW(parameters, lr=settings["learning_rate"], weight_decay=0.01, fused=fused_adamw_works(device))
    decisive, state = {key: settings[key] for key in DECISIVE}, TrainingState()
    if settings["resume"]:
        state = restore_checkpoint(read_checkpoint(folder / CHECKPOINT, decisive), learning_part, optimizer)
    total = settings["num_epochs"] * len(train_loader)
    bar = tqdm(total=total, initial=state.step + 1, unit="updates", mininterval=1)

    def after_step(state: TrainingState) -> None:
        done = state.step + 1
        bar.update(done - bar.n)
        if done % settings["eval_freq"] == 0 or done in (0, total):
            with torch.random.fork_rng():
                found = validate(model, val_loader, val_pairs, tokenizer, settings, table)
            state.val_losses.append({"update": done, **found})
            tqdm.write(validation_line(state.val_losses[-1]))
        if done % settings["checkpoint_freq"] == 0 and 0 < done < total:
            save_checkpoint(folder / CHECKPOINT, learning_part, optimizer, state, decisive)

    started, tokens_before = time.perf_counter(), state.tokens_seen
    with bar:
        if state.step < 0:
            after_step(state)  # a measurement before the first update
        train_on_pairs(model, optimizer, train_loader, settings["num_epochs"], state, settings, after_step)
    seconds = time.perf_counter() - started
    vars(model).pop("forward", None)  # from here on in float32
    save_atomically({"blocks": learning_part.state_dict(), "settings": decisive}, folder / DPO_WEIGHTS)
    (folder / CHECKPOINT).unlink(missing_ok=True)
    return {
        "settings": decisive, "precision": precision, "processor": processor_name(), "threads": torch.get_num_threads(),
        "torch": torch.__version__, "learning_parameters": sum(p.numel() for p in parameters), "updates": state.step + 1,
        "seconds": round(seconds, 1), "tokens_per_s": round((state.tokens_seen - tokens_before) / seconds, 1),
        "peak_memory_gb": round(peak_memory_gb(device), 2), "eval_freq": settings["eval_freq"],
        "training": state.train_losses, "validation": state.val_losses,
    }  # fmt: skip


def validation_line(found: dict) -> str:
    """One line of figures for the terminal."""
    report = found["report"]
    return (
        f"update {found['update']:3d}: val loss {found['loss']:.3f}, margin {found['chosen_reward'] - found['rejected_reward']:.2f}, "
        f"chosen reward {found['chosen_reward']:.2f}; polite {report['polite']:.0%}, curt {report['curt']:.0%}, "
        f"right {report['right'][0]} of {report['right'][1]}, {report['words']:.1f} words, ended {report['ended']:.0%}; "
        f"first answer: {found['answers'][0]!r}"
    )


# ---- files and command line ----


def file_digest(path: str | Path) -> str:
    """sha256 of a file's contents, read in pieces."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def stored_runs(path: Path) -> list[dict]:
    """The runs of a log that an interrupted program has begun; none if there is no log."""
    return read_gemma_dpo_log(path)["runs"] if path.is_file() else []


def main(settings: dict) -> dict:
    """Answer, tune, answer again, write weights and log.json to output_dir; returns the log.

    Raises ValueError or OSError, in one line, for input it cannot use.
    """
    folder = Path(settings["output_dir"])
    if not settings["resume"] and folder.exists() and any(folder.iterdir()) and not settings["overwrite"]:
        raise ValueError(f"{folder} exists: add --resume to go on, --overwrite to replace it, or name another folder")
    model, tokenizer = load_tuned_gemma(settings["weights"])
    folder.mkdir(parents=True, exist_ok=True)
    questions = asked_questions()
    train_data, _, val_data = split_data(with_checks(load_pairs()))
    log = {**ABOUT, "questions": fingerprint(questions)}
    if settings["resume"] and (folder / LOG).is_file():
        log["before"] = read_gemma_dpo_log(folder / LOG)["before"]
    elif settings["before"]:
        log["before"] = read_gemma_dpo_log(settings["before"])["before"]
    else:
        log["before"] = answers_of(model, tokenizer, questions, settings)
    wanted = [pair for pair in train_data if PAIRS[settings["pairs"]](pair)][: settings["num_pairs"]]
    (train_pairs, _), (val_pairs, _) = drop_identical(wanted), drop_identical(val_data[: settings["eval_pairs"]])
    log["runs"] = []
    settings["start"] = settings["start"] or str(folder / CHOSEN_WEIGHTS)
    if settings["sft_epochs"] and not Path(settings["start"]).is_file():
        torch.manual_seed(settings["seed"])
        run = learn_chosen(model, tokenizer, train_pairs, val_pairs, settings, Path(settings["start"]))
        log["runs"].append({"name": "chosen answers", "run": run, "after": answers_of(model.eval(), tokenizer, questions, settings)})
        write_log(log, folder / LOG)
    elif settings["sft_epochs"]:
        model.blocks.load_state_dict(torch.load(settings["start"], weights_only=True)["blocks"])
        log["runs"] = [run for run in stored_runs(folder / LOG) if run["name"] == "chosen answers"]
    torch.manual_seed(settings["seed"])
    run = tune(model, tokenizer, train_pairs, val_pairs, settings, learn_tones(train_data))
    answered = answers_of(model.eval(), tokenizer, questions, settings)
    log["runs"].append({"name": settings["name"] or f"beta {settings['beta']:g}", "run": run, "after": answered})
    write_log(log, folder / LOG)
    print_reports(log)
    return log


def command_line(argv: list[str] | None = None) -> int:
    """Parse the options, call `main`; returns 0, or exits with code 2 and one line on bad input."""
    parser = OneLineParser("Tune Gemma 3 270M with pairs of preferred and less preferred answers (DPO).")
    parser.add_argument("--weights", default=str(TUNED_FILE), help="blocks of the tuned Gemma, from gemma_instruction_finetuning.py")
    parser.add_argument("--name", help="name of the run in the log; None: beta and its value")
    parser.add_argument(
        "--pairs", choices=PAIRS, default="polite", help="shared: one answer begins with the other; polite: of these, the courteous"
    )
    parser.add_argument("--num_pairs", type=int_at_least(1), help="train on the first N of these pairs only; None: all")
    parser.add_argument("--sft_epochs", type=int_at_least(0), default=0, help="passes over the chosen answers alone before DPO; 0: none")
    parser.add_argument("--sft_rate", type=positive_float, default=5e-5, help="highest rate of AdamW in these passes")
    parser.add_argument("--start", help="file of the blocks after these passes, shared by runs; None: in output_dir")
    parser.add_argument("--num_epochs", type=int_at_least(1), default=2, help="passes over the pairs")
    parser.add_argument("--batch_size", type=int_at_least(1), default=8, help="pairs per update")
    parser.add_argument("--learning_rate", type=positive_float, default=5e-5, help="highest rate of AdamW")
    parser.add_argument("--beta", type=positive_float, default=0.1, help="how firmly the frozen copy holds the policy")
    parser.add_argument("--reduction", choices=("mean", "sum"), default="sum", help="log-probability of an answer: sum or mean of its ids")
    parser.add_argument("--sft_weight", type=float_from_zero, default=0.25, help="weight of the chosen answers' own loss; 0: plain DPO")
    parser.add_argument("--precision", choices=("fp32", "bf16", "auto"), default="auto", help="auto: bf16 where it is fast")
    parser.add_argument("--max_new_tokens", type=int_at_least(1), default=60, help="longest answer")
    parser.add_argument("--eval_freq", type=int_at_least(1), default=5, help="updates from one measurement to the next")
    parser.add_argument("--eval_pairs", type=int_at_least(1), default=24, help="validation entries to measure with")
    parser.add_argument("--checkpoint_freq", type=int_at_least(1), default=30, help="updates from one checkpoint to the next")
    parser.add_argument("--reference", help="file of the frozen copy's log-probabilities, shared by runs; None: in output_dir")
    parser.add_argument("--before", help="log.json of another run: take the answers before the tuning from it")
    parser.add_argument("--output_dir", default=str(FOLDER / "gemma-dpo-model"), help="folder for all results")
    parser.add_argument("--overwrite", action="store_true", help="replace the results in output_dir")
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint in output_dir")
    parser.add_argument("--seed", type=int, default=123, help="random seed: the order of the pairs")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps")
    try:
        main(vars(parser.parse_args(argv)))
    except (ValueError, OSError) as error:
        parser.error(" ".join(str(error).split()))
    except KeyboardInterrupt:
        parser.exit(130, "stopped; the same command with --resume goes on from the last checkpoint\n")
    return 0


if __name__ == "__main__":
    sys.exit(command_line())
