"""Whatever goes wrong, wherever and however slowly: a run ends with the bits of one without it."""

from functools import cache
from tempfile import TemporaryDirectory

import pytest
from fakes import FakeCluster, Fault, digest, make_config, make_driver, run
from hypothesis import given, settings
from hypothesis import strategies as st

from ray_snake.planning.trips import Trips
from ray_snake.runtime import driver as driver_module
from ray_snake.runtime.events import VisitStarted
from ray_snake.runtime.journal import Journal
from ray_snake.runtime.records import JoinRecord, LeaveRecord, StartRecord, VisitRecord
from ray_snake.runtime.requests import AddRequest, Mailbox, RemoveRequest
from ray_snake.runtime.states import Failed, Finished
from ray_snake.storage import Storage

NODES = 3
BLOCKS = 4
TRIPS = 3
VISITS = NODES * TRIPS
LOST = (Fault.DIES, Fault.LACKS_BLOCKS)
ENGINE = ("start", "initial", "restore", "store", "serve", "decode", "average", "update_norm")
JUDGING = ("discard", "evaluate", "weights_sha256")

METHODS = {
    "snake": {},
    "snake that travels as differences": {"codec": {"name": "int8"}},
    "diagonal with both ends": {"snake": {"order": "diagonal", "train_first": True}},
    "mean at the end": {"snake": {"mean_visits": 4}},
    "fedavg": {"strategy": "fedavg"},
    "cyclic": {"strategy": "cyclic"},
    "split": {
        "strategy": "split",
        "baseline": {"cut": 2, "shares_activations": True},
        "loss": {"distillation": 0.0},
    },
    "splitfed": {
        "strategy": "splitfed",
        "baseline": {"cut": 2, "shares_activations": True},
        "loss": {"distillation": 0.0},
    },
}


SEVERAL_HEADS = {
    "two heads": {"snake": {"heads": 2, "train_last": False}},
    "two heads on shared ends": {"snake": {"heads": 2, "span_width": 2, "damping": 0.5}},
}


