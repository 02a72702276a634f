"""Processes that are lost while others wait for what they make, or that do not answer."""

import asyncio
import contextlib
import os
import signal

import pytest
import ray
from scenarios import NODES, fit, kill, on_visit, pid_of, with_sections

from ray_snake.errors import RunError, StorageError
from ray_snake.runtime import actors as runtime_actors
from ray_snake.runtime import driver_actor, launch
from ray_snake.runtime.events import NodeLost, Recovering, RunStarted
from ray_snake.runtime.handles import ProcessLostError
from ray_snake.runtime.recipe import Recipe
from ray_snake.storage import Storage

SHARED = with_sections(snake={"trips": 3}, nodes={"nodes_per_actor": NODES})
ROUNDS = with_sections(
    snake={"trips": 3}, loss={"distillation": 0.0}, nodes={"nodes_per_actor": NODES}
).model_copy(update={"strategy": "fedavg"})


def test_no_node_is_blamed_for_an_engine_that_dies_while_it_averages(raylets, tmp_path):
    """The round's averages never come, and who waits for them learns of the engine's end."""
    events = []
    engine = []

    def hold():
        engine.append(pid_of("SnakeEngine"))
        os.kill(engine[0], signal.SIGSTOP)

    acts = [on_visit(NODES, hold), on_visit(NODES + 1, lambda: kill(engine[0]))]

    def on_event(event):
        events.append(event)
        for act in acts:
            act(event)

    disturbed = fit(ROUNDS, tmp_path / "disturbed", on_event=on_event)
    assert [type(event) for event in events].count(Recovering) == 1
    assert not [event for event in events if isinstance(event, NodeLost)]
    clean = fit(ROUNDS, tmp_path / "clean")
    assert disturbed.summary["weights_sha256"] == clean.summary["weights_sha256"]


def test_an_engine_that_does_not_answer_is_replaced(raylets, tmp_path):
    """One that is stopped, and then one that waits in vain for a GPU that nobody has."""
    soon = {"start_timeout_seconds": 2.0}
    config = with_sections(nodes=soon)
    recipe, storage = ray.put(Recipe(config=config)), Storage(str(tmp_path))

    async def stop_and_go_on():
        engine = launch.RayEngine(recipe, config, storage, None, 1)
        await engine.start()
        await engine.discard([])
        stopped = pid_of("SnakeEngine")
        os.kill(stopped, signal.SIGSTOP)
        engine._seconds = 2.0
        try:
            with pytest.raises(ProcessLostError, match="the process engine did not answer within"):
                await engine.discard([])
            await engine.start()
        finally:
            kill(stopped)
        engine._seconds = runtime_actors.ENGINE_SECONDS
        await engine.discard([])
        assert pid_of("SnakeEngine") != stopped

    async def wait_for_gpu():
        waiting = with_sections(nodes=soon, evaluation={"gpus": 1.0})
        engine = launch.RayEngine(recipe, waiting, storage, None, 1)
        await engine.start()
        await engine.start()

    asyncio.run(stop_and_go_on())
    asyncio.run(wait_for_gpu())


def test_a_driver_that_does_not_answer_is_replaced(raylets, tmp_path, monkeypatch):
    monkeypatch.setattr(driver_actor, "ANSWER_SECONDS", 20.0)
    events, stopped = [], []

    def stop():
        stopped.append(pid_of("SnakeDriver"))
        os.kill(stopped[0], signal.SIGSTOP)

    act = on_visit(3, stop)

    def on_event(event):
        events.append(event)
        act(event)

    try:
        disturbed = fit(SHARED, tmp_path / "disturbed", on_event=on_event)
    finally:
        # Whoever replaced it has ended it too.
        with contextlib.suppress(ProcessLookupError):
            kill(stopped[0])
    assert [type(event) for event in events].count(RunStarted) == 2
    clean = fit(SHARED, tmp_path / "clean")
    assert disturbed.summary["weights_sha256"] == clean.summary["weights_sha256"]


def test_what_storage_refuses_once_a_run_has_started_is_a_failed_run(raylets, tmp_path):
    def spoil(event):
        if isinstance(event, RunStarted):
            (tmp_path / "run" / "tensorboard").write_text("a file where the folder should be")

    with pytest.raises(RunError, match=r"tensorboard.*--resume") as caught:
        fit(SHARED, tmp_path, on_event=spoil)
    assert caught.value.exit_status == 1
    assert not isinstance(caught.value, StorageError)
