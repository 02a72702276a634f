import asyncio
import math
from itertools import groupby
from pathlib import Path

import pytest
from fakes import FakeCluster, Fault, make_config, make_driver, run, until

from ray_snake.errors import CheckpointError, NodeFailedError, StorageError, VisitFailedError
from ray_snake.runtime.events import (
    Evaluated,
    NodeLost,
    NodeReady,
    Recovering,
    RunEnded,
    RunStarted,
    VisitDecided,
    VisitProgress,
    VisitStarted,
)
from ray_snake.runtime.journal import Journal
from ray_snake.runtime.records import EvaluationRecord, StartRecord, VisitRecord
from ray_snake.runtime.states import Failed, Finished, Starting, Visiting
from ray_snake.storage import Storage


@pytest.fixture(scope="module")
def clean(tmp_path_factory):
    """A run without failures: its cluster and its final sum."""
    cluster = FakeCluster()
    storage = Storage(str(tmp_path_factory.mktemp("clean")))
    state = run(make_driver(cluster, make_config(), storage).run())
    return cluster, state.weights_sha256


def states_of(driver):
    """Step a driver to its end; return the states it went through."""

    async def steps():
        states = [driver.state]
        while not isinstance(driver.state, (Finished, Failed)):
            await driver.step()
            states.append(driver.state)
        return states

    return run(steps())


def names(states):
    return [type(state).__name__ for state in states]


def tasks(cluster):
    return [task for task, _ in cluster.visits]


def kinds(storage):
    return [
        record.kind if record.kind == "start" else f"{record.kind} {record.visit}"
        for record in Journal(storage)
    ]


def test_a_clean_run_goes_through_its_states_in_order(cluster, storage):
    states = states_of(make_driver(cluster, make_config(snake={"trips": 1}), storage, nodes=2))
    visit = ["Scheduling", "Visiting", "Deciding"]
    assert names(states) == ["Starting", *visit, *visit, "Scheduling", "Finishing", "Finished"]


def test_a_clean_run_tells_all_that_happens(cluster, storage):
    events = []
    config = make_config(snake={"trips": 1})
    state = run(
        make_driver(cluster, config, storage, nodes=2, evaluates=True, emit=events.append).run()
    )
    started = events[0]
    assert isinstance(started, RunStarted)
    assert (started.nodes, started.visits, started.done) == (("clinic-0", "clinic-1"), 2, 0)
    assert {e.name for e in events if isinstance(e, NodeReady)} == {"clinic-0", "clinic-1"}
    steps = [e for e in events if isinstance(e, (VisitStarted, VisitDecided, Evaluated))]
    assert [type(e) for e in steps].count(VisitStarted) == 2
    assert [e.record.visit for e in steps if isinstance(e, VisitDecided)] == [1, 2]
    assert isinstance(steps[-1], Evaluated)
    assert events[-1] == RunEnded(weights_sha256=state.weights_sha256)


def test_all_processes_are_ended_with_the_run(cluster, storage):
    run(make_driver(cluster, make_config(), storage).run())
    assert sorted(cluster.killed) == [(0,), (1,), (2,)]


def test_a_node_lost_in_a_visit_is_started_again_and_does_the_same_visit(cluster, storage, clean):
    cluster.faults["visit", 4] = [Fault.DIES]
    events = []
    states = states_of(make_driver(cluster, make_config(), storage, emit=events.append))
    visiting = [
        visit.number for state in states if isinstance(state, Visiting) for visit in state.visits
    ]
    assert visiting == [1, 2, 3, 4, 5, 6, 7, 8, 9]
    (lost,) = [event for event in events if isinstance(event, NodeLost)]
    first, second = (sent for sent in cluster.visits if sent[0].visit.number == 4)
    assert lost.node == first[0].visit.node
    assert first[0] == second[0]
    assert sorted(first[1]) == [0, 1, 3]
    assert sorted(second[1]) == [0, 1, 2, 3]
    assert states[-1].weights_sha256 == clean[1]


def test_nodes_that_share_a_lost_process_all_get_their_blocks_anew(cluster, storage, clean):
    cluster.faults["visit", 5] = [Fault.DIES]
    config = make_config(nodes={"nodes_per_actor": 3})
    states = states_of(make_driver(cluster, config, storage))
    assert cluster.launched == [(0, 1, 2), (0, 1, 2)]
    for node in range(3):
        assert set(cluster.nodes[node].received) == {0, 1, 2, 3}
    assert states[-1].weights_sha256 == clean[1]


