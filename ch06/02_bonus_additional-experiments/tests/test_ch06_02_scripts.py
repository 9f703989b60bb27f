"""The command lines: every command of the README runs, --fast changes no number, bad input ends in one line, no run is done twice."""

import json
import re
import subprocess
import sys
from pathlib import Path

import additional_experiments as experiments
import pytest
import run_all
import torch
from previous_chapters import SIZES, GPTModel, export_gpt2

FOLDER = Path(experiments.__file__).resolve().parent
README = (FOLDER / "README.md").read_text(encoding="utf-8")
OF_ROWS = dict(re.findall(r"^\| ([^|]+?) \| `python additional_experiments\.py ?([^`]*)` \|", README, flags=re.M))
COMMANDS = re.findall(r"python additional_experiments\.py ?([^`\n#]*)", README)
SIZE = {"vocab_size": 50257, "context_length": 120, "emb_dim": 16, "n_heads": 2, "n_layers": 2}
SMALL = {**SIZE, "drop_rate": 0.0, "qkv_bias": True, "tied": True}
PARTS = ("train", "validation", "test", "test_without_repeats")


def write_weights(folder: Path) -> None:
    torch.manual_seed(5)
    export_gpt2(GPTModel(SMALL).state_dict(), SMALL, folder)


@pytest.fixture(autouse=True)
def tiny_mini(tmp_path_factory, monkeypatch):
    """Let the mini be a tiny random GPT-2."""
    folder = tmp_path_factory.getbasetemp() / "tiny-mini"
    if not folder.exists():
        write_weights(folder)
    monkeypatch.setenv("LLM_COURSE_WEIGHTS", str(folder))


@pytest.fixture
def published_size(tmp_path, monkeypatch):
    """A folder in which 124M lies, with the sizes of a tiny model in place of the real ones."""
    names = {"vocab_size": "n_vocab", "context_length": "n_ctx", "emb_dim": "n_embd", "n_heads": "n_head", "n_layers": "n_layer"}
    monkeypatch.setitem(SIZES, "124M", {names[key]: value for key, value in SIZE.items()})
    write_weights(tmp_path / "gpt2" / "124M")
    return tmp_path / "gpt2"


def run(options: list[str], folder: Path) -> dict:
    assert experiments.command_line([*options, "--output_dir", str(folder)]) == 0
    return json.loads((folder / "result.json").read_text(encoding="utf-8"))


# ---- additional_experiments.py ----


def test_the_readme_has_one_command_for_each_row_of_the_runner():
    assert OF_ROWS == run_all.ROWS


@pytest.mark.slow
@pytest.mark.parametrize("options", sorted({command.strip() for command in COMMANDS}))
def test_every_command_of_the_readme_runs(options, published_size, tmp_path):
    options = options.replace("--lora_rank 16", "--lora_rank 4").replace("--full_data", "")  # a narrow model; no network
    result = run([*options.split(), "--max_steps", "2", "--fast", "--models_dir", str(published_size)], tmp_path)
    assert result["examples_seen"] <= 16 and [result[part]["texts"] for part in PARTS[:3]] == [898, 128, 258]


@pytest.mark.slow
@pytest.mark.parametrize(
    "options", ["", "--trainable_token_pos last", "--trainable_layers all", "--average_embeddings --disable_causal_mask"]
)
def test_the_fast_way_gives_the_numbers_of_the_plain_one(options, tmp_path):
    shared = [*options.split(), "--max_steps", "25", "--learning_rate", "0.003", "--context_length", "60"]
    plain, fast = (run([*shared, *extra], tmp_path / str(len(extra))) for extra in ([], ["--fast"]))
    assert fast["validation_loss"] == pytest.approx(plain["validation_loss"], abs=2e-4)
    for part in PARTS:
        assert abs(fast[part]["right"] - plain[part]["right"]) <= 1  # a text on the border may fall to either side


@pytest.mark.slow
def test_a_published_size_is_found_on_the_disk(published_size, tmp_path):
    shared = ["--model_size", "124M", "--models_dir", str(published_size), "--max_steps", "1", "--fast"]
    assert run(shared, tmp_path / "pretrained")["learning_rate"] == 5e-5
    random_start = [*shared, "--weights", "random", "--trainable_layers", "lora"]
    assert run(random_start, tmp_path / "random")["learning_rate"] == 8e-4
    model, cfg = experiments.instantiate_model("gpt2-small (124M)", True, models_dir=published_size)
    torch.manual_seed(5)
    assert torch.allclose(model.tok_emb.weight, GPTModel(SMALL).tok_emb.weight, atol=1e-2)  # stored in float16
    assert cfg["emb_dim"] == 16 and cfg["qkv_bias"]


