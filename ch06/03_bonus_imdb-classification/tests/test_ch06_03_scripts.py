"""The command lines run as the README prints them, refuse bad input in one line, and the table of results is that of the log."""

import json
import math
import re
import shlex
from pathlib import Path

import compare_models
import download_prepare_dataset
import pandas as pd
import pytest
import train_bert_hf
import train_bert_hf_spam
import train_gpt
import train_sklearn_logreg
from compare_models import MARK_END, MARK_START, RUNS, draw, missing_runs, read_log, summarize, table
from train_sklearn_logreg import eval_model, load_dataframes

FOLDER = Path(compare_models.__file__).parent
README = (FOLDER / "README.md").read_text(encoding="utf-8")
SCRIPTS = {
    "download_prepare_dataset.py": download_prepare_dataset.main,
    "train_gpt.py": train_gpt.main,
    "train_bert_hf.py": train_bert_hf.main,
    "train_bert_hf_spam.py": train_bert_hf_spam.main,
    "train_sklearn_logreg.py": train_sklearn_logreg.main,
    "compare_models.py": compare_models.main,
}
QUICK = ["--max_steps", "2", "--eval_iter", "1", "--batch_size", "4", "--context_length", "64"]  # for the scripts that train


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """A small part of the reviews, as both collections."""
    folder = tmp_path_factory.mktemp("data")
    for dataset in ("reviews", "imdb"):
        download_prepare_dataset.partition_and_save(download_prepare_dataset.load_reviews()[:60], (40, 10, 10), folder, dataset)
    return folder


def printed_commands():
    """Every command in the README, and every row of the table."""
    blocks = re.findall(r"```bash\n(.*?)```", README, flags=re.DOTALL)
    found = [line.split("#")[0].strip() for block in blocks for line in block.splitlines()]
    found += [f"python {command}" for command in RUNS]
    return sorted({line.removeprefix("python ") for line in found if line.startswith("python ")})


@pytest.mark.parametrize("command", printed_commands())
@pytest.mark.slow
def test_commands_run_as_printed(command, data_dir, tmp_path, monkeypatch):
    script, *arguments = shlex.split(command)
    if {"--imdb", "--download", "124M"} & set(arguments) or (script == "compare_models.py" and "--draw_only" not in arguments):
        with pytest.raises(SystemExit) as stop:  # needs a network or an hour: its options must be right all the same
            SCRIPTS[script]([*arguments, "--help"])
        assert stop.value.code == 0
        return
    place = ["--data_dir", str(data_dir if script.startswith("train") else tmp_path)]
    if script == "compare_models.py":
        (tmp_path / "results.jsonl").write_bytes((FOLDER / "results.jsonl").read_bytes())
        place = ["--output_dir", str(tmp_path)]
    quick = QUICK if script in ("train_gpt.py", "train_bert_hf.py", "train_bert_hf_spam.py") else []
    if script == "train_bert_hf_spam.py":  # all its messages would take minutes
        messages = train_bert_hf_spam.load_spam_messages()
        monkeypatch.setattr(train_bert_hf_spam, "load_spam_messages", lambda full: messages.groupby("Label").head(20))
        place = ["--data_dir", str(tmp_path)]
    assert SCRIPTS[script]([*arguments, *place, *quick]) == 0


def test_every_script_is_in_the_readme_with_a_command():
    assert {command.split()[0] for command in printed_commands()} == set(SCRIPTS)


@pytest.mark.parametrize("script", ["train_gpt.py", "train_bert_hf.py"])
@pytest.mark.slow
def test_a_run_is_kept_once_and_equal_seeds_give_equal_results(script, data_dir, tmp_path, capsys):
    results = []
    for name, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        arguments = ["--data_dir", str(data_dir), "--output_dir", str(tmp_path / name), "--seed", seed, *QUICK, "--learning_rate", "1e-3"]
        assert SCRIPTS[script](arguments) == 0
        results.append(json.loads((tmp_path / name / "result.json").read_text(encoding="utf-8"))[0])
        assert {path.name for path in (tmp_path / name).iterdir()} == {"result.json", "log.txt", "loss-plot.pdf"}
    losses = [re.findall(r"loss [\d.]+", (tmp_path / name / "log.txt").read_text(encoding="utf-8")) for name in "abc"]
    assert losses[0] == losses[1] != losses[2]
    for result in results:
        assert result["updates"] == 2 and 0 < result["trained_parameters"] <= result["parameters"]
        assert all(math.isclose(share * size % 1, 0, abs_tol=1e-6) for share, size in zip(result["accuracy"].values(), (40, 10, 10)))
    before = (tmp_path / "a" / "result.json").read_bytes()
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        SCRIPTS[script](arguments[:2] + ["--output_dir", str(tmp_path / "a")])
    assert stop.value.code == 2 and "--overwrite" in capsys.readouterr().err and (tmp_path / "a" / "result.json").read_bytes() == before