def test_a_node_that_is_lost_too_often_fails_the_run_by_name(cluster, storage):
    cluster.faults["visit", 2] = [Fault.DIES] * 3
    config = make_config(failures={"node_restarts": 2})
    state = states_of(make_driver(cluster, config, storage))[-1]
    assert isinstance(state.error, NodeFailedError)
    assert "clinic-1" in str(state.error)
    assert "failures.node_restarts" in str(state.error)
    assert "visit 2 died" in str(state.error)


def test_a_hung_visit_is_a_lost_node(cluster, storage, clean, quick_progress):
    cluster.faults["visit", 4] = [Fault.HANGS]
    events = []
    config = make_config(failures={"visit_timeout_seconds": 0.1})
    states = states_of(make_driver(cluster, config, storage, emit=events.append))
    (lost,) = [event for event in events if isinstance(event, NodeLost)]
    assert "failures.visit_timeout_seconds = 0.1" in lost.reason
    assert states[-1].weights_sha256 == clean[1]


def test_a_running_visit_shows_its_progress(cluster, storage, quick_progress):
    cluster.faults["visit", 1] = [Fault.HANGS]
    events = []
    config = make_config(failures={"visit_timeout_seconds": 0.1})
    run(make_driver(cluster, config, storage, emit=events.append).run())
    assert VisitProgress(visit=1, step=1, steps=2, loss=0.75) in events


@pytest.mark.parametrize("number", [1, 5, 9])
def test_lost_blocks_lead_back_to_the_journal(cluster, storage, clean, number):
    cluster.faults["visit", number] = [Fault.LACKS_BLOCKS]
    events = []
    states = states_of(make_driver(cluster, make_config(), storage, emit=events.append))
    assert names(states).count("Starting") == 2
    assert [event.reason for event in events if isinstance(event, Recovering)] == [
        f"visit {number} could not get a block"
    ]
    assert states[-1].weights_sha256 == clean[1]
    assert not cluster.killed


def test_visits_not_yet_in_the_journal_are_replayed_as_they_were(cluster, storage, clean):
    async def scenario():
        cluster.store_gate = asyncio.Event()
        driver = make_driver(cluster, make_config(), storage)
        cluster.faults["visit", 4] = [Fault.LACKS_BLOCKS]
        while not (isinstance(driver.state, Starting) and driver.state.after):
            await driver.step()
        assert kinds(storage) == []
        cluster.store_gate.set()
        return await driver.run()

    state = run(scenario())
    assert [task.visit.number for task in tasks(cluster)] == [1, 2, 3, 4, *range(1, 10)]
    assert tasks(cluster)[:4] == tasks(cluster)[4:8]
    assert kinds(storage) == ["start", *(f"visit {number}" for number in range(1, 10))]
    assert state.weights_sha256 == clean[1]


@pytest.mark.parametrize(
    ("method", "call"),
    [
        ("start", 1),
        ("initial", 1),
        ("store", 1),
        ("store", 4),
        ("discard", 2),
        ("evaluate", 1),
        ("evaluate", 3),
        ("weights_sha256", 1),
    ],
)
def test_a_lost_process_engine_leads_back_to_the_journal(cluster, storage, clean, method, call):
    cluster.faults[method, call] = [Fault.DIES]
    events = []
    states = states_of(
        make_driver(cluster, make_config(), storage, evaluates=True, emit=events.append)
    )
    assert [event.reason for event in events if isinstance(event, Recovering)] == [
        f"{method} {call} died"
    ]
    assert states[-1].weights_sha256 == clean[1]
    evaluated = [record.visit for record in Journal(storage).evaluations]
    assert evaluated == [3, 6, 9]


def test_recoveries_are_bounded(cluster, storage):
    cluster.faults["visit", 2] = [Fault.LACKS_BLOCKS] * 3
    config = make_config(failures={"recoveries": 2})
    states = states_of(make_driver(cluster, config, storage))
    assert names(states).count("Starting") == 3
    error = states[-1].error
    assert isinstance(error, NodeFailedError)
    assert "failures.recoveries" in str(error)
    assert "visit 2 could not get a block" in str(error)
    assert "--resume" in str(error)


def test_a_visit_that_can_not_be_done_fails_the_run(cluster, storage):
    cluster.faults["visit", 3] = [Fault.RAISES]
    state = states_of(make_driver(cluster, make_config(), storage))[-1]
    assert isinstance(state.error, VisitFailedError)
    assert cluster.launched.count((2,)) == 1


