"""FLOPs by formula, counter and weights; device names, utilization, bisection, timing; the command line and the README."""

import re
import time
from pathlib import Path

import flops
import pytest
import torch
from flops import forward_flops_per_token, largest_batch, mfu, model_of_name, training_bytes, training_flops_per_token
from previous_chapters import GPT_CONFIG_124M, MODEL_SIZES, GPTModel

PAGE = (Path(flops.__file__).parent / "README.md").read_text(encoding="utf-8")
CPU = torch.device("cpu")
SMALL = {**GPT_CONFIG_124M, "qkv_bias": True}
TINY = {**SMALL, "vocab_size": 101, "context_length": 16, "emb_dim": 24, "n_heads": 3, "n_layers": 2}


@pytest.mark.parametrize(
    ("name", "linear", "percent"),
    [("small", 247_064_064, 15.3), ("medium", 706_906_112, 14.2), ("large", 1_544_235_520, 12.2), ("xl", 3_109_942_400, 10.1)],
)
def test_the_four_sizes_have_the_known_counts(name, linear, percent):
    parts = forward_flops_per_token({**SMALL, **MODEL_SIZES[f"gpt2-{name}"]}, 1024)
    products = parts.pop("attention products")
    assert sum(parts.values()) == linear and round(100 * products / linear, 1) == percent


@pytest.mark.parametrize("bias", [True, False])
def test_formula_counter_and_weights_agree(bias):
    cfg = {**TINY, "qkv_bias": bias}
    parts = forward_flops_per_token(cfg, 20)  # longer than the context of cfg, which must not change
    formula, counted = 3 * 20 * sum(parts.values()), flops.count_flops(cfg, 3, 20)
    assert formula == counted and flops.count_flops(cfg, 3, 20, backward=True) == 3 * counted
    assert training_flops_per_token(cfg, 20) * 60 == 3 * counted and cfg == {**TINY, "qkv_bias": bias}
    weights = sum(layer.weight.numel() for layer in GPTModel(cfg).modules() if isinstance(layer, torch.nn.Linear))
    assert sum(parts.values()) - parts["attention products"] == 2 * weights
    assert parts["attention products"] == 2 * 3 * (20 * 20 * 8 * 2) * 2 // 20  # layers, heads, scores and sums, 2 each, per token


def test_the_full_size_agrees_with_the_counter():
    assert flops.count_flops(SMALL, 2, 1024) == 2 * 1024 * sum(forward_flops_per_token(SMALL, 1024).values())


@pytest.mark.parametrize(
    ("device_name", "model"),
    [
        ("NVIDIA A100-SXM4-80GB", "A100"), ("NVIDIA_A100_80GB_PCIe", "A100"), ("NVIDIA H100 80GB HBM3", "H100 SXM"),
        ("NVIDIA H100 PCIe", "H100 PCIe"), ("NVIDIA H100 NVL", None), ("NVIDIA L4", "L4"), ("NVIDIA L40", None), ("NVIDIA L40S", None),
        ("Tesla T4", "T4"), ("NVIDIA A10G", "A10G"), ("NVIDIA A10", None), ("NVIDIA GeForce RTX 3090", "RTX 3090"),
        ("nvidia_geforce_rtx_3090", "RTX 3090"), ("NVIDIA GeForce RTX 3090 Ti", None), ("", None),
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", None),
    ],
)  # fmt: skip
def test_a_name_finds_its_gpu_by_whole_words(device_name, model, monkeypatch):
    assert model_of_name(device_name, flops.flops_per_second) == model
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: device_name)
    assert flops.get_gpu_model(flops.flops_per_second) == model
    assert model_of_name(device_name, {"RTX_3090": 1}) == ("RTX_3090" if model == "RTX 3090" else None)


def test_without_a_gpu_there_is_no_gpu_model(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert flops.get_gpu_model(flops.flops_per_second) is None


def test_the_readme_names_the_peaks_of_the_table():
    found = dict(flops.flops_per_second)
    for line in re.findall(r"^\| (\w[^|]*) \| ([\d, ]+) \| .*(?:https|A10)", PAGE, re.MULTILINE):
        for name, tera in zip(line[0].split(", "), line[1].split(", "), strict=True):
            assert set(found.pop(name).values()) == {float(tera) * 1e12}
    assert found == {} and torch.bfloat16 not in flops.flops_per_second["T4"]


def test_utilization_and_hours_undo_each_other_and_too_much_is_refused():
    share = mfu(150_000, training_flops_per_token(SMALL, 1024), 312e12)
    assert share == pytest.approx(150_000 * 854_438_400 / 312e12)
    seconds = 3600 * flops.training_hours(854_438_400 * 150_000, 312e12, share)
    assert seconds == pytest.approx(1)
    assert mfu(1, 5, 5) == 1
    with pytest.raises(ValueError, match="1.28e\\+14 FLOP/s are more than the peak of 7.8e\\+13"):
        mfu(150_000, 854_438_400, 78e12)


def test_the_peak_is_the_fastest_product_and_warms_up(monkeypatch):
    clock = iter([0, 1, 10, 14, 20, 22, 30, 38])  # seconds: 1 (the first, thrown away), 4, 2, 8
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))
    assert flops.measure_peak(CPU, torch.bfloat16, size=8, repeats=3) == 2 * 8**3 / 2


