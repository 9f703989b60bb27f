"""Test plumbing for the whole course: nothing here checks anything by itself.

Six services, all automatic:
- `import dataloader` in FOLDER/tests/test_*.py means FOLDER/dataloader.py, although other folders have modules of the
  same name (`FolderImports`);
- connections to other computers are refused unless a test is marked `network`; this covers notebooks too, because
  `pytest --nbval` runs them in the offline kernel of setup/tools/offline_kernel.py;
- notebook kernels listen on sockets of their own, so that many can start at the same moment;
- the shape notes of every module are checked while tests run it (setup/tools/shapes.py); a false one fails the test;
- every test starts from seed 123 and in an empty temporary working folder;
- fixture `offline_kernel`: the name of that kernel, for tests that start one through nbclient.
"""

import importlib.util
import os
import shutil
import socket
import sys
import tempfile
import uuid
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent
SEED = 123


def _load_tool(name: str):
    """Import setup/tools/NAME.py under a private name: tests of the tools import their own copy."""
    spec = importlib.util.spec_from_file_location(f"_course_{name}", ROOT / "setup" / "tools" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


offline = _load_tool("offline_kernel")


def folder_of(path: Path) -> Path:
    """The folder that a test file belongs to: the parent of its `tests` folder, else the folder it lies in."""
    for parent in Path(path).resolve().parents:
        if parent.name == "tests":
            return parent.parent
    return Path(path).resolve().parent


class FolderImports:
    """Gives each folder's tests their own `sys.path` entries and their own modules, and keeps them for the next visit."""

    def __init__(self):
        self.folder = None
        self.modules = {}  # folder -> {module name: module}

    def enter(self, folder: Path) -> None:
        """Make plain imports find the modules of `folder`."""
        if folder != self.folder:
            self._park()
            self.folder = folder
            sys.modules.update(self.modules.get(folder, {}))
        paths = [str(folder), str(folder / "tests")]
        if sys.path[:2] != paths:
            sys.path[:] = paths + [entry for entry in sys.path if entry not in paths]

    def _park(self) -> None:
        """Take the current folder's modules out of `sys.modules` (and out of `sys.path`), remembering them."""
        if self.folder is None:
            return
        local = {name: module for name, module in list(sys.modules.items()) if self._is_local(name, module)}
        for name in local:
            del sys.modules[name]
        self.modules[self.folder] = local
        paths = (str(self.folder), str(self.folder / "tests"))
        sys.path[:] = [entry for entry in sys.path if entry not in paths]

    def _is_local(self, name: str, module) -> bool:
        file = getattr(module, "__file__", None)
        if not file or name.startswith("_course_") or name == "__main__":
            return False
        path = Path(file)
        if path.name == "conftest.py" or path.name.startswith("test_") or "site-packages" in path.parts:
            return False  # pytest keeps test modules under unique names of their own
        return self.folder == path.parent or self.folder in path.parents


imports = FolderImports()


def _private_sockets(folder: Path) -> None:
    """Let every kernel of this process talk through Unix sockets in `folder`, where the system has them.

    Jupyter's other way picks five free TCP ports and lets go of them before the kernel takes them: with several test
    processes, about one kernel in a hundred found a port taken and died, and all cells of its notebook failed.
    """
    from jupyter_client.manager import KernelManager

    original = KernelManager.__init__
    if not hasattr(socket, "AF_UNIX") or getattr(original, "private_sockets", False):
        return

    def __init__(self, *args, **kwargs):
        sockets = {"transport": "ipc", "ip": str(folder / uuid.uuid4().hex[:12])}
        original(self, *args, **{**sockets, **kwargs})

    __init__.private_sockets = True
    KernelManager.__init__ = __init__


def pytest_configure(config):
    """Install the guard, the kernelspec, and the settings that `--nbval` needs."""
    offline.install_guard()
    config._course_jupyter = Path(tempfile.mkdtemp(prefix="course-jupyter-"))
    _private_sockets(config._course_jupyter)
    kernel_name = offline.announce(config._course_jupyter)
    os.environ.setdefault("MPLBACKEND", "Agg")  # for plain tests; the kernel drops it again
    option = config.option
    of_notebooks = getattr(option, "nbval", False) or getattr(option, "nbval_lax", False)
    # A folder that was copied alone comes without the tools; kernels of notebooks watch their own cells.
    watched = not of_notebooks and (ROOT / "setup" / "tools" / "shapes.py").exists()
    config._course_shapes = _load_tool("shapes").TestShapes() if watched else None
    if of_notebooks:
        if not option.nbval_kernel_name and not option.nbval_current_env:
            option.nbval_kernel_name = kernel_name
        if getattr(option, "dist", "no") in ("load", "worksteal"):
            option.dist = "loadfile"  # the cells of one notebook share one kernel, so they stay together


def pytest_unconfigure(config):
    if getattr(config, "_course_shapes", None) is not None:
        config._course_shapes.finish()
    folder = getattr(config, "_course_jupyter", None)
    if folder is not None:
        shutil.rmtree(folder, ignore_errors=True)


def pytest_ignore_collect(collection_path, config):
    """The learner's editions fail at their checks on purpose; tests of their own run them."""
    return True if collection_path.name == "exercises.ipynb" else None


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_make_collect_report(collector):
    """Before a test module is imported, switch to its folder."""
    if isinstance(collector, pytest.Module):
        imports.enter(folder_of(collector.path))
    return (yield)


def _seed() -> None:
    torch = sys.modules.get("torch")
    if torch is not None and hasattr(torch, "manual_seed"):
        torch.manual_seed(SEED)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item, nextitem):
    """Run each test in its own folder's imports, seeded, and offline unless it is marked `network`."""
    if isinstance(item, pytest.Function):
        imports.enter(folder_of(item.path))
        _seed()  # for fixtures of wider scope
    if item.get_closest_marker("network"):
        with offline.outside_allowed():
            return (yield)
    return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    """Fail a test that met a false shape note, also where the code under test swallowed the error."""
    try:
        return (yield)
    finally:
        if item.config._course_shapes is not None:
            item.config._course_shapes.after_test()


def _keep_captured_output_open() -> None:
    """TensorFlow's absl closes its stream, stderr as it was at the import, when a server configures logging: let it not be pytest's."""
    absl_logging = sys.modules.get("absl.logging")
    if absl_logging is not None:
        absl_logging.get_absl_handler().python_handler.stream = sys.__stderr__  # which absl never closes


@pytest.fixture(autouse=True)
def _fresh_start(tmp_path, monkeypatch):
    """Seed again after fixtures of wider scope, and work in an empty folder, so that no test litters the repository."""
    _keep_captured_output_open()
    monkeypatch.chdir(tmp_path)
    _seed()


@pytest.fixture(scope="session")
def offline_kernel() -> str:
    """Name of the Jupyter kernel that refuses outside addresses (its kernelspec is on JUPYTER_PATH)."""
    return offline.KERNEL_NAME
