import pytest

from ray_snake.runtime.records import EvaluationRecord, StartRecord, VisitRecord


@pytest.fixture
def visit_record():
    """Return a function that makes the record of visit `number` on two nodes, two visits a trip."""

    def make(number, **changes):
        values = {
            "visit": number,
            "trip": (number + 1) // 2,
            "node": number % 2,
            "node_name": f"clinic-{number % 2}",
            "span": (2, 4),
            "trained": (2, 3, 4),
            "learning_rate": 0.05,
            "accepted": True,
            "samples": 100,
            "steps": 4,
            "loss": 1.0 / number,
            "first_loss": 2.0 / number,
            "accuracy": 0.5,
            "update_norm": 0.25,
            "bytes_pulled": 1024 * number,
            "bytes_returned": 512,
            "pull_seconds": 0.125,
            "train_seconds": 1.5,
            "seconds": 2.0,
            "finished_at": 1000.0 + 2 * number,
        }
        return VisitRecord(**{**values, **changes})

    return make


@pytest.fixture
def evaluation_record():
    """Return a function that makes the record of the evaluation after visit `number`."""

    def make(number, **changes):
        values = {
            "visit": number,
            "trip": (number + 1) // 2,
            "samples": 360,
            "loss": 0.375,
            "accuracy": 0.875,
            "seconds": 0.5,
            "finished_at": 1000.5 + 2 * number,
        }
        return EvaluationRecord(**{**values, **changes})

    return make


@pytest.fixture
def start_record():
    """The first record of a journal."""
    return StartRecord(blocks=(), finished_at=1000.0)
