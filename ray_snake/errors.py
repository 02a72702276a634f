"""Every error a user can meet.

Two families: an `InputError` is found before any work starts (exit status 2, nothing changed), a
`RunError` ends a run that had started (exit status 1, resumable from its journal). Each is one
line that says what failed, with which value, and what to do. All of them survive pickling, since
they travel between Ray processes.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

MOST_OF_A_MESSAGE = 300


def first_line(error: BaseException) -> str:
    """Return the beginning of another's message, or else the type of the error."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:MOST_OF_A_MESSAGE]


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return a remedy's beginning that names the nearest known name; empty if none is near."""
    nearest = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"did you mean {nearest[0]!r}? " if nearest else ""


class SnakeError(Exception):
    """Base of all errors of ray_snake; `str(error)` is one line for the user."""

    exit_status = 1


class InputError(SnakeError):
    """Something that the user gave is wrong; nothing was started or changed.

    Args:
        subject: The key or file at fault, such as `training.batch_size` or a path.
        problem: What is wrong with it, including the value.
        remedy: What to do about it.
    """

    exit_status = 2

    def __init__(self, subject: str, problem: str, remedy: str) -> None:
        super().__init__(subject, problem, remedy)
        self.subject = subject
        self.problem = problem
        self.remedy = remedy

    def __str__(self) -> str:
        return " ".join(f"{self.subject}: {self.problem}; {self.remedy}".split())


class ConfigError(InputError):
    """A key of the configuration is unknown, missing, of the wrong type or out of range."""


class ModelError(InputError):
    """The model can't be built, can't be cut into blocks, or doesn't fit the data."""


class DataError(InputError):
    """A shard or data set can't be used as it is."""


class StorageError(InputError):
    """A storage location can't be reached, or doesn't hold what was asked for."""


class ResourceError(InputError):
    """The cluster can't give what the nodes ask for."""


class RunError(SnakeError):
    """A run that had started ended early; what its journal holds is kept.

    Args:
        problem: What happened, naming the node, visit or file.
        remedy: What to do about it.
    """

    def __init__(self, problem: str, remedy: str) -> None:
        super().__init__(problem, remedy)
        self.problem = problem
        self.remedy = remedy

    def __str__(self) -> str:
        return " ".join(f"{self.problem}; {self.remedy}".split())


class NodeFailedError(RunError):
    """A node could not be started, or failed more often than allowed."""


class VisitFailedError(RunError):
    """A visit could not be finished: it raised, timed out, or was refused too often."""


class DriverFailedError(RunError):
    """The driver actor died."""


class TakenOverError(RunError):
    """Another driver goes on with the run."""


class CheckpointError(RunError):
    """Stored blocks or the journal are missing or damaged."""
