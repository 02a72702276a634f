"""What travels to whom, in which form: a whole run of fakes that check what they are sent."""

import pytest
from fakes import BLOCK_BYTES, DELTA_BYTES, FakeCluster, Fault, make_config, make_driver, run
from hypothesis import given, settings
from hypothesis import strategies as st

from ray_snake.runtime.journal import Journal
from ray_snake.runtime.states import Finished
from ray_snake.storage import Storage

NODES = 3
BLOCKS = 4
TRIPS = 9


def fit(storage, *, cluster=None, **sections):
    """Do a run in differences; return its final state, the fakes and its visits' records."""
    snake = {"trips": TRIPS, "span_width": 2, **sections.pop("snake", {})}
    config = make_config(**{"codec": {"name": "int8"}, **sections, "snake": snake})
    cluster = cluster or FakeCluster()
    state = run(make_driver(cluster, config, storage, nodes=NODES, blocks=BLOCKS).run())
    return state, cluster, Journal(storage).visits


@pytest.fixture
def stays(storage):
    """Stays of three trips, with no ends: a visit trains its span and nothing else."""
    return fit(
        storage,
        snake={"trips_per_span": 3, "train_last": False},
        codec={"name": "int8", "anchor_trips": 99},
    )


def test_within_a_stay_a_visit_pulls_differences_of_its_span_alone(stays):
    state, _, visits = stays
    assert isinstance(state, Finished)
    for visit in visits:
        first_trip_of_stay = (visit.trip - 1) % 3 == 0
        if not first_trip_of_stay and visits[visit.visit - 2].node != visit.node:
            assert visit.bytes_pulled == 2 * DELTA_BYTES
        assert visit.bytes_returned == 2 * DELTA_BYTES


def test_the_span_that_was_left_comes_as_differences_too(stays):
    _, _, visits = stays
    for visit in visits[9:]:
        # Both spans' news at most, though nodes lack whole blocks of what they train next.
        assert visit.bytes_pulled <= 4 * DELTA_BYTES


def test_a_first_visit_pulls_the_whole_model_once(stays):
    _, _, visits = stays
    assert visits[0].bytes_pulled == BLOCKS * BLOCK_BYTES
    # What was trained since comes as a difference from what is pulled whole.
    assert visits[1].bytes_pulled == BLOCKS * BLOCK_BYTES + 2 * DELTA_BYTES


def test_a_block_trained_in_every_visit_gets_a_new_anchor_now_and_then(storage):
    _, cluster, _ = fit(storage, codec={"name": "int8", "anchor_trips": 2})
    last = [task.anchors[-1] for task, _ in cluster.visits]
    assert sorted(set(last)) == [0, 3, 9, 15, 21]
    assert last == sorted(last)


def test_transfers_are_those_between_machines(storage):
    cluster = FakeCluster(machines={0: "shared", 1: "shared"})
    _, _, visits = fit(storage, cluster=cluster)
    names = {"clinic-0", "clinic-1", "clinic-2", "driver"}
    pairs = {(one.source, one.target) for visit in visits for one in visit.transfers}
    assert {name for pair in pairs for name in pair} <= names
    assert not pairs & {("clinic-0", "clinic-1"), ("clinic-1", "clinic-0")}
    assert {("clinic-0", "driver"), ("clinic-1", "clinic-2"), ("clinic-2", "clinic-1")} <= pairs
    for visit in visits:
        uploads = [one for one in visit.transfers if one.target == "driver"]
        assert sum(one.bytes for one in uploads) == visit.bytes_returned


def test_through_the_driver_nodes_pull_from_nobody_else(storage):
    _, cluster, visits = fit(storage, transport={"mode": "client_server"})
    for visit in visits:
        assert {one.source for one in visit.transfers} <= {"driver", visit.node_name}
    pulled = [ref for _, refs in cluster.visits for ref in refs.values() if ref.of is not None]
    pulled += [ref for *_, refs in cluster.fetched for ref in refs.values() if ref.of is not None]
    assert pulled
    assert all(ref.served for ref in pulled)


FAULTS = st.lists(
    st.one_of(
        st.tuples(st.just("visit"), st.integers(1, NODES * TRIPS), st.just(Fault.DIES)),
        st.tuples(
            st.just("fetch"), st.integers(0, 2), st.sampled_from([Fault.DIES, Fault.LACKS_BLOCKS])
        ),
        st.tuples(st.just("store"), st.integers(2, 9), st.just(Fault.DIES)),
        st.tuples(st.just("decode"), st.integers(1, 9), st.just(Fault.LACKS_BLOCKS)),
    ),
    max_size=3,
)


@settings(max_examples=25)
@given(
    faults=FAULTS,
    order=st.sampled_from(["span_major", "diagonal", "random"]),
    mode=st.sampled_from(["p2p", "client_server"]),
    machines=st.dictionaries(st.integers(0, 2), st.sampled_from("ab")),
    nodes_per_actor=st.integers(1, 3),
    train_last=st.booleans(),
    anchor_trips=st.integers(1, 3),
)
def test_whatever_fails_wherever_nodes_are_the_weights_are_the_same(
    tmp_path_factory, faults, order, mode, machines, nodes_per_actor, train_last, anchor_trips
):
    same = {
        "snake": {"order": order, "train_last": train_last},
        "codec": {"name": "int4", "anchor_trips": anchor_trips},
    }
    folder = tmp_path_factory.mktemp("run")
    clean, *_ = fit(Storage(str(folder / "clean")), **same)
    cluster = FakeCluster(machines=machines)
    for method, number, fault in faults:
        cluster.faults.setdefault((method, number), []).append(fault)
    other, _, visits = fit(
        Storage(str(folder / "other")),
        cluster=cluster,
        transport={"mode": mode},
        nodes={"nodes_per_actor": nodes_per_actor},
        **same,
    )
    assert other == clean
    assert [one.visit for one in visits] == list(range(1, NODES * TRIPS + 1))


def test_a_visit_that_is_done_again_counts_what_it_lacked_once(storage):
    """What went to the process that died has crossed all the same."""
    cluster = FakeCluster(faults={("visit", 5): [Fault.DIES]})
    _, _, visits = fit(storage, cluster=cluster, codec={"name": "none"})
    assert visits[4].bytes_pulled == BLOCKS * BLOCK_BYTES
