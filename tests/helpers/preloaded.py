"""A ``python`` that has loaded torch, Lightning and the rest: a program starts in a fraction of
the five seconds that these take.

``preloaded_python()`` is the path of an executable with the words of ``python``. It gives its
words, folder, environment and streams to a server, which has imported the libraries but nothing of
this repository, and which forks. Programs of the program (``sys.executable``) start like it. What
is not as with ``sys.executable``: libraries are loaded before the environment is known, and of
signals only the end of the process is passed on. Tests about imports, installing, signals and
launchers take ``sys.executable``.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

LIBRARIES = (
    *("torch", "pytorch_lightning", "pandas", "scipy.stats", "nibabel", "h5py", "jinja2"),
    *("sklearn.linear_model", "matplotlib.pyplot", "nilearn.image", "nilearn.maskers"),
)
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
_CLIENT = """#!{python} -IS
import json, os, signal, socket, sys
server = socket.socket(socket.AF_UNIX)
server.connect({address!r})
job = {{"words": sys.argv[1:], "folder": os.getcwd(), "environment": dict(os.environ)}}
socket.send_fds(server, [b"+"], [0, 1, 2])
server.sendall(json.dumps(job).encode() + b"\\n")
answer = server.makefile().readline()
status = int(answer) if answer else 1
if status < 0:
    if -status != signal.SIGKILL:
        signal.signal(-status, signal.SIG_DFL)
    os.kill(os.getpid(), -status)
os._exit(status)
"""
_started: list[tuple[subprocess.Popen[str], Path]] = []


def preloaded_python() -> str:
    """The executable; the first call starts the server, ``end`` ends it."""
    if not _started:
        folder = Path(tempfile.mkdtemp(prefix="python"))  # short, as addresses of sockets must be
        client, address = folder / "python", str(folder / "server")
        client.write_text(_CLIENT.format(python=sys.executable, address=address))
        client.chmod(0o755)
        kept = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        server = subprocess.Popen(
            [sys.executable, __file__, address, str(client)],
            env=kept | ONE_THREAD,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        _started.append((server, folder))
        assert server.stdout is not None
        assert server.stdout.readline() == "ready\n"
    return str(_started[0][1] / "python")


def end() -> None:
    """End the server; its programs should have ended."""
    for server, folder in _started:
        server.communicate()  # closes its standard input, at which it ends
        shutil.rmtree(folder)
    _started.clear()


# ------------------------------------------------------------------ in the server


def serve(address: str, client: str) -> None:
    """Fork for every connection and answer with the status, until standard input is closed."""
    for name in LIBRARIES:
        importlib.import_module(name)
    del sys.path[0]  # the folder of this file
    gc.freeze()
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(address)
    listener.listen(64)
    woken, wake = socket.socketpair()
    woken.setblocking(False)
    wake.setblocking(False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wake.fileno())
    print("ready", flush=True)
    running: dict[int, socket.socket] = {}
    with selectors.DefaultSelector() as selector:
        for source in (sys.stdin, listener, woken):
            selector.register(source, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                if key.fileobj is sys.stdin:
                    for child in running:
                        _kill(child)
                        os.waitpid(child, 0)
                    return
                if key.fileobj is woken:
                    with contextlib.suppress(BlockingIOError):
                        woken.recv(4096)
                elif key.fileobj is listener:
                    connection, _ = listener.accept()
                    job, streams = _receive(connection)
                    child = os.fork()
                    if not child:
                        signal.set_wakeup_fd(-1)
                        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                        selector.close()
                        for one in (listener, woken, wake, connection, *running.values()):
                            one.close()
                        _become(job, streams, client)
                    for stream in streams:
                        os.close(stream)
                    running[child] = connection
                    selector.register(connection, selectors.EVENT_READ, child)
                elif key.data in running:  # the client was killed
                    selector.unregister(key.fileobj)
                    _kill(key.data)
            for child, status in _ended(running):
                connection = running.pop(child)
                with contextlib.suppress(KeyError):
                    selector.unregister(connection)
                with contextlib.suppress(OSError):
                    connection.sendall(f"{status}\n".encode())
                connection.close()


def _kill(child: int) -> None:
    """With all that it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)
    with contextlib.suppress(ProcessLookupError):
        os.kill(child, signal.SIGKILL)