def test_a_step_is_timed_without_its_first(monkeypatch):
    clock = iter([0, 100, 200, 203, 300, 301, 400, 402])  # seconds: 100, 3, 1, 2
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))
    before = dict(TINY)
    assert flops.seconds_per_step(TINY, 2, 20, CPU, torch.float32, steps=3) == 2 and before == TINY


@pytest.mark.parametrize("limit", [1, 2, 7, 64, 100])
def test_bisection_finds_the_border_in_few_tries(limit):
    for border in range(limit + 3):
        tried = []
        assert largest_batch(lambda n, border=border, tried=tried: tried.append(n) or n <= border, limit) == min(border, limit)
        assert len(tried) == len(set(tried)) <= 2 * limit.bit_length() + 1 and all(1 <= n <= limit for n in tried)


def test_bytes_of_a_step_are_those_that_a_real_step_keeps():
    model, kept = GPTModel({**TINY, "drop_rate": 0.0}), {}
    own = {tensor.untyped_storage().data_ptr() for tensor in [*model.parameters(), *model.buffers()]}

    def note(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        loss = flops.batch_loss(model, torch.randint(101, (3, 16)))
    real = sum(storage.nbytes() for address, storage in kept.items() if address not in own)
    assert training_bytes(TINY, 3, 16) == real + 16 * sum(parameter.numel() for parameter in model.parameters())
    assert loss.isfinite() and training_bytes(TINY, 5, 16) > training_bytes(TINY, 4, 16) and TINY["drop_rate"] == 0.1


@pytest.mark.parametrize("text", ["CUDA out of memory. Tried", "CUDA error: Out Of Memory", "DefaultCPUAllocator: can't allocate memory"])
def test_lack_of_memory_means_no_and_other_errors_pass(text, monkeypatch):
    def fail(*args, **kwargs):
        raise RuntimeError(text)

    monkeypatch.setattr(flops, "seconds_per_step", fail)
    assert flops.step_fits(TINY, 1, 16, CPU, torch.float32) is False
    text = "mat1 and mat2 shapes cannot be multiplied"
    with pytest.raises(RuntimeError, match="mat1"):
        flops.step_fits(TINY, 1, 16, CPU, torch.float32)
    monkeypatch.undo()
    assert flops.step_fits(TINY, 1, 16, CPU, torch.float32)


def test_the_command_of_the_readme_prints_what_stands_there(monkeypatch, capsys):
    command = re.search(r"^python flops.py (.*)$", PAGE, re.MULTILINE)[1].split()
    monkeypatch.setattr(flops, "seconds_per_step", lambda *args: 2.0)
    monkeypatch.setattr(flops, "measure_peak", lambda *args: 985e9)
    assert flops.main([*command, "--device", "cpu"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "\n".join(lines[:6]) in PAGE and "MFU: 0.10 of 985 GFLOP/s (measured, product of two 1024 x 1024 matrices)" == lines[-1]


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_a_small_model_runs_in_earnest(dtype, monkeypatch, capsys):
    monkeypatch.setitem(MODEL_SIZES, "tiny", {"emb_dim": 16, "n_layers": 1, "n_heads": 2})
    arguments = ["--model_name", "tiny", "--batch_size", "2", "--seq_len", "8", "--dtype", dtype, "--device", "cpu"]
    assert flops.main([*arguments, "--peak", "9e17", "--steps", "1"]) == 0
    assert "MFU: 0.00 of 900,000,000 GFLOP/s (given)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "no data-sheet peak known for cpu in fp32: give --peak"),
        (["--peak", "fast"], "'fast' is neither `measure` nor a number"),
        (["--peak", "nan"], "'nan' is neither"),
        (["--peak", "312"], "'312' is neither"),
        (["--batch_size", "0"], "0 is too small"),
        (["--batch_size", "largest", "--peak", "1e12"], "needs a GPU"),
        (["--seq_len", "x"], "'x' is not a whole number"),
        (["--model_name", "gpt3"], "gpt3"),
        (["--dtype", "fp8"], "fp8"),
        (["--device", "tpu"], "tpu"),
        (["--peak", "1e6", "--model_name", "tiny", "--seq_len", "8", "--steps", "1"], "MFU above 1"),
    ],
)
def test_bad_input_ends_in_one_line(options, message, monkeypatch, capsys):
    monkeypatch.setitem(MODEL_SIZES, "tiny", {"emb_dim": 16, "n_layers": 1, "n_heads": 2})
    with pytest.raises(SystemExit) as stop:
        flops.main([*([] if "--device" in options else ["--device", "cpu"]), *options])
    lines = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("device:")]
    assert stop.value.code == 2 and len(lines) == 1 and message in lines[0]


def test_an_unknown_gpu_is_asked_for_its_peak_and_a_known_one_is_not(monkeypatch, capsys):
    parser, cuda = flops.OneLineParser("test"), torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Tesla T4")
    assert flops.chosen_peak(parser, None, cuda, "fp16") == (65e12, "data sheet of T4")
    with pytest.raises(SystemExit):
        flops.chosen_peak(parser, None, cuda, "bf16")
    assert "no data-sheet peak known for Tesla T4 in bf16" in capsys.readouterr().err
