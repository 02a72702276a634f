"""Optimizer state on real clusters: it travels, is stored and counted, and resume is exact."""

import pytest
from scenarios import fit, kill, on_visit, pid_of, with_sections

from ray_snake.layers.state import OPTIMIZER
from ray_snake.runtime.journal import Journal
from ray_snake.runtime.run_folder import RunFolder
from ray_snake.storage import Storage

CARRY = {"optimizer_state": "carry"}


@pytest.fixture(scope="module")
def carried(raylets, tmp_path_factory):
    config = with_sections(training=CARRY, snake={"trips": 2})
    return fit(config, tmp_path_factory.mktemp("carried"))


def test_momentum_is_stored_with_its_block_and_counted(carried):
    blocks = RunFolder(Storage(carried.run)).states()
    trained = {block for one in Journal(Storage(carried.run)).visits for block in one.trained}
    for state in blocks:
        kept = [name for name in state.arrays if name.startswith(OPTIMIZER)]
        # A norm's statistics are no weights.
        weights = list(carried.model()[state.block].parameters())
        assert len(kept) == (len(weights) if state.block in trained else 0)
    record = Journal(Storage(carried.run)).visits[-1]
    assert sum(one.bytes for one in record.blocks) == record.bytes_returned


def test_the_model_has_its_weights_alone(carried):
    assert not [name for name in carried.model().state_dict() if name.startswith(OPTIMIZER)]


def test_a_killed_engine_changes_nothing(raylets, carried, tmp_path):
    config = with_sections(training=CARRY, snake={"trips": 2})
    watch = on_visit(4, lambda: kill(pid_of("SnakeEngine")))
    again = fit(config, tmp_path, on_event=watch)
    assert again.summary["weights_sha256"] == carried.summary["weights_sha256"]
