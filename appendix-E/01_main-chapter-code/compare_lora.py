"""LoRA beside full fine-tuning on the spam task: accuracy, trained numbers, memory, and time. A log keeps what is done.

    python compare_lora.py         # three quarters of an hour on one core; stopped, it goes on with the same command
    python compare_lora.py --jobs search result --ways "last block" --num_epochs 1 --output try.jsonl
    python lora_report.py          # draws the log and writes the tables of README.md

First each way to train gets the learning rate with the lowest validation loss, on a split that is not used again (`search`).
Then every way trains on the same three splits (`result`): the seed decides split, head, adapters, and order, and no text is in two
parts of a split. `memory` and `time` look at single updates on one batch, memory in a process of its own, time in turns.
"""

import copy
import json
import multiprocessing
import platform
import statistics
import sys
import tempfile
import warnings
from pathlib import Path

import torch
import torch.nn as nn
from classifier import (
    add_classification_head,
    calc_accuracy_loader,
    calc_loss_batch,
    calc_loss_loader,
    collate_trimmed,
    create_loaders,
    load_spam_messages,
    without_repeats,
)
from lora import replace_linear_with_lora
from previous_chapters import (
    GPT_CONFIG_124M,
    MODELS_DIR,
    GPTModel,
    OneLineParser,
    adamw,
    int_at_least,
    interleaved,
    load_pretrained_gpt,
    peak_memory_gb,
    processor_name,
    timed,
)
from torch.utils.data import DataLoader
from tqdm import tqdm

LOG_FILE = Path(__file__).resolve().parent / "comparison-log.jsonl"
CPU = torch.device("cpu")
MAIN = ["last block", "all layers", "LoRA"]
WAYS = {  # None: no adapters, else the arguments of replace_linear_with_lora
    "last block": None,
    "all layers": None,
    "LoRA": {"rank": 16, "alpha": 16},
    "LoRA, attention": {"rank": 16, "alpha": 16, "targets": ("att",)},
    "LoRA, feed-forward": {"rank": 16, "alpha": 16, "targets": ("ff",)},
    "LoRA, head": {"rank": 2, "alpha": 2, "targets": ("out_head",)},
    **{f"LoRA, rank {rank}, alpha {alpha}": {"rank": rank, "alpha": alpha} for rank in (1, 64, 4) for alpha in (rank, 16)},
}
RATES = {  # learning rates tried; what is not listed takes that of LoRA
    "last block": [2e-4, 5e-4, 1e-3, 2e-3],
    "all layers": [2e-5, 5e-5, 1e-4, 2e-4, 5e-4],
    "LoRA": [1e-4, 3e-4, 1e-3, 3e-3],
    "LoRA, head": [3e-3, 1e-2, 3e-2],
}
JOBS = ["memory", "time", "search", "result"]
SEARCH_SEED, SEEDS = 1, [123, 124, 125]
SIZES = ["mini", "124M"]


def split_loaders(seed: int, context_length: int) -> list[DataLoader]:
    """Return the loaders of one split of the messages: training, validation, test. Batches have 8 texts, and no text is in two parts."""
    messages = without_repeats(load_spam_messages()).sample(frac=1, random_state=seed)
    with tempfile.TemporaryDirectory() as folder:
        padded, _ = create_loaders(messages, Path(folder), context_length, batch_size=8)
    training = [True, False, False]
    return [DataLoader(a.dataset, 8, shuffle=b, drop_last=b, collate_fn=collate_trimmed) for a, b in zip(padded, training)]


def prepare(model: GPTModel, way: str, seed: int) -> GPTModel:
    """Give a GPT a new head, in place, and gradients to what the way trains and to nothing else. One seed is one head for all ways."""
    torch.manual_seed(seed)
    add_classification_head(model)  # now the last block, the final norm, and the head are trained
    if way == "all layers":
        model.requires_grad_(True)
    elif WAYS[way]:
        model.requires_grad_(False)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # rank 16 for a head of two outputs is more than it needs
            replace_linear_with_lora(model, **WAYS[way])
    return model


def count_trained(model: nn.Module) -> int:
    """Return how many numbers of the model are trained."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def update(model: nn.Module, optimizer: torch.optim.Optimizer, batch: list[torch.Tensor]) -> None:
    """Do one update on a batch: token ids (b, num_tokens) and labels (b)."""
    optimizer.zero_grad()
    calc_loss_batch(*batch, model, CPU).backward()
    optimizer.step()


def train_once(base: GPTModel, run: dict, learning_rate: float, num_epochs: int) -> dict:
    """Train one way on one split and return what the log keeps of it."""
    train_loader, val_loader, test_loader = split_loaders(run["seed"], base.pos_emb.num_embeddings)
    model = prepare(copy.deepcopy(base), run["way"], run["seed"]).train()
    optimizer = adamw(model, learning_rate, 0.1, CPU)
    torch.manual_seed(run["seed"])  # all ways see the messages in the same order
    with tqdm(total=num_epochs * len(train_loader), desc=f"{run['way']}, {learning_rate:g}", leave=False, mininterval=1) as bar:
        for _ in range(num_epochs):
            for batch in train_loader:
                update(model, optimizer, batch)
                bar.update()
    result = {"learning_rate": learning_rate, "num_epochs": num_epochs, "trained": count_trained(model)}
    result["validation_loss"] = round(calc_loss_loader(val_loader, model, CPU), 4)
    for name, loader in (("validation", val_loader), ("test", test_loader)):
        texts = len(loader.dataset)
        result[name] = {"right": round(texts * calc_accuracy_loader(loader, model, CPU)), "texts": texts}
    return result


def best_rate(lines: list[dict], way: str) -> float:
    """Return the learning rate with the lowest validation loss of the search; ValueError if the log has no search for this way."""
    searched = way if way in RATES else "LoRA"
    losses = {line["learning_rate"]: line["validation_loss"] for line in lines if line["job"] == "search" and line["way"] == searched}
    if not losses:
        raise ValueError(f"{way!r} has no learning rate yet: the job search must run first, with {searched!r} among the ways")
    return min(losses, key=losses.get)


def model_of_size(size: str) -> GPTModel:
    """Return gpt2-mini, or a GPT of the smallest GPT-2's size with random weights: what an update costs does not depend on them."""
    if size == "mini":
        return load_pretrained_gpt({}, "mini", MODELS_DIR)[0]
    return GPTModel({**GPT_CONFIG_124M, "qkv_bias": True, "drop_rate": 0.0})


