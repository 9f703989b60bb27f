"""The data-parallel scripts: equal starts, different shares, gradients of the joined batch, clean ends. All runs use the CPU."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import ddp_common
import pytest
import torch
import torch.distributed as dist
from torch.utils.data import DataLoader

CODE = Path(ddp_common.__file__).parent
LIMIT = 120  # seconds; a run takes 5 to 15
CPU = ["--device", "cpu"]


def load(name: str):
    """One of the two scripts as a module."""
    spec = importlib.util.spec_from_file_location(name.replace("-", "_"), CODE / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


SPAWN, TORCHRUN = load("DDP-script"), load("DDP-script-torchrun")


def start(*arguments, **env) -> subprocess.Popen:
    """Start Python on these arguments beside the scripts."""
    quiet = {"OMP_NUM_THREADS": "1", "TORCH_CPP_LOG_LEVEL": "ERROR"}  # without a name server gloo warns that a host has no name
    environment = {**os.environ, **quiet, "PYTHONPATH": str(CODE), **env}
    command = [sys.executable, *map(str, arguments)]
    return subprocess.Popen(command, cwd=CODE, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen) -> tuple[int, list[str], list[str]]:
    """Exit status, and the lines of stdout and stderr."""
    try:
        out, err = process.communicate(timeout=LIMIT)
    finally:
        process.kill()
    return process.returncode, out.splitlines(), err.splitlines()


@pytest.fixture
def group_of_one():
    """This process as a group of its own."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


# ---- the parts, in one process ----


@pytest.mark.parametrize("inputs, outputs, count", [(50, 3, 2213), (2, 2, 752)])
def test_the_network_has_the_stated_number_of_parameters(inputs, outputs, count):
    model = ddp_common.NeuralNetwork(inputs, outputs)
    assert sum(p.numel() for p in model.parameters()) == count
    assert model.layers[0].weight.shape == (30, inputs) and model(torch.zeros(7, inputs)).shape == (7, outputs)


def test_the_output_is_logits():
    torch.manual_seed(1)
    logits = ddp_common.NeuralNetwork(2, 2)(torch.randn(9, 2) * 20)
    assert logits.min() < 0 and not torch.allclose(logits.exp().sum(dim=1), torch.ones(9))


def test_an_item_is_a_row_with_its_label():
    dataset = ddp_common.ToyDataset(torch.arange(6.0).reshape(3, 2), torch.tensor([5, 6, 7]))
    assert len(dataset) == 3 and dataset[1][0].tolist() == [2.0, 3.0] and dataset[1][1].item() == 6
    assert dataset.features.shape == (3, 2) and dataset.labels.tolist() == [5, 6, 7]


def test_a_process_alone_gets_all_points():
    train_loader, test_loader = ddp_common.prepare_dataset(batch_size=2)
    assert sorted(train_loader.sampler) == [0, 1, 2, 3, 4] and len(train_loader) == 2
    assert len(test_loader.dataset) == 2 and test_loader.dataset[1][1] == 1


@pytest.mark.parametrize("world_size, batch_size, repeat, fits", [(1, 5, 1, True), (1, 6, 1, False), (2, 2, 1, True), (2, 3, 1, False),
                                                                  (8, 2, 1, False), (8, 2, 4, True)])  # fmt: skip
def test_a_batch_larger_than_the_share_is_refused(world_size, batch_size, repeat, fits):
    if fits:
        assert ddp_common.check_share(world_size, batch_size, repeat) is None
    else:
        with pytest.raises(ValueError, match=f"batch_size {batch_size} is larger than the share"):
            ddp_common.check_share(world_size, batch_size, repeat)


class FirstFeature(torch.nn.Module):
    """Predicts class 1 where the first feature is positive."""

    def forward(self, x):
        return torch.stack([-x[:, 0], x[:, 0]], dim=1)


def loader_of(*pairs, batch_size=2):
    features, labels = torch.tensor([[float(first), 9.0] for first, _ in pairs]), torch.tensor([label for _, label in pairs])
    return DataLoader(ddp_common.ToyDataset(features, labels), batch_size=batch_size)


def test_accuracy_counts_examples_not_batches():
    loader = loader_of((1, 1), (-1, 0), (1, 0), batch_size=2)  # batches: 2 of 2 right, 0 of 1 right
    assert ddp_common.compute_accuracy(FirstFeature(), loader, torch.device("cpu")) == pytest.approx(2 / 3)


