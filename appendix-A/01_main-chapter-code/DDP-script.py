"""Data-parallel training that starts its own processes: one for each visible GPU, or as many as you ask for on the CPU.

Run it:                  python DDP-script.py
Two processes, CPU only: python DDP-script.py --world_size 2 --device cpu
Choose GPUs:             CUDA_VISIBLE_DEVICES=0,2 python DDP-script.py

The training itself is in `ddp_common.py`; this file only starts the processes and ends them.
"""

import logging
import os
import platform
import sys

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
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
    without_libuv,
)
from previous_chapters import int_at_least

__all__ = ["compute_accuracy", "ddp_setup", "main", "prepare_dataset"]  # the four parts, two of them from ddp_common.py
LOOPBACK = {"Linux": "lo", "Darwin": "lo0"}  # the network interface that reaches this computer only


def open_meeting_point(port: int) -> dist.TCPStore:
    """Open the place where the processes find each other, and put its address where `ddp_setup` looks.

    The launching process keeps it open, and port 0 lets the system choose a free port: nobody can take it in between.
    ValueError if the port cannot be opened.
    """
    if port > 65535:
        raise ValueError(f"port {port} is too large (the largest is 65535)")
    try:
        store = dist.TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False, **without_libuv())
    except RuntimeError:
        raise ValueError(f"port {port} cannot be opened, probably another program uses it; without --port a free one is chosen") from None
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(store.port))
    if platform.system() in LOOPBACK:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", LOOPBACK[platform.system()])
    return store


def meeting_point() -> dist.TCPStore:
    """Connect to the place that the launching process has opened."""
    return dist.TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False, **without_libuv())


def ddp_setup(rank: int, world_size: int, backend: str = "auto", device: str = "auto") -> torch.device:
    """Join the process group as number `rank` of `world_size`; returns this process's device. Appendix A, section A.9.3."""
    chosen = choose_device(device, rank, world_size)
    join_group(rank, world_size, backend, chosen, meeting_point())
    return chosen


def main(rank: int, world_size: int, num_epochs: int, settings: Settings = DEFAULTS) -> None:
    """One process from its start to its end; the first one that fails leaves a line for the launching process."""
    try:
        device = ddp_setup(rank, world_size, settings.backend, settings.device)
        train_process(device, num_epochs, settings)
    except Exception as error:
        first_line = str(error).partition("\n")[0]
        meeting_point().compare_set("failure", "", f"rank {rank} failed: {type(error).__name__}: {first_line}")  # set once only
        raise
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def command_line(argv: list[str] | None = None) -> int:
    """Start the processes and wait for them: 0, 1 with one line if a process failed, 2 with one line for a bad call."""
    parser = add_options("Train a small network with several processes, which this script starts.")
    parser.add_argument("--world_size", type=int_at_least(1), help="processes (default: all visible GPUs, else 1)")
    parser.add_argument("--port", type=int_at_least(0), default=0, help="of the meeting point; 0: a free one")
    args = parser.parse_args(argv)
    gpus = torch.cuda.device_count() if args.device != "cpu" and torch.cuda.is_available() else 0
    world_size = args.world_size or gpus or 1
    try:
        choose_backend(args.backend, choose_device(args.device, 0, world_size))
        check_share(world_size, args.batch_size, args.repeat)
        store = open_meeting_point(args.port)
    except ValueError as error:
        parser.error(str(error))
    logging.getLogger(mp.spawn.__module__).setLevel(logging.ERROR)  # it would report each process that it ends
    try:
        mp.spawn(main, args=(world_size, args.num_epochs, settings_of(args)), nprocs=world_size)
    except (mp.ProcessRaisedException, mp.ProcessExitedException) as error:
        known = store.get("failure").decode() if store.check(["failure"]) else str(error).strip().partition("\n")[0]
        print(f"{parser.prog}: error: {known}; the other processes were ended", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(command_line())
