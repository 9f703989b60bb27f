"""The README names every file of the folder, and what it prints to copy runs.

Run it:  pytest ch05/20_fast_cpu_decoding/tests/test_ch05_20_readme.py
"""

import json
import os
import re
import shlex
from pathlib import Path

import pytest

if os.environ.get("CI") != "true":
    pytest.importorskip("numba", reason="needs numba: python -m pip install numba")

import fast_chat
import ladder

FOLDER = Path(ladder.__file__).parent
PAGE = (FOLDER / "README.md").read_text(encoding="utf-8")
PROGRAMS = {"fast_chat.py": (fast_chat.main, ["--temperature", "0", "--max_new_tokens", "4"]),
            "ladder.py": (ladder.main, ["--rounds", "1", "--new_tokens", "3", "--loss_tokens", "0"])}  # fmt: skip
COMMANDS = [shlex.split(found[1]) for found in re.finditer(r"(?:^|`)python (\w+\.py [^`\n]+)", PAGE, re.MULTILINE)]
MEASUREMENTS = [shlex.split(found[1]) for found in re.finditer(r"`(--models [^`]+)`", PAGE)]  # half an hour: their options only


def test_the_readme_names_every_file_of_the_folder():
    names = {path.name for path in FOLDER.iterdir() if path.is_file() and not path.name.startswith(".")} - {"README.md"}
    assert sorted(name for name in names if f"({name})" not in PAGE) == []


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_the_commands_of_the_readme_run(command, capsys, tmp_path):
    main, quick = PROGRAMS[command[0]]
    if command[0] == "ladder.py":
        quick = [*quick, "--json", str(tmp_path / "ladder.json")]
    assert main([*command[1:], *quick]) in (0, None)  # the last of two equal options counts
    assert capsys.readouterr().out.strip()
    if command[0] == "ladder.py":
        figures = json.loads((tmp_path / "ladder.json").read_text(encoding="utf-8"))
        assert figures["results"][0]["same_text"] and figures["first_call"]["kept"] < figures["first_call"]["compiled"]


def test_the_options_of_the_whole_measurement_exist():
    assert len(COMMANDS) >= 3 and len(MEASUREMENTS) == 3
    for options in MEASUREMENTS:
        assert ladder.build_parser().parse_args(options).models


@pytest.mark.slow
def test_the_program_of_the_readme_writes(capsys):
    (program,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    exec(compile(program.replace("prompt, 40,", "prompt, 4,"), "README", "exec"), {"__name__": "snippet"})
    assert capsys.readouterr().out.strip()