BAD = [
    ("train_gpt.py", ["--context_length", "257"], "above the model's 256"),
    ("train_gpt.py", ["--context_length", "0"], "too small"),
    ("train_gpt.py", ["--learning_rate", "0"], "learning_rate"),
    ("train_gpt.py", ["--trainable_layers", "some"], "invalid choice"),
    ("train_gpt.py", ["--trainable_token_pos", "middle"], "invalid choice"),
    ("train_gpt.py", ["--batch_size", "41"], "fewer than batch_size 41"),
    ("train_gpt.py", ["--device", "tpu"], "not available"),
    ("train_gpt.py", ["--train", "all"], "unrecognized"),
    ("train_bert_hf.py", ["--model", "no-such-model"], "unknown model"),
    ("train_bert_hf.py", ["--model", "FacebookAI/roberta-large"], "--download fetches it"),
    ("train_bert_hf.py", ["--context_length", "513"], "above the model's 512"),
    ("train_bert_hf.py", ["--use_attention_mask", "maybe"], "invalid choice"),
    ("train_bert_hf.py", ["--max_steps", "0"], "too small"),
    ("train_sklearn_logreg.py", ["--max_iter", "0"], "too small"),
]


@pytest.mark.parametrize("script, arguments, words", BAD, ids=[" ".join(case[1]) for case in BAD])
def test_bad_input_is_one_line(script, arguments, words, data_dir, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        SCRIPTS[script](["--data_dir", str(data_dir), "--output_dir", str(tmp_path / "new"), *arguments])
    error = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("device: ")]
    assert stop.value.code == 2 and len(error) == 1 and words in error[0] and not list(tmp_path.rglob("result.json"))


