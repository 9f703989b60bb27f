"""The quote check reports single quotes, spares what has a reason, and reads notebooks when asked.

    python -m pytest .github/scripts
"""

import json

import check_double_quotes as check
import pytest


@pytest.mark.parametrize("source, findings", [
    ('x = "fine"\n', []),
    ("x = 'wrong'\n", [(1, "'wrong'")]),
    ("\nx = rb'wrong'\n", [(2, "rb'wrong'")]),
    ("x = 'says \"hello\"'\n", []),
    ("x = f'{y} wrong'\n", [(1, "f'{y} wrong'")]),
    ("x = f\"{d['key']} fine\"\n", []),
    ("x = f'{d[\"key\"]} has a reason'\n", []),
    ("'''wrong'''\n", [(1, "'''wrong'''")]),
    ("# it's a comment\nx = \"it's fine\"\n", []),
])
def test_findings(source, findings):
    assert check.wrong_quotes(source) == findings


def test_notebooks_are_checked_only_when_asked(tmp_path, capsys):
    cells = [
        {"cell_type": "markdown", "source": ["it's 'prose'"]},
        {"cell_type": "code", "source": ["%matplotlib inline\n", "x = 'wrong'"]},
        {"cell_type": "code", "source": ["%%bash\n", "echo 'fine'"]},
    ]
    (tmp_path / "a.ipynb").write_text(json.dumps({"cells": cells}), encoding="utf-8")
    (tmp_path / "b.py").write_text('x = "fine"\n', encoding="utf-8")
    assert check.main([str(tmp_path)]) == 0
    capsys.readouterr()
    assert check.main(["--include-notebooks", str(tmp_path)]) == 1
    assert capsys.readouterr().out.strip().endswith("cell 2, line 2: 'wrong'")


def test_code_that_cannot_be_read_is_a_finding(tmp_path, capsys):
    (tmp_path / "b.py").write_text("x = 'never closed\n", encoding="utf-8")
    assert check.main([str(tmp_path)]) == 1
    assert "b.py" in capsys.readouterr().out


def test_a_missing_path_is_one_line_and_status_2(tmp_path, capsys):
    assert check.main([str(tmp_path / "none")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