@pytest.fixture(autouse=True, scope="module")
def quick_looks():
    """Let the driver look for requests, and who has the run, every millisecond."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(driver_module, "LOOK_SECONDS", 0.001)
        yield


def faults(*kinds):
    """Return up to four calls in which something goes wrong, and what."""
    calls = st.one_of(
        st.tuples(st.just("visit"), st.integers(1, VISITS)),
        st.tuples(st.sampled_from(("fetch", "launch")), st.integers(0, NODES - 1)),
        st.tuples(st.sampled_from((*ENGINE, *JUDGING)), st.integers(1, 2 * VISITS)),
    )
    some = st.lists(st.sampled_from(kinds), min_size=1, max_size=2)
    return st.dictionaries(calls, some, max_size=4)


# How often a call gives way to other tasks before it begins.
DELAYS = st.dictionaries(st.sampled_from((*ENGINE, *JUDGING)), st.integers(1, 200), max_size=4)


@cache
def clean(method):
    """The final sum of a run in which nothing goes wrong."""
    with TemporaryDirectory() as folder:
        return trained(FakeCluster(), method, Storage(folder)).weights_sha256


def trained(cluster, method, storage, mode="p2p", emit=None):
    config = make_config(transport={"mode": mode}, **(METHODS | SEVERAL_HEADS)[method])
    return run(make_driver(cluster, config, storage, nodes=NODES, evaluates=True, emit=emit).run())


def trained_to_its_end(method, storage, mode, faults, delays, emit=None):
    """Train, and as with --resume go on with other processes, until nothing is left to go wrong."""
    left = {key: list(some) for key, some in faults.items()}
    cluster = FakeCluster(faults=left, delays=delays)
    state = trained(cluster, method, storage, mode, emit)
    while isinstance(state, Failed):
        cluster = FakeCluster(faults=left, delays=delays, stored=cluster.stored)
        state = trained(cluster, method, storage, mode, emit)
    assert isinstance(state, Finished)
    return cluster, state


def assert_it_began_once_with_its_initial_weights(journal):
    starts = [one for one in journal if isinstance(one, StartRecord)]
    assert [[block.version for block in one.blocks] for one in starts] == [[0] * BLOCKS]


@given(
    method=st.sampled_from(sorted(METHODS)),
    mode=st.sampled_from(("p2p", "client_server")),
    faults=faults(*LOST, Fault.RAISES),
    delays=DELAYS,
)
@settings(deadline=None, max_examples=100)
def test_a_run_ends_with_the_bits_of_one_in_which_nothing_went_wrong(method, mode, faults, delays):
    with TemporaryDirectory() as folder:
        _, state = trained_to_its_end(method, Storage(folder), mode, faults, delays)
        journal = Journal(Storage(folder))
    assert state.weights_sha256 == clean(method)
    assert [one.visit for one in journal.visits] == list(range(1, VISITS + 1))
    assert [one.visit for one in journal.evaluations] == list(range(NODES, VISITS + 1, NODES))
    assert_it_began_once_with_its_initial_weights(journal)


@given(
    method=st.sampled_from(sorted(METHODS | SEVERAL_HEADS)),
    mode=st.sampled_from(("p2p", "client_server")),
    faults=faults(*LOST, Fault.RAISES, Fault.DIVERGES),
    delays=DELAYS,
)
@settings(deadline=None, max_examples=100)
def test_every_node_is_visited_in_every_trip_and_what_is_stored_is_what_was_trained(
    method, mode, faults, delays
):
    """Where results may be refused, or come in as they like, bits may differ, but not that."""
    with TemporaryDirectory() as folder:
        cluster, state = trained_to_its_end(method, Storage(folder), mode, faults, delays)
        journal = Journal(Storage(folder))
    decided = sorted((one.trip, one.node) for one in journal.visits)
    assert decided == [(trip, node) for trip in range(1, TRIPS + 1) for node in range(NODES)]
    current = [cluster.stored[one.block, one.version] for one in journal.current_blocks()]
    assert [one.checksum for one in journal.current_blocks()] == [one.content for one in current]
    assert state.weights_sha256 == digest([one.content for one in current])
    # What nothing needs any more is gone.
    anchors = 0 if METHODS.get(method, {}).get("codec") is None else BLOCKS
    assert len(cluster.stored) <= BLOCKS + anchors
    assert_it_began_once_with_its_initial_weights(journal)


def request(kind, number):
    if kind == "add":
        return AddRequest(uri=f"/shards/late-{number}.arrow")
    return RemoveRequest(node=number, name=f"clinic-{number}")


@given(
    method=st.sampled_from(("snake", "snake that travels as differences", "fedavg", "two heads")),
    mode=st.sampled_from(("p2p", "client_server")),
    faults=faults(*LOST, Fault.RAISES),
    delays=DELAYS,
    requests=st.dictionaries(
        st.integers(1, VISITS),
        st.tuples(st.sampled_from(("add", "remove")), st.integers(0, NODES)),
        max_size=4,
    ),
)
@settings(deadline=None, max_examples=100)
def test_nodes_come_and_go_meanwhile_and_members_are_visited_in_every_trip(
    method, mode, faults, delays, requests
):
    left = dict(requests)
    keys = []
    with TemporaryDirectory() as folder:
        storage = Storage(folder)
        mailbox = Mailbox(storage)

        def ask(event):
            if isinstance(event, VisitStarted) and event.visit.number in left:
                keys.append(mailbox.post(request(*left.pop(event.visit.number))))

        cluster, _ = trained_to_its_end(method, storage, mode, faults, delays, ask)
        journal = Journal(storage)
        answers = [mailbox.take_answer(key) for key in keys]
        assert not mailbox.waiting()
    assert None not in answers
    assert sum(not one.subject for one in answers) == len(journal.changes)
    trips = Trips(nodes=NODES, trips=TRIPS)
    for record in journal:
        if isinstance(record, VisitRecord | JoinRecord | LeaveRecord):
            trips.begin_through(record.trip)
        if isinstance(record, JoinRecord):
            trips.join()
        elif isinstance(record, LeaveRecord):
            trips.leave(record.node)
        elif isinstance(record, VisitRecord):
            trips.take(record.trip, record.node)
    assert trips.is_over
    for one in journal.current_blocks():
        assert cluster.stored[one.block, one.version].content == one.checksum
