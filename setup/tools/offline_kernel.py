"""Start a Jupyter kernel that can talk to this computer only, and that verifies shape notes.

The course promises that nothing in its core path needs the network. This kernel is the proof: an audit hook sees
every connection that Python code opens and refuses the ones that leave the machine. `setup/tools/notebooks.py` and the
root `conftest.py` (for `pytest --nbval`) run every notebook in it; the guard also protects the plain tests.

    python setup/tools/offline_kernel.py -f CONNECTION_FILE      # Jupyter calls it this way

Two limits: a program started by a notebook is a process of its own, without the hook, and so are sockets that a C
library opens by itself (this is how the kernel can talk to Jupyter at all).
Set COURSE_SHAPE_NOTES=0 to run without `shapes.py`.
"""

import contextlib
import importlib.util
import ipaddress
import json
import os
import socket
import sys
from pathlib import Path

TOOLS = Path(__file__).resolve().parent
KERNEL_NAME = "offline-course"
LOCAL_NAMES = {"", "localhost", "localhost.localdomain", "ip6-localhost", "ip6-loopback"}
TO_AN_ADDRESS = {"socket.connect", "socket.sendto", "socket.sendmsg"}  # audit events with (socket, address)
TO_A_NAME = {"socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr"}  # with (host, ...)

_guard = {"installed": False, "active": False}


class OutsideAddressRefused(OSError):
    """Code tried to reach an address outside this computer while the guard was on."""

    __module__ = "offline_kernel"  # the name to print, also where this file runs as a script


def is_local(host) -> bool:
    """True if `host` (a name, an address as text, or None) stands for this computer itself."""
    text = bytes(host).decode("utf-8", errors="replace") if isinstance(host, (bytes, bytearray)) else str(host)
    name = text.split("%")[0].rstrip(".").lower()
    if host is None or name in LOCAL_NAMES or name == socket.gethostname().lower():
        return True
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        return False  # some other name, which only a name server could resolve
    address = getattr(address, "ipv4_mapped", None) or address
    return address.is_loopback or address.is_unspecified


def _audit(event: str, args: tuple) -> None:
    if not _guard["active"] or not (event in TO_AN_ADDRESS or event in TO_A_NAME):
        return
    where = host = args[0]
    if event in TO_AN_ADDRESS:
        sock, where = args[:2]
        if sock.family not in (socket.AF_INET, socket.AF_INET6) or not isinstance(where, tuple):
            return  # a unix socket, or a datagram on a socket that is connected already
        host = where[0]
    if not is_local(host):
        raise OutsideAddressRefused(f"outside address refused: {where!r} ({event}); notebooks and tests of this course run offline")


def install_guard() -> None:
    """Refuse outside addresses in this process from now on (an audit hook cannot be removed, only paused)."""
    if not _guard["installed"]:
        sys.addaudithook(_audit)
    _guard.update(installed=True, active=True)


@contextlib.contextmanager
def outside_allowed():
    """Pause the guard, for a test that is marked `network`."""
    before, _guard["active"] = _guard["active"], False
    try:
        yield
    finally:
        _guard["active"] = before


def announce(data_dir: Path) -> str:
    """Describe this kernel to Jupyter inside `data_dir`, put that first in JUPYTER_PATH, and return the kernel's name."""
    folder = Path(data_dir) / "kernels" / KERNEL_NAME
    folder.mkdir(parents=True, exist_ok=True)
    spec = {
        "argv": [sys.executable, str(TOOLS / "offline_kernel.py"), "-f", "{connection_file}"],
        "display_name": "Python 3 (offline)",
        "language": "python",
        "env": {"IPYTHONDIR": str(Path(data_dir) / "ipython")},  # nobody's personal start-up files
    }
    (folder / "kernel.json").write_text(json.dumps(spec, indent=1), encoding="utf-8")
    others = [entry for entry in os.environ.get("JUPYTER_PATH", "").split(os.pathsep) if entry and entry != str(data_dir)]
    os.environ["JUPYTER_PATH"] = os.pathsep.join([str(data_dir), *others])
    return KERNEL_NAME


def load_shape_notes(shell) -> None:
    """Load `shapes.py` beside this file as an IPython extension, unless it is absent or switched off."""
    path = TOOLS / "shapes.py"
    if path.exists() and os.environ.get("COURSE_SHAPE_NOTES", "1") != "0":
        spec = importlib.util.spec_from_file_location("_course_shapes", path)
        module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        module.load_ipython_extension(shell)


def main() -> None:
    """Start the kernel and serve it until Jupyter stops it."""
    sys.path[:] = [entry for entry in sys.path if not entry or Path(entry).resolve() != TOOLS]
    # A plain-test backend such as Agg would keep figures out of the notebook; ipykernel then chooses inline.
    os.environ.pop("MPLBACKEND", None)
    from ipykernel.kernelapp import IPKernelApp  # late: conftest.py uses the guard without Jupyter

    app = IPKernelApp.instance()
    app.initialize([*sys.argv[1:], "--HistoryManager.enabled=False", "--IPKernelApp.log_level=ERROR"])
    install_guard()
    load_shape_notes(app.shell)
    app.start()


if __name__ == "__main__":
    main()
