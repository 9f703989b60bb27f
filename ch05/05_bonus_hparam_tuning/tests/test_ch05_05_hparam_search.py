"""The search: every combination once, nothing lost, no failed trial ever best, the same numbers for the same seed."""

import json
import math
import re
import shlex
from pathlib import Path

import hparam_search
import pytest
import torch
from hparam_search import HPARAM_GRID, combination, count_of, order_of_trials, ranked, train_model

FOLDER = Path(hparam_search.__file__).parent
PAGE = (FOLDER / "README.md").read_text(encoding="utf-8")
SMALL = {"n_epochs": [1], "batch_size": [16], "warmup_iters": [0, 3], "peak_lr": [1e-3, 5e-3]}
ONE = {"min_lr": [1e-5], "initial_lr": [1e-4], "weight_decay": [0.0], "drop_rate": [0.1]}


def run(tmp_path, *options, grid=None):
    file = tmp_path / "grid.json"
    file.write_text(json.dumps({**SMALL, **ONE} if grid is None else grid), encoding="utf-8")
    output = tmp_path / "found.jsonl"
    assert hparam_search.main(["--tiny", "--grid", str(file), "--output", str(output), "--device", "cpu", *options]) == 0
    header, *trials = [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]
    return header, trials


def without_seconds(trials):
    return [{key: value for key, value in trial.items() if key != "seconds"} for trial in trials]


def test_the_grid_has_the_published_number_of_combinations_and_each_comes_once():
    assert count_of(HPARAM_GRID) == 12960
    grid = {"a": [1, 2, 3], "b": [0.1, 0.2], "c": [7]}
    everything = [combination(grid, number) for number in range(count_of(grid))]
    expected = [{"a": a, "b": b, "c": c} for a in grid["a"] for b in grid["b"] for c in grid["c"]]
    assert everything == expected and [list(found) for found in everything] == [["a", "b", "c"]] * 6
    assert list(order_of_trials(grid, "grid", 1)) == list(range(6))
    shuffled = [list(order_of_trials(HPARAM_GRID, "random", seed)) for seed in (1, 1, 2)]
    assert shuffled[0] == shuffled[1] != shuffled[2] and sorted(shuffled[2]) == list(range(12960))


