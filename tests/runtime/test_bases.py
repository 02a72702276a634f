"""Bases beside blocks: who has one from elsewhere need not pull it, whatever else happens."""

import pytest
from fakes import BLOCK_BYTES, FakeCluster, Fault, digest, make_config, make_driver, run

from ray_snake.runtime.journal import Journal
from ray_snake.runtime.states import Finished

BLOCKS, BASES, NODES = 4, 3, 3
ALL = {one: digest("initial", one) for one in range(BLOCKS, BLOCKS + BASES)}


def fit(storage, at_hand, **sections):
    """Do a run of fakes; return them and the visits' records."""
    cluster = FakeCluster(at_hand=at_hand, **sections.pop("cluster", {}))
    config = make_config(**sections)
    driver = make_driver(cluster, config, storage, nodes=NODES, blocks=BLOCKS, bases=BASES)
    assert isinstance(run(driver.run()), Finished)
    return cluster, Journal(storage).visits


def received(cluster):
    """Return how often each base came to a node."""
    got = [one for node in cluster.nodes.values() for one in node.received]
    return [got.count(base) for base in ALL]


@pytest.mark.parametrize("codec", ["none", "int8"])
def test_what_nodes_have_from_elsewhere_does_not_travel(codec, storage):
    cluster, visits = fit(storage, ALL, codec={"name": codec})
    assert received(cluster) == [0] * BASES
    assert visits[0].bytes_pulled == BLOCKS * BLOCK_BYTES
    assert not [one for one in cluster.released if one[1] in ALL]


@pytest.mark.parametrize("codec", ["none", "int8"])
def test_what_they_have_not_or_have_otherwise_comes_once_to_each(codec, storage):
    here = {**ALL, BLOCKS: "another file"}
    del here[BLOCKS + 1]
    cluster, visits = fit(storage, here, codec={"name": codec})
    assert received(cluster) == [NODES, NODES, 0]
    assert visits[0].bytes_pulled == (BLOCKS + 2) * BLOCK_BYTES


def test_they_are_stored_once_and_stay_what_they_are(storage):
    cluster, _ = fit(storage, {})
    for one, content in ALL.items():
        assert cluster.stored[one, 0].content == content
        assert Journal(storage).current_version(one) == 0


def test_a_node_that_was_lost_has_them_again_and_the_driver_knows(storage):
    faults = {("visit", 4): [Fault.DIES], ("store", 6): [Fault.DIES]}
    cluster, _ = fit(storage, ALL, cluster={"faults": faults})
    assert len(cluster.launched) > NODES
    assert received(cluster) == [0] * BASES