def test_a_refused_visit_is_journalled_and_its_span_comes_again_sooner(cluster, storage, clean):
    cluster.faults["visit", 2] = [Fault.DIVERGES]
    state = run(make_driver(cluster, make_config(), storage).run())
    assert isinstance(state, Finished)
    refused = Journal(storage).visits[1]
    assert not refused.accepted
    assert refused.reason == "the trained weights are not finite"
    assert refused.blocks == ()
    spans = {0: [], 1: [], 2: []}
    for record in Journal(storage).visits:
        if record.accepted:
            spans[record.node].append(record.span)
    clean_spans = {0: [], 1: [], 2: []}
    for task in tasks(clean[0]):
        clean_spans[task.visit.node].append((task.visit.span.start, task.visit.span.stop))
    assert spans[1] == [(2, 4), (0, 2)]
    assert clean_spans[1] == [(0, 2), (2, 4), (2, 4)]
    assert spans[0] == clean_spans[0]
    assert spans[2] == clean_spans[2]


def test_the_change_of_an_accepted_visit_is_the_one_from_the_versions_it_started_from(
    cluster, storage
):
    cluster.faults["visit", 4] = [Fault.DIVERGES]
    run(make_driver(cluster, make_config(), storage).run())
    expected = [
        math.inf
        if task.visit.number == 4
        else sum(task.visit.number - task.versions[block] for block in task.visit.trained)
        for task in tasks(cluster)
    ]
    assert [one.update_norm for one in Journal(storage).visits] == expected


def test_a_refused_result_never_reaches_later_visits(cluster, storage):
    cluster.faults["visit", 4] = [Fault.DIVERGES]
    run(make_driver(cluster, make_config(), storage).run())
    fourth, fifth = tasks(cluster)[3:5]
    assert fifth.versions == fourth.versions


def test_too_many_refusals_in_a_row_fail_the_run_with_a_remedy(cluster, storage):
    for number in (2, 4, 5, 6):
        cluster.faults["visit", number] = [Fault.DIVERGES]
    config = make_config(acceptance={"max_refused": 2})
    state = run(make_driver(cluster, config, storage).run())
    assert isinstance(state.error, VisitFailedError)
    assert str(state.error).startswith("3 visits in a row were refused")
    assert "training.learning_rate" in str(state.error)
    assert kinds(storage)[-1] == "visit 6"


def test_refusals_before_a_resume_count(cluster, storage):
    for number in (2, 3, 4, 5):
        cluster.faults["visit", number] = [Fault.DIVERGES]
    failed = make_driver(cluster, make_config(acceptance={"max_refused": 2}), storage)
    assert "3 visits in a row" in str(run(failed.run()).error)
    again = make_driver(cluster, make_config(acceptance={"max_refused": 2}), storage)
    assert "4 visits in a row" in str(run(again.run()).error)


def test_a_storage_that_refuses_the_journal_fails_the_run(cluster, storage):
    Path(storage.uri).mkdir()
    (Path(storage.uri) / "journal").write_text("a file where the folder should be")
    state = states_of(make_driver(cluster, make_config(), storage))[-1]
    assert isinstance(state.error, StorageError)


def test_a_storage_that_breaks_during_a_run_fails_it(cluster, storage):
    async def scenario():
        driver = make_driver(cluster, make_config(snake={"trips": 30}), storage)
        journal = Path(storage.uri) / "journal"
        while not journal.exists():
            await driver.step()
        journal.rename(journal.with_name("kept"))
        journal.write_text("a file where the folder should be")
        state = await driver.run()
        journal.unlink()
        journal.with_name("kept").rename(journal)
        return state

    state = run(scenario())
    assert isinstance(state.error, StorageError)
    # What the journal had then can be resumed.
    done = len(Journal(storage).visits)
    again = FakeCluster(stored=cluster.stored)
    assert isinstance(
        run(make_driver(again, make_config(snake={"trips": 30}), storage).run()), Finished
    )
    assert tasks(again)[0].visit.number == done + 1


def interrupted(cluster, config, storage, after, **options):
    """Run until the journal has `after` visits, then stop as a dead driver would."""

    async def scenario():
        driver = make_driver(cluster, config, storage, **options)
        ending = asyncio.create_task(driver.run())
        cluster.store_gate = asyncio.Event()
        cluster.store_gate.set()
        await until(lambda: len(Journal(storage).visits) >= after)
        ending.cancel()
        await asyncio.gather(ending, return_exceptions=True)

    run(scenario())
    cluster.store_gate = None
    return len(Journal(storage).visits)


