"""The chapter's fine-tuning with a real base model: Gemma 3 270M learns to answer the same 935 instructions.

It uses the chapter's prompts, collate functions and loss, whose output layer sees the answers' positions alone: with Gemma's
262,144 tokens that matters most. New are its tokenizer and end token, checkpoints, and a learning rate that rises and falls.
Embedding and output layer, which are one matrix, stay as they are; the 18 blocks learn, all of their weights or adapters.

Run it (after `make gemma`):
    python gemma_instruction_finetuning.py                       # about ten minutes on two cores, with checkpoints
    python gemma_instruction_finetuning.py --resume              # go on where it was stopped
    python gemma_instruction_finetuning.py --lora_rank 16 --learning_rate 1e-3 --output_dir gemma-lora
    python gemma_instruction_finetuning.py --data my.json        # instructions of your own
"""

import json
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from gemma3 import Gemma3Model, GemmaTokenizer, load_gemma3
from gpt_instruction_finetuning import calc_answer_loss, calc_answer_loss_loader
from instruction_batches import InstructionDatasetWithMasking, custom_collate_with_masking_fn, encode_prompt, split_data
from instruction_data_checks import DATA_FILE, load_data, load_verifiable_test
from llama import generate_batch
from lora import merge_lora, replace_linear_with_lora
from previous_chapters import (
    OneLineParser,
    TrainingState,
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
from torch import nn
from torch.utils.data import DataLoader
from tqdm import tqdm

MODEL_FOLDER = Path(__file__).resolve().parent / "gemma-model"
WEIGHTS_NAME, CHECKPOINT_NAME, LOG_NAME = "gemma-3-270m-sft.pth", "checkpoint.pth", "log.json"
DECISIVE = ("data", "num_epochs", "batch_size", "learning_rate", "lora_rank", "seed")  # a checkpoint under others is another run


# ---- model and loss ----


def prepare_for_tuning(model: Gemma3Model, lora_rank: int = 0) -> nn.Module:
    """Freeze all but the blocks, or all but new adapters in them (alpha = rank); returns the part that learns. ch07-gemma3.ipynb."""
    for parameter in model.parameters():
        parameter.requires_grad = False
        parameter.data = parameter.data.contiguous()  # they were loaded column by column, as writing likes them
    if lora_rank:
        replace_linear_with_lora(model.blocks, lora_rank, alpha=lora_rank)
        for name, parameter in model.blocks.named_parameters():
            parameter.requires_grad = ".lora." in name
    else:
        model.blocks.requires_grad_(True)
    return model.blocks


def gemma_loader(data: list[dict], tokenizer, batch_size: int, device, shuffle: bool = False) -> DataLoader:
    """Batches of (inputs, targets) that count the answers alone; padding and end are Gemma's <eos>. ch07-gemma3.ipynb."""
    collate = partial(custom_collate_with_masking_fn, pad_token_id=tokenizer.eos_token_id, device=device)
    dataset = InstructionDatasetWithMasking(data, tokenizer)
    return DataLoader(dataset, batch_size, shuffle=shuffle, drop_last=shuffle and len(data) >= batch_size, collate_fn=collate)


def answer_entries_gemma(model, entries: list[dict], tokenizer, max_new_tokens: int = 100, batch_size: int = 32) -> tuple[list, list]:
    """Return (the greedy answer to each entry, whether it ended by itself), prompts of like length together. ch07-gemma3.ipynb."""
    prompts = [encode_prompt(entry, tokenizer) for entry in entries]
    order = sorted(range(len(prompts)), key=lambda position: len(prompts[position]))
    answers, ended = [""] * len(prompts), [False] * len(prompts)
    for start in tqdm(range(0, len(order), batch_size), desc="answers", unit="batches", leave=False, disable=None):
        positions = order[start : start + batch_size]
        rows = generate_batch(model, [prompts[position] for position in positions], max_new_tokens, tokenizer.eos_token_id)
        for position, row in zip(positions, rows):
            answers[position], ended[position] = tokenizer.decode(row).strip(), len(row) < max_new_tokens
    return answers, ended


# ---- training ----


def rate_factor(update: int, num_updates: int, warmup: int = 10) -> float:
    """What the learning rate is multiplied with: up to 1 within the first updates, then straight down to 0. Appendix D says why."""
    return min(1.0, (update + 1) / warmup) * (1 - update / num_updates)


def train(
    model, optimizer, loaders: tuple, num_epochs: int, state: TrainingState, eval_freq: int, after_step: Callable | None = None
) -> None:
    """Train until num_epochs are done. `state` collects the loss of each update, and the validation loss after some of them.

    loaders: (training, validation), the latter measured after update 1 and every eval_freq ones. after_step(state) is called
    after each update; returning True stops the run. ch07-gemma3.ipynb.
    """
    train_loader, val_loader = loaders
    num_updates = num_epochs * len(train_loader)
    peak_rates = [group["lr"] for group in optimizer.param_groups]
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    model.train()
    while state.epoch < num_epochs:
        for inputs, targets in remaining_batches(train_loader, state):
            for group, peak_rate in zip(optimizer.param_groups, peak_rates):
                group["lr"] = peak_rate * rate_factor(state.step + 1, num_updates)
            loss = calc_answer_loss(model, inputs, targets)
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            optimizer.zero_grad()
            state.batch += 1
            state.step += 1
            state.tokens_seen += inputs.numel()
            state.train_losses.append(loss.item())
            if state.step == 0 or (state.step + 1) % eval_freq == 0:
                state.val_losses.append(calc_answer_loss_loader(model, val_loader))
                state.track_tokens_seen.append(state.tokens_seen)
            if after_step is not None and after_step(state):
                return
        state.epoch += 1
        state.batch = 0
    model.eval()


def tune(model, tokenizer, train_data: list[dict], val_data: list[dict], settings: dict) -> dict:
    """Tune a model as the settings say, with checkpoints in output_dir, and save its blocks there; returns the figures of the run."""
    folder, device = Path(settings["output_dir"]), pick_device(settings["device"])
    learning_part = prepare_for_tuning(model.to(device), settings["lora_rank"])
    parameters = [parameter for parameter in learning_part.parameters() if parameter.requires_grad]
    precision = use_precision(model, settings["precision"], device)
    loaders = (
        gemma_loader(train_data, tokenizer, settings["batch_size"], device, shuffle=True),
        gemma_loader(val_data, tokenizer, settings["batch_size"], device),
    )
    optimizer = torch.optim.AdamW(parameters, lr=settings["learning_rate"], weight_decay=0.1, fused=fused_adamw_works(device))
    decisive = {key: settings[key] for key in DECISIVE}
    checkpoint, state = folder / CHECKPOINT_NAME, TrainingState()
    if settings["resume"]:
        state = restore_checkpoint(read_checkpoint(checkpoint, decisive), learning_part, optimizer)
    total = settings["num_epochs"] * len(loaders[0])
    bar = tqdm(total=total, initial=state.step + 1, unit="updates", mininterval=1)

    def after_step(state: TrainingState) -> None:
        bar.update()
        if state.val_losses:
            bar.set_postfix(train=f"{state.train_losses[-1]:.2f}", val=f"{state.val_losses[-1]:.2f}")
        if (state.step + 1) % settings["checkpoint_freq"] == 0 and state.step + 1 < total:
            save_checkpoint(checkpoint, learning_part, optimizer, state, decisive)

    started, tokens_before = time.perf_counter(), state.tokens_seen
    with bar:
        train(model, optimizer, loaders, settings["num_epochs"], state, settings["eval_freq"], after_step)
    seconds = time.perf_counter() - started
    if settings["lora_rank"]:
        merge_lora(learning_part)
    save_atomically({"blocks": learning_part.state_dict(), "settings": decisive}, folder / WEIGHTS_NAME)
    checkpoint.unlink(missing_ok=True)
    return {
        "settings": {**decisive, "data": Path(settings["data"]).name}, "precision": precision, "processor": processor_name(),
        "threads": torch.get_num_threads(), "torch": torch.__version__, "learning_parameters": sum(p.numel() for p in parameters),
        "updates": state.step + 1, "seconds": round(seconds, 1), "tokens_per_s": round((state.tokens_seen - tokens_before) / seconds, 1),
        "peak_memory_gb": round(peak_memory_gb(device), 2), "eval_freq": settings["eval_freq"],
        "train_losses": [round(loss, 4) for loss in state.train_losses], "val_losses": [round(loss, 4) for loss in state.val_losses],
    }  # fmt: skip


def load_tuned_gemma(path: str | Path = MODEL_FOLDER / WEIGHTS_NAME) -> tuple[Gemma3Model, GemmaTokenizer]:
    """Return (tuned Gemma in eval mode, its tokenizer) from the blocks that this program has saved. ch07-gemma3.ipynb.

    ValueError in one line for a file that is missing or something else; FileNotFoundError where Gemma is not installed.
    """
    if not Path(path).is_file():
        raise ValueError(f"{path} does not exist; this writes it: python gemma_instruction_finetuning.py")
    model, tokenizer = load_gemma3(torch.float32)
    try:
        model.blocks.load_state_dict(torch.load(path, map_location="cpu", weights_only=True)["blocks"])
    except Exception as error:  # a file can be damaged in many ways
        raise ValueError(f"{path} holds no tuned blocks of Gemma 3 270M: {str(error).splitlines()[0]}") from None
    return model.eval(), tokenizer


# ---- command line ----


def answers_of(model, tokenizer, entries: list[dict], settings: dict) -> dict:
    """Answers to a list of entries, whether they ended, and the seconds that took."""
    started = time.perf_counter()
    answers, ended = answer_entries_gemma(model, entries, tokenizer, settings["max_new_tokens"])
    return {"answers": answers, "ended": ended, "seconds": round(time.perf_counter() - started, 1)}


def write_log(log: dict, folder: Path) -> None:
    """Write what is known so far to log.json."""
    (folder / LOG_NAME).write_text(json.dumps(log, indent=1, ensure_ascii=False) + "\n", encoding="utf-8", newline="\n")


def main(settings: dict) -> dict:
    """Tune, answer the test entries and the verifiable ones (with --before also untuned), write log.json; returns the log.

    Raises ValueError or OSError, in one line, for input it cannot use.
    """
    folder = Path(settings["output_dir"])
    if not settings["resume"] and folder.exists() and any(folder.iterdir()) and not settings["overwrite"]:
        raise ValueError(f"{folder} exists: add --resume to go on, --overwrite to replace it, or name another folder")
    train_data, test_data, val_data = split_data(load_data(settings["data"]))
    asked = test_data + (load_verifiable_test() if Path(settings["data"]) == DATA_FILE else [])
    model, tokenizer = load_gemma3(torch.float32)
    folder.mkdir(parents=True, exist_ok=True)
    log = {}
    if settings["before"]:
        log["before"] = answers_of(model, tokenizer, asked, settings)
    if settings["num_epochs"]:
        torch.manual_seed(settings["seed"])
        log["run"] = tune(model, tokenizer, train_data, val_data, settings)
        write_log(log, folder)  # at once: answering takes minutes, too
        log["after"] = answers_of(model.eval(), tokenizer, asked, settings)
    write_log(log, folder)
    for kind in [kind for kind in ("before", "after") if kind in log]:
        print(f"{kind}: {sum(log[kind]['ended'])} of {len(asked)} answers ended by themselves")
        for entry, answer in zip(asked[:3], log[kind]["answers"]):
            print(f"    {entry['instruction']} {entry['input']}\n    -> {answer}")
    return log


def command_line(argv: list[str] | None = None) -> int:
    """Parse the options, call `main`; returns 0, or exits with code 2 and one line on bad input."""
    parser = OneLineParser("Fine-tune Gemma 3 270M to follow instructions.")
    parser.add_argument("--data", default=str(DATA_FILE), help="JSON list of entries with instruction, input and output")
    parser.add_argument("--num_epochs", type=int_at_least(0), default=2, help="passes over the training entries; 0: only answer")
    parser.add_argument("--batch_size", type=int_at_least(1), default=8, help="entries per update")
    parser.add_argument("--learning_rate", type=positive_float, default=1e-4, help="highest rate of AdamW")
    parser.add_argument("--lora_rank", type=int_at_least(0), default=0, help="train adapters of this rank; 0: all weights of the blocks")
    parser.add_argument("--precision", choices=("fp32", "bf16", "auto"), default="fp32", help="auto: bf16 where it is fast")
    parser.add_argument("--before", action="store_true", help="also answer with the untuned model, which takes minutes: it never ends")
    parser.add_argument("--max_new_tokens", type=int_at_least(1), default=100, help="longest answer")
    parser.add_argument("--eval_freq", type=int_at_least(1), default=29, help="updates from one measurement to the next")
    parser.add_argument("--checkpoint_freq", type=int_at_least(1), default=30, help="updates from one checkpoint to the next")
    parser.add_argument("--output_dir", default=str(MODEL_FOLDER), help="folder for all results")
    parser.add_argument("--overwrite", action="store_true", help="replace the results in output_dir")
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint in output_dir")
    parser.add_argument("--seed", type=int, default=123, help="random seed: the order of the entries, and the adapters")
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
