"""Visits whose results are averaged: FedAvg and its kin on the driver's loop."""

import pytest
from fakes import Fault, make_config, make_driver, run

from ray_snake.errors import ConfigError
from ray_snake.runtime.journal import SEGMENT_RECORDS, Journal
from ray_snake.runtime.states import Failed, Finished
from ray_snake.telemetry.summary import bytes_moved

NODES = 3
BLOCKS = 4


def config(**sections):
    return make_config(strategy="fedavg", **sections)


@pytest.fixture(scope="module")
def clean(tmp_path_factory):
    """The final sum of a run without failures."""
    from fakes import FakeCluster

    from ray_snake.storage import Storage

    storage = Storage(str(tmp_path_factory.mktemp("clean")))
    return run(make_driver(FakeCluster(), config(), storage).run()).weights_sha256


def test_all_visits_of_a_round_start_from_the_same_versions(cluster, storage):
    run(make_driver(cluster, config(), storage).run())
    versions = [task.versions for task, _ in cluster.visits]
    assert versions == [(0,) * BLOCKS] * NODES + [(3,) * BLOCKS] * NODES + [(6,) * BLOCKS] * NODES
    assert cluster.calls["average"] == 3


def test_a_round_is_journalled_at_once_with_the_averages_in_its_last_record(cluster, storage):
    run(make_driver(cluster, config(), storage).run())
    visits = Journal(storage).visits
    assert [len(one.blocks) for one in visits] == [0, 0, BLOCKS] * 3
    assert [one.ends_round for one in visits] == [False, False, True] * 3
    assert all(one.averaged and one.accepted for one in visits)


def test_every_node_pulls_the_model_in_every_round_and_returns_it(cluster, storage):
    run(make_driver(cluster, config(), storage).run())
    visits = Journal(storage).visits
    whole = visits[0].bytes_returned
    assert {one.bytes_pulled for one in visits} == {whole}
    assert bytes_moved(visits) == 2 * whole * len(visits)


def test_a_refused_visit_is_left_out_of_the_average(cluster, storage):
    cluster.faults = {("visit", 2): [Fault.DIVERGES]}
    state = run(make_driver(cluster, config(), storage).run())
    assert isinstance(state, Finished)
    visits = Journal(storage).visits
    assert [one.accepted for one in visits[:3]] == [True, False, True]
    assert len(visits[2].blocks) == BLOCKS


def test_a_round_whose_visits_were_all_refused_leaves_the_model_as_it_is(cluster, storage):
    cluster.faults = {("visit", visit): [Fault.DIVERGES] for visit in (1, 2, 3)}
    run(make_driver(cluster, config(), storage).run())
    assert [task.versions for task, _ in cluster.visits][3] == (0,) * BLOCKS
    assert Journal(storage).visits[2].blocks == ()


@pytest.mark.parametrize(
    "faults",
    [
        {("visit", 2): [Fault.DIES]},
        {("average", 2): [Fault.DIES]},
        {("average", 2): [Fault.LACKS_BLOCKS]},
        {("visit", 6): [Fault.LACKS_BLOCKS]},
        {("store", 3): [Fault.DIES]},
    ],
)
def test_what_dies_within_a_round_changes_nothing(cluster, storage, clean, faults):
    cluster.faults = faults
    state = run(make_driver(cluster, config(), storage).run())
    assert state.weights_sha256 == clean


def test_a_run_that_ended_within_a_round_goes_on_before_it(cluster, storage, clean):
    cluster.faults = {("visit", 5): [Fault.RAISES]}
    assert isinstance(run(make_driver(cluster, config(), storage).run()), Failed)
    assert len(Journal(storage).visits) == NODES
    state = run(make_driver(cluster, config(), storage).run())
    assert state.weights_sha256 == clean


def test_a_round_that_was_cut_off_between_two_segments_is_done_again(cluster, storage, clean):
    run(make_driver(cluster, config(), storage).run())
    lines = storage.read("journal/000000.jsonl").splitlines(keepends=True)
    assert len(lines) < SEGMENT_RECORDS
    # The start, a round, and two visits of the next.
    kept = [line for line in lines if b'"traffic"' not in line][: 1 + NODES + 2]
    storage.write("journal/000000.jsonl", b"".join(kept))
    assert len(Journal(storage).visits) == NODES


@pytest.mark.parametrize("codec", ["int8", "topk"])
def test_differences_are_refused_where_results_are_averaged(cluster, storage, codec):
    state = run(make_driver(cluster, config(codec={"name": codec}), storage).run())
    assert isinstance(state, Failed)
    assert isinstance(state.error, ConfigError)
    assert str(state.error).startswith(f"codec.name: '{codec}' is for blocks that go from node")


def test_the_next_node_of_a_round_fetches_everything_ahead(cluster, storage):
    run(make_driver(cluster, config(snake={"trips": 1}), storage).run())
    assert cluster.fetched
    assert {len(refs) for _, _, refs in cluster.fetched} == {BLOCKS}


def test_the_model_is_judged_at_the_end_of_rounds_alone(cluster, storage):
    settings = config(evaluation={"last_visits": 6})
    run(make_driver(cluster, settings, storage, evaluates=True).run())
    assert [one.visit for one in Journal(storage).evaluations] == [3, 6, 9]


def test_no_visit_of_a_round_is_too_stale_however_many_go_at_once(cluster, storage):
    """All start from one model, which no result changes before the round is over."""
    heads = {"heads": NODES, "max_staleness": 1}
    state = run(make_driver(cluster, config(snake=heads), storage).run())
    assert isinstance(state, Finished)
    visits = Journal(storage).visits
    assert all(one.accepted for one in visits)
    assert {one.staleness for one in visits} == {0}
