"""Runs a command inside a virtual machine, and is its stand-in outside.

    python enter.py PID FOLDER COMMAND [ARGUMENT ...]

PID is the process that holds the machine's namespaces. Signals to the stand-in reach the command,
its death ends the command, and its exit status is the command's (128 + N after signal N, 127 where
there is no such command). Run as a file, without the site packages: it has to start fast.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1
_FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
_libc = ctypes.CDLL(None, use_errno=True)


def _join(namespace: int) -> None:
    # os.setns came with Python 3.12.
    if _libc.setns(namespace, 0):
        raise OSError(ctypes.get_errno(), "can't enter the machine")


def _become(namespaces: list[int], folder: str, command: list[str]) -> None:
    """Enter the machine and turn into the command."""
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    for namespace in namespaces:
        _join(namespace)
    os.chdir(folder)
    for signum in _FORWARDED:
        signal.signal(signum, signal.SIG_DFL)
    # Python ignores these two for itself, and a command would inherit that.
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _FORWARDED)
    os.execvp(command[0], command)


def main() -> int:
    """Run the command and return its exit status."""
    holder, folder, *command = sys.argv[1:]
    inside, *others = [
        os.open(f"/proc/{holder}/ns/{kind}", os.O_RDONLY | os.O_CLOEXEC)
        for kind in ("pid_for_children", "net", "uts", "mnt")
    ]
    # A process can't change its own PID namespace, only that of the children it will have.
    _join(inside)
    signal.pthread_sigmask(signal.SIG_BLOCK, _FORWARDED)
    child = os.fork()
    if child == 0:
        try:
            _become(others, folder, command)
        except OSError as error:
            os.write(2, f"{command[0]}: {error.strerror or error}\n".encode())
        os._exit(127)

    def forward(signum: int, _frame: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signum)

    for signum in _FORWARDED:
        signal.signal(signum, forward)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _FORWARDED)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


if __name__ == "__main__":
    status = main()
    sys.exit(status if status >= 0 else 128 - status)
