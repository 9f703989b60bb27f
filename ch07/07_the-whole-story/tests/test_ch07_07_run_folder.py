"""A run stopped anywhere goes on as if it had not been: finished stages are not repeated, trainings end with the same weights.

Run it:  pytest ch07/07_the-whole-story/tests/test_ch07_07_run_folder.py
"""

import json

import pytest
import torch
from run_folder import RECORD, RunFolder

SETTINGS = {"seed": 1}
UPDATES = 3


def training(run: RunFolder, stop_at: int | None = None, num_passes: int = 4, enough=lambda state: False):
    """Train a small layer on random numbers; update number `stop_at` (counted from 1 in this start) is where Ctrl-C comes."""
    torch.manual_seed(5)
    model = torch.nn.Linear(3, 1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    done = 0

    def one_pass(state, after_step) -> str:
        nonlocal done
        for _ in range(UPDATES):
            done += 1
            if done == stop_at:
                raise KeyboardInterrupt
            optimizer.zero_grad()
            model(torch.randn(4, 3)).square().mean().backward()
            optimizer.step()
            after_step()
        state.epoch += 1
        state.train_losses.append(1 / state.epoch)
        print("a line of the chapter's loop")
        return f"line {state.epoch}"

    state = run.train("linear", model, optimizer, num_passes, UPDATES, one_pass, enough)
    return model.weight.detach().clone(), state, done


@pytest.mark.parametrize("stop_at", range(1, 4 * UPDATES + 1))
def test_a_training_stopped_at_any_update_ends_with_the_same_weights(stop_at, tmp_path, capsys):
    wanted, _, _ = training(RunFolder(tmp_path / "whole", SETTINGS))
    capsys.readouterr()
    with pytest.raises(KeyboardInterrupt):
        training(RunFolder(tmp_path / "run", SETTINGS), stop_at)
    weights, state, done = training(RunFolder(tmp_path / "run", SETTINGS))
    kept = (stop_at - 1) // UPDATES  # passes that were finished before the stop
    assert torch.equal(weights, wanted) and state.epoch == 4
    assert done == UPDATES * (4 - kept)  # none of them again
    assert (f"goes on after pass {kept}\n" in capsys.readouterr().out) == (kept > 0)


def test_a_training_that_knows_enough_stops_and_a_later_start_adds_nothing(tmp_path):
    def enough(state):
        return bool(state.train_losses) and state.train_losses[-1] < 0.4

    weights, state, done = training(RunFolder(tmp_path, SETTINGS), enough=enough)
    assert state.epoch == 3 and done == 3 * UPDATES
    again, state, done = training(RunFolder(tmp_path, SETTINGS), enough=enough)
    assert torch.equal(again, weights) and state.epoch == 3 and done == 0


def test_lines_of_the_chapters_loops_go_to_the_log_and_one_a_pass_to_the_screen(tmp_path, capsys):
    training(RunFolder(tmp_path, SETTINGS))
    assert capsys.readouterr().out.splitlines() == [f"  pass  {number}: line {number}" for number in range(1, 5)]
    assert (tmp_path / "linear.log").read_text().splitlines() == ["a line of the chapter's loop"] * 4


def test_a_finished_stage_is_remembered_and_its_checkpoint_goes(tmp_path):
    run, calls = RunFolder(tmp_path, SETTINGS), []

    def work() -> dict:
        training(run)
        calls.append(1)
        return {"rows": [["model", 3, "7", "what it can do"]]}

    first = run.do("linear", work)
    later = RunFolder(tmp_path, SETTINGS)
    assert later.do("linear", work) == first and calls == [1]
    assert later.seconds == run.seconds and later.seconds["linear"] > 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["linear.log", RECORD]


def test_a_stage_that_fails_is_not_remembered_but_its_training_is(tmp_path):
    def work() -> dict:
        training(run)
        raise OSError("no space")

    run = RunFolder(tmp_path, SETTINGS)
    with pytest.raises(OSError, match="no space"):
        run.do("linear", work)
    run = RunFolder(tmp_path, SETTINGS)
    assert run.results == {} and training(run)[2] == 0


def test_seconds_add_up_over_starts(tmp_path):
    run = RunFolder(tmp_path, SETTINGS)
    run.seconds = {"linear": 1000.0}
    run.write()
    run = RunFolder(tmp_path, SETTINGS)
    run.do("linear", lambda: {"passes": training(run)[1].epoch})
    kept = json.loads((tmp_path / RECORD).read_text())["seconds"]
    assert kept == run.seconds and 1000 < kept["linear"] < 1100


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        ("", "is damaged"),
        ("[]", "is damaged"),
        ('{"settings": {"seed": 1}, "seconds": {}}', "is damaged"),
        ('{"settings": {"seed": 2}, "seconds": {}, "results": {}}', "was begun with seed 2, not 1"),
        (None, "holds other files"),
    ],
)
def test_a_folder_that_cannot_be_used_is_one_line_and_stays_as_it_is(content, fault, tmp_path):
    name = RECORD if content is not None else "thesis.txt"
    (tmp_path / name).write_text(content or "mine")
    with pytest.raises(ValueError, match=fault) as error:
        RunFolder(tmp_path, SETTINGS)
    assert "\n" not in str(error.value) and "--overwrite" in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == [name] and (tmp_path / name).read_text() == (content or "mine")


def test_overwriting_forgets_the_old_run_and_leaves_other_files_alone(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        training(RunFolder(tmp_path, SETTINGS), stop_at=UPDATES + 1)
    (tmp_path / "thesis.txt").write_text("mine")
    (tmp_path / "model.pth.tmp").write_bytes(b"half a mod")
    run = RunFolder(tmp_path, {"seed": 2}, overwrite=True)
    assert run.seconds == run.results == {} and (tmp_path / "thesis.txt").read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["linear.log", RECORD, "thesis.txt"]
    assert training(run)[2] == 4 * UPDATES
