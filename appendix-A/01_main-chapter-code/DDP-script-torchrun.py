"""Data-parallel training whose processes are started by torchrun, on one machine or on several.

Run it:      torchrun --nproc_per_node=2 DDP-script-torchrun.py
Choose GPUs: CUDA_VISIBLE_DEVICES=0,2 torchrun --nproc_per_node=2 DDP-script-torchrun.py

torchrun runs this file once in every process and says in environment variables which one it is. The training itself is in
`ddp_common.py`.
"""

import os
import platform
import sys
import time

import torch
import torch.distributed as dist
from ddp_common import (
    DEFAULTS,
    Settings,
    add_options,
    check_share,
    choose_backend,
    choose_device,
    compute_accuracy,
    join_group,
    prepare_dataset,
    settings_of,
    train_process,
)

__all__ = ["compute_accuracy", "ddp_setup", "main", "prepare_dataset"]  # the four parts, two of them from ddp_common.py
VARIABLES = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


def ddp_setup(rank: int, world_size: int, backend: str = "auto", device: str = "auto") -> torch.device:
    """Join the process group as number `rank` of `world_size`; returns this process's device. Appendix A, section A.9.3.

    `rank` counts over all machines and says which part of the data is ours; the device is that of LOCAL_RANK, which counts
    the processes of this machine.
    """
    local_rank = int(os.environ["LOCAL_RANK"])
    chosen = choose_device(device, local_rank, int(os.environ.get("LOCAL_WORLD_SIZE", local_rank + 1)))
    if platform.system() == "Windows":
        os.environ["USE_LIBUV"] = "0"  # PyTorch for Windows comes without it
    join_group(rank, world_size, backend, chosen)
    return chosen


def main(rank: int, world_size: int, num_epochs: int, settings: Settings = DEFAULTS) -> None:
    """One process from its start to its end."""
    try:
        device = ddp_setup(rank, world_size, settings.backend, settings.device)
        train_process(device, num_epochs, settings)
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def command_line(argv: list[str] | None = None) -> int:
    """Run this process: 0, 1 with one line if it failed, 2 with one line (of rank 0 alone) for a bad call."""
    parser = add_options("Train a small network with the processes that torchrun started.")
    args = parser.parse_args(argv)
    missing = [name for name in VARIABLES if not os.environ.get(name, "")]
    if missing:
        parser.error(f"{', '.join(missing)} not set: start this script with torchrun --nproc_per_node=2 {parser.prog}")
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    try:
        choose_backend(args.backend, choose_device(args.device, 0, int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))
        check_share(world_size, args.batch_size, args.repeat)
    except ValueError as error:
        if rank > 0:  # rank 0 writes the line; torchrun ends all processes at the first exit, so leave it time to do so
            time.sleep(2)
            return 2
        parser.error(str(error))
    try:
        main(rank, world_size, args.num_epochs, settings_of(args))
    except Exception as error:
        first_line = str(error).partition("\n")[0]
        print(f"{parser.prog}: error: rank {rank} failed: {type(error).__name__}: {first_line}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(command_line())
