"""Processes that are lost while others wait for what they make."""

import os
import signal

from scenarios import NODES, fit, kill, on_visit, pid_of, with_sections

from ray_snake.runtime.events import NodeLost, Recovering

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
