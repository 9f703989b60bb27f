"""Facts that two numbered folders share, which no folder can prove alone: what one says about the other is true there."""

import re
import subprocess
import sys
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]


def test_chapter_4_presents_the_alternatives_to_attention():
    section = (REPO / "ch04/README.md").read_text(encoding="utf-8").split("\n## Attention alternatives\n")[1]
    assert all(f"`{name}`" in section for name in ["04_gqa", "05_mla", "06_swa", "08_deltanet"])


def right_answers(answers: Path, key: str) -> tuple[int, int]:
    """(right, verifiable): what the chapter's own program says of a file of answers."""
    program = REPO / "ch07/01_main-chapter-code/instruction_data_checks.py"
    done = subprocess.run([sys.executable, program, "--answers", answers, "--key", key], capture_output=True, text=True, check=True)
    rows = [row.split() for row in done.stdout.splitlines()]
    counts = [(int(row[-2]), int(row[-1])) for row in rows if row and row[-1].isdigit() and row[-2].isdigit() and row[0] != "total"]
    return sum(right for right, _ in counts), sum(total for _, total in counts)


def test_the_card_of_the_stored_answers_says_how_many_are_right():
    folder = REPO / "ch07/03_model-evaluation"
    card = (folder / "README.md").read_text(encoding="utf-8")
    for number in (1, 2):
        right, total = right_answers(folder / "eval-example-data.json", f"model {number} response")
        assert total > 40 and re.search(rf"\| model {number} \|.*\| {right} of {total} \|", card)


def test_the_recipe_of_gpt2_mini_names_programs_that_are_there():
    for page in ("README.md", "gpt2-mini/README.md"):
        folder = REPO / "ch05/03_bonus_pretraining_on_gutenberg"
        programs = re.findall(r"^python (\S+\.py)", (folder / page).read_text(encoding="utf-8"), flags=re.M)
        assert len(programs) >= 4 and all((folder / program).is_file() for program in programs)
