"""A run that was stopped, at any step and in any way, goes on to the same weights, bit for bit."""

import contextlib
import io
import subprocess
import sys
from pathlib import Path

import checkpoints
import gpt_train
import pytest
import torch
from checkpoints import TrainingState, read_checkpoint, remaining_batches, restore_checkpoint, save_atomically, save_checkpoint
from gpt_train import create_split_loaders, train_model_simple
from previous_chapters import GPT_CONFIG_124M, GPTModel, gpt2_tokenizer

CPU = torch.device("cpu")
CFG = {**GPT_CONFIG_124M, "context_length": 12, "emb_dim": 8, "n_heads": 2, "n_layers": 1, "drop_rate": 0.2}
TEXT = gpt_train.STORY_FILE.read_text(encoding="utf-8")[:1200]
EPOCHS = 2


def fresh(seed=123, lr=1e-2):
    torch.manual_seed(seed)
    model = GPTModel(CFG)
    return model, torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.1, fused=True)


def train(model, optimizer, state, stop_step=None, num_epochs=EPOCHS, batch_size=4):
    loaders = create_split_loaders(TEXT, CFG, batch_size)
    with contextlib.redirect_stdout(io.StringIO()):
        stop = lambda state: state.step + 1 == stop_step
        train_model_simple(model, *loaders, optimizer, CPU, num_epochs, 3, 1, "Nell", gpt2_tokenizer(), state, stop)