def test_an_interrupted_search_goes_on_and_ends_like_one_that_was_not(tmp_path, capsys):
    (tmp_path / "b").mkdir()
    whole = run(tmp_path / "b", "--method", "random")
    header, first = run(tmp_path, "--method", "random", "--max_trials", "1")
    assert len(first) == 1
    with (tmp_path / "found.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"number": 3, "seed"')  # the line that was being written when the power went
    resumed = run(tmp_path, "--method", "random", "--resume")
    assert header == whole[0] and without_seconds(resumed[1]) == without_seconds(whole[1]) and len(whole[1]) == 4
    again = run(tmp_path, "--method", "random", "--resume")
    assert again[1] == resumed[1]  # all were there: nothing is trained twice


def test_the_time_limit_stops_before_the_next_trial_and_says_how_to_go_on(tmp_path, capsys):
    _, trials = run(tmp_path, "--time_limit", "1e-9")
    assert trials == [] and "--resume" in capsys.readouterr().out


def test_other_seeds_confirm_the_best(tmp_path, capsys):
    _, trials = run(tmp_path, "--confirm", "1", grid={**SMALL, **ONE, "warmup_iters": [0]})
    own = [trial for trial in trials if trial["seed"] == 123]
    best = ranked(own)[0]
    others = [trial for trial in trials if trial["seed"] != 123]
    assert len(own) == 2 and [trial["seed"] for trial in others] == [124, 125, 126, 127]
    assert {trial["number"] for trial in others} == {best["number"]} and all(t["settings"] == best["settings"] for t in others)
    losses = [trial["val_loss"] for trial in others]
    line = capsys.readouterr().out.splitlines()[-1]
    assert f"{best['val_loss']:.3f}; other seeds: mean {sum(losses) / 4:.3f}, from {min(losses):.3f} to {max(losses):.3f}" in line


def test_diverged_and_impossible_trials_are_kept_and_never_best(tmp_path, capsys):
    grid = {**SMALL, **ONE, "peak_lr": [1e-3, 1e30], "warmup_iters": [0, 1000]}
    _, trials = run(tmp_path, grid=grid)
    assert [trial["val_loss"] is not None for trial in trials] == [True, False, False, False]
    assert ["does not fit" in trial.get("error", "") for trial in trials] == [False, False, True, True]
    printed = capsys.readouterr().out
    assert "4 trials, 3 of them diverged or impossible" in printed
    best = trials[0]
    assert f"val {best['val_loss']:.3f}, train {best['train_loss']:.3f}: warmup_iters 0, peak_lr 0.001" in printed


class Recorder(torch.optim.SGD):
    """Notes the rate of each update and the length of the gradient that it gets."""

    def __init__(self, parameters, lr):
        super().__init__(parameters, lr)
        self.rates, self.norms = [], []

    def step(self):
        self.rates.append(self.param_groups[0]["lr"])
        self.norms.append(math.sqrt(sum(p.grad.pow(2).sum().item() for g in self.param_groups for p in g["params"])))
        super().step()


def test_the_schedule_warms_up_decays_and_clips_after_the_warm_up():
    class Steep(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(4))

        def forward(self, ids):
            return 40 * self.weight.expand(*ids.shape, 4)

    batch = (torch.zeros(1, 3, dtype=torch.int64), torch.ones(1, 3, dtype=torch.int64))
    model = Steep()
    optimizer = Recorder(model.parameters(), lr=1e-3)
    losses = train_model(model, [batch] * 5, [batch], optimizer, torch.device("cpu"), 2, None, 4, initial_lr=2e-4, min_lr=1e-5)
    assert optimizer.rates[:5] == pytest.approx([2e-4, 4e-4, 6e-4, 8e-4, 1e-3])
    assert optimizer.rates[-1] == pytest.approx(1e-5) and optimizer.rates[4:] == sorted(optimizer.rates[4:], reverse=True)
    half = 1e-5 + 0.5 * (1e-3 - 1e-5) * (1 + math.cos(math.pi * 2 / 5))
    assert optimizer.rates[6] == pytest.approx(half)
    assert min(optimizer.norms[:4]) > 1.5 and max(optimizer.norms[4:]) < 1.001
    with torch.no_grad():
        final = torch.nn.functional.cross_entropy(model(batch[0]).flatten(0, 1), batch[1].flatten()).item()
    assert losses == pytest.approx((final, final)) and model.training
    with pytest.raises(ValueError, match="warm-up of 10 updates does not fit into a training of 10"):
        train_model(model, [batch] * 5, [batch], optimizer, torch.device("cpu"), 2, None)


@pytest.mark.parametrize(
    ("grid", "options", "message"),
    [
        ({"epochs": [3]}, [], "unknown setting 'epochs'"),
        ({"peak_lr": []}, [], "must be a list with at least one value"),
        ({"peak_lr": ["high"]}, [], "must hold numbers"),
        ([1], [], "must hold an object"),
        (None, ["--data", "no-such-text.txt"], "no-such-text.txt"),
        (None, ["--data", "short.txt"], "too short to be split"),
        (None, ["--max_trials", "0"], "0 is too small"),
        (None, ["--method", "best"], "invalid choice"),
        (None, ["--grid", "no-grid.json"], "no-grid.json"),
    ],
)
def test_bad_input_ends_in_one_line_and_writes_nothing(grid, options, message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("short.txt").write_text("Too short.", encoding="utf-8")
    if grid is not None:
        Path("g.json").write_text(json.dumps(grid), encoding="utf-8")
        options = [*options, "--grid", "g.json"]
    with pytest.raises(SystemExit) as stop:
        hparam_search.main(["--tiny", *options])
    lines = capsys.readouterr().err.splitlines()
    assert stop.value.code == 2 and len(lines) == 1 and message in lines[0] and len(lines[0]) < 300
    assert not Path("runs").exists()


def test_results_are_neither_overwritten_nor_mixed(tmp_path, capsys):
    run(tmp_path, "--max_trials", "1")
    other = tmp_path / "other.json"
    other.write_text(json.dumps({**SMALL, **ONE, "peak_lr": [0.1]}), encoding="utf-8")
    (tmp_path / "foreign.jsonl").write_text("3\n[]\n", encoding="utf-8")
    before = (tmp_path / "found.jsonl").read_bytes()
    for file, options, message in (
        ("found.jsonl", ["--grid", str(tmp_path / "grid.json")], "exists"),
        ("found.jsonl", ["--grid", str(other), "--resume"], "another grid"),
        ("foreign.jsonl", ["--resume"], "no results of this program"),
    ):
        with pytest.raises(SystemExit):
            hparam_search.main(["--tiny", "--output", str(tmp_path / file), *options])
        assert message in capsys.readouterr().err.splitlines()[-1]
    assert (tmp_path / "found.jsonl").read_bytes() == before


def test_few_validation_windows_are_called_few(tmp_path, capsys):
    text = tmp_path / "text.txt"
    text.write_text("Nell counted the rings, and the clock counted the tides. " * 30, encoding="utf-8")
    run(tmp_path, "--max_trials", "1", "--data", str(text))
    assert re.search(r"warning: \d validation windows decide little", capsys.readouterr().err)


def test_the_page_quotes_the_committed_log_and_its_commands_run(tmp_path, capsys, monkeypatch):
    header, *trials = [json.loads(line) for line in (FOLDER / "search-log.jsonl").read_text(encoding="utf-8").splitlines()]
    assert header["grid"] == HPARAM_GRID and len([trial for trial in trials if trial["seed"] == 123]) == 24
    best = ranked([trial for trial in trials if trial["seed"] == 123])[:5]
    printed = hparam_search.report(trials, 123, list(HPARAM_GRID)) + hparam_search.confirmation(trials, best)
    assert all(line in PAGE for line in printed)
    monkeypatch.chdir(tmp_path)
    Path("grid.json").write_text(re.search(r"^\{.*?^\}", PAGE, re.MULTILINE | re.DOTALL).group(), encoding="utf-8")
    for number, line in enumerate(re.findall(r"^python hparam_search\.py *(.*)$", PAGE, re.MULTILINE)):
        options = [option for option in shlex.split(line) if not option.startswith("runs/")]
        options = [option for option in options if option not in ("--output", "--resume")]
        assert hparam_search.main([*options, "--output", f"runs/{number}.jsonl", "--time_limit", "1e-9"]) == 0
