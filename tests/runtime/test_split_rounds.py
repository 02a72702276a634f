"""Visits with a cut on the driver's loop: the back stays at the driver's side."""

import pytest
from fakes import (
    BLOCK_BYTES,
    RECEIVED_BYTES,
    SENT_BYTES,
    FakeCluster,
    Fault,
    make_config,
    make_driver,
    run,
)

from ray_snake.runtime.journal import Journal
from ray_snake.runtime.records import DRIVER
from ray_snake.runtime.states import Failed, Finished
from ray_snake.storage import Storage
from ray_snake.telemetry.summary import run_summary

NODES = 3
BLOCKS = 4
CUT = 2
EXCHANGED = SENT_BYTES + RECEIVED_BYTES


def config(strategy="split", **sections):
    return make_config(
        strategy=strategy,
        baseline={"cut": CUT, "shares_activations": True},
        loss={"distillation": 0.0},
        **sections,
    )


def sums(folder, settings):
    return run(make_driver(FakeCluster(), settings, Storage(str(folder))).run()).weights_sha256


@pytest.fixture(scope="module")
def clean(tmp_path_factory):
    """The final sums of runs without failures, by strategy."""
    folder = tmp_path_factory.mktemp("clean")
    return {name: sums(folder / name, config(name)) for name in ("split", "splitfed")}


def test_nodes_are_sent_the_front_and_the_server_the_current_back(cluster, storage):
    run(make_driver(cluster, config(), storage).run())
    for task, _ in cluster.visits:
        before = task.visit.number - 1
        assert task.versions == (before,) * BLOCKS
        assert [(one.block, one.version) for one in task.back] == [(2, before), (3, before)]
    assert {block for node in cluster.nodes.values() for block in node.received} == {0, 1}


def test_every_copy_of_a_round_goes_on_from_the_same_back(cluster, storage):
    run(make_driver(cluster, config("splitfed"), storage).run())
    versions = [{one.version for one in task.back} for task, _ in cluster.visits]
    assert versions == [{0}] * NODES + [{3}] * NODES + [{6}] * NODES
    assert [len(one.blocks) for one in Journal(storage).visits] == [0, 0, BLOCKS] * 3


def test_what_is_exchanged_counts_and_the_back_does_not(cluster, storage):
    run(make_driver(cluster, config(), storage).run())
    records = list(Journal(storage))
    visits = Journal(storage).visits
    for visit in visits:
        assert visit.bytes_returned == CUT * BLOCK_BYTES
        assert visit.bytes_pulled <= CUT * BLOCK_BYTES
        assert visit.exchanged_bytes == EXCHANGED
        exchanged = [one for one in visit.transfers if one.bytes in (SENT_BYTES, RECEIVED_BYTES)]
        assert [(one.source, one.target, one.bytes, one.objects) for one in exchanged] == [
            (visit.node_name, DRIVER, SENT_BYTES, visit.steps),
            (DRIVER, visit.node_name, RECEIVED_BYTES, visit.steps),
        ]
        to_driver = sum(one.bytes for one in visit.transfers if one.target == DRIVER)
        assert to_driver == SENT_BYTES + CUT * BLOCK_BYTES
    summary = run_summary("run", records, "")
    assert summary["bytes_moved"] == sum(one.bytes_pulled + EXCHANGED for one in visits)
    assert summary["nodes"]["clinic-0"]["exchanged_bytes"] == 3 * EXCHANGED


def test_nothing_crosses_from_a_node_on_the_servers_machine(cluster, storage):
    cluster.machines = dict.fromkeys(range(NODES), "driver's machine")
    run(make_driver(cluster, config(), storage).run())
    visits = Journal(storage).visits
    assert not any(one.transfers for one in visits)
    assert all(one.exchanged_bytes == EXCHANGED for one in visits)


def test_what_a_refused_visit_exchanged_counts_too(cluster, storage):
    cluster.faults = {("visit", 2): [Fault.DIVERGES]}
    run(make_driver(cluster, config(), storage).run())
    refused = Journal(storage).visits[1]
    assert not refused.accepted
    assert refused.exchanged_bytes == EXCHANGED
    assert cluster.visits[2][0].versions == (1,) * BLOCKS


@pytest.mark.parametrize("mode", ["p2p", "client_server"])
@pytest.mark.parametrize("name", ["split", "splitfed"])
@pytest.mark.parametrize(
    "faults",
    [
        {},
        {("visit", 2): [Fault.DIES]},
        {("visit", 5): [Fault.LACKS_BLOCKS]},
        {("store", 3): [Fault.DIES]},
        {("visit", 4): [Fault.LACKS_BLOCKS, Fault.DIES]},
    ],
)
def test_what_dies_changes_nothing(cluster, storage, clean, name, mode, faults):
    cluster.faults = {key: list(some) for key, some in faults.items()}
    state = run(make_driver(cluster, config(name, transport={"mode": mode}), storage).run())
    assert isinstance(state, Finished)
    assert state.weights_sha256 == clean[name]


def test_a_run_that_ended_goes_on_from_the_stored_back(cluster, storage, clean):
    cluster.faults = {("visit", 5): [Fault.RAISES]}
    assert isinstance(run(make_driver(cluster, config(), storage).run()), Failed)
    state = run(make_driver(cluster, config(), storage).run())
    assert state.weights_sha256 == clean["split"]