def test_accuracy_of_nothing_is_an_error():
    loader = loader_of((1, 1))
    loader.dataset.features, loader.dataset.labels = torch.zeros(0, 2), torch.zeros(0)
    with pytest.raises(ValueError, match="no examples"):
        ddp_common.compute_accuracy(FirstFeature(), loader, torch.device("cpu"))


def test_accuracy_is_taken_in_eval_mode():
    model = torch.nn.Sequential(FirstFeature(), torch.nn.Dropout(1.0))
    assert ddp_common.compute_accuracy(model, loader_of((1, 1), (2, 1)), torch.device("cpu")) == 1.0


def test_one_process_learns_both_sets(group_of_one, capsys):
    assert ddp_common.train_process(torch.device("cpu"), 3, ddp_common.DEFAULTS) == 1.0
    out = capsys.readouterr().out
    assert "training 1.00, test 1.00" in out and out.count("accuracy") == 1
    losses = [float(loss) for loss in re.findall(r"mean loss ([\d.]+)", out)]
    assert len(losses) == 3 and losses[0] > 2 * losses[2]


def test_each_epoch_deals_the_points_out_anew(group_of_one, capsys):
    ddp_common.train_process(torch.device("cpu"), 5, ddp_common.DEFAULTS)
    orders = re.findall(r"points (\[.*?\])", capsys.readouterr().out)
    assert len(orders) == 5 and len(set(orders)) >= 4


