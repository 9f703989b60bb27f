"""ablation.py switches off exactly the parts it names, writes a log after each training, and refuses bad input in one line."""

import json
import math
import re
import shlex
import statistics
import subprocess
import sys
from pathlib import Path

import ablation
import pytest

FOLDER = Path(ablation.__file__).parent
QUICK = ["--rates", "0.01", "--seeds", "123", "--epochs", "3", "--batch_size", "18", "--emb_dim", "8", "--n_layers", "1"]
LOG = json.loads((FOLDER / "ablation.json").read_text(encoding="utf-8"))


def script(*options: str, cwd: Path) -> subprocess.CompletedProcess:
    command = [sys.executable, str(FOLDER / "ablation.py"), *options]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, encoding="utf-8")


def test_a_missing_part_gets_the_value_that_switches_it_off():
    every = ablation.settings_of(("warm-up", "cosine", "clipping"), 0.02, 7)
    assert every == {"warmup_steps": 7, "initial_lr": 1e-5, "min_lr": 1e-5, "max_norm": 1.0}
    neutral = {"warm-up": ("warmup_steps", 0), "cosine": ("min_lr", 0.02), "clipping": ("max_norm", math.inf)}
    for part, (name, value) in neutral.items():
        others = tuple(other for other in neutral if other != part)
        assert ablation.settings_of(others, 0.02, 7) == {**every, name: value}
    assert [len(parts) for parts in ablation.VARIANTS.values()] == [0, 1, 1, 1, 3]


def test_one_run_of_every_variant(tmp_path, capsys):
    output = tmp_path / "new folder" / "log.json"
    assert ablation.main([*QUICK, "--output", str(output), "--device", "cpu"]) == 0
    log = json.loads(output.read_text(encoding="utf-8"))
    assert [run["variant"] for run in log["runs"]] == list(ablation.VARIANTS)
    assert log["settings"] == {"emb_dim": 8, "n_layers": 1, "epochs": 3, "batch_size": 18} and "torch" in log["machine"]
    losses = {run["variant"]: run["train_loss"] for run in log["runs"]}
    assert len(set(losses.values())) > 2 and all(0 < loss < 9 for loss in losses.values())
    assert all(run["best_val_loss"] <= run["val_loss"] for run in log["runs"])
    assert len(re.findall(r"^peak rate 0.01 ", capsys.readouterr().out, flags=re.M)) == 5
    assert sorted(path.name for path in output.parent.iterdir()) == ["log.json"]
    before = output.read_bytes()
    with pytest.raises(SystemExit) as stopped:
        ablation.main([*QUICK, "--output", str(output)])
    assert stopped.value.code == 2 and output.read_bytes() == before
    assert re.search(r"log.json exists: add --overwrite", capsys.readouterr().err)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--rates", "0"], "outside the allowed range"),
        (["--rates", "fast"], "invalid"),
        (["--epochs", "0"], "--epochs"),
        (["--emb_dim", "9"], "9"),
        (["--batch_size", "99"], "0 training steps"),
        (["--device", "abacus"], "abacus"),
        (["--output", "taken/log.json"], "taken"),
    ],
)
def test_bad_input_ends_in_one_line_and_code_2(options, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("taken").write_text("a file", encoding="utf-8")
    with pytest.raises(SystemExit) as stopped:
        ablation.main([*QUICK, *options])
    lines = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("device:")]
    assert stopped.value.code == 2 and message in lines[-1] and len([line for line in lines if "error" in line]) == 1


def test_help_and_the_commands_of_the_readme(tmp_path):
    shown = script("--help", cwd=tmp_path)
    assert shown.returncode == 0 and "--overwrite" in shown.stdout
    readme = (FOLDER / "README.md").read_text(encoding="utf-8")
    commands = re.findall(r"^python ablation.py(.*)$", readme, flags=re.M)
    assert len(commands) == 2
    for command in commands:  # shortened: the later option holds
        done = script(*shlex.split(command, comments=True), *QUICK, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert (tmp_path / "runs" / "ablation.json").exists()


def test_the_committed_log_is_that_of_the_defaults():
    assert LOG["settings"] == {"emb_dim": 128, "n_layers": 4, "epochs": 15, "batch_size": 4}
    runs = {(run["variant"], run["peak_lr"], run["seed"]) for run in LOG["runs"]}
    assert len(runs) == len(LOG["runs"]) == 5 * 4 * 5
    assert {variant for variant, _, _ in runs} == set(ablation.VARIANTS)


def test_the_claims_about_the_log():
    """What the notebooks and the README say in words; their tables are these means."""

    def losses(variant, rate, key="train_loss"):
        return [run[key] for run in LOG["runs"] if (run["variant"], run["peak_lr"]) == (variant, rate)]

    def mean(variant, rate, key="train_loss"):
        return statistics.mean(losses(variant, rate, key))

    for rate in (0.001, 0.003, 0.01, 0.03):  # the README's table
        row = " | ".join(f"{mean(variant, rate):.3f}" for variant in ablation.VARIANTS)
        assert f"| {rate:g} | {row} |" in (FOLDER / "README.md").read_text(encoding="utf-8")
    assert all(min(losses(variant, 0.03)) > 4 for variant in ("plain", "cosine", "clipping"))
    for variant in ("warm-up", "all"):
        assert sorted(loss < 1.5 for loss in losses(variant, 0.03)) == [False, True, True, True, True] and max(losses(variant, 0.03)) > 3
    others = [loss for variant in ablation.VARIANTS for rate in (0.003, 0.01) for loss in losses(variant, rate)]
    assert max(losses("all", 0.01)) < min(loss for loss in others if loss not in losses("all", 0.01))
    best = {variant: min(mean(variant, rate, "best_val_loss") for rate in (0.001, 0.003, 0.01, 0.03)) for variant in ("plain", "all")}
    assert {variant: round(loss, 2) for variant, loss in best.items()} == {"plain": 5.09, "all": 5.1}
    assert mean("warm-up", 0.01) == pytest.approx(0.65 * mean("plain", 0.01), abs=0.01)


def test_the_verdicts_of_exercise_d3():
    notebook = json.loads((FOLDER / "exercise-solutions.ipynb").read_text(encoding="utf-8"))
    printed = "".join("".join(output.get("text", [])) for cell in notebook["cells"] for output in cell.get("outputs", []))
    verdicts = {line.split()[0]: re.findall(r"better|worse|undecided", line) for line in printed.splitlines() if "undecided" in line}
    assert verdicts == {
        "warm-up": ["worse", "undecided", "undecided", "better"],
        "cosine": ["worse", "worse", "undecided", "undecided"],
        "clipping": ["undecided"] * 4,
    } and re.search(r"^all .*worse.*worse.*better.*better", printed, flags=re.M)  # fmt: skip
