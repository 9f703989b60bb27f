"""What happens beyond the trained length, and what slowing the rotary angles changes: loss against position, measured.

A byte model small enough to train here learns on windows of 128 bytes. Then it reads windows four times as long: as it is, and
with its angles slowed in three ways, before and after a short further training. Section 6 of converting-llama2-to-llama3.ipynb
draws the log.

Run it:  python rope_scaling_experiment.py          (about 20 minutes on one core; writes rope-scaling.json)
"""

import json
import math
import platform
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from llama import Llama3Model
from previous_chapters import OneLineParser, adamw, bf16_is_fast, int_at_least, load_tales, pick_device
from tqdm import tqdm

FACTOR = 4  # how much longer the windows become
BIN = 16  # neighboring positions whose losses are averaged in the log
METHODS = {
    "none": "unchanged",
    "linear": "all angles divided by 4",
    "ntk": "larger base",
    "llama3": "slow angles divided by 4",
}


def byte_config(trained: int) -> dict:
    """Sizes of the model: 256 bytes as vocabulary, tables for windows FACTOR times as long as the trained ones."""
    return {
        "vocab_size": 256, "context_length": FACTOR * trained, "emb_dim": 192, "n_heads": 6, "n_layers": 4, "hidden_dim": 512,
        "n_kv_groups": 3, "rope_base": 10_000.0, "rope_freq": None, "dtype": torch.float32,
    }


def scaled_frequencies(method: str, head_dim: int, base: float, trained: int, factor: float) -> torch.Tensor:
    """Angle per position of each pair, (head_dim // 2), for a context `factor` times as long as the trained one.

    none: as trained. linear: all divided by `factor`. ntk: a base so much larger that the slowest pair is divided by `factor`
    and the fastest stays. llama3: Llama 3.1's rule, low 1 and high 4 turns. ValueError for another method. Section 6.
    """
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim  # (head_dim // 2)
    if method == "ntk":
        return (base * factor ** (head_dim / (head_dim - 2))) ** -exponents  # (head_dim // 2)
    theta = base**-exponents  # (head_dim // 2)
    if method == "none":
        return theta
    if method == "linear":
        return theta / factor
    if method == "llama3":
        turns = trained * theta / (2 * math.pi)  # (head_dim // 2)
        kept = ((turns - 1) / (4 - 1)).clamp(0, 1)  # (head_dim // 2)
        return kept * theta + (1 - kept) * theta / factor
    raise ValueError(f"unknown method {method}: choose one of {', '.join(METHODS)}")


def use_frequencies(model: Llama3Model, frequencies: torch.Tensor) -> None:
    """Replace the model's tables: cosines and sines of all its positions, (context_length, head_dim)."""
    angles = torch.arange(model.cfg["context_length"], dtype=torch.float32)[:, None] * frequencies  # (context_length, num_pairs)
    angles = torch.cat([angles, angles], dim=1).to(model.cos.device)  # (context_length, 2 * num_pairs)
    model.cos, model.sin = angles.cos(), angles.sin()


def read_bytes() -> tuple[torch.Tensor, torch.Tensor]:
    """Bytes for training and held-out bytes, each (num_bytes): every tenth of the tales is held out."""
    tales = [tale + "\n\n" for tale in load_tales()]
    parts = ["".join(tale for i, tale in enumerate(tales) if (i % 10 == 9) == held_out) for held_out in (False, True)]
    return tuple(torch.tensor(list(part.encode("utf-8"))) for part in parts)