def same(a, b) -> bool:
    """Equal to the last bit: dictionaries, lists and tensors."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


@pytest.fixture(scope="module")
def uninterrupted():
    model, optimizer = fresh()
    state = TrainingState()
    train(model, optimizer, state)
    return model.state_dict(), optimizer.state_dict(), vars(state), torch.get_rng_state()


STEPS = EPOCHS * len(create_split_loaders(TEXT, CFG, 4)[0])


@pytest.mark.parametrize("stop_step", range(1, STEPS + 1))
@pytest.mark.slow
def test_resuming_after_every_possible_step_is_bit_equal(stop_step, uninterrupted, tmp_path):
    model, optimizer = fresh()
    state = TrainingState()
    train(model, optimizer, state, stop_step)
    assert state.step + 1 == stop_step
    save_checkpoint(tmp_path / "checkpoint.pth", model, optimizer, state, CFG)
    model, optimizer = fresh(seed=999)
    state = restore_checkpoint(read_checkpoint(tmp_path / "checkpoint.pth", CFG), model, optimizer)
    train(model, optimizer, state)
    assert same(model.state_dict(), uninterrupted[0])
    assert same(optimizer.state_dict()["state"], uninterrupted[1]["state"])
    assert same(vars(state), uninterrupted[2]) and torch.equal(torch.get_rng_state(), uninterrupted[3])


@pytest.mark.slow
def test_twenty_steps_are_ten_and_ten(tmp_path):
    straight = fresh()
    train(*straight, TrainingState(), 20, num_epochs=99, batch_size=3)
    first, state = fresh(), TrainingState()
    train(*first, state, 10, num_epochs=99, batch_size=3)
    assert 0 < state.batch < len(create_split_loaders(TEXT, CFG, 3)[0])  # inside an epoch
    save_checkpoint(tmp_path / "checkpoint.pth", *first, state, CFG)
    second = fresh(seed=7)
    state = restore_checkpoint(read_checkpoint(tmp_path / "checkpoint.pth", CFG), *second)
    train(*second, state, 20, num_epochs=99, batch_size=3)
    assert same(straight[0].state_dict(), second[0].state_dict())


@pytest.mark.parametrize("forgotten", ["optimizer_state_dict", "rng", "state"])
@pytest.mark.slow
def test_the_proof_fails_when_a_part_is_forgotten(forgotten, uninterrupted, tmp_path):
    model, optimizer = fresh()
    state = TrainingState()
    train(model, optimizer, state, 5)
    save_checkpoint(tmp_path / "checkpoint.pth", model, optimizer, state, CFG)
    saved = read_checkpoint(tmp_path / "checkpoint.pth", CFG)
    model, optimizer = fresh(seed=999)
    other = {"optimizer_state_dict": optimizer.state_dict(), "rng": torch.get_rng_state(), "state": vars(TrainingState())}
    state = restore_checkpoint({**saved, forgotten: other[forgotten]}, model, optimizer)
    train(model, optimizer, state)
    assert not same(model.state_dict(), uninterrupted[0])


def test_remaining_batches_are_the_epochs_own(uninterrupted):
    loader = create_split_loaders(TEXT, CFG, 4)[0]
    for done in range(1, len(loader) + 1):
        state = TrainingState()
        torch.manual_seed(done)
        whole = [x for x, _ in remaining_batches(loader, state)]
        state.batch = done
        torch.manual_seed(77)
        now = torch.get_rng_state()
        rest = [x for x, _ in remaining_batches(loader, state)]
        assert same(rest, whole[done:]) and torch.equal(torch.get_rng_state(), now)


def test_settings_asked_for_now_win_over_the_file(tmp_path):
    model, optimizer = fresh()
    train(model, optimizer, TrainingState(), 2)
    save_checkpoint(tmp_path / "checkpoint.pth", model, optimizer, TrainingState(), CFG)
    model, optimizer = fresh(lr=0.5)
    optimizer.param_groups[0]["weight_decay"] = 0.25
    restore_checkpoint(read_checkpoint(tmp_path / "checkpoint.pth", CFG), model, optimizer)
    assert (optimizer.param_groups[0]["lr"], optimizer.param_groups[0]["weight_decay"]) == (0.5, 0.25)
    assert len(optimizer.state_dict()["state"]) == len(list(model.parameters()))


def test_checkpoint_holds_all_that_decides_how_a_run_goes_on(tmp_path):
    model, optimizer = fresh()
    save_checkpoint(tmp_path / "c.pth", model, optimizer, TrainingState(), CFG)
    saved = torch.load(tmp_path / "c.pth", weights_only=True)  # nothing in it needs unpickling of code
    assert set(saved) == {
        "model_state_dict", "optimizer_state_dict", "scheduler_state_dict", "state", "rng", "cuda_rng", "settings",
    }  # fmt: skip
    assert saved["settings"] == CFG and {"epoch", "batch", "step", "epoch_rng"} <= set(saved["state"])


# ---- files ----

@pytest.mark.parametrize("written", [0, 3, 1000])
def test_a_save_that_dies_half_way_leaves_the_old_file(written, tmp_path, monkeypatch):
    path = tmp_path / "model.pth"
    save_atomically({"rings": torch.tensor(19)}, path)
    before = path.read_bytes()

    def dies(contents, target):
        Path(target).write_bytes(b"x" * written)
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoints.torch, "save", dies)
    with pytest.raises(KeyboardInterrupt):
        save_atomically({"rings": torch.tensor(8)}, path)
    assert path.read_bytes() == before


def test_a_finished_save_leaves_one_file(tmp_path):
    for rings in (19, 11):
        save_atomically({"rings": torch.tensor(rings)}, tmp_path / "model.pth")
    assert [path.name for path in tmp_path.iterdir()] == ["model.pth"]
    assert torch.load(tmp_path / "model.pth", weights_only=True)["rings"] == 11


@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.9, 0.999])
def test_truncated_checkpoint_is_reported_as_damaged(share, tmp_path):
    model, optimizer = fresh()
    save_checkpoint(tmp_path / "c.pth", model, optimizer, TrainingState(), CFG)
    good = (tmp_path / "c.pth").read_bytes()
    (tmp_path / "c.pth").write_bytes(good[: int(share * len(good))])
    with pytest.raises(ValueError, match="damaged"):
        read_checkpoint(tmp_path / "c.pth", CFG)


@pytest.mark.parametrize("content", [{"weights": 1}, [1], torch.zeros(2), {"settings": 5}])
def test_other_files_are_no_checkpoints(content, tmp_path):
    torch.save(content, tmp_path / "c.pth")
    with pytest.raises(ValueError, match="damaged, or no checkpoint"):
        read_checkpoint(tmp_path / "c.pth", CFG)


def test_differing_settings_are_named_with_both_values(tmp_path):
    model, optimizer = fresh()
    save_checkpoint(tmp_path / "c.pth", model, optimizer, TrainingState(), CFG)
    with pytest.raises(ValueError, match="n_layers is 1 there, 3 here; drop_rate is 0.2 there, 0.0 here"):
        read_checkpoint(tmp_path / "c.pth", {**CFG, "n_layers": 3, "drop_rate": 0.0})
    with pytest.raises(ValueError, match="does not exist"):
        read_checkpoint(tmp_path / "none.pth", CFG)


# ---- a real kill ----

DYING = """
import os, sys
import gpt_train
moment, count, seen, replace = sys.argv[1], int(sys.argv[2]), [], os.replace
def replace_and_die(source, target):
    seen.append(target)
    if len(seen) == count and moment == "while writing":
        os.truncate(source, os.path.getsize(source) // 2)
    if len(seen) < count or moment == "after renaming":
        replace(source, target)
    if len(seen) == count:
        os._exit(9)  # as abrupt as kill -9: nothing is cleaned up
os.replace = replace_and_die
gpt_train.command_line(sys.argv[3:])
"""


@pytest.mark.slow
def test_killed_runs_end_in_the_same_weights(tmp_path):
    text = tmp_path / "text.txt"
    text.write_text(gpt_train.STORY_FILE.read_text(encoding="utf-8")[:5000], encoding="utf-8")
    options = ["--data", str(text), "--context_length", "12", "--emb_dim", "8", "--n_heads", "2", "--n_layers", "1", "--drop_rate", "0.1"]
    options += ["--batch_size", "2", "--epochs", "3", "--precision", "fp32", "--device", "cpu", "--no_plot", "--save_freq", "1"]
    folder = Path(gpt_train.__file__).parent
    assert gpt_train.command_line([*options, "--output_dir", str(tmp_path / "whole")]) == 0

    run, steps = [*options, "--output_dir", str(tmp_path / "killed")], []
    for moment, count in (("before renaming", 6), ("while writing", 9), ("after renaming", 12)):
        command = [sys.executable, "-c", DYING, moment, str(count), *run, *(["--resume"] if steps else [])]
        assert subprocess.run(command, cwd=folder, capture_output=True).returncode == 9
        steps.append(torch.load(tmp_path / "killed" / "checkpoint.pth", weights_only=True)["state"]["step"])
    assert steps[0] < steps[1] < steps[2] < 3 * len(create_split_loaders(text.read_text(encoding="utf-8"), CFG, 2)[0]) - 1
    assert gpt_train.command_line([*run, "--resume"]) == 0
    assert same(*(torch.load(tmp_path / name / "model.pth", weights_only=True) for name in ("killed", "whole")))
