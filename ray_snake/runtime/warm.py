"""The process that an embedded cluster's workers are forked from: it has imported what they need.

Forked, they share what Ray, torch and this package leave in memory, until they write to it; each
would else take 150 MiB and two CPU seconds for that. Asked by `worker_entry`, which Ray runs in
place of its own script for a worker.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import runpy
import secrets
import select
import signal
import socket
import struct
import subprocess
import sys
from typing import Any

from ray_snake.runtime import worker_entry

# What nodes and engine need beside Ray.
COMPUTING = (
    "numpy.random",
    "ray_snake.models",
    "ray_snake.runtime.local_manager",
    "ray_snake.runtime.process_engine",
    "torch.utils._device",
)
# Ray's worker, the actors, and what Ray imports as soon as an object is on the way.
ACTING = (
    "ray._private.workers.default_worker",
    "ray._private.arrow_serialization",
    "ray_snake.runtime.actors",
    "ray_snake.runtime.driver_actor",
)
SILENCE_SECONDS = 10.0
# Ray takes it from the environment when it is imported, for all workers that are forked then.
# Such a worker is of no job until one has it do something; of another's it would wait for ever.
NO_JOB = {"RAY_JOB_ID": "ffffffff"}
START = (
    "import socket, sys; sys.path[:] = {path!r}; from ray_snake.runtime import warm; "
    "warm.serve(socket.socket(fileno={file}))"
)


def can_warm() -> bool:
    """Return whether this system has what it takes: abstract sockets, and forks that work."""
    return sys.platform == "linux"


class WarmProcess:
    """The process, seen from the command that starts the cluster, with which it ends."""

    def __init__(self) -> None:
        # In no folder, so that nothing is left behind whatever ends.
        self._address = f"ray-snake-{secrets.token_hex(16)}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, ordinary: str) -> dict[str, str]:
        """Start it; return the variables with which `worker_entry` finds it.

        Args:
            ordinary: The script that Ray sets up a worker with.
        """
        with socket.socket(socket.AF_UNIX) as listener:
            # Whoever asks before all is imported waits.
            listener.bind("\0" + self._address)
            listener.listen(socket.SOMAXCONN)
            self._process = subprocess.Popen(
                [sys.executable, "-c", START.format(path=sys.path, file=listener.fileno())],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=(listener.fileno(),),
                # What a terminal sends is for the command alone.
                start_new_session=True,
            )
        return {worker_entry.ADDRESS: self._address, worker_entry.ORDINARY: ordinary}

    @property
    def pid(self) -> int | None:
        """The process' number, once started."""
        return None if self._process is None else self._process.pid

    def end(self) -> None:
        """End it; the workers are the cluster's, and go on."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()


def serve(listener: socket.socket) -> None:
    """Import, then fork a worker for each that asks, until the standard input ends.

    Args:
        listener: Where `worker_entry` asks.
    """
    # Nobody waits for workers that end; Ray notices by itself.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    # As Ray does for what it starts.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    # A thread that a library has at the fork is none afterwards.
    os.environ["OMP_NUM_THREADS"] = "1"
    for module in COMPUTING:
        importlib.import_module(module)
    request = _next_worker(listener)
    if request is not None:
        _become(request)


def _next_worker(listener: socket.socket) -> dict[str, Any] | None:
    """Return what to become, in a process forked for it; or nothing, in this one at the end."""
    while True:
        ready, _, _ = select.select([listener, sys.stdin], [], [])
        if sys.stdin in ready:
            return None
        connection, _ = listener.accept()
        with connection:
            received = _receive(connection)
            if received is None:
                continue
            request, files = received
            _import_ray(request["environment"])
            if _accept(connection) and os.fork() == 0:
                listener.close()
                for number, file in enumerate(files):
                    os.dup2(file, number)
                    os.close(file)
                return request
            for file in files:
                os.close(file)


def _receive(connection: socket.socket) -> tuple[dict[str, Any], list[int]] | None:
    """Return what a process of the same user asks for, and its standard files."""
    peer = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    _, user, _ = struct.unpack("3i", peer)
    if user != os.getuid():
        return None
    connection.settimeout(SILENCE_SECONDS)
    files: list[int] = []
    try:
        _, files, _, _ = socket.recv_fds(connection, 1, 3)
        with connection.makefile("rb") as file:
            return json.load(file), files
    except (OSError, ValueError):
        for number in files:
            os.close(number)
        return None


def _accept(connection: socket.socket) -> bool:
    """Tell `worker_entry` that its worker comes; return whether it is there to hear it."""
    try:
        connection.sendall(b"1")
    except OSError:
        return False
    return True


def _import_ray(environment: dict[str, str]) -> None:
    """Import Ray, which takes its settings and its raylet's number from the environment then."""
    if "ray" in sys.modules:
        return
    os.environ |= {**environment, **NO_JOB, "OMP_NUM_THREADS": "1"}
    for module in ACTING:
        importlib.import_module(module)
    gc.collect()
    # The collector would write to every object, and nothing be shared any more.
    gc.freeze()


def _become(request: dict[str, Any]) -> None:
    """Run a worker's script with its arguments, folder and environment."""
    import numpy as np

    os.setpgid(0, 0)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.environ.clear()
    os.environ |= request["environment"]
    os.chdir(request["folder"])
    # Python's own generator seeds itself after a fork.
    np.random.seed()
    sys.argv = request["arguments"]
    runpy.run_path(sys.argv[0], run_name="__main__")