def _ended(running: dict[int, socket.socket]) -> list[tuple[int, int]]:
    """Programs that have ended, with their statuses."""
    found = []
    while running:
        child, status = os.waitpid(-1, os.WNOHANG)
        if not child:
            break
        found.append((child, os.waitstatus_to_exitcode(status)))
        if len(found) == len(running):
            break
    return found


def _receive(connection: socket.socket) -> tuple[dict[str, Any], list[int]]:
    _, streams, _, _ = socket.recv_fds(connection, 1, 3)
    with connection.makefile("rb") as stream:
        return json.loads(stream.readline()), streams


# ------------------------------------------------------------------ in the program


def _become(job: dict[str, Any], streams: Sequence[int], client: str) -> NoReturn:
    """Run the program in this process, which ends with it."""
    status = 1
    try:
        _inherit(job, streams, client)
        _run(job["words"])
        status = 0
    except SystemExit as ended:
        status = _status_of(ended.code)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        import atexit
        import threading

        with contextlib.suppress(BaseException):
            threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        os._exit(status)


def _status_of(code: Any) -> int:
    if code is None:
        return 0
    if isinstance(code, int):
        return code & 0xFF
    print(code, file=sys.stderr)
    return 1


def _inherit(job: dict[str, Any], streams: Sequence[int], client: str) -> None:
    """Session, streams, folder, environment, places of modules, and random numbers."""
    import multiprocessing

    import numpy as np

    os.setsid()
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
    for stream in streams:
        if stream > 2:
            os.close(stream)
    os.chdir(job["folder"])
    os.environ.clear()
    os.environ.update(job["environment"])
    unbuffered = "-u" in job["words"][:3] or bool(os.environ.get("PYTHONUNBUFFERED"))
    sys.stdin = open(0, closefd=False)  # noqa: SIM115
    sys.stdout = open(1, "w", closefd=False, buffering=1 if unbuffered else -1)  # noqa: SIM115
    sys.stderr = open(2, "w", closefd=False, buffering=1, errors="backslashreplace")  # noqa: SIM115
    sys.__stdin__, sys.__stdout__, sys.__stderr__ = sys.stdin, sys.stdout, sys.stderr
    places = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    sys.path[:0] = [os.path.abspath(place) for place in places if place]
    multiprocessing.set_executable(sys.executable)  # its streams are more than three
    sys.executable = client
    np.random.seed()  # noqa: NPY002


def _run(words: Sequence[str]) -> None:
    """What ``python WORDS`` does."""
    import runpy
    import warnings

    left = list(words)
    while left and left[0] in ("-u", "-W"):
        if left.pop(0) == "-W":
            sys.warnoptions.append(left[0])
            warnings._setoption(left.pop(0))  # type: ignore[attr-defined]
    name = left.pop(0)
    if name == "-m":
        sys.path.insert(0, os.getcwd())
        sys.argv = left
        runpy.run_module(left[0], run_name="__main__", alter_sys=True)
        return
    assert name == "-c" or not name.startswith("-"), f"python {name} is not provided for"
    program = sys.modules["__main__"] = types.ModuleType("__main__")
    if name == "-c":
        text, file = left.pop(0), "<string>"
        sys.path.insert(0, "")
    else:
        text, file = Path(name).read_text(encoding="utf-8"), name
        sys.path.insert(0, str(Path(name).resolve().parent))
        program.__file__ = str(Path(name).absolute())
    sys.argv = [name, *left]
    exec(compile(text, file, "exec"), program.__dict__)


if __name__ == "__main__":
    serve(*sys.argv[1:])