@pytest.mark.parametrize("script", ["train_gpt.py", "train_bert_hf.py", "train_sklearn_logreg.py"])
def test_a_missing_file_names_the_script_that_writes_it(script, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        SCRIPTS[script](["--data_dir", str(tmp_path)])
    assert stop.value.code == 2 and "this writes it: python download_prepare_dataset.py" in capsys.readouterr().err


def test_the_baseline_counts_only_words_of_the_training_texts(data_dir):
    frames = load_dataframes("reviews", data_dir)
    assert [len(frame) for frame in frames] == [40, 10, 10]
    new = pd.DataFrame({"text": [*frames[2]["text"], "zyzzyva"], "label": [*frames[2]["label"], 0]})
    train, _, test = train_sklearn_logreg.count_words([frames[0], frames[1], new])
    assert train.shape[1] == test.shape[1] and test[-1].nnz == 0


def test_eval_model_gives_the_share_of_right_answers_of_each_part(capsys):
    class Constant:
        def score(self, X, y):
            return sum(label == 1 for label in y) / len(y)

    assert eval_model(Constant(), 0, [1, 0], 0, [1], 0, [1, 1, 1, 0]) == {"train": 0.5, "validation": 1.0, "test": 0.75}
    assert "test 75.00%" in capsys.readouterr().out


# ---- the measured table ----


def test_the_log_is_complete_and_possible():
    machine, runs = read_log(FOLDER / "results.jsonl")
    assert {"processor", "python", "torch", "transformers", "scikit-learn"} <= set(machine)
    assert missing_runs(runs, [123]) == []
    for run in runs:
        assert RUNS[run["command"]].count(run["row"]) == 1
        for part, size in (("train", 8_965), ("validation", 1_280), ("test", 2_563)):
            assert math.isclose(run["accuracy"][part] * size, round(run["accuracy"][part] * size), abs_tol=1e-6)
        assert run["command"] == compare_models.BASELINES or (run["updates"], run["threads"]) == (1_120, 1)


def test_the_table_and_the_sentences_of_the_readme_are_those_of_the_log():
    rows = summarize(read_log(FOLDER / "results.jsonl")[1])
    assert README.split(MARK_START)[1].split(MARK_END)[0].strip() == table(rows)
    assert [row["row"] for row in rows] == [name for names in RUNS.values() for name in names]
    for command, names in RUNS.items():
        assert all(name in README for name in names) and f"python {command}" in README


def test_the_readings_name_numbers_of_the_table():
    rows = {row["row"]: row for row in summarize(read_log(FOLDER / "results.jsonl")[1])}
    readings = README.split("**What the figures show**")[1].split("\n## ")[0]
    numbers = re.findall(r"([\d.]+) %", readings)
    assert len(numbers) >= 9 and set(numbers) <= {f"{100 * row['test']:.1f}" for row in rows.values()}
    full, mean, gpt = rows["MiniLM, all layers"], rows["MiniLM, head on the mean"], rows["gpt2-mini, all layers"]
    assert gpt["test"] < rows["word counts, logistic regression"]["test"]
    assert f"{full['processor_seconds'] / mean['processor_seconds']:.1f} times" in readings
    assert min(full["tests"]) - max(share for row in rows.values() if row is not full for share in row["tests"]) > 0.06


def test_the_summary_is_the_mean_over_seeds_with_the_range():
    run = {"command": "train_gpt.py", "row": "gpt2-mini, last block", "trained_parameters": 5, "processor_seconds": 60, "peak_memory_gb": 1}
    runs = [{**run, "seed": seed, "accuracy": {"train": 1, "validation": share, "test": share}} for seed, share in ((1, 0.5), (2, 0.7))]
    (row,) = summarize(runs)
    assert row["test"] == pytest.approx(0.6)
    assert table([row]).splitlines()[-1] == "| gpt2-mini, last block | 5 | 100.0 % | 60.0 % | 60.0 % (50.0 to 70.0) | 1.0 | 1.0 GB |"
    assert draw([row]).axes[0].lines[0].get_xdata() == pytest.approx([50, 70])


def test_only_missing_runs_are_run_and_a_failed_one_leaves_the_log_whole(tmp_path, monkeypatch, capsys):
    commands = list(RUNS)
    runs = [{"command": command, "seed": 123} for command in commands[:-1]]
    assert missing_runs(runs, [123]) == [(commands[-1], 123)]
    assert missing_runs(runs, [7]) == [(command, 7) for command in commands[1:]], "the baselines draw nothing and run once"
    assert missing_runs([], [1, 2]) == [(command, seed) for seed in (1, 2) for command in commands if seed == 1 or command != commands[0]]

    def fails(command, seed, data_dir):
        raise RuntimeError(f"{command} failed")

    monkeypatch.setattr(compare_models, "run", fails)
    log = tmp_path / "results.jsonl"
    log.write_bytes((FOLDER / "results.jsonl").read_bytes())
    with pytest.raises(SystemExit) as stop:
        compare_models.main(["--output_dir", str(tmp_path), "--data_dir", str(tmp_path / "data"), "--seeds", "7"])
    assert stop.value.code == 2 and "failed" in capsys.readouterr().err.splitlines()[-1]
    assert log.read_bytes() == (FOLDER / "results.jsonl").read_bytes()


@pytest.mark.slow
def test_a_run_gives_one_entry_a_row_and_a_failure_is_told(data_dir, tmp_path):
    results = compare_models.run(compare_models.BASELINES, 123, data_dir)
    assert [result["row"] for result in results] == RUNS[compare_models.BASELINES] and results[0]["trained_parameters"] == 0
    assert results[1]["accuracy"]["train"] > results[0]["accuracy"]["train"] and 0 < results[1]["peak_memory_gb"] < 4
    with pytest.raises(RuntimeError, match="failed"):
        compare_models.run(compare_models.BASELINES, 123, tmp_path)


def test_without_a_log_nothing_is_drawn(tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        compare_models.main(["--draw_only", "--output_dir", str(tmp_path)])
    assert stop.value.code == 2 and len(capsys.readouterr().err.splitlines()) == 1 and list(tmp_path.iterdir()) == []
