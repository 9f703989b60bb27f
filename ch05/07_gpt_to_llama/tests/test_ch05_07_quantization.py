"""quantize.py against loops and against GGUF's formats; quantization_experiment.py; the committed log."""

import json
import re
import subprocess
import sys
from pathlib import Path

import gguf
import nbformat
import numpy as np
import pytest
import quantization_experiment
import quantize
import torch
from previous_chapters import MODELS_DIR, GPTModel, find_mini
from quantize import dequantize, relative_error, round_trip, round_trip_gguf, round_trip_super_block, stored_bits

FOLDER = Path(quantize.__file__).parent
LOG = json.loads((FOLDER / "quantization.json").read_text(encoding="utf-8"))


@pytest.fixture
def weight():
    return torch.randn(24, 512, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
@pytest.mark.parametrize("with_minimum", [False, True])
def test_quantizing_equals_a_loop_over_blocks_and_weights(weight, bits, with_minimum):
    q, scale, minimum = quantize.quantize(weight, bits, with_minimum)
    rows = weight.reshape(-1, 32).tolist()
    for i, row in enumerate(rows[:40]):
        low = float(np.float16(min(row))) if with_minimum else 0.0
        steps = 2**bits - 1 if with_minimum else 2 ** (bits - 1) - 1
        step = float(np.float16(np.float32((max(row) - low) if with_minimum else max(map(abs, row))) / np.float32(steps)))
        for j, value in enumerate(row):
            exact = (value - low) / step
            assert q[i, j] == min(max(round(exact), 0 if with_minimum else -steps), steps) or abs(abs(exact % 1) - 0.5) < 1e-4
        assert scale[i, 0] == pytest.approx(step)
    assert (minimum is None) is (not with_minimum)
    assert torch.equal(round_trip(weight, bits, with_minimum), dequantize(q, scale, minimum, weight.shape))


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("with_minimum", [False, True])
def test_no_weight_moves_further_than_half_a_step(weight, bits, with_minimum):
    _, scale, _ = quantize.quantize(weight, bits, with_minimum)
    moved = (round_trip(weight, bits, with_minimum) - weight).reshape(-1, 32).abs()
    assert torch.all(moved <= 0.5 * scale * 1.01 + 2e-3 * weight.abs().max())


def test_8_bits_symmetric_is_q8_0_and_4_bits_with_minimum_is_q4_1(weight):
    """ggml divides by a float32 scale and stores it as float16; we divide by the stored one. A rounding apart, it is the same."""
    for kind, bits, with_minimum in (("Q8_0", 8, False), ("Q4_1", 4, True), ("Q5_1", 5, True)):
        theirs, ours = round_trip_gguf(weight, kind), round_trip(weight, bits, with_minimum)
        assert (theirs == ours).float().mean() > 0.8 and quantize.gguf_bits(kind) == stored_bits(bits, with_minimum)
        assert relative_error(weight, ours) == pytest.approx(relative_error(weight, theirs), rel=0.02)


def test_weights_on_a_grid_of_4_bits_survive_4_bits_with_a_minimum_and_no_symmetric_scale():
    kind = gguf.GGMLQuantizationType.Q4_1
    weight = torch.randn(8, 256, generator=torch.Generator().manual_seed(2))
    grid = torch.from_numpy(gguf.dequantize(gguf.quantize(weight.numpy(), kind), kind).copy())
    assert relative_error(grid, round_trip(grid, 4, True)) < 2e-3 < 0.05 < relative_error(grid, round_trip(grid, 4))


def test_each_bit_halves_the_error_and_smaller_blocks_help(weight):
    for with_minimum in (False, True):
        errors = [relative_error(weight, round_trip(weight, bits, with_minimum)) for bits in range(3, 9)]
        assert all(1.8 < before / after < 2.5 for before, after in zip(errors, errors[1:], strict=False))
    errors = [relative_error(weight, round_trip(weight, 4, block=block)) for block in (16, 32, 256, weight.numel())]
    assert errors == sorted(errors) and errors[3] > 1.5 * errors[0]


def test_a_super_block_is_hardly_worse_than_full_scales_and_half_a_bit_smaller(weight):
    ours, full = round_trip_super_block(weight), round_trip(weight, 4, with_minimum=True)
    assert relative_error(weight, full) < relative_error(weight, ours) < 1.05 * relative_error(weight, full)
    assert quantize.gguf_bits("Q4_K") == 4.5 and stored_bits(4, with_minimum=True) == 5.0
    for block, row in zip(ours.reshape(-1, 8, 32), weight.reshape(-1, 8, 32), strict=True):  # at most 16 values in a group of 32
        assert all(len(group.unique()) <= 16 for group in block) and (block - row).abs().max() < 0.4
    positive = weight.abs() + 1  # the minimum of a super-block is at most 0, so the steps reach down to it
    assert torch.allclose(round_trip_super_block(positive), positive, atol=0.2)


def test_constant_and_zero_blocks_survive():
    for value in (0.0, 0.5, -0.25):
        weight = torch.full((2, 256), value)
        for rounded in (round_trip(weight, 4), round_trip(weight, 4, True), round_trip_super_block(weight)):
            assert torch.isfinite(rounded).all() and torch.allclose(rounded, weight, atol=1e-3)


def test_sizes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="33 weights in blocks of 32"):
        round_trip(torch.ones(33), 4)
    for bits in (1, 9):
        with pytest.raises(ValueError, match=f"at {bits} bits"):
            round_trip(torch.ones(32), bits)
    with pytest.raises(ValueError, match="super-blocks of 256"):
        round_trip_super_block(torch.ones(2, 32))


