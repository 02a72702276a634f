"""A node and the split server, without Ray: what they exchange, and what is refused."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from fakes import make_config

from ray_snake.config import AcceptanceConfig, BaselineConfig
from ray_snake.data import ShardSource
from ray_snake.engine.batch_result import BatchResult
from ray_snake.engine.split import Reply
from ray_snake.engine.visit import VisitControl
from ray_snake.errors import ConfigError
from ray_snake.layers.state import weights_sha256
from ray_snake.layers.tensors import pack
from ray_snake.planning.span import Span, Visit
from ray_snake.runtime.local_manager import LocalManager
from ray_snake.runtime.messages import VisitTask, with_back
from ray_snake.runtime.preflight import check_shards
from ray_snake.runtime.recipe import Recipe
from ray_snake.runtime.split_server import SplitServer, exchange_through

CPU = torch.device("cpu")
BLOCKS = 5
CUT = 2
CONFIG = make_config(
    model={"options": {"width": 8}},
    data={"source": "builtin://digits/train", "partition": {"nodes": 40, "scheme": "shards"}},
    training={"batch_size": 16, "epochs": 2, "clip_norm": "none"},
    loss={"distillation": 0.0},
    baseline={"cut": CUT, "shares_activations": True},
)


@pytest.fixture(autouse=True)
def one_thread():
    """As in a node's process."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def initial():
    """Version 0 of every block as it comes out of the object store: read-only."""
    stack = Recipe(config=CONFIG).initial()
    states = [pack(block, 0, stack.tensors(block)) for block in range(BLOCKS)]
    for state in states:
        for array in state.arrays.values():
            array.flags.writeable = False
    return states


def make_node(config=CONFIG):
    recipe = Recipe(config=config)
    stack = recipe.skeleton()
    source = ShardSource(uri=config.data.source, partition=config.data.partition, index=2)
    (spec,) = check_shards(stack, [source])
    return LocalManager(spec, recipe, stack, CPU)


def make_task(cut=CUT, number=1):
    visit = Visit(
        number=number, trip=1, node=2, span=Span(0, BLOCKS), trained=tuple(range(BLOCKS)), cut=cut
    )
    return VisitTask(visit=visit, versions=(0,) * BLOCKS, anchors=None, learning_rate=0.1, seed=7)


def read_only(array):
    array = np.array(array)
    array.flags.writeable = False
    return array


def do(node, initial, server, *, session="one", seen=None):
    """Do a visit with a server; return (report, all new blocks)."""
    task = make_task()

    def connect(counts):
        server.open(session, task, initial[CUT:], counts)

        def ask(features, dtype, targets):
            if seen is not None:
                seen.append(SimpleNamespace(features=features, dtype=dtype, targets=targets))
            gradient, batch = server.step(session, read_only(features), dtype, read_only(targets))
            return read_only(gradient), batch

        return exchange_through(ask)

    report, front = node.visit(task, initial[:CUT], 0.0, VisitControl(), connect)
    back_report, back = server.close(task)
    return with_back(report, back_report), [*front, *back]


def whole(initial, config=CONFIG):
    """The same visit on a node that has the whole network."""
    return make_node(config).visit(make_task(cut=None), initial, 0.0, VisitControl())


def test_node_and_server_together_do_what_a_node_alone_does(initial):
    seen = []
    report, states = do(make_node(), initial, SplitServer(Recipe(config=CONFIG), CPU), seen=seen)
    alone, expected = whole(initial)
    assert [one.block for one in states] == list(range(BLOCKS))
    assert {one.version for one in states} == {1}
    # The shards have a few classes each: so it is the node's own prior that the loss had.
    assert weights_sha256(states) == weights_sha256(expected)
    for name in ("samples", "steps", "loss", "first_loss", "accuracy", "update_norm", "finite"):
        assert getattr(report, name) == getattr(alone, name)
    assert report.parcel_bytes == alone.parcel_bytes[:CUT]
    features = sum(one.features.nbytes for one in seen)
    assert report.sent_bytes == features + sum(one.targets.nbytes for one in seen) + 8 * 10
    assert report.received_bytes == features


def test_a_server_gives_the_same_bits_after_other_visits(initial):
    server = SplitServer(Recipe(config=CONFIG), CPU)
    node = make_node()
    _, first = do(node, initial, server)
    _, second = do(node, initial, server, session="two")
    assert weights_sha256(second) == weights_sha256(first)


def test_both_sides_change_is_measured_where_it_is_limited(initial):
    limited = CONFIG.model_copy(update={"acceptance": AcceptanceConfig(max_update_norm=1e3)})
    report, _ = do(make_node(limited), initial, SplitServer(Recipe(config=limited), CPU))
    alone, _ = whole(initial, limited)
    assert report.update_norm == pytest.approx(alone.update_norm)
    assert report.update_norm > 0


def test_what_a_node_that_was_given_up_had_still_sent_is_refused(initial):
    server = SplitServer(Recipe(config=CONFIG), CPU)
    rows = np.zeros((4, 16, 4, 4), dtype=np.float32), np.zeros(4, dtype=np.int64)
    server.open("lost", make_task(), initial[CUT:], None)
    server.step("lost", rows[0], "float32", rows[1])
    _, expected = do(make_node(), initial, SplitServer(Recipe(config=CONFIG), CPU))
    server.open("again", make_task(), initial[CUT:], None)
    with pytest.raises(RuntimeError, match="given up"):
        server.step("lost", rows[0], "float32", rows[1])
    _, states = do(make_node(), initial, server, session="third")
    assert weights_sha256(states) == weights_sha256(expected)


def test_a_node_sends_nothing_that_the_settings_do_not_let_leave(initial):
    config = CONFIG.model_copy(update={"baseline": BaselineConfig(cut=CUT)})
    reached = []
    with pytest.raises(ConfigError, match=r"^baseline\.shares_activations: is false"):
        make_node(config).visit(make_task(), initial[:CUT], 0.0, VisitControl(), reached.append)
    assert reached == []


def test_bfloat16_activations_travel_as_they_are():
    gradient = torch.tensor([[0.5, -2.0]], dtype=torch.bfloat16)
    batch = BatchResult(samples=1, loss=0.0, right=0, judged=0)

    def ask(features, dtype, targets):
        assert (features.nbytes, dtype) == (4, "bfloat16")
        return read_only(gradient.view(torch.uint16).numpy()), batch

    reply = exchange_through(ask)(gradient.clone(), torch.zeros(1, dtype=torch.int64))
    assert isinstance(reply, Reply)
    assert torch.equal(reply.gradient, gradient)
    # Whoever gets it may write to it.
    reply.gradient.zero_()
    assert gradient.abs().sum() > 0