@pytest.mark.parametrize("order", ["span_major", "diagonal", "random"])
def test_a_resumed_run_plans_the_visits_of_the_uninterrupted_one(tmp_path, order):
    config = make_config(snake={"order": order, "trips": 6})
    whole, first, second = FakeCluster(), FakeCluster(), FakeCluster()
    expected = run(make_driver(whole, config, Storage(str(tmp_path / "whole"))).run())
    storage = Storage(str(tmp_path / "resumed"))
    first.faults["visit", 8] = [Fault.HANGS]
    done = interrupted(first, config, storage, after=7)
    assert done == 7
    second.stored = first.stored
    events = []
    state = run(make_driver(second, config, storage, emit=events.append).run())
    assert events[0].done == 7
    assert tasks(second) == tasks(whole)[7:]
    assert state == expected


def test_resuming_a_finished_run_does_nothing_but_sum_its_weights(cluster, storage, clean):
    run(make_driver(cluster, make_config(), storage).run())
    again = FakeCluster(stored=cluster.stored)
    state = run(make_driver(again, make_config(), storage).run())
    assert state.weights_sha256 == clean[1]
    assert again.visits == []
    assert again.launched == []


def test_a_journal_that_the_settings_do_not_plan_is_refused(cluster, storage):
    run(make_driver(cluster, make_config(), storage).run())
    other = make_config(snake={"span_width": 3})
    state = run(make_driver(FakeCluster(stored=cluster.stored), other, storage).run())
    assert isinstance(state.error, CheckpointError)
    assert storage.uri in str(state.error)


def test_a_journal_longer_than_the_plan_is_refused(cluster, storage):
    run(make_driver(cluster, make_config(), storage).run())
    state = run(make_driver(cluster, make_config(snake={"trips": 2}), storage).run())
    assert isinstance(state.error, CheckpointError)


@pytest.mark.parametrize(
    ("every", "evaluated"), [(None, [3, 6, 9]), (2, [2, 4, 6, 8, 9]), (20, [9])]
)
def test_evaluates_after_every_trip_or_as_set_and_at_the_end(cluster, storage, every, evaluated):
    settings = {} if every is None else {"every_visits": every}
    config = make_config(evaluation=settings)
    run(make_driver(cluster, config, storage, evaluates=True).run())
    assert [record.visit for record in Journal(storage).evaluations] == evaluated


def test_without_held_out_rows_nothing_is_evaluated(cluster, storage):
    run(make_driver(cluster, make_config(), storage).run())
    assert cluster.calls["evaluate"] == 0
    assert Journal(storage).evaluations == []


