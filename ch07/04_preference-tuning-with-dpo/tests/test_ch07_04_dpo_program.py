"""The program tunes, reports before and after, writes its results, and ends bad input in one line; the README names what is there."""

import json
import math
import re
from pathlib import Path

import dpo_from_scratch as dpo
import pytest
import torch
from previous_chapters import GPTModel

FOLDER = Path(dpo.__file__).resolve().parent
TINY = {"vocab_size": 50257, "context_length": 160, "emb_dim": 8, "n_layers": 1, "n_heads": 1, "drop_rate": 0.0, "qkv_bias": True}


@pytest.fixture
def weights(tmp_path):
    torch.manual_seed(0)
    torch.save({"model_state_dict": GPTModel(TINY).state_dict(), "gpt_config": TINY}, tmp_path / "tiny-sft.pth")
    return tmp_path / "tiny-sft.pth"


def some_pairs(folder, number: int = 20) -> Path:
    pairs = [
        {"instruction": f"Say {i}.", "input": "", "output": f"{i}", "chosen": f"Gladly: {i}.", "rejected": f"{i}"} for i in range(number)
    ]
    pairs[0]["chosen"] = pairs[0]["rejected"]
    (folder / "pairs.json").write_text(json.dumps(pairs), encoding="utf-8")
    return folder / "pairs.json"


def test_the_program_reports_and_writes_weights_and_log(tmp_path, weights, capsys):
    options = [
        "--weights",
        str(weights),
        "--data",
        str(some_pairs(tmp_path)),
        "--output_dir",
        "out",
        "--batch_size",
        "4",
        "--eval_freq",
        "2",
    ]
    assert dpo.command_line([*options, "--learning_rate", "1e-3"]) == 0
    shown = capsys.readouterr().out
    assert "16 training pairs, 1 dropped because their answers are equal" in shown
    assert all(word in shown for word in ("before", "after", "polite", "ended by itself", "step    0: train loss 0.693"))
    log = json.loads((tmp_path / "out" / "log.json").read_text(encoding="utf-8"))
    assert log["tracking"]["val_losses"][0] == pytest.approx(math.log(2), abs=1e-5) and len(log["answers"]["after"]) == 2
    tuned, config = dpo.load_tuned_gpt(tmp_path / "out" / "gpt2-mini-dpo.pth")
    before, _ = dpo.load_tuned_gpt(weights)
    assert config == TINY and not torch.equal(tuned.tok_emb.weight, before.tok_emb.weight)
    with pytest.raises(SystemExit) as stop:
        dpo.command_line(options)
    assert stop.value.code == 2 and "--overwrite" in capsys.readouterr().err


def test_without_a_tuned_model_it_learns_the_chosen_answers_first(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(dpo, "TUNED_FILES", ())
    monkeypatch.setattr(dpo, "load_pretrained_gpt", lambda *args: (GPTModel(TINY), TINY))
    options = ["--data", str(some_pairs(tmp_path)), "--output_dir", "out", "--batch_size", "4", "--sft_epochs", "1"]
    assert dpo.command_line(options) == 0
    assert "learns the chosen answers for 1 epochs first" in capsys.readouterr().out


@pytest.mark.parametrize(
    "options, words",
    [
        (["--beta", "0"], ["--beta"]),
        (["--reduction", "max"], ["--reduction"]),
        (["--num_pairs", "0"], ["--num_pairs"]),
        (["--learning_rate", "nan"], ["--learning_rate"]),
        (["--weights", "absent.pth"], ["absent.pth"]),
        (["--data", "absent.json"], ["absent.json"]),
        (["--device", "abacus"], ["abacus"]),
    ],
)
def test_bad_input_ends_in_one_line(tmp_path, weights, capsys, options, words):
    with pytest.raises(SystemExit) as stop:
        dpo.command_line(["--weights", str(weights), "--data", str(some_pairs(tmp_path)), "--output_dir", "out", *options])
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert stop.value.code == 2 and all(word in error for word in words), error
    assert not (tmp_path / "out").exists()


def test_the_figure_has_both_curves_and_its_label():
    ax = dpo.plot_losses([0.0, 0.5, 1.0], [0, 50, 100], [0.7, 0.5, 0.4], [0.7, 0.6, 0.55], label="margin").axes[0]
    assert ax.get_ylabel() == "margin" and [list(line.get_ydata()) for line in ax.lines] == [[0.7, 0.5, 0.4], [0.7, 0.6, 0.55]]


def test_the_readme_lists_every_file_and_every_option_it_prints_exists(capsys):
    readme = (FOLDER / "README.md").read_text(encoding="utf-8")
    named = set(re.findall(r"\]\(([\w.-]+)\)", readme))
    there = {
        path.name
        for path in FOLDER.iterdir()
        if path.is_file() and path.suffix in (".py", ".ipynb", ".json", ".txt") and path.name != "README.md"
    }
    assert there <= named and named - {"README.md"} <= there
    for program, options in re.findall(r"^(?:    )?python (\w+)\.py(.*)$", readme, flags=re.MULTILINE):
        source = (FOLDER / f"{program}.py").read_text(encoding="utf-8")
        assert all(f'"{option}"' in source for option in re.findall(r"--\w+", options)), (program, options)
