"""A run's figures as metrics: what the driver tells, as gauges and counters."""

from dataclasses import fields

import pytest

from ray_snake.planning.span import Span, Visit
from ray_snake.runtime.events import (
    Evaluated,
    NodeJoined,
    NodeLeft,
    NodeLost,
    NodeMoved,
    NodeReady,
    Preparing,
    Recovering,
    RunEnded,
    RunStarted,
    VisitDecided,
    VisitProgress,
    VisitStarted,
)
from ray_snake.runtime.metrics import METRICS, RunMetrics
from ray_snake.runtime.records import EvaluationRecord, VisitRecord


class Kept:
    """Keeps gauges, adds up counters, and takes nothing that was not announced."""

    def __init__(self):
        self.values = {}

    def tell(self, name, value, tags):
        metric = METRICS[name]
        assert set(tags) == set(metric.tags)
        assert all(isinstance(one, str) for one in tags.values())
        key = (name, *(tags[one] for one in metric.tags))
        before = self.values.get(key, 0) if metric.kind == "counter" else 0
        self.values[key] = before + value


def decided(number, node="a", **changes):
    values = {
        "visit": number,
        "trip": 2,
        "node": 0,
        "node_name": node,
        "span": (0, 1),
        "trained": (0,),
        "learning_rate": 0.1,
        "accepted": True,
        "samples": 32,
        "steps": 1,
        "loss": 0.5,
        "first_loss": 0.7,
        "accuracy": 0.75,
        "bytes_pulled": 100,
        "bytes_returned": 10,
        "pull_seconds": 0.5,
        "train_seconds": 2.0,
        "seconds": 3.0,
        "finished_at": 0.0,
    }
    return VisitDecided(record=VisitRecord(**{**values, **changes}))


def evaluated(**changes):
    values = {"visit": 1, "trip": 1, "samples": 9, "loss": 0.4, "seconds": 1.0, "finished_at": 0.0}
    return Evaluated(record=EvaluationRecord(**{**values, "accuracy": 0.9, **changes}))


def started(done=0):
    return RunStarted(
        nodes=("a", "b"), block_names=("x",), block_bytes=(4,), trips=6, visits=12, done=done
    )


def told(*events):
    meters = Kept()
    metrics = RunMetrics(meters)
    for event in events:
        metrics.on_event(event)
    return meters.values


def test_a_visit_counts_for_its_node():
    found = told(started(), decided(1), decided(2, late=True, exchanged_bytes=7), decided(3, "b"))
    assert found["snake_visits",] == 3
    assert found["snake_trip",] == 2
    assert found["snake_visits_decided", "a", "accepted"] == 2
    assert found["snake_visits_late", "a"] == 1
    assert found["snake_samples", "a"] == 64
    assert found["snake_moved_bytes", "a", "pulled"] == 200
    assert found["snake_moved_bytes", "a", "exchanged"] == 7
    assert found["snake_visit_seconds", "a", "train"] == 4.0
    assert found["snake_visit_seconds", "a", "other"] == 1.0
    assert found["snake_visits_decided", "b", "accepted"] == 1


def test_a_refused_visit_changes_no_loss():
    found = told(started(), decided(1), decided(2, accepted=False, loss=float("nan")))
    assert found["snake_loss", "train"] == 0.5
    assert found["snake_visits_decided", "a", "refused"] == 1


def test_what_was_done_before_a_resumption_counts():
    found = told(started(done=5), decided(6))
    assert found["snake_visits",] == 6
    assert found["snake_visits_planned",] == 12
    assert found["snake_trips",] == 6


def test_held_out_rows_have_figures_of_their_own():
    found = told(started(), decided(1), evaluated(), evaluated(accuracy=None, perplexity=8.0))
    assert found["snake_loss", "test"] == 0.4
    assert found["snake_accuracy", "test"] == 0.9
    assert found["snake_accuracy", "train"] == 0.75
    assert found["snake_perplexity",] == 8.0


@pytest.mark.parametrize(
    ("last", "nodes"),
    [
        (NodeLost(node=1, name="b", reason="it died"), 1),
        (NodeJoined(node=2, name="c", samples=3, visits=20), 3),
        (NodeLeft(node=0, name="a", visits=8), 1),
        (NodeReady(node=1, name="b", samples=3, seconds=1.0), 2),
    ],
)
def test_nodes_that_can_train_are_counted(last, nodes):
    ready = [NodeReady(node=one, name="ab"[one], samples=3, seconds=1.0) for one in (0, 1)]
    found = told(*ready[:1], started(), *ready[1:], last)
    assert found["snake_nodes",] == nodes
    assert found["snake_visits_planned",] == getattr(last, "visits", 12)


def test_losses_and_recoveries_add_up():
    lost = NodeLost(node=1, name="b", reason="it died")
    found = told(started(), lost, lost, Recovering(reason="the engine died"))
    assert found["snake_node_losses", "b"] == 2
    assert found["snake_recoveries",] == 1


def test_what_is_no_figure_changes_nothing():
    visit = Visit(number=1, trip=1, node=0, span=Span(0, 1), trained=(0,))
    found = told(
        Preparing(what="starting Ray"),
        NodeMoved(node=0, name="a"),
        VisitStarted(visit=visit),
        VisitProgress(visit=1, step=1, steps=2, loss=0.1),
        RunEnded(weights_sha256="0"),
    )
    assert found == {}


def test_every_metric_says_what_it_is():
    for name, metric in METRICS.items():
        assert name.startswith("snake_")
        assert metric.text.endswith(".")
        assert {one.name for one in fields(metric)} == {"kind", "text", "tags"}
