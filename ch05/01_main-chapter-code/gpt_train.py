"""Chapter 5 in one file, first half: pretrain a GPT on a text file.

It adds to chapter 4's model the loss, the training loop, its measurements and checkpoints from which a killed run goes on
bit for bit.

Run it:  python gpt_train.py --output_dir my-gpt        (one to two minutes on two cores; then see gpt_generate.py)
"""

import contextlib
import hashlib
import math
import re
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn as nn
from checkpoints import TrainingState, read_checkpoint, remaining_batches, restore_checkpoint, save_atomically, save_checkpoint
from gpt_generate import text_to_token_ids, token_ids_to_text
from matplotlib.figure import Figure
from previous_chapters import (
    GPT_CONFIG_124M,
    STORY_FILE,
    GPTModel,
    OneLineParser,
    create_dataloader_v1,
    dropout_rate,
    generate_text_simple,
    gpt2_tokenizer,
    int_at_least,
    pick_device,
    read_text,
)
from torch.utils.data import DataLoader
from tqdm import tqdm
from training_tools import PrintAboveBar, adamw, float_from_zero, fuse_gelu, peak_memory_gb, positive_float, prepare_folder, use_precision

START_CONTEXT = "Mrs. Tamsett looked at the clock"

# Small enough to learn the story in two minutes on a laptop. Without dropout, because here it is to learn by heart.
STORY_CONFIG = {**GPT_CONFIG_124M, "context_length": 128, "emb_dim": 256, "n_heads": 4, "n_layers": 4, "drop_rate": 0.0}
RUNS = {  # model size -> (configuration, settings that go with it)
    "story": (STORY_CONFIG, {"epochs": 12, "batch_size": 4, "lr": 2e-3, "precision": "fp32"}),
    "124M": ({**GPT_CONFIG_124M, "context_length": 256}, {"epochs": 10, "batch_size": 2, "lr": 5e-4, "precision": "auto"}),
}


def calc_loss_batch(input_batch: torch.Tensor, target_batch: torch.Tensor, model: nn.Module, device: torch.device) -> torch.Tensor:
    """Return the mean cross-entropy of a batch, a scalar; both inputs are ids (b, num_tokens). Chapter 5, section 5.1.3."""
    logits = model(input_batch.to(device))  # (b, num_tokens, vocab_size)
    flat_logits = logits.flatten(0, 1).float()  # (b * num_tokens, vocab_size)  .float() matters only in bfloat16
    flat_targets = target_batch.to(device).flatten()  # (b * num_tokens)
    return nn.functional.cross_entropy(flat_logits, flat_targets)


def calc_loss_loader(data_loader: DataLoader, model: nn.Module, device: torch.device, num_batches: int | None = None) -> float:
    """Return the mean loss per token over the first num_batches batches (all if None); NaN if there are none. Section 5.1.3."""
    total_loss, total_tokens = 0.0, 0
    num_batches = len(data_loader) if num_batches is None else min(num_batches, len(data_loader))
    for _, (input_batch, target_batch) in zip(range(num_batches), data_loader, strict=False):
        loss = calc_loss_batch(input_batch, target_batch, model, device)
        total_loss += loss.item() * target_batch.numel()  # a smaller last batch counts less
        total_tokens += target_batch.numel()
    return total_loss / total_tokens if total_tokens else math.nan


def evaluate_model(
    model: nn.Module, train_loader: DataLoader, val_loader: DataLoader, device: torch.device, eval_iter: int
) -> tuple[float, float]:
    """Return (train_loss, val_loss) over eval_iter batches each; leaves the model in train mode.

    Dropout is off and the random generators are put back, so measuring never changes the training. Section 5.2.
    """
    model.eval()
    with torch.no_grad(), torch.random.fork_rng():
        train_loss = calc_loss_loader(train_loader, model, device, num_batches=eval_iter)
        val_loss = calc_loss_loader(val_loader, model, device, num_batches=eval_iter)
    model.train()
    return train_loss, val_loss


