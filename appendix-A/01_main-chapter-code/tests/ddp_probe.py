"""Runs DDP-script.py as a program that writes down what happens in each process, or lets process 1 fail.

    PYTHONPATH=.. python ddp_probe.py FOLDER MODE [options of the script]      MODE: record, fail, kill

Every process loads this file, so the changes below hold in all of them. Process R writes its start weights, and after each
epoch its points, gradients and weights, to FOLDER/R.pt.
"""

import importlib.util
import os
import signal
import sys
from pathlib import Path

import ddp_common
import torch
import torch.distributed as dist

FOLDER, MODE = Path(sys.argv[1]), sys.argv[2]
spec = importlib.util.spec_from_file_location("ddp_script", Path(ddp_common.__file__).with_name("DDP-script.py"))
script = importlib.util.module_from_spec(spec)
sys.modules["ddp_script"] = script  # where a new process looks for `main`
spec.loader.exec_module(script)

parallel, train_epoch = ddp_common.DistributedDataParallel, ddp_common.train_epoch
record = {"epochs": []}


def recorded_parallel(model, **options):
    record["start"] = {name: weight.clone() for name, weight in model.state_dict().items()}
    return parallel(model, **options)


def accuracy_over(labels):
    """The common accuracy over examples with these labels when every prediction is 1; the processes share the examples."""
    dataset = ddp_common.ToyDataset(torch.tensor([[0.0, 1.0]] * len(labels)), torch.tensor(labels))
    loader = ddp_common.evaluation_loader(dataset, batch_size=2)
    return ddp_common.compute_accuracy(torch.nn.Identity(), loader, torch.device("cpu"))


def recorded_epoch(model, train_loader, *rest):
    if dist.get_rank() == 1 and MODE == "fail":
        raise ValueError("the disk is full\nand this is a second line")
    if dist.get_rank() == 1 and MODE == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    train_epoch(model, train_loader, *rest)
    if train_loader.sampler.epoch == 0:
        record["accuracies"] = [accuracy_over([0, 1, 1]), accuracy_over([1])]
    values = {name: weight.detach().clone() for name, weight in model.module.named_parameters()}
    gradients = {name: weight.grad.clone() for name, weight in model.module.named_parameters()}
    record["epochs"].append({"points": list(train_loader.sampler), "gradients": gradients, "weights": values})
    torch.save(record, FOLDER / f"{dist.get_rank()}.pt")


ddp_common.DistributedDataParallel, ddp_common.train_epoch = recorded_parallel, recorded_epoch

if __name__ == "__main__":
    sys.exit(script.command_line(sys.argv[3:]))
