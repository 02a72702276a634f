"""Split learning in real processes: the bits of the whole network, whatever dies."""

import pytest
from scenarios import NODES, STEPS, fit, kill, on_visit, pid_of, with_sections

from ray_snake.runtime.events import NodeLost, Recovering, VisitDecided
from ray_snake.runtime.journal import read_records
from ray_snake.runtime.records import DRIVER, VisitRecord
from ray_snake.storage import Storage

CUT = 2
# Of the registered cnn's second block: 4 * width channels of 4 x 4 pixels.
VALUES_PER_ROW = 64 * 4 * 4
CLASSES = 10


def settings(strategy, **sections):
    """Settings under which split learning takes the steps of training the whole network."""
    config = with_sections(
        snake={"trips": 3},
        training={"clip_norm": "none"},
        loss={"distillation": 0.0},
        baseline={"cut": CUT, "shares_activations": True},
        **sections,
    )
    return config.model_copy(update={"strategy": strategy})


def visits_of(result):
    return [one for one in read_records(Storage(result.run)) if isinstance(one, VisitRecord)]


@pytest.fixture(scope="module")
def split(raylets, tmp_path_factory):
    return fit(settings("split"), tmp_path_factory.mktemp("split"))


def test_split_learning_gives_the_bits_of_cyclic_training(split, tmp_path):
    whole = fit(settings("cyclic"), tmp_path)
    assert split.summary["weights_sha256"] == whole.summary["weights_sha256"]
    for name in ("loss", "accuracy", "samples", "update_norm", "test_loss"):
        assert split.history[name].to_pylist() == whole.history[name].to_pylist()


def test_splitfed_gives_the_bits_of_fedavg(raylets, tmp_path):
    whole = fit(settings("fedavg"), tmp_path / "whole")
    result = fit(settings("splitfed"), tmp_path / "split")
    assert result.summary["weights_sha256"] == whole.summary["weights_sha256"]
    assert result.summary["bytes_moved"] == sum(
        one.bytes_pulled + one.bytes_returned + one.exchanged_bytes for one in visits_of(result)
    )


def test_nodes_pull_fronts_and_exchange_every_batch(split):
    visits = visits_of(split)
    sizes = {one.block: one.bytes for one in visits[-1].blocks}
    front = sum(sizes[block] for block in range(CUT))
    assert sum(sizes.values()) > 3 * front
    assert {one.bytes_pulled for one in visits} == {0, front}
    assert {one.bytes_returned for one in visits} == {front}
    for visit in visits:
        # Activations and as much back, float32; labels and label counts, int64.
        activations = 4 * visit.samples * VALUES_PER_ROW
        sent = activations + 8 * visit.samples + 8 * CLASSES
        assert visit.exchanged_bytes == sent + activations
        exchanged = [one for one in visit.transfers if one.objects == STEPS]
        assert [(one.source, one.target, one.bytes) for one in exchanged] in (
            [],
            [(visit.node_name, DRIVER, sent), (DRIVER, visit.node_name, activations)],
        )
    # The nodes are spread over three machines, and the server is on one of them.
    assert sum(one.objects == STEPS for visit in visits for one in visit.transfers) >= 2 * NODES
    assert split.history["exchanged_bytes"].to_pylist() == [one.exchanged_bytes for one in visits]
    assert split.summary["bytes_moved"] == sum(
        one.bytes_pulled + one.exchanged_bytes for one in visits
    )


@pytest.mark.parametrize(
    ("process", "event"), [("SnakeServer", Recovering), ("SnakeNode", NodeLost)]
)
def test_a_process_killed_within_a_visit_changes_nothing(split, tmp_path, gate, process, event):
    events = []

    def strike():
        # The loss is computed by the server.
        assert gate.pid() == pid_of("SnakeServer")
        kill(pid_of(process))
        gate.open()

    react = on_visit(4, strike)

    def on_event(one):
        events.append(one)
        react(one)

    config = settings("split", nodes={"nodes_per_actor": NODES})
    result = fit(config, tmp_path / "runs", loss=gate.loss(4), on_event=on_event)
    assert [type(one) for one in events].count(event) == 1
    decided = [one.record.visit for one in events if isinstance(one, VisitDecided)]
    assert sorted(set(decided)) == list(range(1, 3 * NODES + 1))
    assert result.summary["weights_sha256"] == split.summary["weights_sha256"]
