"""Not a test: one process of test_ch05_03_training.py. Saves the gradients of its share of one batch, averaged over all.

    torchrun --standalone --nproc_per_node=2 gradients_of_a_rank.py SHARD OUTPUT CONFIGURATION
"""

import json
import sys

import torch
from fast_gpt import FastGPT
from measuring import batch_loss
from pretraining_run import join_processes, share_gradients
from shards import create_shard_dataloaders


def main(shard: str, output: str, cfg: dict) -> None:
    ranks, device = join_processes("cpu")
    torch.manual_seed(100 * ranks.rank)  # the processes start with different weights: the first one's must win
    model = share_gradients(FastGPT(cfg).double(), ranks, device)
    loader, _ = create_shard_dataloaders([shard], 3, cfg["context_length"], seed=9, rank=ranks.rank, world=ranks.world)
    inputs, targets = next(iter(loader))
    batch_loss(model, inputs, targets, device).backward()
    if ranks.rank == 0:
        torch.save({name.removeprefix("module."): parameter.grad for name, parameter in model.named_parameters()}, output)
    del model
    ranks.leave()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], json.loads(sys.argv[3]))
