"""Whatever goes wrong, wherever and however slowly: a run ends with the bits of one without it."""

from functools import cache
from tempfile import TemporaryDirectory

from fakes import FakeCluster, Fault, make_config, make_driver, run
from hypothesis import given, settings
from hypothesis import strategies as st

from ray_snake.runtime.journal import Journal, StartRecord
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

FAULTS = st.dictionaries(
    st.one_of(
        st.tuples(st.just("visit"), st.integers(1, VISITS)),
        st.tuples(st.sampled_from(("fetch", "launch")), st.integers(0, NODES - 1)),
        st.tuples(st.sampled_from((*ENGINE, *JUDGING)), st.integers(1, 2 * VISITS)),
    ),
    st.lists(st.sampled_from((*LOST, Fault.RAISES)), min_size=1, max_size=2),
    max_size=4,
)
# How often a call gives way to other tasks before it begins.
DELAYS = st.dictionaries(st.sampled_from((*ENGINE, *JUDGING)), st.integers(1, 200), max_size=4)


@cache
def clean(method):
    """The final sum of a run in which nothing goes wrong."""
    with TemporaryDirectory() as folder:
        return trained(FakeCluster(), method, Storage(folder)).weights_sha256


def trained(cluster, method, storage, mode="p2p"):
    config = make_config(transport={"mode": mode}, **METHODS[method])
    return run(make_driver(cluster, config, storage, nodes=NODES, evaluates=True).run())


@given(
    method=st.sampled_from(sorted(METHODS)),
    mode=st.sampled_from(("p2p", "client_server")),
    faults=FAULTS,
    delays=DELAYS,
)
@settings(deadline=None, max_examples=150)
def test_a_run_ends_with_the_bits_of_one_in_which_nothing_went_wrong(method, mode, faults, delays):
    left = {key: list(some) for key, some in faults.items()}
    with TemporaryDirectory() as folder:
        storage = Storage(folder)
        cluster = FakeCluster(faults=left, delays=delays)
        state = trained(cluster, method, storage, mode)
        while isinstance(state, Failed):
            # As with --resume: other processes, the same storage.
            cluster = FakeCluster(faults=left, delays=delays, stored=cluster.stored)
            state = trained(cluster, method, storage, mode)
        journal = Journal(storage)
    assert isinstance(state, Finished)
    assert state.weights_sha256 == clean(method)
    assert [one.visit for one in journal.visits] == list(range(1, VISITS + 1))
    assert [one.visit for one in journal.evaluations] == list(range(NODES, VISITS + 1, NODES))
    starts = [one for one in journal if isinstance(one, StartRecord)]
    assert [[block.version for block in one.blocks] for one in starts] == [[0] * BLOCKS]