def test_matrices_are_replaced_in_place_and_their_common_error_is_returned():
    one, two = (torch.nn.Parameter(torch.randn(4, 64, generator=torch.Generator().manual_seed(seed))) for seed in (3, 4))
    before = torch.cat([one.detach().clone(), two.detach().clone()])
    error = quantize.quantize_matrices({"one": one, "two": two}, lambda w: round_trip(w, 3))
    assert torch.equal(one, round_trip(before[:4], 3)) and error == pytest.approx(relative_error(before, torch.cat([one, two]).detach()))


# ---- the experiment ----

CFG = {"vocab_size": 90, "context_length": 256, "emb_dim": 32, "n_heads": 2, "n_layers": 1, "drop_rate": 0.0, "qkv_bias": False}


@pytest.fixture
def tiny(monkeypatch):
    """A random GPT in the place of gpt2-mini."""

    def load():
        torch.manual_seed(5)
        model = GPTModel(CFG).eval()
        matrices = {name: parameter for name, parameter in model.named_parameters() if parameter.dim() == 2}
        return model, matrices, 1000, torch.randint(90, (700,)).tolist(), "random"

    monkeypatch.setitem(quantization_experiment.LOADERS, "gpt2-mini", load)


def test_the_loss_is_the_one_of_a_loop_over_tokens():
    torch.manual_seed(6)
    model, ids = GPTModel({**CFG, "context_length": 8}).eval(), torch.randint(90, (20,))
    losses = quantization_experiment.token_losses(model, ids, window=8)
    assert losses.shape == (16,)
    for i, loss in enumerate(losses):
        start = i // 8 * 8
        with torch.no_grad():
            log_probs = torch.log_softmax(model(ids[None, start : i + 1])[0, -1], dim=0)
        assert loss.item() == pytest.approx(-log_probs[ids[i + 1]].item(), abs=1e-5)
    with pytest.raises(ValueError, match="8 tokens are less than a window of 8"):
        quantization_experiment.token_losses(model, ids[:8], window=8)


def test_the_program_writes_a_log_and_gives_each_way_the_models_own_weights(tiny, tmp_path, capsys):
    arguments = ["--models", "gpt2-mini", "--device", "cpu", "--max_tokens", "256", "--output"]
    quantization_experiment.main([*arguments, str(tmp_path / "all.json")])
    assert "with minimum" in capsys.readouterr().out
    quantization_experiment.main([*arguments, str(tmp_path / "one.json"), "--bits", "3"])
    runs, alone = (json.loads((tmp_path / name).read_text())["models"]["gpt2-mini"]["runs"] for name in ("all.json", "one.json"))
    assert [run["way"] for run in runs[:3]] == ["float16", "symmetric", "with minimum"]
    assert runs[0]["above"] == runs[0]["relative_error"] == 0
    assert len(runs) == 1 + 2 * 6 + 5
    for run in alone:
        assert run in runs  # the order of the ways changes nothing
    assert runs[1]["bytes"] < runs[0]["bytes"] and sorted(path.name for path in tmp_path.iterdir()) == ["all.json", "one.json"]


@pytest.mark.parametrize("arguments, message", [
    (["--output", "nowhere/x.json"], "does not exist"), (["--output", "x.json", "--bits", "9"], "invalid choice: 9"),
    (["--output", "x.json", "--max_tokens", "10"], "10 is too small"), (["--output", "x.json", "--models", "gpt5"], "invalid choice"),
    ([], "--output"),
])
def test_bad_settings_end_in_one_line(arguments, message, capsys):
    with pytest.raises(SystemExit) as stop:
        quantization_experiment.main(arguments)
    error = capsys.readouterr().err
    assert stop.value.code == 2 and message in error and len(error.splitlines()) == 1


