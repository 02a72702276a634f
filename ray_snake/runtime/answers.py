"""What became of a Ray call, in the driver's own words: which process or block was lost."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

from ray.exceptions import (
    ActorUnschedulableError,
    GetTimeoutError,
    ObjectLostError,
    OutOfMemoryError,
    RayActorError,
    RayTaskError,
    TaskCancelledError,
)

from ray_snake.errors import (
    MOST_OF_A_MESSAGE,
    NodeFailedError,
    RunError,
    SnakeError,
    VisitFailedError,
    first_line,
)
from ray_snake.runtime.handles import BlocksLostError, ProcessLostError

DEAD = (RayActorError, OutOfMemoryError)
"""What Ray says of an actor that died; the second where its memory monitor ended it."""
NO_OBJECT = (*DEAD, ObjectLostError, GetTimeoutError)
"""What it says, within a process, of an object that can't be had: its maker or holder died."""

Answer = TypeVar("Answer")


def visit_failure(who: str, error: BaseException) -> VisitFailedError:
    """Return the error of a run in which a process met an error that is none of ray_snake's."""
    return VisitFailedError(
        f"{who} failed with {type(error).__name__}: {first_line(error)}",
        "correct the model, the loss or the settings, then go on with --resume",
    )


async def answer_of(call: Awaitable[Answer], who: str, seconds: float | None = None) -> Answer:
    """Await a Ray call and turn its failures into the driver's own.

    Args:
        call: The call.
        who: The process that answers it, for errors.
        seconds: How long that may take; none: whoever calls sees to that.

    Raises:
        ProcessLostError: If that process died, or does not answer in time.
        BlocksLostError: If it could not get a block, such as one whose maker died.
        SnakeError: What it raised.
    """
    try:
        return await asyncio.wait_for(call, seconds)
    except RayTaskError as error:
        # First: Ray has it inherit from what the process met, and another's death is not its own.
        raise _met_by(who, cause_of(error)) from error
    except RayActorError as error:
        if error.actor_init_failed:
            # It would fail again: mostly a function that the process can't import.
            raise NodeFailedError(
                f"{who} could not be set up "
                f"({str(error).strip().splitlines()[-1][:MOST_OF_A_MESSAGE]})",
                "define model and loss in the main program, or in a package that is installed "
                "on every machine",
            ) from None
        raise ProcessLostError(
            f"{who} died ({first_line(error)})", machine_went=error.preempted
        ) from None
    except OutOfMemoryError as error:
        raise ProcessLostError(f"{who} was ended ({first_line(error)})") from None
    except ActorUnschedulableError as error:
        # The machine that it was to be on went, or has not what it asks for.
        raise ProcessLostError(f"{who} has no place ({first_line(error)})") from None
    except (ObjectLostError, GetTimeoutError) as error:
        raise BlocksLostError(f"{who} could not get a block ({first_line(error)})") from None
    except asyncio.TimeoutError:
        raise ProcessLostError(f"{who} did not answer within {seconds:g} s") from None
    except TaskCancelledError as error:
        raise ProcessLostError(f"{who} was cancelled ({first_line(error)})") from None


def cause_of(error: Exception) -> Exception:
    """Return what a call raised, or the call whose answer it waited for."""
    while isinstance(error, RayTaskError) and isinstance(error.cause, Exception):
        error = error.cause
    return error


def _met_by(who: str, cause: Exception) -> Exception:
    """Return the driver's error for what a process met."""
    if isinstance(cause, (SnakeError, BlocksLostError)):
        return cause
    if isinstance(cause, NO_OBJECT):
        return BlocksLostError(f"{who} could not get a block ({first_line(cause)})")
    return visit_failure(who, cause)


def error_of(error: Exception) -> SnakeError:
    """Return the error that a user should see for whatever a Ray call raised."""
    cause = cause_of(error)
    if isinstance(cause, SnakeError):
        return cause
    return RunError(in_a_line(error), "look into it, then go on with --resume")


def in_a_line(error: Exception) -> str:
    """Return in a line what a Ray call raised, or what made it."""
    cause = cause_of(error)
    return f"{type(cause).__name__}: {' '.join(str(cause).split())[:MOST_OF_A_MESSAGE]}"
