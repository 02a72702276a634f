import pytest
from scenarios import CONFIG, Gate, actors, fit

from ray_snake.runtime.events import VisitDecided
from ray_snake.storage import Storage


@pytest.fixture(scope="session")
def watched_reference(raylets, tmp_path_factory):
    """A run in which nothing goes wrong, one process a node, and what was seen of it.

    That is: the machines of its nodes, and the machine of its driver.
    """
    seen = {}

    def look(event):
        if isinstance(event, VisitDecided) and event.record.visit == 4:
            seen["machines"] = [
                one["Address"]["NodeID"] for one in actors("SnakeNode") if one["State"] == "ALIVE"
            ]
            (driver,) = [one for one in actors("SnakeDriver") if one["State"] == "ALIVE"]
            seen["driver"] = driver["Address"]["NodeID"]

    return fit(CONFIG, tmp_path_factory.mktemp("reference"), on_event=look), seen


@pytest.fixture(scope="session")
def reference(watched_reference):
    """The result of that run."""
    return watched_reference[0]


@pytest.fixture
def storage(tmp_path):
    return Storage(str(tmp_path / "runs"))


@pytest.fixture
def gate(tmp_path):
    return Gate(tmp_path / "gate")