def test_mini_and_124m_have_their_own_learning_rates():
    assert experiments.default_learning_rate("mini", "lora_alternative") == experiments.default_learning_rate("gpt2-mini (mini)", "lora")
    assert experiments.default_learning_rate("124M", "all") == 5e-5 != experiments.default_learning_rate("mini", "all")


BAD = [
    ("--no_padding", "--batch_size 1"),
    ("--no_padding --batch_size 2", "got 2"),
    ("--context_length 0", "--context_length"),
    ("--context_length longest", "--context_length"),
    ("--context_length 121", "121 is more than the model's context of 120"),
    ("--batch_size 0", "--batch_size"),
    ("--batch_size 899", "fewer than batch_size 899"),
    ("--accumulation_steps 0", "--accumulation_steps"),
    ("--num_epochs 0", "--num_epochs"),
    ("--max_steps 0", "--max_steps"),
    ("--lora_rank 0", "--lora_rank"),
    ("--trainable_layers lora --lora_rank 65", "rank must be"),
    ("--lora_alpha 0", "--lora_alpha"),
    ("--ignore_index x", "--ignore_index"),
    ("--trainable_token_pos middle", "middle"),
    ("--trainable_layers none", "none"),
    ("--model_size 125M", "125M"),
    ("--weights none", "none"),
    ("--learning_rate -1", "--learning_rate"),
    ("--device tpu", "tpu"),
    ("--trainable all", "unrecognized"),  # no abbreviations
]


@pytest.mark.parametrize("options, words", BAD)
def test_bad_input_ends_in_one_line_that_names_it(options, words, tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        experiments.command_line([*options.split(), "--output_dir", str(tmp_path)])
    lines = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("device:")]
    assert stopped.value.code == 2 and len(lines) == 1 and words in lines[0]
    assert not (tmp_path / "result.json").exists()


def test_missing_weights_end_in_one_line(monkeypatch, tmp_path, capsys):
    def missing(*_):
        raise ValueError("gpt2-mini is not\nhere")

    monkeypatch.setattr(experiments, "download_and_load_gpt2", missing)
    with pytest.raises(SystemExit) as stopped:
        experiments.command_line(["--output_dir", str(tmp_path)])
    assert stopped.value.code == 2 and "gpt2-mini is not here\n" in capsys.readouterr().err


@pytest.mark.parametrize("script", ["additional_experiments.py", "run_all.py", "report_results.py"])
def test_every_program_answers_help(script):
    done = subprocess.run([sys.executable, str(FOLDER / script), "--help"], capture_output=True, text=True, check=True)
    assert "default" in done.stdout


# ---- run_all.py ----


@pytest.fixture
def short_runs(monkeypatch):
    """Runs that take no time, and the list of their options."""
    done = []
    monkeypatch.setattr(run_all, "run", lambda job, threads: done.append(job["options"]) or {**job, "seed": 0})
    return done


def test_a_stopped_runner_goes_on_where_it_was(short_runs, tmp_path, monkeypatch):
    log = tmp_path / "log.jsonl"
    arguments = ["--log", str(log), "--seeds", "123", "124"]
    finish = run_all.run

    def interrupted(job, threads):
        if len(short_runs) == 3:
            raise KeyboardInterrupt
        return finish(job, threads)

    monkeypatch.setattr(run_all, "run", interrupted)
    with pytest.raises(SystemExit) as stopped:
        run_all.main(arguments)
    assert stopped.value.code == 130 and len(log.read_text().splitlines()) == 4
    monkeypatch.setattr(run_all, "run", finish)
    assert run_all.main(arguments) == 0 and run_all.main(arguments) == 0  # the second time nothing is left
    assert len(short_runs) == len(set(short_runs)) == 2 * len(run_all.ROWS)
    machine, runs = run_all.read_log(log)
    assert {"torch", "processor", "threads"} <= machine.keys() and [job["options"] for job in runs] == short_runs


def test_each_row_and_seed_is_a_run_of_its_own():
    jobs = run_all.jobs_of("result", [1, 2, 3])
    assert len({job["options"] for job in jobs}) == len(jobs) == 3 * len(run_all.ROWS)
    assert all("--fast" not in job["options"] for job in run_all.jobs_of("timing", [1]))


@pytest.mark.slow
def test_the_runner_reads_what_the_script_wrote_and_passes_on_its_complaint():
    options = f"{run_all.ROWS['head only']} --max_steps 1 --fast"
    assert run_all.run({"kind": "result", "row": "head only", "options": options}, 1)["trained_parameters"] == 2 * 17
    with pytest.raises(RuntimeError, match="--batch_size 1"):
        run_all.run({"kind": "result", "row": "x", "options": "--no_padding"}, 1)
