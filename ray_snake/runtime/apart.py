"""An object in a process of its own, forked for it: what it imports leaves nothing behind here."""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
import sys
import threading
import traceback
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any

from ray_snake.errors import ResourceError, RunError, SnakeError


def can_fork() -> bool:
    """Return whether a copy of this process can be made that works.

    A fork has the calling thread alone, so whatever another one held at that moment stays locked.
    macOS' own libraries don't bear it, and daemonic processes may have no children.
    """
    return (
        sys.platform == "linux"
        and threading.active_count() == 1
        and not multiprocessing.current_process().daemon
    )


class Apart:
    """Calls the methods of an object in a forked process, which ends with this one.

    The object needs no pickling, for the process is a copy of this one; arguments and answers do.

    Args:
        target: The object.
        what: What it does, for errors: "the process that .."
        seconds: How long a call may take.
    """

    def __init__(self, target: object, *, what: str, seconds: float) -> None:
        context = multiprocessing.get_context("fork")
        self._what = what
        self._seconds = seconds
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(target, theirs, self._connection))
        self._process.start()
        theirs.close()

    def __enter__(self) -> Apart:
        return self

    def __exit__(
        self,
        exception_type: type[BaseException] | None,
        exception: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def pid(self) -> int | None:
        """The process' number."""
        return self._process.pid

    def call(self, method: str, *arguments: object) -> Any:  # noqa: ANN401 - what it returns
        """Call a method of the object; return what it returns.

        Raises:
            SnakeError: What it raised.
            RunError: If it raised anything else.
            ResourceError: If the process died, or did not answer in time.
        """
        try:
            self._connection.send((method, arguments))
            if not self._connection.poll(self._seconds):
                self.close()
                raise ResourceError(
                    self._what,
                    f"did not answer within {self._seconds:g} s",
                    "see what it waits for, such as a disk or a network that hangs, then try again",
                )
            error, answer = self._connection.recv()
        except (EOFError, OSError):
            self._process.join()
            raise self._ended() from None
        if error is not None:
            raise error
        return answer

    def close(self) -> None:
        """End the process; more calls do nothing."""
        self._connection.close()
        self._process.kill()
        self._process.join()

    def _ended(self) -> ResourceError:
        status = self._process.exitcode or 0
        how = f"ended with status {status}"
        if status < 0:
            with contextlib.suppress(ValueError):
                how = f"was ended by {signal.Signals(-status).name}"
        return ResourceError(
            self._what, how, "see whether this machine is out of memory, then try again"
        )


def _serve(target: object, connection: Connection, theirs: Connection) -> None:
    """Answer calls until the other side closes or is gone."""
    # Else it would stay open here, and nothing ever tell that the other side is gone.
    theirs.close()
    # The other side decides what becomes of an interrupted run.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    with contextlib.suppress(EOFError, OSError):
        while True:
            method, arguments = connection.recv()
            answer: tuple[SnakeError | None, object]
            try:
                answer = None, getattr(target, method)(*arguments)
            except SnakeError as error:
                answer = error, None
            except Exception as error:
                # Of any type, which the other side may not be able to import.
                traceback.print_exc()
                text = " ".join(str(error).split())[:400]
                answer = (
                    RunError(f"{type(error).__name__}: {text}", "look into it, then try again"),
                    None,
                )
            sys.stdout.flush()
            connection.send(answer)
