"""Facts that two numbered folders share, which no folder can prove alone: what one says about the other is true there."""

import re
import subprocess
import sys
from pathlib import Path

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
