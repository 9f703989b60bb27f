"""The rates of lr_schedulers.py against the formula, what its README shows, and bad input."""

import math
import re
import shlex
import subprocess
import sys
from pathlib import Path

import lr_schedulers
import pytest
import torch

FOLDER = Path(lr_schedulers.__file__).parent
README = (FOLDER / "README.md").read_text(encoding="utf-8")


def rates_of(total_steps: int, warmup_steps: int, peak_lr: float, initial_lr: float, min_lr: float) -> list[float]:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=peak_lr)
    scheduler = lr_schedulers.make_scheduler(optimizer, total_steps, warmup_steps, initial_lr, min_lr)
    rates = []
    for _ in range(total_steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


@pytest.mark.parametrize(
    ("total_steps", "warmup_steps", "peak_lr", "initial_lr", "min_lr"),
    [(40, 8, 0.01, 1e-4, 1e-5), (135, 27, 0.01, 1e-5, 1e-5), (10, 0, 0.5, 0.1, 0.05), (6, 5, 0.1, 0.01, 0.02), (8, 8, 0.1, 0.02, 0.01)],
)
@pytest.mark.filterwarnings("error")
def test_every_rate_is_that_of_the_formula(total_steps, warmup_steps, peak_lr, initial_lr, min_lr):
    expected = []
    for step in range(total_steps):
        if step < warmup_steps:
            expected.append(initial_lr + step * (peak_lr - initial_lr) / warmup_steps)
        else:
            angle = math.pi * (step - warmup_steps) / max(1, total_steps - 1 - warmup_steps)
            expected.append(min_lr + 0.5 * (peak_lr - min_lr) * (1 + math.cos(angle)))
    assert rates_of(total_steps, warmup_steps, peak_lr, initial_lr, min_lr) == pytest.approx(expected, rel=1e-6)


def numbers(text: str) -> list[list[float]]:
    lines = re.findall(r"^step +(\d+): rate ([\d.]+), loss ([\d.]+), norm of the gradient ([\d.]+)$", text, flags=re.M)
    return [[float(number) for number in line] for line in lines]


def test_the_commands_of_the_readme_print_what_it_shows(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    commands = re.findall(r"python lr_schedulers.py (.*?)(?:$|`)", README, flags=re.M)
    assert len(commands) == 2
    assert lr_schedulers.main(shlex.split(commands[0])) == 0
    shown, printed = numbers(README), numbers(capsys.readouterr().out)
    assert len(shown) == len(printed) == 11
    for ours, theirs in zip(shown, printed, strict=True):
        assert ours[:2] == theirs[:2] and ours[2:] == pytest.approx(theirs[2:], abs=0.1)
    assert (tmp_path / "runs/schedule.png").read_bytes()[:4] == b"\x89PNG"
    assert lr_schedulers.main(shlex.split(commands[1])) == 0
    out, err = capsys.readouterr()
    assert "warning: 60 steps of warm-up in a run of 40" in err and "ends at 0.006535" in err
    assert "last rate is 0.006535" in README and numbers(out)[-1][2] == pytest.approx(6.11, abs=0.2)


def test_clipping_limits_the_step_not_the_report(tmp_path):
    settings = {"seed": 123, "total_steps": 6, "warmup_steps": 0, "peak_lr": 0.01, "initial_lr": 0.01, "min_lr": 0.01}
    _, free, norms = lr_schedulers.train({**settings, "max_norm": 100.0}, torch.device("cpu"))
    _, clipped, same = lr_schedulers.train({**settings, "max_norm": 1e-4}, torch.device("cpu"))
    assert norms[0] == same[0] > 0.1  # the norm before clipping
    assert free[0] == clipped[0] and free[-1] != clipped[-1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--total_steps 0", "total_steps"),
        ("--warmup_steps -1", "warmup_steps"),
        ("--peak_lr 0", "peak_lr"),
        ("--peak_lr 1e-5", "must not be above peak_lr"),
        ("--max_norm nan", "max_norm"),
        ("--device abacus", "abacus"),
        ("--total_steps 1 --output taken/plot.png", "taken"),
        ("--total_steps 1 --output plot.nothing", "nothing"),
    ],
)
def test_bad_input_ends_in_one_line_and_code_2(options, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("taken").write_text("a file", encoding="utf-8")
    with pytest.raises(SystemExit) as stopped:
        lr_schedulers.main(options.split())
    errors = [line for line in capsys.readouterr().err.splitlines() if "error:" in line]
    assert stopped.value.code == 2 and len(errors) == 1 and message in errors[0]


def test_help_says_what_the_program_does():
    done = subprocess.run([sys.executable, FOLDER / "lr_schedulers.py", "--help"], capture_output=True, text=True)
    assert done.returncode == 0 and "warm-up, cosine decay and clipping" in done.stdout and "--warmup_steps" in done.stdout
