"""The guard lets code talk to this computer only, in tests and in notebooks, and nbval compares what it should."""

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import nbformat
import offline_kernel
import pytest
from nbformat.v4 import new_code_cell, new_notebook, new_output

TOOLS = Path(offline_kernel.__file__).resolve().parent
ROOT = TOOLS.parents[1]


@pytest.mark.parametrize(
    "host", [None, "", "localhost", "LOCALHOST.", "127.0.0.1", "127.9.8.7", "::1", "0.0.0.0", b"localhost", "::ffff:127.0.0.1"]
)
def test_this_computer_is_local(host):
    assert offline_kernel.is_local(host)


@pytest.mark.parametrize(
    "host", ["example.org", "192.0.2.7", "10.0.0.1", "::ffff:192.0.2.7", "2001:db8::1", "localhost.example.org", "169.254.169.254"]
)
def test_other_addresses_are_not_local(host):
    assert not offline_kernel.is_local(host)


def test_the_guard_is_on_in_tests_and_names_the_address():
    for call in (
        lambda: socket.create_connection(("example.org", 80), timeout=1),
        lambda: socket.socket().connect(("192.0.2.7", 80)),
        lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"x", ("192.0.2.7", 53)),
        lambda: socket.gethostbyname("example.org"),
    ):
        with pytest.raises(OSError, match="outside address refused.*(example.org|192.0.2.7)"):
            call()


def test_loopback_works():
    with socket.create_server(("127.0.0.1", 0)) as server:
        with socket.create_connection(("localhost", server.getsockname()[1]), timeout=5) as client:
            client.sendall(b"hello")
            connection, _ = server.accept()
            assert connection.recv(5) == b"hello"
            connection.close()


@pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="no unix sockets on this system")
def test_unix_sockets_work():
    with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as client:
        server.bind("s")
        server.listen()
        client.connect("s")
        assert client.getpeername() == "s"


MARKED = """
import socket
import pytest

def refused():
    try:
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM).connect(("192.0.2.7", 9))  # sends nothing yet
    except OSError as error:
        return "outside address refused" in str(error)
    return False

@pytest.mark.network
def test_marked():
    assert not refused()

def test_plain():
    assert refused()
"""


def plumbing(folder):
    """A copy of what makes pytest offline."""
    (folder / "setup" / "tools").mkdir(parents=True)
    for name in ("conftest.py", "pyproject.toml", "setup/tools/offline_kernel.py"):
        shutil.copy(ROOT / name, folder / name)
    return folder


def run_pytest(folder, *arguments, **more):
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST")}
    command = [sys.executable, "-m", "pytest", "-q", "--color=no", "-p", "no:cacheprovider", *arguments]
    return subprocess.run(command, cwd=folder, env={**environment, **more}, capture_output=True, text=True, timeout=120).stdout


def test_a_test_marked_network_may_leave_and_the_next_one_may_not(tmp_path):
    (plumbing(tmp_path) / "test_leaving.py").write_text(MARKED, encoding="utf-8")
    assert "2 passed" in run_pytest(tmp_path, "-p", "no:xdist", "-m", "", "test_leaving.py")


# ---- notebooks, as `pytest --nbval` runs them ------------------------------------------------------------------------

FIGURE = (
    "import matplotlib.pyplot as plt\nfig, ax = plt.subplots(figsize=(1, 1))\n"
    'display(fig, metadata={"image/png": {"alt": "An empty square."}})\nplt.close(fig)'
)
LOOPBACK = (
    'import socket\nserver = socket.create_server(("127.0.0.1", 0))\n'
    "client = socket.create_connection(server.getsockname(), timeout=5)\nprint(client.getpeername()[0])"
)


def stream(text, name="stdout"):
    return new_output("stream", name=name, text=text)


def picture(png):
    return new_output("display_data", data={"image/png": png, "text/plain": "<Figure size 100x100 with 1 Axes>"}, metadata={})


def notebook(path, *cells):
    nb = new_notebook(
        cells=[new_code_cell(source, execution_count=n, outputs=outputs) for n, (source, outputs) in enumerate(cells, start=1)]
    )
    nb.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(nb, path)


@pytest.fixture(scope="module")
def nbval_lines(tmp_path_factory):
    """One nbval run, without any flag but --nbval, over a copy of the plumbing and two notebooks; returns its report lines."""
    repo = plumbing(tmp_path_factory.mktemp("repo"))
    notebook(
        repo / "facts.ipynb",
        ("print('same')", [stream("same\n")]),
        ("print('new')", [stream("old\n")]),
        (LOOPBACK, [stream("127.0.0.1\n")]),
        ("socket.create_connection(('192.0.2.7', 80), timeout=1)", []),
        (FIGURE, [picture("b3RoZXIgYnl0ZXM=")]),
        (FIGURE, []),
        ("import sys; print('new', file=sys.stderr)", [stream("old\n", "stderr")]),
        ("1 + 1", [new_output("execute_result", data={"text/plain": "3"}, execution_count=8)]),
    )
    notebook(repo / "exercises.ipynb", ("1 / 0", []))
    return run_pytest(repo, "--nbval", "-rA", ".", MPLBACKEND="Agg").splitlines()


def outcome(lines, notebook_name, cell):
    wanted = f"{notebook_name}::Cell {cell}"
    return next(line.split()[0] for line in lines if line.startswith(("PASSED ", "FAILED ")) and line.split(" - ")[0].endswith(wanted))


@pytest.mark.slow
@pytest.mark.parametrize(
    "cell, wanted, why",
    [
        (0, "PASSED", "equal text"),
        (1, "FAILED", "stale text"),
        (2, "PASSED", "loopback is open"),
        (3, "FAILED", "an outside socket"),
        (4, "PASSED", "bytes of a figure are not compared, and its repr is equal"),
        (5, "FAILED", "a figure that was not stored"),
        (6, "FAILED", "stale stderr"),
        (7, "FAILED", "stale result"),
    ],
)
def test_nbval_compares_text_exactly_figures_by_repr_and_runs_offline(nbval_lines, cell, wanted, why):
    assert outcome(nbval_lines, "facts.ipynb", cell) == wanted, why


@pytest.mark.slow
def test_nbval_names_the_refused_address_and_leaves_learner_editions_out(nbval_lines):
    text = "\n".join(nbval_lines)
    assert "outside address refused" in text and "192.0.2.7" in text
    assert "exercises.ipynb" not in text


@pytest.mark.slow
def test_the_kernel_fixture_serves_nbclient(offline_kernel):
    from nbclient import NotebookClient

    nb = new_notebook(cells=[new_code_cell("import sys; print(any('setup/tools' in p for p in sys.path))")])
    NotebookClient(nb, kernel_name=offline_kernel, timeout=60).execute()
    assert nb.cells[0].outputs[0].text == "False\n"


def test_kernels_of_one_moment_share_no_socket():
    from jupyter_client.manager import KernelManager

    if not hasattr(socket, "AF_UNIX"):
        pytest.skip("this system has no Unix sockets")
    managers = [KernelManager() for _ in range(3)]
    assert {manager.transport for manager in managers} == {"ipc"}
    assert len({manager.ip for manager in managers}) == 3
    assert all(Path(manager.ip).is_absolute() and Path(manager.ip).parent.is_dir() for manager in managers)
