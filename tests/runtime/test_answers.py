"""What Ray's errors mean to the driver. They are those that Ray raises, made here."""

import asyncio

import pytest
from fakes import run
from ray.exceptions import (
    ActorDiedError,
    GetTimeoutError,
    ObjectLostError,
    OutOfMemoryError,
    RayTaskError,
)

from ray_snake.errors import CheckpointError, VisitFailedError
from ray_snake.runtime.answers import answer_of
from ray_snake.runtime.handles import BlocksLostError, ProcessLostError

GONE = ObjectLostError("ab" * 28, None, "")


def within(cause):
    """What a call raises whose process met `cause`; Ray has it inherit from that."""
    return RayTaskError("visit", "a traceback", cause).as_instanceof_cause()


async def fails_with(error):
    raise error


@pytest.mark.parametrize(
    ("error", "kind", "text"),
    [
        (ActorDiedError(), ProcessLostError, "node 1 died"),
        (OutOfMemoryError("the node is low on memory"), ProcessLostError, "low on memory"),
        (GONE, BlocksLostError, "could not get a block"),
        # Another process died than the one that was asked.
        (within(ActorDiedError()), BlocksLostError, "node 1 could not get a block"),
        (within(OutOfMemoryError("low on memory")), BlocksLostError, "low on memory"),
        (within(GONE), BlocksLostError, "could not get a block"),
        (within(GetTimeoutError("too late")), BlocksLostError, "too late"),
        (within(BlocksLostError("no whole copy")), BlocksLostError, "no whole copy"),
        (within(CheckpointError("damaged", "restore it")), CheckpointError, "damaged; restore it"),
        (within(ValueError("of a loss")), VisitFailedError, "node 1 failed with ValueError"),
        # What a process waited for had itself failed.
        (within(within(CheckpointError("damaged", "restore it"))), CheckpointError, "damaged"),
        (within(within(ActorDiedError())), BlocksLostError, "could not get a block"),
    ],
)
def test_tells_whose_loss_it_is(error, kind, text):
    with pytest.raises(kind, match=text) as caught:
        run(answer_of(fails_with(error), "node 1"))
    assert type(caught.value) is kind


def test_an_answer_that_does_not_come_in_time_is_a_lost_process():
    with pytest.raises(ProcessLostError, match=r"node 1 did not answer within 0\.01 s"):
        run(answer_of(asyncio.Event().wait(), "node 1", 0.01))


def test_an_answer_is_passed_on():
    assert run(answer_of(asyncio.sleep(0, "answer"), "node 1", 60.0)) == "answer"
