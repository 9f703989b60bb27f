"""What a run measures: the loss of a batch, validation losses, a sample, the log's entries; none of it changes the training."""

import time

import torch
from pretraining_run import RunLog
from previous_chapters import generate_text_simple, peak_memory_gb
from torch import nn


def batch_loss(model: nn.Module, inputs: torch.Tensor, targets: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Return the mean cross-entropy of a batch of ids (b, num_tokens); model: FastGPT, wrapped or not."""
    return model(inputs.to(device, non_blocking=True), targets.to(device, non_blocking=True))


@torch.no_grad()
def validation_losses(model: nn.Module, val_loaders: dict, device: torch.device, eval_iter: int | None = None) -> dict[str, float]:
    """Return {"val_loss": mean per token over all sets, "val_NAME_loss": of each set}, eval_iter batches of each, all if None."""
    model.eval()
    sums, found = torch.zeros(2, dtype=torch.float64), {}
    for name, loader in val_loaders.items():
        own = torch.zeros(2, dtype=torch.float64)  # (summed loss, tokens)
        for _, (inputs, targets) in zip(range(eval_iter or len(loader)), loader, strict=False):
            own += torch.tensor([batch_loss(model, inputs, targets, device).item() * targets.numel(), targets.numel()])
        sums += own
        found[f"val_{name}_loss"] = (own[0] / own[1]).item()
    model.train()
    return {"val_loss": (sums[0] / sums[1]).item(), **(found if len(found) > 1 else {})}


def print_sample(model: nn.Module, tokenizer, device: torch.device, start_context: str) -> None:
    """Print 50 greedy tokens after start_context on one line."""
    model.eval()
    ids = torch.tensor([tokenizer.encode(start_context, disallowed_special=())], device=device)  # (1, num_tokens)
    ids = generate_text_simple(model, ids, max_new_tokens=50, context_size=model.pos_emb.num_embeddings)
    print("sample: " + tokenizer.decode(ids[0].tolist()).replace("\n", " "))
    model.train()


class Measurements:
    """Evaluates, prints, logs: everything that looks at a run without changing it."""

    def __init__(self, val_loaders, eval_iter, output_dir, state, ranks, device):
        self.val_loaders, self.eval_iter, self.state, self.ranks, self.device = val_loaders, eval_iter, state, ranks, device
        self.log = RunLog(output_dir, state) if ranks.rank == 0 else None
        self.last = (state.tokens_seen, time.monotonic())

    def evaluate(self, model: nn.Module, lr: float) -> None:
        """Append the mean training loss since the last time, the validation losses and the speed to state and log."""
        state, now = self.state, time.monotonic()
        seconds = now - self.last[1]
        train_loss = self.ranks.mean(state.loss_sum / state.loss_steps, self.device)
        entry = {"step": state.step, "epoch": state.epoch + 1, "tokens_seen": state.tokens_seen, "train_loss": round(train_loss, 5)}
        losses = validation_losses(model, self.val_loaders, self.device, self.eval_iter) if self.ranks.rank == 0 else {"val_loss": 0.0}
        state.loss_sum, state.loss_steps = 0.0, 0
        state.seconds += seconds
        state.train_losses.append(train_loss)
        state.val_losses.append(losses["val_loss"])
        state.track_tokens_seen.append(state.tokens_seen)
        entry |= {name: round(loss, 5) for name, loss in losses.items()} | {"lr": lr, "seconds": round(state.seconds, 2)}
        entry["tokens_per_second"] = round((state.tokens_seen - self.last[0]) / max(seconds, 1e-9))
        entry["peak_memory_gb"] = round(peak_memory_gb(self.device), 2)
        state.log.append(entry)
        if self.log:
            self.log.add(entry)
            shown = ", ".join(f"{name.replace('_', ' ')} {entry[name]:.3f}" for name in entry if name.endswith("_loss"))
            print(f"epoch {entry['epoch']}, step {state.step}: {shown}, {entry['tokens_per_second']:,} tokens/s")
        self.last = (state.tokens_seen, time.monotonic())
