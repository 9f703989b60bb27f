"""rope_scaling_experiment.py: each rule against its formula, the measuring against a plain loop, and the log against the text."""

import json
import math

import llama
import pytest
import rope_scaling_experiment as experiment
import torch
import torch.nn.functional as F
from rope_scaling_experiment import BIN, FACTOR, METHODS, byte_config, loss_by_position, scaled_frequencies, use_frequencies

SHAPE = (32, 10_000.0, 128, 4)  # head_dim, base, trained length, factor
LOG = json.loads((experiment.Path(experiment.__file__).with_name("rope-scaling.json")).read_text(encoding="utf-8"))


def test_linear_scaling_gives_position_4n_the_angles_of_position_n():
    theta, slowed = scaled_frequencies("none", *SHAPE), scaled_frequencies("linear", *SHAPE)
    assert theta.tolist() == pytest.approx([10_000 ** (-2 * i / 32) for i in range(16)])
    assert torch.allclose(4 * torch.arange(100)[:, None] * slowed, torch.arange(100)[:, None] * theta)


@pytest.mark.parametrize("head_dim", [8, 32, 128])
def test_the_larger_base_keeps_the_fastest_pair_and_slows_the_slowest_by_the_factor(head_dim):
    ratio = scaled_frequencies("ntk", head_dim, 10_000.0, 128, 4) / scaled_frequencies("none", head_dim, 10_000.0, 128, 4)
    assert ratio[0] == 1 and ratio[-1].item() == pytest.approx(1 / 4, rel=1e-4) and (ratio.diff() < 0).all()


def test_llama_3s_rule_is_the_one_of_llama_py():
    freq = {"factor": 4, "low_freq_factor": 1, "high_freq_factor": 4, "original_context_length": 128}
    cos, sin = llama.compute_rope_params(32, 10_000.0, 2, freq)
    assert torch.allclose(torch.atan2(sin[1, :16], cos[1, :16]), scaled_frequencies("llama3", *SHAPE), atol=1e-6)


def test_an_unknown_rule_is_named():
    with pytest.raises(ValueError, match="unknown method yarn: choose one of none, linear"):
        scaled_frequencies("yarn", *SHAPE)


@torch.no_grad()
def test_using_the_trained_frequencies_changes_nothing_and_slower_ones_do():
    model = llama.Llama3Model(byte_config(16)).eval()
    ids, shape = torch.randint(0, 256, (1, 64)), (32, 10_000.0, 16, 4)
    expected = model(ids)
    use_frequencies(model, scaled_frequencies("none", *shape))
    assert torch.allclose(model(ids), expected, atol=1e-5)
    use_frequencies(model, scaled_frequencies("linear", *shape))
    assert torch.allclose(model(ids)[:, 0], expected[:, 0], atol=1e-5) and not torch.allclose(model(ids), expected, atol=1e-5)


@torch.no_grad()
def test_the_loss_of_a_position_is_the_mean_over_the_windows():
    model = llama.Llama3Model(byte_config(16)).eval()  # windows of 64 bytes
    data = torch.randint(0, 256, (150,))
    losses = [F.cross_entropy(model(data[None, start : start + 64])[0, 10], data[start + 11]) for start in (0, 32, 64)]
    found = loss_by_position(model, data)
    assert found.shape == (64,) and found[10].item() == pytest.approx(sum(losses).item() / 3, abs=1e-5)
    assert experiment.binned(found)[1] == pytest.approx(found[BIN : 2 * BIN].mean().item(), abs=1e-4)


def test_held_out_tales_are_no_part_of_the_training_text():
    text, held_out = experiment.read_bytes()
    assert (len(text), len(held_out)) == (LOG["training bytes"], LOG["held-out bytes"])
    text, held_out = bytes(text.tolist()), bytes(held_out.tolist())
    assert not any(held_out[start : start + 200] in text for start in range(0, len(held_out) - 200, 997))


@pytest.mark.slow
def test_the_command_writes_a_log_of_the_same_form(tmp_path, monkeypatch):
    monkeypatch.setattr(experiment, "read_bytes", lambda: (torch.randint(0, 100, (3000,)), torch.randint(0, 100, (300,))))
    target = tmp_path / "log.json"
    arguments = ["--trained", "16", "--steps", "2", "--tune_steps", "1", "--device", "cpu", "--precision", "fp32", "--output", str(target)]
    assert experiment.main(arguments) == 0
    log = json.loads(target.read_text(encoding="utf-8"))
    assert log.keys() == LOG.keys() and log["trained"] == 16
    for phase in ("at once", "after further training"):
        assert log[phase].keys() == METHODS.keys()
        assert all(len(losses) == FACTOR * 16 // BIN and all(4 < loss < 6 for loss in losses) for losses in log[phase].values())
    assert log["at once"]["none"] != log["at once"]["linear"]


@pytest.mark.parametrize("arguments, needed", [
    (["--trained", "20"], "multiples of 16"), (["--steps", "0"], "steps"), (["--output", "nowhere/log.json"], "no folder nowhere"),
    (["--device", "toaster"], "toaster"),
])
def test_bad_options_end_in_one_line(arguments, needed, capsys):
    with pytest.raises(SystemExit) as stopped:
        experiment.main(arguments)
    lines = capsys.readouterr().err.strip().splitlines()
    assert stopped.value.code == 2 and len(lines) == 1 and needed in lines[0]


def test_the_committed_run_is_the_default_one():
    assert {name: LOG[name] for name in ("trained", "steps", "tune_steps", "lr", "seed")} == {
        "trained": 128, "steps": 1000, "tune_steps": 100, "lr": 2e-3, "seed": 123,
    }
    assert LOG["parameters"] == 1_722_048 and LOG["factor"] == FACTOR and LOG["bin"] == BIN
    assert all(math.isfinite(loss) for phase in ("at once", "after further training") for losses in LOG[phase].values() for loss in losses)