def train(model, data, length, steps, lr, precision, name) -> float:
    """Train on random windows of `length` bytes, 4,096 bytes a step, with warm-up and cosine decay; return the last 20 losses' mean."""
    device, rows = model.cos.device, max(1, 4096 // length)
    optimizer, losses, warm_up = adamw(model, lr, 0.1, device), [], max(1, steps // 20)
    for step in tqdm(range(steps), desc=name, unit="step"):
        scale = min(1, (step + 1) / warm_up) * (0.1 + 0.9 * (1 + math.cos(math.pi * step / steps)) / 2)
        optimizer.param_groups[0]["lr"] = lr * scale
        starts = torch.randint(0, len(data) - length, (rows, 1))  # (rows, 1)
        window = data[starts + torch.arange(length + 1)].to(device)  # (rows, length + 1)
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            logits = model(window[:, :-1])  # (rows, length, 256)
        loss = F.cross_entropy(logits.float().flatten(0, 1), window[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    return sum(losses[-20:]) / len(losses[-20:])


@torch.no_grad()
def loss_by_position(model, data) -> torch.Tensor:
    """Mean loss in nats at each position, (context_length), over windows that overlap by half."""
    length, total = model.cfg["context_length"], 0
    starts = range(0, len(data) - length, length // 2)
    for start in starts:
        window = data[start : start + length + 1].to(model.cos.device)  # (length + 1)
        total = total + F.cross_entropy(model(window[None, :-1])[0], window[1:], reduction="none")
    return (total / len(starts)).cpu()


def binned(losses: torch.Tensor) -> list[float]:
    """Means over BIN neighboring positions, rounded for the log."""
    return [round(value, 4) for value in losses.view(-1, BIN).mean(dim=1).tolist()]


def experiment(args, device, precision) -> dict:
    """All measurements as a dictionary: losses by position before and after further training, and of a model trained long."""
    cfg, (text, held_out) = byte_config(args.trained), read_bytes()
    results = {"at once": {}, "after further training": {}}
    shape = (cfg["emb_dim"] // cfg["n_heads"], cfg["rope_base"], args.trained, FACTOR)
    torch.manual_seed(args.seed)
    model = Llama3Model(cfg).to(device)
    results["training loss"] = round(train(model, text, args.trained, args.steps, args.lr, precision, f"{args.trained} bytes"), 4)
    trained = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for method in METHODS:
        model.load_state_dict(trained)
        use_frequencies(model, scaled_frequencies(method, *shape))
        results["at once"][method] = binned(loss_by_position(model, held_out))
        torch.manual_seed(args.seed)  # the same windows for each method
        train(model, text, cfg["context_length"], args.tune_steps, args.lr / 4, precision, f"{method}, {cfg['context_length']} bytes")
        results["after further training"][method] = binned(loss_by_position(model, held_out))
    torch.manual_seed(args.seed)
    model = Llama3Model(cfg).to(device)
    train(model, text, cfg["context_length"], args.steps + args.tune_steps, args.lr, precision, f"{cfg['context_length']} bytes only")
    results["trained long"] = binned(loss_by_position(model, held_out))
    return {
        "trained": args.trained, "bin": BIN, "factor": FACTOR, "parameters": sum(p.numel() for p in model.parameters()),
        "training bytes": len(text), "held-out bytes": len(held_out), **results,
    }


def main(argv: list[str] | None = None) -> int:
    """Command line of this file; returns 0, or exits with code 2 and one line on bad input."""
    parser = OneLineParser("Train a small byte model, read four times as far, with and without slowed rotations, and log the losses.")
    parser.add_argument("--trained", type=int_at_least(BIN), default=128, help=f"bytes in a training window, a multiple of {BIN}")
    parser.add_argument("--steps", type=int_at_least(1), default=1000, help="training steps, 4,096 bytes each")
    parser.add_argument("--tune_steps", type=int_at_least(1), default=100, help="further steps on the long windows")
    parser.add_argument("--lr", type=float, default=2e-3, help="highest learning rate; a quarter of it for the further steps")
    parser.add_argument("--seed", type=int, default=123, help="random seed")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps")
    parser.add_argument("--precision", choices=["auto", "fp32", "bf16"], default="auto", help="of the training; losses are read in fp32")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_name("rope-scaling.json"), help="the log")
    args = parser.parse_args(argv)
    if args.trained % BIN or args.trained > 1024:
        parser.error(f"--trained is {args.trained}: allowed are multiples of {BIN} up to 1024")
    if not args.output.resolve().parent.is_dir():
        parser.error(f"--output: there is no folder {args.output.parent}")
    try:
        device = pick_device(args.device)
        precision = ("bf16" if bf16_is_fast(device) else "fp32") if args.precision == "auto" else args.precision
        print(f"training in {precision} on {device}", file=sys.stderr)
        start = time.perf_counter()
        log = experiment(args, device, precision)
    except (ValueError, FileNotFoundError) as error:
        parser.error(str(error))
    settings = {name: getattr(args, name) for name in ("steps", "tune_steps", "lr", "seed")}
    log |= settings | {"precision": precision, "device": str(device), "torch": torch.__version__, "processor": platform.machine()}
    log["minutes"] = round((time.perf_counter() - start) / 60, 1)
    args.output.write_text(json.dumps(log, indent=1) + "\n", encoding="utf-8")
    print(f"wrote {args.output.name} after {log['minutes']} minutes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
