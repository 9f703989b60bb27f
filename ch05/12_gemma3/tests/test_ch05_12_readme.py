"""The README names every file of the folder, and what it prints to copy works."""

import re
import runpy
import shlex
import sys
from pathlib import Path

import pytest
from gemma3_oracles import need_gemma

FOLDER = Path(__file__).resolve().parents[1]
TEXT = (FOLDER / "README.md").read_text(encoding="utf-8")
SNIPPETS = re.findall(r"```python\n(.*?)```", TEXT, flags=re.DOTALL)
COMMANDS = re.findall(r"^python (.+)$|`python ([^`]+)`", TEXT, flags=re.MULTILINE)
ANSWER = "def tokens_that_fit(cfg, free_bytes, bytes_per_number):\n    return 0\n"


def test_every_file_of_the_folder_is_named():
    names = {path.name for path in FOLDER.iterdir() if path.is_file()} | {"gemma3_layer_debugger.py", "gemma3_layer_debugger_detailed.py"}
    assert sorted(name for name in names - {"README.md"} if f"{name})" not in TEXT) == []


@pytest.mark.parametrize("command", [first or second for first, second in COMMANDS])
def test_every_command_runs(command, tmp_path, monkeypatch, capsys):
    script, *options = shlex.split(command)
    (tmp_path / "my_answer.py").write_text(ANSWER, encoding="utf-8")
    monkeypatch.setattr(sys, "argv", [script, *(str(tmp_path / option) if option.startswith("my_") else option for option in options)])
    monkeypatch.setattr(sys, "path", [str((FOLDER / script).parent), *sys.path])
    code = 0
    try:
        runpy.run_path(str(FOLDER / script), run_name="__main__")
    except SystemExit as stop:
        code = stop.code or 0
    shown = capsys.readouterr()
    expected = {
        "gemma3_layer_debugger.py": (0, "all agree"), "gemma_files.py": (0, "Terms of Use"), "exercise_checks.py": (1, "not right yet"),
    }
    assert code == expected[Path(script).name][0] and expected[Path(script).name][1] in shown.out + shown.err


@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(SNIPPETS)))
def test_every_snippet_runs(number, capsys):
    need_gemma()
    exec(compile(SNIPPETS[number], f"README, snippet {number}", "exec"), {"__name__": "snippet"})
    assert capsys.readouterr().out.strip()