def test_missing_weights_end_in_one_line(monkeypatch, tmp_path, capsys):
    def missing():
        raise FileNotFoundError("gpt2-mini is not on this machine")

    monkeypatch.setitem(quantization_experiment.LOADERS, "gpt2-mini", missing)
    with pytest.raises(SystemExit) as stop:
        quantization_experiment.main(["--models", "gpt2-mini", "--output", str(tmp_path / "x.json")])
    assert stop.value.code == 2 and "not on this machine" in capsys.readouterr().err and not list(tmp_path.iterdir())


@pytest.mark.slow
def test_gpt2_mini_gives_the_numbers_of_the_committed_log(tmp_path):
    """The first 256 tokens of the same text, at 4 bits: the sizes exactly, the errors to four digits."""
    try:
        find_mini(MODELS_DIR)
    except ValueError as reason:
        pytest.skip(str(reason))
    command = [sys.executable, str(FOLDER / "quantization_experiment.py"), "--models", "gpt2-mini", "--bits", "4", "--max_tokens", "256"]
    subprocess.run([*command, "--output", str(tmp_path / "x.json")], check=True, capture_output=True)
    runs = json.loads((tmp_path / "x.json").read_text(encoding="utf-8"))["models"]["gpt2-mini"]["runs"]
    known = {run["way"] + str(run["bits"]): run for run in LOG["models"]["gpt2-mini"]["runs"]}
    assert len(runs) == 5
    for run in runs:
        logged = known[run["way"] + str(run["bits"])]
        assert (run["bytes"], run["bits_per_weight"]) == (logged["bytes"], logged["bits_per_weight"])
        assert run["relative_error"] == pytest.approx(logged["relative_error"], abs=1e-4) and abs(run["above"]) < 0.3


def test_the_committed_log_is_whole():
    mini, smollm2 = (LOG["models"][name] for name in ("gpt2-mini", "smollm2"))
    assert {(run["way"], run["bits"]) for run in mini["runs"]} == {(way, bits) for way, bits, _, _ in quantization_experiment.ways_for(
        "gpt2-mini", [8, 6, 5, 4, 3, 2])}
    assert len(smollm2["runs"]) == 7 and smollm2["tokens"] > 4000 and mini["tokens"] == 8192
    for model in (mini, smollm2):
        for run in model["runs"]:
            assert run["loss"] - model["runs"][0]["loss"] == pytest.approx(run["above"], abs=2e-4)
            others = model["runs"][0]["bytes"] - model["quantized"] * model["runs"][0]["bits_per_weight"] / 8
            assert run["bytes"] == pytest.approx(model["quantized"] * run["bits_per_weight"] / 8 + others, abs=2)
    assert smollm2["parameters"] == 134_515_008 and smollm2["quantized"] == 106_168_320


# ---- the notebook ----


def exercises():
    """(check, answer) of each exercise, as the text blocks of the last cell have them."""
    text = nbformat.read(FOLDER / "quantization.ipynb", as_version=4).cells[-1].source.split("### Exercise")[1:]
    blocks = [re.findall(r"```text\n(.*?)```", exercise, flags=re.S) for exercise in text]
    assert len(blocks) == 3 and all(len(pair) == 2 for pair in blocks)
    return [tuple(pair) for pair in blocks]


@pytest.mark.slow
def test_the_answers_of_the_exercises_pass_their_checks_and_wrong_ones_do_not():
    try:
        model, matrices, _, ids, _ = quantization_experiment.load_mini()
    except ValueError as reason:
        pytest.skip(str(reason))
    originals = {name: matrix.detach().clone() for name, matrix in matrices.items()}
    weight, token_ids = originals["trf_blocks.0.ff.layers.2.weight"], torch.tensor(ids[:513])
    losses = {"float16": quantization_experiment.token_losses(model, token_ids).mean().item()}
    names = {**vars(quantize), **locals(), "token_losses": quantization_experiment.token_losses}
    for check, answer in exercises():
        exec(answer, names)
        exec(check, names)
    pack, clipped = names["pack_q4_1"], names["round_trip_clipped"]
    wrong_answers = [
        (0, {"pack_q4_1": lambda w: pack(w)[4:] + pack(w)[:4]}),  # scale and minimum after the numbers
        (1, {"round_trip_clipped": round_trip}), (1, {"round_trip_clipped": lambda w, bits: 0.5 * clipped(w, bits)}),
        (2, {"loss_of": dict.fromkeys(("emb", "att", "ff"), 5.0) | {"ff": 6.0}}),
        (2, {"loss_of": {"emb": 5.0, "att": 1.0, "ff": 4.5}}),
    ]
    for number, wrong in wrong_answers:
        with pytest.raises(AssertionError), np.errstate(invalid="ignore"):
            exec(exercises()[number][0], {**names, **wrong})
