"""Pretrain a GPT on token shards: on a CPU, on one GPU, or on several through torchrun.

    python prepare_dataset.py --tales --output_dir tales-data
    python pretraining_simple.py --data_dir tales-data --debug                     a check of the machinery, seconds
    python pretraining_simple.py --data_dir tales-data --size mini --batch_size 16
    torchrun --nproc_per_node=2 pretraining_simple.py --data_dir tales-data --size mini

It adds to gpt_train.py what a long run needs: data larger than memory, a learning-rate schedule, clipped gradients, several
processes, a log, checkpoints, and the export to Hugging Face's format.
"""

import argparse
import contextlib
import hashlib
import json
import sys
import time
from pathlib import Path

import torch
from corpus_files import convert_time, find_text_files, print_eta, read_document, time_text  # noqa: F401  offered from here
from export_gpt2 import export_gpt2
from fast_gpt import SIZES, FastGPT, count_parameters, learning_rate_at, make_optimizer
from measuring import Measurements, batch_loss, print_sample, validation_losses
from pretraining_run import (
    PretrainingState,
    Ranks,
    join_processes,
    latest_checkpoint,
    plot_run,
    restore_run,
    save_run,
    share_gradients,
    stop_on_interrupt,
    unwrap,
)
from previous_chapters import (
    OneLineParser,
    PrintAboveBar,
    create_dataloader_v1,
    float_from_zero,
    fused_adamw_works,
    gpt2_tokenizer,
    int_at_least,
    positive_float,
    read_checkpoint,
    save_atomically,
    use_precision,
)
from shards import create_shard_dataloaders, file_sha256, read_index, tokens_in, write_shards
from torch import nn
from torch.utils.data import DataLoader
from tqdm import tqdm

START_CONTEXT = "Once upon a time there was"
ALONE = Ranks()


def read_text_file(file_path: str | Path) -> str:
    """Return a text file, UTF-8 or Latin-1; ValueError with its name and the reason if it is empty, binary or unreadable."""
    try:
        return read_document(Path(file_path))
    except ValueError as problem:
        raise ValueError(f"{file_path}: {problem}") from None


def create_dataloaders(text_data, train_ratio, batch_size, max_length, stride, num_workers=0) -> tuple[DataLoader, DataLoader]:
    """Return (training, validation) loaders over one text in memory, cut at train_ratio of its characters.

    For small texts; shards serve the rest. ValueError if a part gives no batch.
    """
    split, loaders = int(train_ratio * len(text_data)), []
    for name, part, training in (("training", text_data[:split], True), ("validation", text_data[split:], False)):
        try:
            order = {"shuffle": training, "drop_last": training, "num_workers": num_workers}
            loader = create_dataloader_v1(part, batch_size, max_length, stride, **order)
        except ValueError as error:
            raise ValueError(f"the {name} part is too short: {error}") from None
        if not len(loader):
            raise ValueError(f"the {name} part has {len(loader.dataset)} windows, fewer than batch_size {batch_size}")
        loaders.append(loader)
    return loaders[0], loaders[1]


def train_step(model, optimizer, inputs, targets, device, lr: float, clip_norm: float) -> float:
    """One update of the weights at this learning rate, gradients clipped to a norm; returns the loss."""
    for group in optimizer.param_groups:
        group["lr"] = lr
    loss = batch_loss(model, inputs, targets, device)
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), clip_norm)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return loss.item()


