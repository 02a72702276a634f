from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from fakes import make_config

from ray_snake.config import AcceptanceConfig
from ray_snake.data import ShardSource
from ray_snake.engine.objective import cross_entropy
from ray_snake.engine.visit import VisitControl, VisitStoppedError
from ray_snake.layers.state import weights_sha256
from ray_snake.layers.tensors import pack
from ray_snake.planning.span import Span, Visit
from ray_snake.runtime.local_manager import LocalManager
from ray_snake.runtime.messages import VisitTask
from ray_snake.runtime.preflight import check_shards
from ray_snake.runtime.process_engine import ProcessEngine
from ray_snake.runtime.recipe import Recipe

CPU = torch.device("cpu")
CONFIG = make_config(
    model={"options": {"width": 8}},
    data={"source": "builtin://digits/train", "partition": {"nodes": 40}},
    training={"batch_size": 16, "epochs": 2},
)
BLOCKS = 5


def make_node(loss=None, config=CONFIG):
    """A node with a fortieth of the digits, and the network it loads blocks into."""
    recipe = Recipe(config=config, loss=loss)
    stack = recipe.skeleton()
    source = ShardSource(uri=config.data.source, partition=config.data.partition, index=2)
    (spec,) = check_shards(stack, [source])
    return SimpleNamespace(manager=LocalManager(spec, recipe, stack, CPU), stack=stack)


@pytest.fixture(autouse=True)
def one_thread():
    """As in a node's process."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def node():
    return make_node()


@pytest.fixture(scope="module")
def initial():
    """Version 0 of every block as it comes out of the object store: read-only."""
    stack = Recipe(config=CONFIG).initial()
    states = {block: pack(block, 0, stack.tensors(block)) for block in range(BLOCKS)}
    for state in states.values():
        for array in state.arrays.values():
            array.flags.writeable = False
    return states


def make_task(number=1, *, trained=(1, 2, 4), versions=(0,) * BLOCKS, anchors=None, seed=7):
    visit = Visit(number=number, trip=1, node=2, span=Span(1, 3), trained=trained)
    return VisitTask(visit=visit, versions=versions, anchors=anchors, learning_rate=0.1, seed=seed)


def do(node, task, pulled):
    return node.manager.visit(task, pulled.values(), 0.0, VisitControl())


def without_times(report):
    """Return what a report says of the visit, not of the machine it was done on."""
    found = {k: v for k, v in vars(report).items() if not k.endswith("_seconds")}
    return {k: v for k, v in found.items() if k != "free_bytes"}


def test_the_same_task_gives_the_same_bits_on_any_process(node, initial):
    report, states = do(node, make_task(), initial)
    again_report, again = do(make_node(), make_task(), initial)
    assert [state.block for state in states] == [1, 2, 4]
    assert {state.version for state in states} == {1}
    assert weights_sha256(again) == weights_sha256(states)
    assert without_times(again_report) == without_times(report)


def test_the_same_task_gives_the_same_bits_after_other_visits(node, initial):
    _, states = do(node, make_task(), initial)
    do(node, make_task(2, trained=(0, 3), seed=9), initial)
    _, again = do(node, make_task(), initial)
    assert weights_sha256(again) == weights_sha256(states)


def test_another_seed_gives_other_weights(node, initial):
    _, states = do(node, make_task(), initial)
    _, others = do(node, make_task(seed=8), initial)
    assert weights_sha256(others) != weights_sha256(states)


def test_a_tasks_own_weight_of_distillation_is_as_good_as_the_settings(node, initial):
    strong = make_config(
        model={"options": {"width": 8}},
        data={"source": "builtin://digits/train", "partition": {"nodes": 40}},
        training={"batch_size": 16, "epochs": 2},
        loss={"distillation": 0.9},
    )
    task = make_task()
    _, expected = do(make_node(config=strong), task, initial)
    _, made = do(node, replace(task, distillation=0.9), initial)
    _, others = do(make_node(), task, initial)
    assert [one.checksum() for one in made] == [one.checksum() for one in expected]
    assert [one.checksum() for one in made] != [one.checksum() for one in others]


def numbers(state):
    """What a state holds but for its norms' counts of batches."""
    return [(name, one) for name, one in state.arrays.items() if one.dtype.kind == "f"]