def generate_and_print_sample(model: nn.Module, tokenizer, device: torch.device, start_context: str) -> None:
    """Print 50 greedy tokens after start_context on one line; leaves the model in train mode. Section 5.2."""
    model.eval()
    context_size = model.pos_emb.weight.shape[0]
    idx = text_to_token_ids(start_context, tokenizer).to(device)  # (1, num_tokens)
    token_ids = generate_text_simple(model, idx, max_new_tokens=50, context_size=context_size)
    print(token_ids_to_text(token_ids, tokenizer).replace("\n", " "))
    model.train()


def train_model_simple(
    model: nn.Module,
    train_loader: DataLoader,
    val_loader: DataLoader,
    optimizer: torch.optim.Optimizer,
    device: torch.device,
    num_epochs: int,
    eval_freq: int,
    eval_iter: int,
    start_context: str,
    tokenizer,
    state: TrainingState | None = None,
    after_step: Callable | None = None,
) -> tuple[list, list, list]:
    """Train for num_epochs and return (train_losses, val_losses, track_tokens_seen), one entry per evaluation.

    Evaluates after the first update (step 0) and at every multiple of eval_freq; prints a sample after each epoch.
    `state` continues an earlier run; `after_step(state)` is called after each update and stops the run by returning True.
    Chapter 5, sections 5.2 and 5.8.
    """
    state = TrainingState() if state is None else state
    model.train()
    optimizer.zero_grad()  # begin with empty gradients
    while state.epoch < num_epochs:
        for input_batch, target_batch in remaining_batches(train_loader, state):
            loss = calc_loss_batch(input_batch, target_batch, model, device)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()  # they are used; free their memory before measuring
            state.batch += 1
            state.step += 1
            state.tokens_seen += input_batch.numel()

            if state.step % eval_freq == 0:
                train_loss, val_loss = evaluate_model(model, train_loader, val_loader, device, eval_iter)
                state.train_losses.append(train_loss)
                state.val_losses.append(val_loss)
                state.track_tokens_seen.append(state.tokens_seen)
                print(f"epoch {state.epoch + 1}, step {state.step:3d}: train loss {train_loss:.3f}, val loss {val_loss:.3f}")
            if after_step is not None and after_step(state):
                return state.train_losses, state.val_losses, state.track_tokens_seen

        generate_and_print_sample(model, tokenizer, device, start_context)
        state.epoch += 1
        state.batch = 0
    return state.train_losses, state.val_losses, state.track_tokens_seen


def plot_losses(epochs_seen: list, tokens_seen: list, train_losses: list, val_losses: list, path: str | Path = "loss-plot.pdf") -> Figure:
    """Plot both losses over epochs, with a second axis in tokens; saves the figure to `path` and returns it. Section 5.2."""
    fig = Figure(figsize=(6.5, 3.2), layout="constrained")
    ax = fig.subplots()
    ax.plot(epochs_seen, train_losses, color="#0072B2", label="training")
    ax.plot(epochs_seen, val_losses, color="#D55E00", linestyle="--", label="validation")
    ax.set(xlabel="epochs", ylabel="loss (nats per token)")
    ax.legend(frameon=False)
    tokens_per_epoch = tokens_seen[-1] / epochs_seen[-1]
    top = ax.secondary_xaxis("top", functions=(lambda e: e * tokens_per_epoch, lambda t: t / tokens_per_epoch))
    top.set_xlabel("tokens seen")
    fig.savefig(path)
    return fig


def create_split_loaders(text: str, gpt_config: dict, batch_size: int) -> tuple[DataLoader, DataLoader]:
    """Return loaders over the first 90 % of the characters (shuffled, whole batches only) and over the rest (in order).

    Windows do not overlap: stride = context_length. Raises ValueError when a split is too short. Section 5.1.3.
    """
    context_length = gpt_config["context_length"]
    split = int(0.9 * len(text))
    loaders = []
    for name, part in (("training", text[:split]), ("validation", text[split:])):
        training = name == "training"
        size = {"batch_size": batch_size, "max_length": context_length, "stride": context_length}
        try:
            loaders.append(create_dataloader_v1(part, **size, shuffle=training, drop_last=training))
        except ValueError as error:
            raise ValueError(f"the {name} split is too short: {error}") from None
    if not len(loaders[0]):
        raise ValueError(f"the training split has {len(loaders[0].dataset)} windows, fewer than batch_size {batch_size}")
    return loaders[0], loaders[1]


