"""What both data-parallel scripts of appendix A share: the network, the data, the training of one process, the options.

`DDP-script.py` starts the processes itself, and `torchrun` starts those of `DDP-script-torchrun.py`; after that, each
process runs `train_process` from here. Data parallel: every process holds the whole network, trains it on its own part of the
data, and averages the gradients with the others at each step, so that all networks stay equal.
"""

import argparse
import platform
from dataclasses import dataclass

import torch
import torch.distributed as dist
from previous_chapters import OneLineParser, int_at_least
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Dataset, DistributedSampler, Subset

# Days at a ferry's harbor: wind and waves, compared with an average day; label 1 means that the ferry stayed in the harbor.
TRAIN_POINTS = [[-2.1, -1.2], [-1.4, -1.6], [-0.8, -0.9], [1.8, 1.4], [1.2, 2.2]]
TRAIN_LABELS = [0, 0, 0, 1, 1]
TEST_POINTS = [[-1.0, -1.4], [1.6, 1.9]]
TEST_LABELS = [0, 1]


class NeuralNetwork(torch.nn.Module):
    """Two hidden layers of 30 and 20 units; (b, num_inputs) in, logits (b, num_outputs) out. Appendix A, section A.5."""

    def __init__(self, num_inputs: int, num_outputs: int):
        super().__init__()
        self.layers = torch.nn.Sequential(
            torch.nn.Linear(num_inputs, 30),
            torch.nn.ReLU(),
            torch.nn.Linear(30, 20),
            torch.nn.ReLU(),
            torch.nn.Linear(20, num_outputs),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits = self.layers(x)  # (b, num_outputs)
        return logits


class ToyDataset(Dataset):
    """Rows of X with their labels y; item i is the pair (row, label). Appendix A, section A.6."""

    def __init__(self, X: torch.Tensor, y: torch.Tensor):
        self.features = X
        self.labels = y

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        return self.features[index], self.labels[index]

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Settings:
    """What the command line may change in every process; see `add_options`."""

    batch_size: int = 2
    repeat: int = 1
    seed: int = 123
    device: str = "auto"
    backend: str = "auto"


DEFAULTS = Settings()


def rank_and_size() -> tuple[int, int]:
    """This process's number and the number of processes; (0, 1) for a process on its own."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def check_share(world_size: int, batch_size: int, repeat: int = 1) -> None:
    """ValueError unless every process's share of the training points fills at least one batch."""
    points = repeat * len(TRAIN_LABELS)
    share = points // world_size
    if batch_size > share:
        what = f"batch_size {batch_size} is larger than the share of each process ({points} points / {world_size} = {share})"
        raise ValueError(f"{what}: lower --batch_size, start fewer processes, or raise --repeat")


def prepare_dataset(batch_size: int = 2, repeat: int = 1, seed: int = 123) -> tuple[DataLoader, DataLoader]:
    """Return this process's (train loader, test loader). Appendix A, section A.9.3.

    The sampler deals the training points out anew in each epoch (`set_epoch`), the same number to every process, and no
    point twice; what is left over waits for another epoch. ValueError if a share does not fill a batch.
    """
    rank, world_size = rank_and_size()
    check_share(world_size, batch_size, repeat)
    train_ds = ToyDataset(torch.tensor(TRAIN_POINTS).repeat(repeat, 1), torch.tensor(TRAIN_LABELS).repeat(repeat))
    sampler = DistributedSampler(train_ds, num_replicas=world_size, rank=rank, shuffle=True, seed=seed, drop_last=True)
    pin = torch.cuda.is_available()  # memory from which copies to the GPU are faster
    train_loader = DataLoader(train_ds, batch_size=batch_size, sampler=sampler, pin_memory=pin, drop_last=True)
    return train_loader, evaluation_loader(ToyDataset(torch.tensor(TEST_POINTS), torch.tensor(TEST_LABELS)), batch_size)


def evaluation_loader(dataset: Dataset, batch_size: int) -> DataLoader:
    """Every world_size-th item for this process: together the processes see each item once, and some may see none."""
    rank, world_size = rank_and_size()
    return DataLoader(Subset(dataset, range(rank, len(dataset), world_size)), batch_size=batch_size)


def compute_accuracy(model: torch.nn.Module, dataloader: DataLoader, device: torch.device) -> float:
    """Share of right predictions over the data of all processes: they add their counts, then each divides.

    ValueError if there is no example at all. Appendix A, section A.9.3.
    """
    model.eval()
    counts = torch.zeros(2, device=device)  # right predictions and all predictions
    for features, labels in dataloader:
        features, labels = features.to(device), labels.to(device)
        with torch.no_grad():
            logits = model(features)  # (b, num_outputs)
        predictions = logits.argmax(dim=1)  # (b)
        counts += torch.stack([(predictions == labels).sum(), torch.tensor(len(labels), device=device)])
    if dist.is_initialized():
        dist.all_reduce(counts)
    if counts[1] == 0:
        raise ValueError("no examples, so no accuracy")
    return (counts[0] / counts[1]).item()


def choose_device(name: str, local_rank: int, processes: int) -> torch.device:
    """The device of one of the `processes` on this machine: a GPU of its own, or the CPU; ValueError if that is impossible."""
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "cpu" or (name == "auto" and gpus == 0):
        return torch.device("cpu")
    if processes > gpus:
        raise ValueError(f"each process needs a GPU of its own ({processes} of each wanted, {gpus} GPUs visible); try --device cpu")
    return torch.device("cuda", local_rank)


def choose_backend(name: str, device: torch.device) -> str:
    """How processes talk: NCCL between NVIDIA GPUs, gloo otherwise and on Windows, which has no NCCL."""
    nccl = device.type == "cuda" and dist.is_nccl_available()
    if name == "nccl" and not nccl:
        raise ValueError("the backend nccl needs NVIDIA GPUs and Linux; use --backend gloo")
    return ("nccl" if nccl else "gloo") if name == "auto" else name


def join_group(rank: int, world_size: int, backend: str, device: torch.device, store: dist.Store | None = None) -> None:
    """Join the process group; without a store, the meeting point is in MASTER_ADDR and MASTER_PORT."""
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group(choose_backend(backend, device), store=store, rank=rank, world_size=world_size)


def without_libuv() -> dict[str, bool]:
    """What a TCPStore must be told on Windows, where PyTorch comes without the library libuv."""
    return {"use_libuv": False} if platform.system() == "Windows" else {}


def train_process(device: torch.device, num_epochs: int, settings: Settings) -> float:
    """What each process does once it has joined the group; returns the accuracy on the training points."""
    rank, world_size = rank_and_size()
    torch.manual_seed(settings.seed)  # in every process, as none inherits the random numbers of another
    train_loader, test_loader = prepare_dataset(settings.batch_size, settings.repeat, settings.seed)
    model = NeuralNetwork(num_inputs=2, num_outputs=2).to(device)
    total = sum(parameter.abs().sum().item() for parameter in model.parameters())
    say(f"rank {rank} of {world_size}: {device}, {dist.get_backend()}, sizes of all weights together {total:.4f}")
    parallel = DistributedDataParallel(model, device_ids=[device.index] if device.type == "cuda" else None)
    optimizer = torch.optim.SGD(parallel.parameters(), lr=0.5)
    for epoch in range(num_epochs):
        train_epoch(parallel, train_loader, optimizer, device, epoch)
    training = compute_accuracy(model, evaluation_loader(train_loader.dataset, settings.batch_size), device)
    test = compute_accuracy(model, test_loader, device)
    if rank == 0:  # all processes know the same two numbers, so one of them prints
        say(f"accuracy of all processes together: training {training:.2f}, test {test:.2f}")
    return training


def train_epoch(model: DistributedDataParallel, train_loader: DataLoader, optimizer, device: torch.device, epoch: int) -> None:
    """One round over this process's share; prints the share's points and the mean loss."""
    train_loader.sampler.set_epoch(epoch)  # without it, every epoch would deal out the same shares in the same order
    model.train()
    losses = []
    for features, labels in train_loader:
        features, labels = features.to(device), labels.to(device)
        loss = torch.nn.functional.cross_entropy(model(features), labels)
        optimizer.zero_grad()
        loss.backward()  # also averages the gradients over all processes
        optimizer.step()
        losses.append(loss.item())
    points = list(train_loader.sampler)
    say(f"rank {dist.get_rank()}: epoch {epoch + 1}, points {points}, mean loss {sum(losses) / len(losses):.3f}")


def say(line: str) -> None:
    """Print one line at once, so that lines of several processes do not get mixed."""
    print(f"{line}\n", end="", flush=True)


def add_options(description: str) -> OneLineParser:
    """A parser with the options that both scripts have."""
    parser = OneLineParser(description)
    parser.add_argument("--num_epochs", type=int_at_least(1), default=3, help="rounds over the training points")
    parser.add_argument("--batch_size", type=int_at_least(1), default=DEFAULTS.batch_size, help="points for each process and step")
    parser.add_argument("--repeat", type=int_at_least(1), default=DEFAULTS.repeat, help="repeat the five points, for more processes")
    parser.add_argument("--seed", type=int, default=DEFAULTS.seed, help="random seed")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default=DEFAULTS.device, help="auto: GPUs if there are any")
    backends = ("auto", "nccl", "gloo")
    parser.add_argument("--backend", choices=backends, default=DEFAULTS.backend, help="how processes talk; auto: nccl between GPUs")
    return parser


def settings_of(args: argparse.Namespace) -> Settings:
    """The settings among the parsed options."""
    return Settings(args.batch_size, args.repeat, args.seed, args.device, args.backend)
