"""Facts that two numbered folders share, which no folder can prove alone: what one says about the other is true there."""

import contextlib
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

REPO = Path(__file__).resolve().parents[2]


def test_chapter_4_presents_the_alternatives_to_attention():
    section = (REPO / "ch04/README.md").read_text(encoding="utf-8").split("\n## Attention alternatives\n")[1]
    assert all(f"`{name}`" in section for name in ["04_gqa", "05_mla", "06_swa", "08_deltanet"])


def test_the_preference_data_is_what_the_sources_of_chapter_7_say():
    """The same entries in the same order, and the rewrites written beside them."""
    program = REPO / "ch07/01_main-chapter-code/make_instruction_data.py"
    stored = REPO / "ch07/04_preference-tuning-with-dpo/instruction-data-with-preference.json"
    done = subprocess.run([sys.executable, program, "--check", "--preferences", stored], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_schedulers_of_chapter_5_use_the_rates_of_appendix_d():
    ours = """
import json, torch
from lr_schedulers import make_scheduler
optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.01)
scheduler, rates = make_scheduler(optimizer, 135, 27, 1e-5, 1e-6), []
for _ in range(135):
    rates.append(optimizer.param_groups[0]["lr"])
    optimizer.step()
    scheduler.step()
print(json.dumps(rates))
"""
    theirs = "import exercise_checks, json; print(json.dumps(exercise_checks.rates_of_train_model(135, 27, 0.01, 1e-5, 1e-6)))"
    rates = []
    for folder, code in (("ch05/04_learning_rate_schedulers", ours), ("appendix-D/01_main-chapter-code", theirs)):
        done = subprocess.run([sys.executable, "-c", code], cwd=REPO / folder, capture_output=True, text=True, check=True)
        rates.append(json.loads(done.stdout))
    assert len(rates[0]) == 135 and rates[0] == pytest.approx(rates[1], rel=1e-6)


def test_the_recipe_of_gpt2_mini_names_programs_that_are_there():
    for page in ("README.md", "gpt2-mini/README.md"):
        folder = REPO / "ch05/03_bonus_pretraining_on_gutenberg"
        programs = re.findall(r"^python (\S+\.py)", (folder / page).read_text(encoding="utf-8"), flags=re.M)
        assert len(programs) >= 4 and all((folder / program).is_file() for program in programs)


@contextlib.contextmanager
def judge_server():
    """The address of chapter 7's local server, started as a program."""
    command = [sys.executable, REPO / "ch07/03_model-evaluation/local_server.py", "--port", "0", "--plain"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            yield server.stdout.readline().partition(" at ")[2].split(" ")[0]
        finally:
            server.terminate()


@pytest.mark.slow  # SmolLM2 answers eight questions
def test_the_judge_of_chapter_7_runs_on_the_local_server(tmp_path):
    entries = [("What color is snow?", "White.", "It is white."), ("What is 2 + 2?", "4.", "Five.")]
    data = [{"instruction": ask, "input": "", "output": right, "model_response": answer} for ask, right, answer in entries]
    (tmp_path / "answers.json").write_text(json.dumps(data), encoding="utf-8")
    with judge_server() as url:
        command = [sys.executable, REPO / "ch07/01_main-chapter-code/ollama_evaluate.py", "--file_path", tmp_path / "answers.json"]
        command += ["--model", "smollm2:135m", "--url", f"{url}/api/chat", "--output", tmp_path / "scores.json"]
        done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()[1:]
    assert len(lines) == 4 and all(re.search(r"\d of 2 scored, (mean \d+\.\d\d|no mean)$", line) for line in lines), lines
    scores = json.loads((tmp_path / "scores.json").read_text(encoding="utf-8"))
    assert scores["answers"] == scores["answers, again"] and scores.pop("judge") == "smollm2:135m"
    assert all(len(series) == 2 for series in scores.values())


# ---- ch07/07_the-whole-story does what the chapters do ----


def test_the_stored_answers_of_gemma_are_those_of_chapter_7():
    """Answers, terms, parameters and shares of questions.json, computed anew from gemma-log.json."""
    folder = REPO / "ch07/01_main-chapter-code"
    code = """
import json
from gemma_report import asked_questions, count, load_gemma_log, mark
log, asked = load_gemma_log(), asked_questions()
rows = mark(log["runs"][0]["after"], asked)
answers = {(row["instruction"], row["input"]): row["answer"] for row in rows}
print(json.dumps([log["runs"][0]["name"], log["terms"], count(rows, group="unseen"), [list(pair) for pair in answers.items()]]))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    name, terms, unseen, answers = json.loads(done.stdout)
    answers = {tuple(question): answer for question, answer in answers}
    stored = json.loads((REPO / "ch07/07_the-whole-story/questions.json").read_text(encoding="utf-8"))
    gemma = stored["gemma"]
    assert name in gemma["model"] and terms == gemma["terms"] and unseen == [gemma["right_unseen"], gemma["of_unseen"]]
    assert [answers[entry["instruction"], entry["input"]] for entry in stored["questions"]] == gemma["answers"]
    assert f"{gemma['parameters']:,}" in (REPO / "ch05/12_gemma3/what-a-base-model-is.ipynb").read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_whole_story_trains_as_the_programs_of_the_chapters_do(tmp_path):
    """In their test modes, with equal settings, both end with the same weights."""
    story = [REPO / "ch07/07_the-whole-story/the_whole_story.py", "--test_mode", "--device", "cpu", "--output_dir", tmp_path / "whole"]
    sizes = {"context_length": 64, "emb_dim": 12, "n_heads": 2, "n_layers": 1, "epochs": 2}
    options = [word for name, value in sizes.items() for word in (f"--{name}", str(value))]
    text = (REPO / "ch07/07_the-whole-story/the-tide-clock.txt").read_text(encoding="utf-8")
    (tmp_path / "beginning.txt").write_text(text[:4000], encoding="utf-8", newline="\n")
    chapters = {
        "story-model/model.pth": (
            ["ch05", "gpt_train.py", *options, "--data", tmp_path / "beginning.txt", "--no_plot", "--device", "cpu"],
            "model.pth",
        ),
        "spam-classifier/review_classifier.pth": (
            ["ch06", "gpt_class_finetune.py", "--test_mode", "--num_epochs", "2"],
            "review_classifier.pth",
        ),
        "instruction-model/gpt2-mini-sft-standalone.pth": (
            ["ch07", "gpt_instruction_finetuning.py", "--test_mode"],
            "small-test-model-sft-standalone.pth",
        ),
    }
    subprocess.run([sys.executable, *story], check=True, capture_output=True)
    for name, ((chapter, program, *more), saved) in chapters.items():
        path = REPO / chapter / "01_main-chapter-code" / program
        subprocess.run([sys.executable, path, *more, "--output_dir", tmp_path / chapter], check=True, capture_output=True)
        ours, theirs = (torch.load(file, weights_only=True) for file in (tmp_path / "whole" / name, tmp_path / chapter / saved))
        ours, theirs = (contents.get("model_state_dict", contents) for contents in (ours, theirs))
        assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours), name


def test_the_answers_to_judge_are_those_that_chapter_7_stored():
    program = REPO / "ch07/03_model-evaluation/make_eval_data.py"
    done = subprocess.run([sys.executable, program, "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_no_judged_question_was_trained_on():
    main, evaluation = REPO / "ch07/01_main-chapter-code", REPO / "ch07/03_model-evaluation"
    data, judged = (
        json.loads(path.read_text(encoding="utf-8")) for path in (main / "instruction-data.json", evaluation / "eval-example-data.json")
    )
    asked, trained = ({(entry["instruction"], entry["input"]) for entry in entries} for entries in (judged, data[:935]))
    assert len(asked) == 100 and len(trained) == 935 and asked.isdisjoint(trained)


def test_chapter_7_shows_the_log_of_judges_that_its_evaluation_folder_measured():
    chapter, measured = (REPO / "ch07" / folder / "judge-log.json" for folder in ("01_main-chapter-code", "03_model-evaluation"))
    assert chapter.read_bytes() == measured.read_bytes()


def test_chapter_5_quotes_gemma_as_the_folder_of_gemma_has_it():
    cells = json.loads((REPO / "ch05/01_main-chapter-code/ch05.ipynb").read_text(encoding="utf-8"))["cells"]
    sources = ["".join(cell["source"]) for cell in cells]
    prose = next(source for source in sources if "Generated by Gemma 3 270M" in source)
    quoted = [line.removeprefix("> ").strip("*") for line in prose.splitlines() if line.startswith("> ")]
    transcript = (REPO / "ch05/12_gemma3/transcripts.md").read_text(encoding="utf-8")
    assert len(quoted) == 4 and all(line in transcript.splitlines() for line in quoted)
    log = json.loads((REPO / "ch05/12_gemma3/base-models.json").read_text(encoding="utf-8"))["models"]["gemma3"]
    table = next(source for source in sources if "'Gemma 3 270M':24" in source)
    assert f"{log['parameters']:_}" in table and f"{log['story']['nats_per_byte_by_position'][0]:.3f}" in table
