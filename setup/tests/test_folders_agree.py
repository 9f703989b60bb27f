"""Facts that two numbered folders share, which no folder can prove alone: what one says about the other is true there."""

import contextlib
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

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
        yield server.stdout.readline().partition(" at ")[2].split(" ")[0]
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