@pytest.mark.parametrize("name, gpus, local_rank, processes, expected", [
    ("auto", 0, 1, 2, "cpu"), ("cpu", 2, 1, 2, "cpu"), ("auto", 2, 1, 2, "cuda:1"), ("cuda", 4, 3, 4, "cuda:3"),
    ("cuda", 0, 0, 1, None), ("auto", 1, 0, 2, None), ("cuda", 2, 0, 3, None),
])  # fmt: skip
def test_each_process_has_a_gpu_of_its_own_or_the_cpu(monkeypatch, name, gpus, local_rank, processes, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    if expected:
        assert str(ddp_common.choose_device(name, local_rank, processes)) == expected
    else:
        with pytest.raises(ValueError, match=f"{gpus} GPUs visible"):
            ddp_common.choose_device(name, local_rank, processes)


def test_nccl_is_for_gpus(monkeypatch):
    cpu, gpu = torch.device("cpu"), torch.device("cuda", 0)
    monkeypatch.setattr(dist, "is_nccl_available", lambda: True)
    assert ddp_common.choose_backend("auto", gpu) == "nccl" and ddp_common.choose_backend("auto", cpu) == "gloo"
    assert ddp_common.choose_backend("gloo", gpu) == "gloo"
    with pytest.raises(ValueError, match="needs NVIDIA GPUs"):
        ddp_common.choose_backend("nccl", cpu)
    monkeypatch.setattr(dist, "is_nccl_available", lambda: False)  # as on Windows
    assert ddp_common.choose_backend("auto", gpu) == "gloo"


# ---- bad calls: one line, exit code 2 ----


@pytest.mark.parametrize("options, message", [
    (["--num_epochs", "0"], "too small"),
    (["--batch_size", "six"], "not a whole number"),
    (["--batch_size", "3", "--world_size", "2"], "batch_size 3 is larger than the share"),
    (["--backend", "nccl"], "nccl needs"),
    (["--backend", "mpi"], "invalid choice"),
    (["--device", "mps"], "invalid choice"),
    (["--device", "cpu", "--port", "65536"], "the largest is 65535"),
])  # fmt: skip
def test_a_bad_call_ends_in_one_line(options, message, capsys):
    options = options if "--device" in options else [*options, *CPU]
    with pytest.raises(SystemExit) as stop:
        SPAWN.command_line(options)
    err = capsys.readouterr().err
    assert stop.value.code == 2 and message in err and err.count("\n") == 1


def test_a_port_in_use_is_named(capsys):
    taken = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    with pytest.raises(SystemExit) as stop:
        SPAWN.command_line([*CPU, "--port", str(taken.port)])
    err = capsys.readouterr().err
    assert stop.value.code == 2 and f"port {taken.port} cannot be opened" in err and err.count("\n") == 1


def test_more_processes_than_gpus_end_in_one_line(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(SystemExit) as stop:
        SPAWN.command_line(["--world_size", "2"])
    err = capsys.readouterr().err
    assert stop.value.code == 2 and "1 GPUs visible" in err and err.count("\n") == 1


def test_without_torchrun_one_line_says_how_to_start(monkeypatch, capsys):
    for name in TORCHRUN.VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(SystemExit) as stop:
        TORCHRUN.command_line(CPU)
    err = capsys.readouterr().err
    assert stop.value.code == 2 and err.count("\n") == 1
    assert "WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT not set" in err and "torchrun --nproc_per_node=2" in err


def torchrun_variables(monkeypatch, rank, world_size):
    values = {"WORLD_SIZE": world_size, "RANK": rank, "LOCAL_RANK": 0, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": 1}
    for name, value in values.items():
        monkeypatch.setenv(name, str(value))


def test_of_all_torchrun_processes_only_rank_0_explains_a_bad_call(monkeypatch, capsys):
    torchrun_variables(monkeypatch, 1, 2)
    assert TORCHRUN.command_line([*CPU, "--batch_size", "3"]) == 2
    assert capsys.readouterr().err == ""
    torchrun_variables(monkeypatch, 0, 2)
    with pytest.raises(SystemExit) as stop:
        TORCHRUN.command_line([*CPU, "--batch_size", "3"])
    err = capsys.readouterr().err
    assert stop.value.code == 2 and "larger than the share" in err and err.count("\n") == 1


def test_a_failing_torchrun_process_says_so_in_one_line(monkeypatch, capsys):
    def fail(*arguments):
        raise OSError("no space left\nsecond line")

    torchrun_variables(monkeypatch, 1, 2)
    monkeypatch.setattr(TORCHRUN, "main", fail)
    assert TORCHRUN.command_line(CPU) == 1
    assert capsys.readouterr().err.split("error: ")[1] == "rank 1 failed: OSError: no space left\n"


@pytest.mark.parametrize("script", [SPAWN, TORCHRUN], ids=["spawn", "torchrun"])
def test_a_process_leaves_its_group_also_after_an_error(monkeypatch, script):
    def join(*arguments):
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
        return torch.device("cpu")

    def fail(*arguments):
        raise ZeroDivisionError

    class Nowhere:
        def compare_set(self, *arguments):
            pass

    monkeypatch.setattr(script, "ddp_setup", join)
    monkeypatch.setattr(script, "train_process", fail)
    monkeypatch.setattr(script, "meeting_point", Nowhere, raising=False)
    with pytest.raises(ZeroDivisionError):
        script.main(0, 1, 1)
    assert not dist.is_initialized()


def test_both_scripts_offer_the_four_parts():
    for script in (SPAWN, TORCHRUN):
        assert script.prepare_dataset is ddp_common.prepare_dataset and script.compute_accuracy is ddp_common.compute_accuracy
        assert callable(script.ddp_setup) and callable(script.main)


# ---- several processes ----


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    """What two processes wrote down in three epochs of one batch each, and what they printed."""
    folder = tmp_path_factory.mktemp("records")
    status, out, err = finish(start("tests/ddp_probe.py", folder, "record", "--world_size", 2, *CPU))
    assert (status, err) == (0, [])
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in (0, 1)], out


def fresh_network():
    torch.manual_seed(123)
    return ddp_common.NeuralNetwork(2, 2)


@pytest.mark.slow
def test_all_processes_start_from_the_weights_of_the_seed(two_processes):
    expected = fresh_network().state_dict()
    for record in two_processes[0]:
        assert all(torch.equal(record["start"][name], expected[name]) for name in expected)


@pytest.mark.slow
def test_the_processes_see_different_points_in_every_epoch(two_processes):
    shares = [[epoch["points"] for epoch in record["epochs"]] for record in two_processes[0]]
    for first, second in zip(*shares):
        assert len(first) == len(second) == 2 and not set(first) & set(second)
    assert len({tuple(share) for share in shares[0]}) == 3


@pytest.mark.slow
def test_gradients_and_weights_are_those_of_one_process_on_the_joined_batch(two_processes):
    records, _ = two_processes
    model = fresh_network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    X, y = torch.tensor(ddp_common.TRAIN_POINTS), torch.tensor(ddp_common.TRAIN_LABELS)
    for epochs in zip(*(record["epochs"] for record in records)):
        joined = [point for epoch in epochs for point in epoch["points"]]
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(X[joined]), y[joined]).backward()
        optimizer.step()
        for name, weight in model.named_parameters():
            for epoch in epochs:
                torch.testing.assert_close(epoch["gradients"][name], weight.grad, atol=1e-6, rtol=1e-4)
                torch.testing.assert_close(epoch["weights"][name], weight.detach(), atol=1e-6, rtol=1e-4)


@pytest.mark.slow
def test_accuracy_is_that_of_all_processes_even_if_one_has_no_example(two_processes):
    for record in two_processes[0]:
        assert record["accuracies"] == pytest.approx([2 / 3, 1.0])


@pytest.mark.slow
def test_the_common_result_is_printed_once(two_processes):
    out = two_processes[1]
    assert sum(line.startswith("accuracy of all processes together: training 1.00, test 1.00") for line in out) == 1
    assert len(out) == 1 + 2 * (1 + 3)
    assert len({line.split("together ")[1] for line in out if " of 2: cpu, gloo" in line}) == 1


@pytest.mark.slow
def test_the_readme_shows_what_two_processes_print(two_processes):
    readme = (CODE / "README.md").read_text(encoding="utf-8")
    shown = re.search(r"```text\n(rank 0.*?)```", readme, flags=re.DOTALL)[1].splitlines()
    assert sorted(shown) == sorted(two_processes[1])


def test_the_commands_of_the_readme_are_those_that_tests_run():
    readme = (CODE / "README.md").read_text(encoding="utf-8")
    assert re.findall(r"```bash\n(.*?)\n```", readme, flags=re.DOTALL) == [
        "python DDP-script.py",
        "python DDP-script.py --world_size 2 --device cpu",
        "torchrun --nproc_per_node=2 DDP-script-torchrun.py",
        "CUDA_VISIBLE_DEVICES=0,2 torchrun --nproc_per_node=2 DDP-script-torchrun.py",
    ]


@pytest.mark.slow
def test_a_failing_process_ends_the_run_with_one_line(tmp_path):
    status, _, err = finish(start("tests/ddp_probe.py", tmp_path, "fail", "--world_size", 2, *CPU))
    assert status == 1
    assert err == ["ddp_probe.py: error: rank 1 failed: ValueError: the disk is full; the other processes were ended"]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL")
def test_a_killed_process_ends_the_run_with_one_line(tmp_path):
    status, _, err = finish(start("tests/ddp_probe.py", tmp_path, "kill", "--world_size", 2, *CPU))
    assert status == 1 and len(err) == 1 and "process 1 terminated with signal SIGKILL" in err[0]


@pytest.mark.slow
def test_two_runs_side_by_side_do_not_meet():
    outputs = [finish(run) for run in [start("DDP-script.py", *CPU) for _ in range(2)]]
    assert outputs[0] == outputs[1] and outputs[0][0] == 0 and outputs[0][2] == []
    assert outputs[0][1][-1] == "accuracy of all processes together: training 1.00, test 1.00"


@pytest.mark.slow
def test_torchrun_starts_the_same_training(two_processes):
    arguments = ["-m", "torch.distributed.run", "--nproc_per_node=2", "DDP-script-torchrun.py", *CPU]
    status, out, err = finish(start(*arguments, CUDA_VISIBLE_DEVICES="0,2"))
    assert (status, [line for line in err if "error" in line.lower()]) == (0, [])
    assert sorted(out) == sorted(two_processes[1])


@pytest.mark.slow
def test_on_two_machines_the_global_rank_deals_the_data():
    """Two processes with local rank 0 each, as on two machines with one process each."""
    meeting = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(meeting.port), "TORCHELASTIC_USE_AGENT_STORE": "True"}
    shared = {"WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1", **where}
    runs = [start("DDP-script-torchrun.py", "--num_epochs", 1, *CPU, RANK=str(rank), **shared) for rank in (0, 1)]
    (status_0, out_0, _), (status_1, out_1, _) = [finish(run) for run in runs]
    assert status_0 == status_1 == 0 and out_0[0].startswith("rank 0 of 2") and out_1[0].startswith("rank 1 of 2")
    shares = [re.search(r"points \[(\d), (\d)\]", out[1]).groups() for out in (out_0, out_1)]
    assert not set(shares[0]) & set(shares[1])