def train_model_simple(
    model, optimizer, device, n_epochs, eval_freq, eval_iter, print_sample_iter, start_context, output_dir, save_ckpt_freq,
    tokenizer, batch_size=1024, train_ratio=0.90, *, shard_paths, val_paths=None, seed=123, warmup_steps=None, min_lr=None,
    clip_norm=1.0, max_steps=None, max_minutes=None, checkpoint=None, settings=None, ranks=ALONE,
):  # fmt: skip
    """Train on shards; returns (train_losses, val_losses, tokens_seen), one entry per evaluation.

    Evaluates after the first update (step 0), at every multiple of eval_freq and at the end; saves model_pg_{step}.pth exactly when
    step > 0 and step is a multiple of save_ckpt_freq. The peak learning rate is the optimizer's; the schedule spans all epochs,
    wherever max_steps or max_minutes stop. Stopped early, also by Ctrl-C, it saves model_pg_{step}_interrupted.pth.
    checkpoint: contents of such a file, to go on from; settings: kept in checkpoints.
    """
    output_dir, base, start = Path(output_dir), unwrap(model), time.monotonic()
    output_dir.mkdir(parents=True, exist_ok=True)
    parts = {"val_paths": val_paths, "train_ratio": train_ratio, "seed": seed, "rank": ranks.rank, "world": ranks.world}
    loader, val_loaders = create_shard_dataloaders(shard_paths, batch_size, base.pos_emb.num_embeddings, **parts)
    peak, total_steps = optimizer.param_groups[0]["lr"], n_epochs * len(loader)
    warmup_steps = min(1000, total_steps // 50) if warmup_steps is None else warmup_steps
    if warmup_steps >= total_steps:
        raise ValueError(f"{warmup_steps} warm-up steps do not fit a run of {total_steps} steps")
    schedule = (total_steps, peak, warmup_steps, peak / 10 if min_lr is None else min_lr)
    last_step = min(total_steps, max_steps or total_steps) - 1
    state = restore_run(checkpoint, model, optimizer, ranks, device) if checkpoint else PretrainingState()
    measure = Measurements(val_loaders, eval_iter, output_dir, state, ranks, device)
    per_step = batch_size * base.pos_emb.num_embeddings * ranks.world
    bar = tqdm(total=(last_step + 1) * per_step, initial=state.tokens_seen, unit="tokens", unit_scale=True, disable=ranks.rank > 0)
    quiet = contextlib.redirect_stdout(PrintAboveBar(sys.stdout))
    model.train()
    with bar, quiet, stop_on_interrupt() as interrupted:
        while state.epoch < n_epochs and state.step < last_step:
            loader.batch_sampler.go_to(state.epoch, state.batch)
            for inputs, targets in loader:
                lr = learning_rate_at(state.step + 1, *schedule)
                state.loss_sum += train_step(model, optimizer, inputs, targets, device, lr, clip_norm)
                state.batch, state.step, state.tokens_seen = state.batch + 1, state.step + 1, state.tokens_seen + per_step
                state.loss_steps += 1
                bar.update(per_step)
                if state.step % eval_freq == 0 or state.step + 1 == total_steps:
                    measure.evaluate(base, lr)
                if print_sample_iter and state.step % print_sample_iter == 0 and ranks.rank == 0:
                    print_sample(base, tokenizer, device, start_context)
                if state.step > 0 and state.step % save_ckpt_freq == 0:
                    save_run(output_dir / f"model_pg_{state.step}.pth", model, optimizer, state, settings or {}, ranks, device)
                late = time.monotonic() - start > 60 * (max_minutes or float("inf"))
                if ranks.anyone(interrupted.is_set() or late, device) or state.step >= last_step:
                    break
            else:
                state.epoch, state.batch = state.epoch + 1, 0
                continue
            break
    if state.step + 1 < total_steps:
        save_run(output_dir / f"model_pg_{state.step}_interrupted.pth", model, optimizer, state, settings or {}, ranks, device)
    return state.train_losses, state.val_losses, state.track_tokens_seen


def find_data(data_dir: Path, output_dir: Path, ranks: Ranks) -> tuple[list, dict | None, str]:
    """Return (training shards, {name: validation shards} or None, a hash of all) for a folder of shards or of text files.

    Text files are tokenized once, into output_dir/tokens, by the first process; a file that cannot be used is named and
    skipped. ValueError if nothing is left.
    """
    if not (data_dir / "index.json").is_file():
        files, data_dir = find_text_files(data_dir), output_dir / "tokens"
        if ranks.rank == 0:
            tokenize_once(files, data_dir)
        ranks.wait()
    index, val_paths = read_index(data_dir), {}
    for shard in index["shards"]:
        if shard["split"] == "val":
            val_paths.setdefault(shard["source"], []).append(data_dir / shard["file"])
        if ranks.rank == 0:
            print(f"{data_dir / shard['file']}: {shard['tokens']:,} tokens, {shard['split']}")
    train_paths = [data_dir / shard["file"] for shard in index["shards"] if shard["split"] == "train"]
    hashes = "".join(shard["sha256"] for shard in index["shards"])
    return train_paths, val_paths or None, hashlib.sha256(hashes.encode()).hexdigest()


def tokenize_once(files: list[Path], folder: Path) -> None:
    """Write shards of text files into a folder, unless it holds those of the same files already."""
    print(f"{len(files)} text files")
    usable = []
    for path in files:
        try:
            read_text_file(path)
            usable.append(path)
        except ValueError as problem:
            print(f"skipped {problem}", file=sys.stderr)
    if not usable:
        raise ValueError(f"none of the {len(files)} text files can be used")
    with contextlib.suppress(ValueError):
        if [source["sha256"] for source in read_index(folder)["sources"]] == [file_sha256(path) for path in usable]:
            return
    start = before = time.monotonic()

    def after_file(number: int) -> None:
        nonlocal before
        print_eta(start, before, number, len(usable))
        before = time.monotonic()

    write_shards(usable, folder, gpt2_tokenizer(), after_file=after_file)


def finish(model, cfg: dict, args, losses, val_paths, train_paths, device) -> None:
    """Save the weights, measure them on all held-out text, draw the losses, export; prints each path."""
    output_dir = Path(args.output_dir)
    save_atomically(model.state_dict(), output_dir / "model_pg_final.pth")
    sets = {"val_paths": val_paths, "train_ratio": args.train_ratio}
    _, val_loaders = create_shard_dataloaders(train_paths, args.batch_size, cfg["context_length"], **sets)
    final = validation_losses(model, val_loaders, device)
    log_path = output_dir / "log.jsonl"
    log = [json.loads(line) for line in log_path.read_text(encoding="utf-8").splitlines()]
    summary = {"tokens_seen_at_last_evaluation": losses[2][-1], **final}
    (output_dir / "final.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    plot_run(log, output_dir / "loss-curve.png")
    weights = export_gpt2(model.state_dict(), cfg, output_dir / f"gpt2-{'debug' if args.debug else args.size}")
    print("all held-out text: " + ", ".join(f"{name.replace('_', ' ')} {loss:.4f}" for name, loss in final.items()))
    for path in (output_dir / "model_pg_final.pth", log_path, output_dir / "loss-curve.png", weights):
        print(f"saved {path} ({path.stat().st_size / 1e6:.1f} MB)")


def run(args, ranks: Ranks, device: torch.device) -> None:
    """Do what the options say; ValueError or OSError for input that cannot be used."""
    output_dir, cfg = Path(args.output_dir), SIZES["debug" if args.debug else args.size]
    if args.debug:
        args.n_epochs, args.eval_freq, args.print_sample_iter, args.max_steps = 1, 50, 150, args.max_steps or 200
    if not args.resume and not args.overwrite and (output_dir / "log.jsonl").exists():
        raise ValueError(f"{output_dir} holds a run: add --resume to go on, --overwrite to start again, or name another folder")
    ranks.wait()  # no process may write before all have looked
    train_paths, val_paths, data_hash = find_data(Path(args.data_dir), output_dir, ranks)
    kept = ("batch_size", "n_epochs", "lr", "min_lr", "warmup_steps", "weight_decay", "train_ratio", "seed", "precision", "share_unseen")
    settings = {**cfg, **{key: getattr(args, key) for key in kept}, "processes": ranks.world, "data_sha256": data_hash}
    checkpoint = read_checkpoint(latest_checkpoint(output_dir), settings) if args.resume else None
    for old in [] if args.resume or ranks.rank else output_dir.glob("model_pg_*.pth"):
        old.unlink()
    torch.manual_seed(args.seed)
    base = FastGPT(cfg).to(device)
    if args.share_unseen:
        seen = tokens_in(train_paths, cfg["vocab_size"])
        base.share_unseen(seen.to(device))
        if ranks.rank == 0:
            print(f"{seen.sum():,} of {len(seen):,} tokens occur in the training text; the others share one embedding")
    torch.manual_seed(args.seed + ranks.rank)  # dropout differs between processes
    precision = use_precision(base, args.precision, device)
    model = share_gradients(base, ranks, device)
    optimizer = make_optimizer(model, args.lr, args.weight_decay, fused_adamw_works(device))
    if ranks.rank == 0:
        print(f"{count_parameters(base):,} parameters, precision {precision}, {ranks.world} process(es), learning rate {args.lr}")
    losses = train_model_simple(
        model, optimizer, device, args.n_epochs, args.eval_freq, args.eval_iter, args.print_sample_iter, args.start_context, output_dir,
        args.save_ckpt_freq, gpt2_tokenizer(), args.batch_size, args.train_ratio, shard_paths=train_paths, val_paths=val_paths,
        seed=args.seed, warmup_steps=args.warmup_steps, min_lr=args.min_lr, max_steps=args.max_steps, max_minutes=args.max_minutes,
        checkpoint=checkpoint, settings=settings, ranks=ranks,
    )  # fmt: skip
    if ranks.rank == 0:
        finish(base, cfg, args, losses, val_paths, train_paths, device)
        gpu = torch.cuda.max_memory_allocated() / 1e9 if device.type == "cuda" else 0.0
        print(f"Maximum GPU memory allocated: {gpu:.2f} GB")


def yes_or_no(text: str) -> bool:
    """argparse type for true and false."""
    if text.lower() not in ("true", "false", "yes", "no", "1", "0"):
        raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false")
    return text.lower() in ("true", "yes", "1")


def main(argv: list[str] | None = None) -> int:
    """Parse the options, train; returns 0, or exits with code 2 and one line on bad input."""
    parser = OneLineParser("Pretrain a GPT on token shards (of prepare_dataset.py) or on text files.")
    parser.add_argument("--data_dir", default="gutenberg/data", help="folder with index.json and its shards, or with text files")
    parser.add_argument("--output_dir", default="model_checkpoints", help="folder for all results")
    parser.add_argument("--size", choices=["124M", "mini"], default="124M", help="model to train")
    parser.add_argument("--debug", nargs="?", const=True, default=False, type=yes_or_no, help="tiny model, 200 steps or --max_steps")
    parser.add_argument("--n_epochs", type=int_at_least(1), default=1, help="passes over the data")
    parser.add_argument("--batch_size", type=int_at_least(1), default=4, help="windows per update and process")
    parser.add_argument("--lr", type=positive_float, default=5e-4, help="peak learning rate")
    parser.add_argument("--min_lr", type=float_from_zero, help="learning rate of the last step (default: a tenth of --lr)")
    parser.add_argument("--warmup_steps", type=int_at_least(0), help="steps of rising learning rate (default: 2 %%, at most 1000)")
    parser.add_argument("--weight_decay", type=float_from_zero, default=0.1, help="weight decay of AdamW")
    parser.add_argument("--share_unseen", action="store_true", help="one embedding for all tokens that the training text lacks")
    parser.add_argument("--train_ratio", type=float, default=0.9, help="share to train on, where no validation shards exist")
    parser.add_argument("--eval_freq", type=int_at_least(1), default=100, help="updates from one measurement to the next")
    parser.add_argument("--eval_iter", type=int_at_least(1), default=1, help="batches of each validation set per measurement")
    parser.add_argument("--print_sample_iter", type=int_at_least(0), default=1000, help="updates from one sample to the next; 0: none")
    parser.add_argument("--start_context", default=START_CONTEXT, help="text that the samples continue")
    parser.add_argument("--save_ckpt_freq", type=int_at_least(1), default=100_000, help="updates from one checkpoint to the next")
    parser.add_argument("--max_steps", type=int_at_least(1), help="stop after this many updates")
    parser.add_argument("--max_minutes", type=positive_float, help="stop after this time; --resume goes on")
    parser.add_argument("--resume", action="store_true", help="go on from the newest checkpoint in output_dir")
    parser.add_argument("--overwrite", action="store_true", help="replace the run in output_dir")
    parser.add_argument("--precision", choices=["auto", "fp32", "bf16"], default="auto", help="auto: bf16 where it is faster")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps")
    parser.add_argument("--seed", type=int_at_least(0), default=123, help="random seed")
    args = parser.parse_args(argv)
    try:
        if not 0 < args.train_ratio < 1:
            raise ValueError(f"train_ratio must lie between 0 and 1, got {args.train_ratio}")
        ranks, device = join_processes(args.device)
        run(args, ranks, device)
    except (ValueError, OSError) as error:
        parser.error(" ".join(str(error).split()))
    except KeyboardInterrupt:
        parser.exit(130, "stopped\n")
    ranks.leave()
    return 0


if __name__ == "__main__":
    sys.exit(main())