OPTIONAL_SETTINGS = {
    "data": STORY_FILE,
    "seed": 123, "device": "auto", "precision": "fp32",
    "eval_freq": 5, "eval_iter": 1, "start_context": START_CONTEXT,
    "output_dir": None,  # a folder for checkpoints and results; None keeps nothing
    "overwrite": False, "resume": False,
    "save_freq": 30,  # updates from one checkpoint to the next
    "max_steps": None, "max_minutes": None, "plot": True,
}


def main(gpt_config: dict, settings: dict) -> tuple[list, list, list, nn.Module]:
    """Pretrain a GPT on a text and return (train_losses, val_losses, tokens_seen, model).

    `settings` needs learning_rate, num_epochs, batch_size and weight_decay; OPTIONAL_SETTINGS lists the rest with defaults.
    Raises ValueError, before anything is written, for input it cannot use.
    """
    settings = {**OPTIONAL_SETTINGS, **settings}
    text = read_text(settings["data"])
    train_loader, val_loader = create_split_loaders(text, gpt_config, settings["batch_size"])
    torch.manual_seed(settings["seed"])
    model = GPTModel(gpt_config)
    fuse_gelu(model)

    fixed = {**gpt_config, **{key: settings[key] for key in ("batch_size", "seed", "precision")}}
    fixed["text_sha256"] = hashlib.sha256(text.encode()).hexdigest()
    folder = Path(settings["output_dir"]) if settings["output_dir"] else None
    checkpoint = read_checkpoint(folder / "checkpoint.pth", fixed) if settings["resume"] else None
    if folder and not settings["resume"] and not settings["overwrite"] and folder.exists() and any(folder.iterdir()):
        raise ValueError(f"{folder} exists: add --resume to go on, --overwrite to start again, or name another folder")

    device = pick_device(settings["device"])
    model.to(device)
    precision = use_precision(model, settings["precision"], device)
    optimizer = adamw(model, settings["learning_rate"], settings["weight_decay"], device)
    state = restore_checkpoint(checkpoint, model, optimizer) if checkpoint else TrainingState()
    size = sum(parameter.numel() for parameter in model.parameters())
    if folder:
        prepare_folder(folder, gpt_config, keep_results=checkpoint is not None)
        if not checkpoint:
            save_checkpoint(folder / "checkpoint.pth", model, optimizer, state, fixed)

    tokens_per_step = settings["batch_size"] * gpt_config["context_length"]
    last_step = min(settings["num_epochs"] * len(train_loader), settings["max_steps"] or math.inf)
    deadline = time.monotonic() + 60 * (settings["max_minutes"] or math.inf)

    def after_step(state: TrainingState) -> bool:
        bar.update(tokens_per_step)
        bar.set_postfix_str(f"peak memory {peak_memory_gb(device):.1f} GB", refresh=False)
        late = time.monotonic() > deadline
        done = late or state.step + 1 >= last_step
        if folder and state.step % settings["eval_freq"] == 0 and state.val_losses[-1] == min(state.val_losses):
            save_atomically(model.state_dict(), folder / "model_best.pth")
        if folder and (done or (state.step + 1) % settings["save_freq"] == 0):
            save_checkpoint(folder / "checkpoint.pth", model, optimizer, state, fixed)
        return late or state.step + 1 == settings["max_steps"]

    bar = tqdm(total=last_step * tokens_per_step, initial=state.tokens_seen, unit="tokens", unit_scale=True, mininterval=1)
    losses = (state.train_losses, state.val_losses, state.track_tokens_seen)
    if state.step + 1 < last_step:
        measuring = (settings["num_epochs"], settings["eval_freq"], settings["eval_iter"], settings["start_context"], gpt2_tokenizer())
        with bar, contextlib.redirect_stdout(PrintAboveBar(sys.stdout, folder and folder / "log.txt")):
            print(f"{size:,} parameters, {precision}, {torch.get_num_threads()} threads, learning rate {settings['learning_rate']}")
            losses = train_model_simple(model, train_loader, val_loader, optimizer, device, *measuring, state, after_step)
            print(f"{state.tokens_seen:,} tokens seen, {bar.format_dict['elapsed'] / 60:.1f} minutes")
    if folder:
        save_atomically(model.state_dict(), folder / "model.pth")
        if settings["plot"]:
            epochs = [tokens / tokens_per_step / len(train_loader) for tokens in losses[2]]
            plot_losses(epochs, losses[2], *losses[:2], path=folder / "loss-plot.pdf")
    return *losses, model


