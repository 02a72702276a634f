from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from fakes import make_config

from ray_snake.data import NodeDataset, ShardSource
from ray_snake.engine.evaluate import evaluate
from ray_snake.errors import CheckpointError, VisitFailedError
from ray_snake.layers.state import weights_sha256
from ray_snake.runtime.process_engine import ProcessEngine
from ray_snake.runtime.recipe import Recipe
from ray_snake.storage import Storage

CPU = torch.device("cpu")
DIGITS = ShardSource(uri="builtin://digits/test")
OPTIONS = {"model": {"options": {"width": 8}}}


def make(storage, rows=None, **sections):
    recipe = Recipe(config=make_config(**OPTIONS, **sections))
    return ProcessEngine(recipe, storage, rows, CPU)


@pytest.fixture
def engine(storage):
    return make(storage)


def changed(state, version):
    """Another version of a block: every value one more."""
    arrays = {name: np.asarray(array + np.float32(1)) for name, array in state.arrays.items()}
    return replace(state, version=version, arrays=arrays)


def files(storage):
    root = Path(storage.uri)
    return sorted(str(path.relative_to(root)) for path in root.rglob("*.safetensors"))


def test_initial_weights_are_the_seeds(engine, storage):
    first, again = engine.initial(), make(storage).initial()
    assert [state.block for state in first] == list(range(5))
    assert {state.version for state in first} == {0}
    assert weights_sha256(first) == weights_sha256(again)
    assert weights_sha256(make(storage, seed=4).initial()) != weights_sha256(first)


def test_initial_weights_leave_torchs_random_state_alone(engine):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    engine.initial()
    assert torch.equal(torch.rand(3), expected)


def test_stored_blocks_come_back_as_they_were(engine, storage):
    states = engine.initial()
    records = engine.store(states)
    assert [one.bytes for one in records] == [state.nbytes for state in states]
    restored = make(storage).restore(records)
    assert weights_sha256(restored) == weights_sha256(states)
    assert [(one.block, one.version) for one in restored] == [(one, 0) for one in range(5)]


def test_the_change_counts_weights_and_not_statistics(storage):
    recipe = Recipe(config=make_config(model={"options": {"width": 8, "norm": "batch"}}))
    engine = ProcessEngine(recipe, storage, None, CPU)
    states = engine.initial()[1:3]
    assert any("running_var" in name for state in states for name in state.arrays)
    stack = recipe.skeleton()
    weights = [weight for block in (1, 2) for weight in stack.blocks[block].parameters()]
    moved = [changed(state, 1) for state in states]
    expected = sum(weight.numel() for weight in weights) ** 0.5
    assert engine.update_norm(moved, states) == pytest.approx(expected, rel=1e-5)
    # After a recovery a visit starts from what storage has, whose arrays have another order.
    restored = engine.restore(engine.store(states))
    assert [list(a.arrays) for a in restored] != [list(b.arrays) for b in states]
    assert engine.update_norm(moved, restored) == engine.update_norm(moved, states)


def test_discard_deletes_just_these_versions(engine, storage):
    states = engine.initial()
    engine.store(states)
    engine.store([changed(states[1], 3)])
    engine.discard([(1, 0), (2, 0)])
    assert files(storage) == [
        "blocks/0000/00000000.safetensors",
        "blocks/0001/00000003.safetensors",
        "blocks/0003/00000000.safetensors",
        "blocks/0004/00000000.safetensors",
    ]
    engine.discard([(1, 0)])


def test_restore_deletes_what_an_interruption_left(engine, storage):
    states = engine.initial()
    records = engine.store(states)
    engine.store([changed(states[1], 3)])
    make(storage).restore(records)
    assert files(storage) == [f"blocks/{block:04d}/00000000.safetensors" for block in range(5)]


def test_a_damaged_block_is_named(engine, storage):
    states = engine.initial()
    records = engine.store(states)
    storage.write("blocks/0002/00000000.safetensors", b"damaged")
    with pytest.raises(CheckpointError, match=r"blocks/0002/00000000\.safetensors"):
        make(storage).restore(records)


def test_a_block_of_another_content_is_refused(engine, storage):
    states = engine.initial()
    records = engine.store(states)
    make(storage).store([replace(changed(states[2], 0))])
    with pytest.raises(CheckpointError, match=r"blocks/0002/.*checksum"):
        make(storage).restore(records)


def test_a_missing_block_is_named(engine, storage):
    records = engine.store(engine.initial())
    engine.discard([(3, 0)])
    with pytest.raises(CheckpointError, match=r"blocks/0003/00000000\.safetensors"):
        make(storage).restore(records)


def test_wrong_shapes_are_refused_and_not_stored(engine, storage):
    state = engine.initial()[4]
    arrays = {name: array[:1] for name, array in state.arrays.items()}
    with pytest.raises(VisitFailedError, match="block 4 came back from visit 6"):
        engine.store([replace(state, version=6, arrays=arrays)])
    assert files(storage) == []


def test_missing_weights_are_refused(engine):
    state = engine.initial()[4]
    arrays = dict(list(state.arrays.items())[1:])
    with pytest.raises(VisitFailedError):
        engine.store([replace(state, arrays=arrays)])


def test_judges_the_blocks_it_is_given(storage):
    engine = make(storage, DIGITS, evaluation={"batch_size": 100})
    recipe = Recipe(config=make_config(**OPTIONS))
    report = engine.evaluate(engine.initial())
    expected = evaluate(
        recipe.initial(),
        NodeDataset.open(DIGITS),
        task=recipe.objective().task,
        batch_size=100,
    )
    assert (report.samples, report.loss, report.accuracy) == (
        360,
        expected.loss,
        expected.accuracy,
    )
    other = engine.evaluate([changed(state, 1) for state in engine.initial()])
    assert other.loss != report.loss


def test_judging_without_held_out_rows_is_an_error(engine):
    with pytest.raises(RuntimeError, match="no held-out rows"):
        engine.evaluate(engine.initial())


def test_the_sum_counts_weights_and_not_versions(engine):
    states = engine.initial()
    renamed = [replace(state, version=9) for state in states]
    assert engine.weights_sha256(renamed) == engine.weights_sha256(states)
    assert engine.weights_sha256([*states[:-1], changed(states[-1], 0)]) != (
        engine.weights_sha256(states)
    )


def test_blocks_of_a_run_on_another_storage_are_not_seen(engine, tmp_path):
    records = engine.store(engine.initial())
    with pytest.raises(CheckpointError):
        make(Storage(str(tmp_path / "elsewhere"))).restore(records)