def ready_to_update(size: str, way: str) -> tuple[GPTModel, torch.optim.Optimizer, list[torch.Tensor]]:
    """Return a model, its optimizer, and a batch of 8 texts with 64 random tokens each; one update is done, so all is allocated."""
    model = prepare(model_of_size(size), way, seed=123).train()
    optimizer = adamw(model, 1e-4, 0.1, CPU)
    batch = [torch.randint(50256, (8, 64)), torch.arange(8) % 2]  # (8, 64), (8)
    update(model, optimizer, batch)
    return model, optimizer, batch


def measure_memory(size: str, way: str) -> dict:
    """Return the peak of this process after two updates in GB, and the MB of gradients and of AdamW's running means."""
    model, optimizer, batch = ready_to_update(size, way)
    update(model, optimizer, batch)
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    means = [tensor for state in optimizer.state.values() for name, tensor in state.items() if name != "step"]
    megabytes = {name: round(sum(t.nbytes for t in some) / 1e6, 2) for name, some in (("gradients_mb", gradients), ("means_mb", means))}
    return {"trained": count_trained(model), **megabytes, "peak_gb": round(peak_memory_gb(CPU), 2)}


def measure_time(size: str, rounds: int) -> dict:
    """Return the median seconds of an update by way, with the ways in turn: a busy moment of the machine slows all of them."""
    ready = {way: ready_to_update(size, way) for way in MAIN}
    _, seconds = interleaved({way: lambda parts=parts: timed(lambda: update(*parts)) for way, parts in ready.items()}, rounds)
    return {"rounds": rounds, "seconds": {way: round(statistics.median(values), 4) for way, values in seconds.items()}}


def planned(args) -> list[dict]:
    """Return the runs that the command line asks for, in order: memory first, while this process is small."""
    runs = {
        "memory": [{"size": size, "way": way} for size in args.sizes for way in MAIN],
        "time": [{"size": size} for size in args.sizes],
        "search": [
            {"way": way, "seed": SEARCH_SEED, "learning_rate": rate}
            for way in args.ways if way in RATES for rate in RATES[way]
        ],
        "result": [{"way": way, "seed": seed} for way in args.ways for seed in args.seeds],
    }  # fmt: skip
    return [{"job": job, **run} for job in JOBS if job in args.jobs for run in runs[job]]


def do(run: dict, lines: list[dict], base: GPTModel, args) -> dict:
    """Do one run and return its line of the log."""
    if run["job"] == "memory":
        with multiprocessing.get_context("spawn").Pool(1) as pool:  # a peak belongs to a whole process
            return {**run, **pool.apply(measure_memory, (run["size"], run["way"]))}
    if run["job"] == "time":
        return {**run, **measure_time(run["size"], args.rounds)}
    rate = run.get("learning_rate") or best_rate(lines, run["way"])
    return {**run, **train_once(base, run, rate, args.num_epochs)}


def read_log(path: str | Path) -> tuple[dict, list[dict]]:
    """Return (the machine, from the first line, and a list of the finished runs); ({}, []) without a file."""
    path = Path(path)
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []
    return (lines[0], lines[1:]) if lines else ({}, [])


def append(path: str | Path, line: dict) -> None:
    with Path(path).open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def main(argv: list[str] | None = None) -> int:
    """Command line; returns 0, or exits with code 2 and one line on bad input."""
    parser = OneLineParser("Compare LoRA with training the last block and with training all layers; finished runs are kept in a log.")
    parser.add_argument("--jobs", nargs="+", choices=JOBS, default=JOBS, help="what to do")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS), help="ways to train, of search and result")
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS, help="splits of the job result")
    parser.add_argument("--num_epochs", type=int_at_least(1), default=3, help="passes over the training messages")
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=SIZES, help="models of memory and time")
    parser.add_argument("--rounds", type=int_at_least(1), default=15, help="updates of each way whose median is taken")
    parser.add_argument("--output", default=str(LOG_FILE), help="log; runs that are in it are not repeated")
    args = parser.parse_args(argv)
    try:
        machine, lines = read_log(args.output)
        if not machine:
            versions = {"python": platform.python_version(), "torch": torch.__version__}
            append(args.output, {"processor": processor_name(), "threads": torch.get_num_threads(), **versions})
        base = model_of_size("mini")
        for run in tqdm(planned(args), unit="runs"):
            if not any(run.items() <= line.items() for line in lines):
                lines.append(do(run, lines, base, args))
                append(args.output, lines[-1])
    except (ValueError, OSError) as error:
        parser.error(" ".join(str(error).split()))
    except KeyboardInterrupt:
        parser.exit(130, "stopped; the same command goes on with the run that was broken off\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
