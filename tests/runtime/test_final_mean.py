"""Runs that end in the mean over their last visits."""

import pytest
from fakes import FakeCluster, Fault, digest, make_config, make_driver, run

from ray_snake.errors import ConfigError
from ray_snake.planning.strategy import make_strategy
from ray_snake.runtime.journal import Journal
from ray_snake.runtime.states import Failed
from ray_snake.storage import Storage
from ray_snake.telemetry.summary import bytes_moved

VISITS = 9
# The spans of three trips over four blocks are 0-1, 2-3 and 2-3 once more; block 3 trains always.


def config(visits=5, **sections):
    snake = {"mean_visits": visits, **sections.pop("snake", {})}
    return make_config(**sections, snake=snake)


@pytest.fixture(scope="module")
def clean(tmp_path_factory):
    """The final sum of a run without failures."""
    storage = Storage(str(tmp_path_factory.mktemp("clean")))
    return run(make_driver(FakeCluster(), config(), storage).run()).weights_sha256


@pytest.fixture(scope="module")
def versions(tmp_path_factory):
    """Every block version of a run without a mean, and the current ones after each visit."""
    cluster = KeepingCluster()
    storage = Storage(str(tmp_path_factory.mktemp("without")))
    run(make_driver(cluster, make_config(), storage).run())
    current = dict.fromkeys(range(4), 0)
    after = []
    for record in Journal(storage).visits:
        current |= dict.fromkeys(record.trained, record.visit)
        after.append(dict(current))
    return cluster.all, after


class KeepingCluster(FakeCluster):
    """Keeps what was stored, whatever is deleted later."""

    def __init__(self):
        super().__init__()
        self.all = {}
        self.stored = Kept(self.all)


class Kept(dict):
    """A dict that also puts everything into another one."""

    def __init__(self, other):
        super().__init__()
        self.other = other

    def update(self, values):
        super().update(values)
        self.other.update(values)


def test_the_final_weights_are_the_mean_over_the_last_visits_models(cluster, storage, versions):
    run(make_driver(cluster, config(), storage).run())
    made, after = versions
    for block in range(4):
        counted = {}
        for current in after[-5:]:
            counted[current[block]] = counted.get(current[block], 0.0) + 1.0
        final = Journal(storage).current_blocks()[block]
        if len(counted) == 1:
            assert final.version == next(iter(counted))
        else:
            parts = [(made[block, one].content, weight) for one, weight in counted.items()]
            assert final.checksum == digest("mean", parts)
            assert final.version == VISITS


def test_the_visits_themselves_and_what_they_move_are_those_of_a_run_without(cluster, storage):
    run(make_driver(cluster, config(), storage).run())
    without, plain = FakeCluster(), Storage(storage.uri + "-without")
    run(make_driver(without, make_config(), plain).run())
    assert cluster.visits == without.visits
    assert bytes_moved(Journal(storage).visits) == bytes_moved(Journal(plain).visits)


def test_only_the_means_stay_on_storage(cluster, storage):
    run(make_driver(cluster, config(), storage).run())
    current = {(one.block, one.version) for one in Journal(storage).current_blocks()}
    assert set(cluster.stored) == current


def test_a_mean_over_more_visits_than_there_are_is_over_all(cluster, storage):
    state = run(make_driver(cluster, config(visits=VISITS), storage).run())
    other = Storage(storage.uri + "-more")
    assert run(make_driver(FakeCluster(), config(visits=99), other).run()) == state


@pytest.mark.parametrize(
    "faults",
    [
        {("visit", 9): [Fault.DIES]},
        {("visit", 7): [Fault.LACKS_BLOCKS]},
        {("average", 1): [Fault.DIES]},
        {("average", 1): [Fault.LACKS_BLOCKS]},
        {("store", 7): [Fault.DIES]},
        {("store", 10): [Fault.DIES]},
    ],
)
def test_what_dies_on_the_way_changes_nothing(cluster, storage, clean, faults):
    cluster.faults = faults
    state = run(make_driver(cluster, config(), storage).run())
    assert state.weights_sha256 == clean


@pytest.mark.parametrize("visit", [4, 5, 7, 9])
def test_an_interrupted_run_ends_in_the_same_mean(cluster, storage, clean, visit):
    cluster.faults = {("visit", visit): [Fault.RAISES]}
    assert isinstance(run(make_driver(cluster, config(), storage).run()), Failed)
    assert len(Journal(storage).visits) == visit - 1
    again = FakeCluster(stored=cluster.stored)
    assert run(make_driver(again, config(), storage).run()).weights_sha256 == clean
    assert run(make_driver(again, config(), storage).run()).weights_sha256 == clean


def test_a_refused_last_visit_counts_the_model_that_it_left(cluster, storage, versions):
    cluster.faults = {("visit", VISITS): [Fault.DIVERGES]}
    run(make_driver(cluster, config(visits=2), storage).run())
    last = Journal(storage).visits[-1]
    # Both visits left the version of the eighth.
    assert (last.accepted, last.blocks) == (False, ())
    assert Journal(storage).current_version(3) == 8


def test_a_refused_visit_is_no_part_of_the_mean(cluster, storage, versions):
    cluster.faults = {("visit", VISITS): [Fault.DIVERGES]}
    run(make_driver(cluster, config(visits=3), storage).run())
    made, _ = versions
    content = digest("mean", [(made[3, 7].content, 1.0), (made[3, 8].content, 2.0)])
    assert Journal(storage).current_blocks()[3].checksum == content


@pytest.mark.parametrize(
    ("sections", "problem"),
    [
        ({"strategy": "fedavg"}, "5, and 'fedavg' averages its rounds itself"),
        ({"snake": {"heads": 2}}, "5, and with 2 heads (snake.heads) visits have no one order"),
        (
            {"codec": {"name": "int8"}},
            "5, and codec.name 'int8' is for what one visit leaves to the next",
        ),
    ],
)
def test_where_there_is_no_mean_of_use_it_is_refused(cluster, storage, sections, problem):
    state = run(make_driver(cluster, config(**sections), storage).run())
    assert isinstance(state.error, ConfigError)
    assert str(state.error) == f'snake.mean_visits: {problem}; set it to "none"'


def test_the_last_visits_are_known_from_the_start_so_nobody_joins_or_leaves():
    strategy = make_strategy(config(), nodes=3, blocks=4)
    for change in (lambda: strategy.join(8), lambda: strategy.leave(2)):
        with pytest.raises(ConfigError, match="no node can join or leave on the way"):
            change()