def command_line(argv: list[str] | None = None) -> int:
    """Parse the options, call `main`; returns 0, or exits with code 2 and one line on bad input."""
    parser = OneLineParser("Pretrain a GPT on a text file; with the defaults, a small one that learns the course's story.")
    parser.add_argument("--model_size", choices=RUNS, default="story", help="decides every option whose default is None")
    parser.add_argument("--data", default=str(STORY_FILE), help="UTF-8 text file")
    parser.add_argument("--epochs", type=int_at_least(1), help="passes over the text")
    parser.add_argument("--batch_size", type=int_at_least(1), help="windows per update")
    parser.add_argument("--lr", type=positive_float, help="learning rate of AdamW")
    parser.add_argument("--weight_decay", type=float_from_zero, default=0.1, help="weight decay of AdamW")
    parser.add_argument("--context_length", type=int_at_least(1), help="tokens per window")
    parser.add_argument("--emb_dim", type=int_at_least(1), help="width of the model")
    parser.add_argument("--n_heads", type=int_at_least(1), help="attention heads")
    parser.add_argument("--n_layers", type=int_at_least(1), help="transformer blocks")
    parser.add_argument("--drop_rate", type=dropout_rate, help="dropout")
    parser.add_argument("--eval_freq", type=int_at_least(1), default=5, help="updates from one measurement to the next")
    parser.add_argument("--eval_iter", type=int_at_least(1), default=1, help="batches per measurement")
    parser.add_argument("--start_context", default=START_CONTEXT, help="text that the samples continue")
    parser.add_argument("--output_dir", default=str(Path(__file__).resolve().parent / "my-gpt"), help="folder for all results")
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint in output_dir")
    parser.add_argument("--overwrite", action="store_true", help="replace the results in output_dir")
    parser.add_argument("--save_freq", type=int_at_least(1), default=30, help="updates from one checkpoint to the next")
    parser.add_argument("--max_steps", type=int_at_least(1), help="stop after this many updates")
    parser.add_argument("--max_minutes", type=positive_float, help="stop after this time; --resume goes on")
    parser.add_argument("--precision", choices=["auto", "fp32", "bf16"], help="auto: bf16 where its matrix products are faster")
    parser.add_argument("--no_plot", dest="plot", action="store_false", help="write no loss-plot.pdf")
    parser.add_argument("--seed", type=int, default=123, help="random seed")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps")
    settings = vars(parser.parse_args(argv))
    gpt_config, run = RUNS[settings.pop("model_size")]
    settings = {key: run.get(key) if value is None else value for key, value in settings.items()}
    settings["num_epochs"], settings["learning_rate"] = settings.pop("epochs"), settings.pop("lr")
    sizes = {key: settings.pop(key) for key in ("context_length", "emb_dim", "n_heads", "n_layers", "drop_rate")}
    gpt_config = {**gpt_config, **{key: size for key, size in sizes.items() if size is not None}}
    warnings.filterwarnings("ignore", "no batch")  # create_split_loaders makes it an error
    try:
        train_losses, val_losses, _, _ = main(gpt_config, settings)
    except (ValueError, OSError) as error:
        parser.error(" ".join(str(error).split()))
    except RuntimeError as error:
        if not re.search("PytorchStreamWriter|inline_container", str(error)):  # torch.save, when the disk is full
            raise
        parser.error(f"cannot write to {settings['output_dir']}; --resume goes on from the last checkpoint")
    except KeyboardInterrupt:
        parser.exit(130, f"stopped; the same command with --resume goes on from the checkpoint in {settings['output_dir']}\n")
    print(f"train loss {train_losses[-1]:.3f}, val loss {val_losses[-1]:.3f} when last measured; saved in {settings['output_dir']}")
    return 0


if __name__ == "__main__":
    sys.exit(command_line())