@pytest.mark.parametrize("after", [3, 9])
def test_an_evaluation_missing_at_the_interruption_is_made_up(storage, after):
    first = FakeCluster()
    first.faults["evaluate", after // 3] = [Fault.HANGS]
    assert interrupted(first, make_config(), storage, after=after, evaluates=True) == after
    assert len(Journal(storage).evaluations) == after // 3 - 1
    again = FakeCluster(stored=first.stored)
    run(make_driver(again, make_config(), storage, evaluates=True).run())
    assert kinds(storage) == [
        "start",
        *("visit 1", "visit 2", "visit 3", "evaluation 3"),
        *("visit 4", "visit 5", "visit 6", "evaluation 6"),
        *("visit 7", "visit 8", "visit 9", "evaluation 9"),
    ]


def test_an_evaluation_that_was_done_is_not_done_again(cluster, storage):
    run(make_driver(cluster, make_config(), storage, evaluates=True).run())
    again = FakeCluster(stored=cluster.stored)
    run(make_driver(again, make_config(), storage, evaluates=True).run())
    assert again.calls["evaluate"] == 0


def test_holders_of_superseded_versions_are_told_to_release_them(cluster, storage):
    run(make_driver(cluster, make_config(), storage).run())
    # After the first visit node 0 holds blocks 2 (frozen) of version 0; block 2 changes on trip 2.
    held = {node: {} for node in range(3)}
    expected = []
    for sent, (task, refs) in enumerate(cluster.visits, start=1):
        node, number = task.visit.node, task.visit.number
        pulls = [(who, ahead) for who, after, ahead in cluster.fetched if after == sent]
        for who, pulled in [(node, refs), *pulls]:
            held[who].update({block: ref.version for block, ref in pulled.items()})
        for block in task.visit.trained:
            held[node].pop(block)
            expected += [
                (other, block, mine.pop(block)) for other, mine in held.items() if block in mine
            ]
        assert all(version < number for mine in held.values() for version in mine.values())
    assert sorted(cluster.released) == sorted(expected)
    assert expected


def test_only_stale_blocks_are_sent(cluster, storage):
    run(make_driver(cluster, make_config(), storage).run())
    assert sorted(cluster.visits[0][1]) == [0, 1, 2, 3]
    # Trip 2 goes back over the nodes: node 2 was the last to train, and lacks what it returned.
    assert sorted(cluster.visits[3][1]) == [0, 1, 3]


def test_the_next_node_pulls_ahead_what_the_visit_under_way_can_not_change(cluster, storage):
    run(make_driver(cluster, make_config(), storage).run())
    for node, sent, refs in cluster.fetched:
        under_way, following = cluster.visits[sent - 1][0], cluster.visits[sent][0]
        assert node == following.visit.node != under_way.visit.node
        assert not set(refs) & set(under_way.visit.trained)
    ahead = {sent for _, sent, _ in cluster.fetched}
    for number, (_, refs) in enumerate(cluster.visits[1:], start=1):
        if number in ahead:
            # A handover ships what the last visit trained, and nothing else.
            assert set(refs) <= set(cluster.visits[number - 1][0].visit.trained)
    assert len(ahead) >= 3


@pytest.mark.parametrize("fault", [Fault.DIES, Fault.LACKS_BLOCKS])
def test_what_could_not_be_fetched_ahead_is_sent_with_the_visit(cluster, storage, clean, fault):
    cluster.faults["fetch", 1] = [fault]
    states = states_of(make_driver(cluster, make_config(), storage))
    assert states[-1].weights_sha256 == clean[1]


def test_a_client_server_run_serves_every_block_from_the_drivers_side(cluster, storage, clean):
    config = make_config(transport={"mode": "client_server"})
    state = run(make_driver(cluster, config, storage).run())
    assert state.weights_sha256 == clean[1]
    pulled = [refs for _, refs in cluster.visits] + [refs for *_, refs in cluster.fetched]
    trained = [ref for refs in pulled for ref in refs.values() if ref.version > 0]
    assert trained
    assert all(ref.served for ref in trained)
    assert cluster.calls["serve"] == len(cluster.visits)


def test_peer_to_peer_never_goes_through_the_drivers_side(cluster, storage):
    run(make_driver(cluster, make_config(), storage).run())
    assert cluster.calls["serve"] == 0


def test_the_journal_holds_visits_in_order_with_the_blocks_they_trained(cluster, storage):
    run(make_driver(cluster, make_config(), storage, evaluates=True).run())
    records = list(Journal(storage))
    assert isinstance(records[0], StartRecord)
    assert [block.version for block in records[0].blocks] == [0, 0, 0, 0]
    visits = [record for record in records if isinstance(record, VisitRecord)]
    assert [record.visit for record in visits] == list(range(1, 10))
    for record in visits:
        assert tuple(block.block for block in record.blocks) == record.trained
        assert {block.version for block in record.blocks} == {record.visit}
    assert sum(isinstance(record, EvaluationRecord) for record in records) == 3
    assert [trip for trip, _ in groupby(record.trip for record in visits)] == [1, 2, 3]


def test_only_the_current_blocks_stay_on_storage(cluster, storage):
    run(make_driver(cluster, make_config(), storage).run())
    current = {(one.block, one.version) for one in Journal(storage).current_blocks()}
    assert set(cluster.stored) == current


def test_nodes_are_told_the_weight_of_distillation_of_their_visit(cluster, storage):
    snake = {"warmup_trips": 1, "warmup_distillation": 0.4}
    run(make_driver(cluster, make_config(snake=snake), storage).run())
    assert [task.distillation for task in tasks(cluster)] == [0.4] * 3 + [None] * 6


def test_the_last_visits_are_judged_one_by_one(cluster, storage):
    config = make_config(evaluation={"last_visits": 4})
    run(make_driver(cluster, config, storage, evaluates=True).run())
    assert [one.visit for one in Journal(storage).evaluations] == [3, 6, 7, 8, 9]