def test_a_damped_visit_returns_a_share_of_its_change(node, initial):
    _, whole = do(node, make_task(), initial)
    _, damped = do(node, replace(make_task(), damping=0.25), initial)
    for full, part in zip(whole, damped, strict=True):
        for name, array in numbers(full):
            start = initial[full.block].arrays[name]
            np.testing.assert_allclose(
                part.arrays[name], start + 0.25 * (array - start), rtol=0, atol=1e-6
            )


def test_the_change_that_is_reported_is_the_one_that_is_returned(initial):
    config = make_config(
        **CONFIG.model_dump(include={"model", "data", "training"}),
        acceptance={"max_update_norm": 100.0},
    )
    node = make_node(config=config)
    report, damped = do(node, replace(make_task(), damping=0.5), initial)
    changes = [
        (array - initial[one.block].arrays[name]).ravel()
        for one in damped
        for name, array in numbers(one)
        if "running" not in name
    ]
    assert report.update_norm == pytest.approx(np.linalg.norm(np.concatenate(changes)), rel=1e-4)


def test_reports_what_was_done(node, initial):
    report, states = do(node, make_task(), initial)
    rows = node.manager.samples
    assert report.samples == 2 * rows
    assert report.steps == 2 * -(-rows // 16)
    assert report.finite
    assert report.loss < report.first_loss
    assert report.parcel_bytes == tuple(state.nbytes for state in states)


def test_frozen_blocks_that_come_and_go_give_the_same_bits(node, initial):
    _, states = do(node, make_task(), initial)
    training = CONFIG.training.model_copy(update={"residency": "stream"})
    streaming = make_node(config=CONFIG.model_copy(update={"training": training}))
    _, again = do(streaming, make_task(), initial)
    assert weights_sha256(again) == weights_sha256(states)


def test_a_node_trains_as_its_memory_bears(initial):
    # The run's settings say whole batches; this node was found to bear four rows at once.
    recipe = Recipe(config=CONFIG)
    stack = recipe.skeleton()
    source = ShardSource(uri=CONFIG.data.source, partition=CONFIG.data.partition, index=2)
    (spec,) = check_shards(stack, [source])
    training = CONFIG.training.model_copy(update={"residency": "stream", "micro_batch": 4})
    manager = LocalManager(replace(spec, training=training), recipe, stack, CPU)
    rows = set()
    stack.blocks[1].register_forward_pre_hook(lambda _, args: rows.add(len(args[0])))
    do(SimpleNamespace(manager=manager), make_task(), initial)
    assert max(rows) == 4


def test_a_limit_to_the_change_has_the_node_measure_it_as_the_engine_would(initial, storage):
    limited = CONFIG.model_copy(update={"acceptance": AcceptanceConfig(max_update_norm=1e3)})
    report, states = do(make_node(config=limited), make_task(), initial)
    free, same = do(make_node(), make_task(), initial)
    assert free.update_norm is None
    assert weights_sha256(same) == weights_sha256(states)
    engine = ProcessEngine(Recipe(config=CONFIG), storage, None, CPU)
    arrived = [initial[state.block] for state in states]
    assert report.update_norm == engine.update_norm(states, arrived) > 0


def test_pulled_blocks_are_never_written_to(node, initial):
    before = weights_sha256(initial.values())
    _, states = do(node, make_task(), initial)
    assert weights_sha256(initial.values()) == before
    changed = [
        not np.array_equal(state.arrays[name], initial[state.block].arrays[name])
        for state in states
        for name in state.arrays
    ]
    assert all(changed)


def test_only_trained_blocks_are_private_copies(initial):
    seen = []

    def looking(outputs, targets):
        shared = {}
        for block, module in enumerate(node.stack.blocks):
            shared[block] = {
                np.shares_memory(weight.detach().numpy(), initial[block].arrays[name])
                for name, weight in module.named_parameters()
            }
        seen.append(shared)
        return cross_entropy(outputs, targets)

    node = make_node(loss=looking)
    do(node, make_task(), initial)
    # Nothing writes to the weights before the first step, which is what copies them.
    assert seen[0] == {block: {True} for block in range(BLOCKS)}
    assert seen[1:] == [{0: {True}, 1: {False}, 2: {False}, 3: {True}, 4: {False}}] * len(seen[1:])
    assert len(seen) > 1


def test_nothing_is_loaded_between_visits(node, initial):
    do(node, make_task(), initial)
    for block in range(BLOCKS):
        assert all(tensor.is_meta for tensor in node.stack.tensors(block).values())


def test_keeps_frozen_blocks_and_gives_away_trained_ones(node, initial):
    _, states = do(node, make_task(), initial)
    task = make_task(2, versions=(0, 1, 1, 0, 1))
    report, _ = do(node, task, {state.block: state for state in states})
    assert report.steps > 0


def test_a_missing_block_is_refused(node, initial):
    do(node, make_task(), initial)
    with pytest.raises(RuntimeError, match="version 0 of block 1 is needed; the node holds none"):
        do(node, make_task(2), {})


def test_another_version_is_refused(node, initial):
    with pytest.raises(RuntimeError, match="version 3 of block 2 is needed; the node holds 0"):
        do(node, make_task(5, versions=(0, 0, 3, 0, 0)), initial)


def test_releases_only_the_version_named(node, initial):
    trained = make_task(2)
    _, expected = do(node, make_task(1), initial)
    node.manager.release(0, 4)
    pulled = {block: initial[block] for block in trained.visit.trained}
    _, states = do(node, make_task(1), pulled)
    assert weights_sha256(states) == weights_sha256(expected)
    node.manager.release(0, 0)
    with pytest.raises(RuntimeError, match="version 0 of block 0 is needed; the node holds none"):
        do(node, trained, pulled)


def test_what_is_fetched_during_a_visit_outlives_it(initial):
    newer = {block: replace(initial[block], version=9) for block in (1, 3)}

    def loss(outputs, targets):
        for state in newer.values():
            node.manager.hold(state)
        return cross_entropy(outputs, targets)

    node = make_node(loss=loss)
    do(node, make_task(), initial)
    rest = {block: replace(initial[block], version=1) for block in (2, 4)}
    report, _ = do(node, make_task(10, versions=(0, 9, 1, 9, 1)), rest)
    assert report.steps > 0


def test_releasing_what_it_never_had_is_fine(node):
    node.manager.release(3, 7)


def test_a_stopped_visit_can_be_done_again(node, initial):
    control = VisitControl()
    control.stop.set()
    with pytest.raises(VisitStoppedError):
        node.manager.visit(make_task(), initial.values(), 0.0, control)
    _, states = do(node, make_task(), {})
    _, expected = do(make_node(), make_task(), initial)
    assert weights_sha256(states) == weights_sha256(expected)


def test_a_visit_stopped_in_its_last_step_lets_go_of_nothing(initial):
    """What it started from is what the run, back at its journal, has just sent again."""
    control = VisitControl()

    def loss(outputs, targets):
        control.stop.set()
        return cross_entropy(outputs, targets)

    training = CONFIG.training.model_copy(update={"steps": 1})
    node = make_node(loss=loss, config=CONFIG.model_copy(update={"training": training}))
    with pytest.raises(VisitStoppedError):
        node.manager.visit(make_task(), initial.values(), 0.0, control)
    report, _ = do(node, make_task(), {})
    assert report.steps == 1


def test_diverged_weights_are_reported(initial):
    wild = CONFIG.model_copy(
        update={"training": CONFIG.training.model_copy(update={"clip_norm": None})}
    )
    node = make_node(loss=lambda outputs, targets: (outputs * 1e30).pow(5).sum(), config=wild)
    report, _ = do(node, make_task(), initial)
    assert not report.finite
