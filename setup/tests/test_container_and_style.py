"""The container's files keep their promises, and the style script sees what it should."""

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[2]
CONTAINER = REPO / "setup/03_optional-docker-environment/.devcontainer"
DOCKERFILE = (CONTAINER / "Dockerfile").read_text(encoding="utf-8")
STYLE = REPO / ".github/scripts/check_double_quotes.py"
CONFIGURATIONS = sorted(CONTAINER.rglob("devcontainer.json"))


def test_the_image_is_pinned_and_of_a_python_that_the_course_supports():
    bases = re.findall(r"^FROM (\S+)$", DOCKERFILE, flags=re.M)
    assert len(bases) == 1 and re.fullmatch(r"python:3\.1[0-3]\.\d+-slim-\w+", bases[0])


def test_the_user_is_not_root_and_nothing_is_piped_into_a_shell():
    users = re.findall(r"^USER (\S+)$", DOCKERFILE, flags=re.M)
    assert users == ["1000"] and DOCKERFILE.index("USER 1000") < DOCKERFILE.index("make setup")
    assert "curl" not in DOCKERFILE and "wget" not in DOCKERFILE and "sudo" not in DOCKERFILE


def test_packages_come_by_make_setup_and_so_from_the_constraints():
    assert "make setup" in DOCKERFILE and "pip install" not in DOCKERFILE
    recipe = (REPO / "Makefile").read_text(encoding="utf-8").partition("$(STAMP): ")[2].partition("\nsetup:")[0]
    assert "-c setup/constraints.txt" in recipe and "VENV ?=" in (REPO / "Makefile").read_text(encoding="utf-8")


@pytest.mark.parametrize("path", CONFIGURATIONS, ids=lambda path: path.parent.name)
def test_each_configuration_builds_from_the_root_of_the_course(path):
    config = json.loads(path.read_text(encoding="utf-8"))
    build = config["build"]
    assert (path.parent / build["context"]).resolve() == REPO
    assert (path.parent / build["dockerfile"]).resolve() == CONTAINER / "Dockerfile"
    assert config["remoteUser"] == "learner" and "--uid 1000 learner" in DOCKERFILE
    interpreter = config["customizations"]["vscode"]["settings"]["python.defaultInterpreterPath"]
    assert interpreter == re.search(r"ENV VENV=(\S+)", DOCKERFILE)[1] + "/bin/python"


def test_only_the_gpu_configuration_asks_for_a_gpu():
    asks = {path.parent.name: "--gpus" in path.read_text(encoding="utf-8") for path in CONFIGURATIONS}
    assert asks == {".devcontainer": False, "gpu": True}


def test_workflows_build_the_container_and_check_the_style():
    runs = {path.name: re.findall(r"- run: (.+)", path.read_text(encoding="utf-8")) for path in (REPO / ".github/workflows").glob("*.yml")}
    assert any("docker build" in run and "03_optional-docker-environment" in run for run in runs["weekly.yml"])
    assert any("check_double_quotes.py --include-notebooks" in run for run in runs["tests.yml"])


def test_actions_are_pinned_by_hash():
    texts = [path.read_text(encoding="utf-8") for path in (REPO / ".github/workflows").glob("*.yml")]
    used = [line.strip() for text in texts for line in text.splitlines() if "uses:" in line]
    assert len(used) > 5 and all(re.fullmatch(r"- uses: [\w-]+/[\w-]+@[0-9a-f]{40}  # v\d+(\.\d+)*", line) for line in used), used


def style(*arguments):
    return subprocess.run([sys.executable, STYLE, *map(str, arguments)], capture_output=True, text=True)


def test_style_script_accepts_the_course_itself():
    done = style("--include-notebooks", REPO)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize(
    ("source", "lines"),
    [
        ("x = 'a'\n", [1]),
        ('x = "a"\n', []),
        ("x = 'say \"a\"'\n", []),
        ("x = \"a\"\ny = f'{x}'\n", [2]),
        ('"""it\'s"""\n', []),
        ("# it's a comment\n", []),
        ("x = {'a': 1,\n 'b': 2}\n", [1, 2]),
    ],
)
def test_style_script_finds_single_quotes(source, lines):
    spec = importlib.util.spec_from_file_location("check_double_quotes", STYLE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.single_quoted_lines(source) == lines


def test_style_script_reads_notebooks_and_refuses_what_is_not_there(tmp_path):
    cells = [{"cell_type": "markdown", "source": ["it's"]}, {"cell_type": "code", "source": ["%time\n", "x = 'a'\n"]}]
    (tmp_path / "one.ipynb").write_text(json.dumps({"cells": cells}), encoding="utf-8")
    assert style(tmp_path).returncode == 0
    done = style("--include-notebooks", tmp_path)
    assert done.returncode == 1 and "cell 1, line 2: single quotes" in done.stdout
    missing = style(tmp_path / "nowhere")
    assert missing.returncode == 2 and missing.stderr.strip().splitlines()[-1].endswith("does not exist")
