"""Real processes are killed in the middle of a visit; the weights come out as if nothing was."""

import pytest
import ray
from scenarios import CONFIG, NODES, actors, fit, kill, on_visit, pid_of, with_sections

from ray_snake.errors import DriverFailedError, NodeFailedError
from ray_snake.runtime.events import NodeLost, Recovering, RunStarted, VisitDecided, VisitStarted

SHARED = with_sections(nodes={"nodes_per_actor": NODES})


def run_and_strike(storage, gate, strike, visit, *, config=CONFIG):
    """Do a run, strike while this visit is under way; return the result and the events.

    It must be the second visit of its process: visit 4 with one process a node, else 2.
    """
    events = []

    def act():
        strike(gate.pid())
        gate.open()

    react = on_visit(visit, act)

    def on_event(event):
        events.append(event)
        react(event)

    result = fit(config, storage.uri, loss=gate.loss(2), on_event=on_event)
    return result, events


def started(events):
    return [event.visit.number for event in events if isinstance(event, VisitStarted)]


def decided(events):
    return [event.record.visit for event in events if isinstance(event, VisitDecided)]


def test_a_killed_node_does_its_visit_again(storage, gate, reference):
    result, events = run_and_strike(storage, gate, kill, 4)
    (lost,) = [event for event in events if isinstance(event, NodeLost)]
    assert lost.node == 2
    assert started(events).count(4) == 2
    assert decided(events) == list(range(1, 25))
    assert result.summary["weights_sha256"] == reference.summary["weights_sha256"]
    assert result.metrics == reference.metrics


def test_a_killed_process_engine_leads_back_to_the_journal(storage, gate, reference):
    result, events = run_and_strike(
        storage, gate, lambda pid: kill(pid_of("SnakeEngine")), 2, config=SHARED
    )
    assert [type(event) for event in events].count(Recovering) == 1
    assert result.summary["weights_sha256"] == reference.summary["weights_sha256"]
    assert result.history["visit"].to_pylist() == list(range(1, 25))


def test_a_killed_driver_is_started_again_from_the_journal(storage, gate, reference):
    result, events = run_and_strike(
        storage, gate, lambda pid: kill(pid_of("SnakeDriver")), 2, config=SHARED
    )
    first, second = (event for event in events if isinstance(event, RunStarted))
    assert first.done == 0
    assert 0 <= second.done <= 1
    assert result.summary["weights_sha256"] == reference.summary["weights_sha256"]
    assert result.history["visit"].to_pylist() == list(range(1, 25))


def test_a_driver_killed_once_too_often_can_be_resumed(storage, gate, reference):
    config = with_sections(failures={"recoveries": 0}, nodes={"nodes_per_actor": NODES})
    with pytest.raises(DriverFailedError, match="--resume"):
        run_and_strike(storage, gate, lambda pid: kill(pid_of("SnakeDriver")), 2, config=config)
    result = fit(config, storage.uri, resume=True)
    assert result.summary["weights_sha256"] == reference.summary["weights_sha256"]


def test_a_killed_raylet_takes_nodes_and_blocks_with_it(raylets, storage, gate, reference):
    config = with_sections(nodes={"labels": {"site": "in(a,b)"}})
    head = ray.get_runtime_context().get_node_id()
    killed = []

    def strike(pid):
        (held,) = [one for one in actors("SnakeNode") if one["Pid"] == pid]
        (raylet,) = [
            one for one in raylets.worker_nodes if one.node_id == held["Address"]["NodeID"]
        ]
        assert raylet.node_id != head
        killed.append(
            next(one["Labels"]["site"] for one in ray.nodes() if one["NodeID"] == raylet.node_id)
        )
        raylets.remove_node(raylet, allow_graceful=False)

    try:
        result, events = run_and_strike(storage, gate, strike, 4, config=config)
    finally:
        for site in killed:
            raylets.add_site(site)
    assert killed
    assert any(isinstance(event, (NodeLost, Recovering)) for event in events)
    assert result.summary["weights_sha256"] == reference.summary["weights_sha256"]


def a_loss_of_this_module(outputs, targets):
    return outputs.sum()


def test_a_function_that_other_processes_can_not_import_fails_the_run_at_once(raylets, storage):
    events = []
    with pytest.raises(NodeFailedError, match=r"No module named 'test_failures'.*main program"):
        fit(SHARED, storage.uri, loss=a_loss_of_this_module, on_event=events.append)
    assert not [event for event in events if isinstance(event, NodeLost)]
