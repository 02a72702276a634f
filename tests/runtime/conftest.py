import pytest
from fakes import FakeCluster

from ray_snake.runtime import visitor
from ray_snake.storage import Storage


@pytest.fixture
def cluster():
    return FakeCluster()


@pytest.fixture
def storage(tmp_path):
    return Storage(str(tmp_path / "run"))


@pytest.fixture
def quick_progress(monkeypatch):
    """Let the driver look at a running visit every 10 ms."""
    monkeypatch.setattr(visitor, "PROGRESS_SECONDS", 0.01)
