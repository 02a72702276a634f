import asyncio
import threading
from dataclasses import replace

import pytest
from fakes import BLOCK_BYTES, FakeBlock, FakeEngine, FakeMeter, Fault, run, until

from ray_snake.errors import StorageError, TakenOverError
from ray_snake.runtime import recorder as recorder_module
from ray_snake.runtime.claim import Claim
from ray_snake.runtime.events import Evaluated, VisitDecided
from ray_snake.runtime.handles import BlocksLostError, ProcessLostError
from ray_snake.runtime.journal import Journal
from ray_snake.runtime.recorder import BACKLOG, Recorder
from ray_snake.runtime.records import BlockRecord, TrafficRecord, Transfer, VisitRecord
from ray_snake.storage import Storage


def record(number, **changes):
    values = {
        "visit": number,
        "trip": 1,
        "node": 0,
        "node_name": "clinic-0",
        "span": (0, 1),
        "trained": (0,),
        "learning_rate": 0.1,
        "accepted": True,
        "samples": 8,
        "steps": 2,
        "loss": 0.5,
        "first_loss": 1.0,
        "accuracy": None,
        "update_norm": 1.0,
        "bytes_pulled": BLOCK_BYTES,
        "bytes_returned": BLOCK_BYTES,
        "pull_seconds": 0.0,
        "train_seconds": 0.0,
        "seconds": 0.0,
        "finished_at": 1.0,
    }
    return VisitRecord(**{**values, **changes})


def block(version, number=0):
    return FakeBlock(number, version, f"content {number} {version}")


def kinds(storage):
    return [one.kind for one in Journal(storage)]


class SlowStorage(Storage):
    """A storage whose writes wait until `gate` is set."""

    def __init__(self, uri):
        super().__init__(uri)
        self.gate = threading.Event()
        self.began = threading.Event()

    def write(self, name, data):
        self.began.set()
        assert self.gate.wait(20)
        super().write(name, data)


class WatchingEngine(FakeEngine):
    """Notes what the journal holds whenever blocks are stored or deleted."""

    def __init__(self, cluster, storage):
        super().__init__(cluster, 1)
        self._storage = storage
        self.seen = []

    async def store(self, refs):
        records = await super().store(refs)
        self.seen.append(("stored", refs[0].version, len(Journal(self._storage).visits)))
        return records

    async def discard(self, blocks):
        for _, version in blocks:
            self.seen.append(("deleted", version, len(Journal(self._storage).visits)))
        await super().discard(blocks)


def make(
    cluster,
    storage,
    emit=lambda event: None,
    engine=None,
    claim=None,
    wholes=None,
    on_whole=lambda *told_of: None,
    **options,
):
    return Recorder(
        engine=engine or FakeEngine(cluster, 1),
        claim=claim or Claim(storage),
        journal=Journal(storage),
        meter=FakeMeter(cluster),
        emit=emit,
        wholes=wholes or {(0, 0): block(0)},
        on_whole=on_whole,
        **options,
    )


def test_a_visit_is_journalled_after_its_blocks_and_supersedes_the_old_ones_last(cluster, storage):
    async def scenario():
        engine = WatchingEngine(cluster, storage)
        recorder = make(cluster, storage, engine=engine)
        await recorder.start()
        await recorder.visit(record(1), {0: block(1)}, anchors=None)
        await recorder.visit(record(2), {0: block(2)}, anchors=None)
        await recorder.drain()
        return engine.seen

    assert run(scenario()) == [
        ("stored", 0, 0),
        ("stored", 1, 0),
        ("deleted", 0, 1),
        ("stored", 2, 1),
        ("deleted", 1, 2),
    ]


def test_a_change_that_the_node_did_not_measure_is_measured_behind_it(cluster, storage):
    async def scenario():
        wholes = {(0, 0): block(0), (1, 0): block(0, 1)}
        recorder = make(cluster, storage, wholes=wholes)
        await recorder.start()
        made = {1: block(4, 1), 0: block(4)}
        await recorder.visit(record(4, update_norm=None), made, anchors=None)
        await recorder.visit(record(5, update_norm=0.5), {0: block(5)}, anchors=None)
        await recorder.visit(record(6, update_norm=None, accepted=False), {}, anchors=None)
        await recorder.visit(record(7, update_norm=None), {0: block(7)}, anchors=None)
        await recorder.drain()

    run(scenario())
    # A fake change is the sum of the versions' distances.
    assert [one.update_norm for one in Journal(storage).visits] == [8.0, 0.5, None, 2.0]
    assert cluster.calls["update_norm"] == 2


def test_a_visit_whose_change_could_not_be_measured_is_not_journalled(cluster, storage):
    async def scenario():
        cluster.faults["update_norm", 1] = [Fault.LACKS_BLOCKS]
        recorder = make(cluster, storage)
        await recorder.start()
        await recorder.visit(record(1, update_norm=None), {0: block(1)}, anchors=None)
        with pytest.raises(BlocksLostError, match="update_norm 1"):
            await recorder.drain()
        await recorder.close()

    run(scenario())
    assert kinds(storage) == ["start"]


class TestDifferences:
    """Blocks that came as the difference from an anchor."""

    @staticmethod
    def delta(version, of):
        return replace(block(version), of=of)

    def test_are_stored_whole_and_their_anchor_is_kept(self, cluster, storage):
        told = []

        async def scenario():
            recorder = make(cluster, storage, on_whole=lambda *told_of: told.append(told_of))
            await recorder.start()
            for version in (1, 2):
                made = {0: self.delta(version, block(0))}
                await recorder.visit(record(version), made, anchors=(0,))
            await recorder.drain()
            kept = sorted(cluster.stored)
            await recorder.visit(record(3), {0: self.delta(3, block(2))}, anchors=(2,))
            await recorder.drain()
            return kept, sorted(cluster.stored)

        assert run(scenario()) == ([(0, 0), (0, 2)], [(0, 2), (0, 3)])
        assert told == [(0, version, block(version)) for version in (1, 2, 3)]

    def test_that_the_drivers_side_has_decoded_already_are_not_decoded_again(
        self, cluster, storage
    ):
        async def scenario():
            recorder = make(cluster, storage)
            await recorder.start()
            made = {0: self.delta(1, block(0))}
            await recorder.visit(record(1), made, anchors=(0,), wholes={0: block(1)})
            # The next visit may be the difference from it before it is journalled.
            early = recorder.whole(0, 1)
            await recorder.drain()
            return early

        assert run(scenario()) == block(1)
        assert cluster.calls["decode"] == 0
        assert sorted(cluster.stored) == [(0, 0), (0, 1)]


class TestHold:
    """Storing pulls what the next visit's node pulls, and leaves it the link."""

    @staticmethod
    async def visit_and_wait(recorder):
        await recorder.start()
        await recorder.drain()
        await recorder.visit(record(1), {0: block(1)}, anchors=None)
        for _ in range(50):
            await asyncio.sleep(0)

    def test_blocks_are_stored_once_the_next_visit_is_under_way(
        self, cluster, storage, monkeypatch
    ):
        monkeypatch.setattr(recorder_module, "HOLD_SECONDS", 1000.0)

        async def scenario():
            recorder = make(cluster, storage)
            await self.visit_and_wait(recorder)
            held = sorted(cluster.stored)
            recorder.go_on()
            await until(lambda: (0, 1) in cluster.stored)
            return held

        assert run(scenario()) == [(0, 0)]

    def test_or_after_a_moment(self, cluster, storage, monkeypatch):
        monkeypatch.setattr(recorder_module, "HOLD_SECONDS", 0.01)

        async def scenario():
            await self.visit_and_wait(make(cluster, storage))
            await until(lambda: (0, 1) in cluster.stored)

        run(scenario())

    def test_or_when_all_is_waited_for(self, cluster, storage, monkeypatch):
        monkeypatch.setattr(recorder_module, "HOLD_SECONDS", 1000.0)

        async def scenario():
            recorder = make(cluster, storage)
            await self.visit_and_wait(recorder)
            await recorder.drain()

        run(scenario())
        assert kinds(storage) == ["start", "visit"]


class TestTraffic:
    """What machines received, as their counters say."""

    @staticmethod
    def readings(storage):
        return [one for one in Journal(storage) if isinstance(one, TrafficRecord)]

    def test_is_journalled_from_where_the_run_starts(self, cluster, storage):
        cluster.readings = [{"m": 100, "n": 5}, {"m": 130, "n": 5}]

        async def scenario():
            recorder = make(cluster, storage)
            await recorder.traffic(visit=0)
            await recorder.visit(record(1), {0: block(1)}, anchors=None)
            await recorder.traffic(visit=1)
            await recorder.drain()

        run(scenario())
        first, second = self.readings(storage)
        assert (first.visit, first.first, first.received) == (0, True, {"m": 100, "n": 5})
        assert (second.visit, second.first, second.received) == (1, False, {"m": 130, "n": 5})
        assert first.driver_machine == "driver's machine"

    def test_at_the_end_it_waits_for_counters_that_report_late(self, cluster, storage, monkeypatch):
        monkeypatch.setattr(recorder_module, "COUNTERS_SECONDS", 0.24)
        cluster.readings = [{"m": 100}, {"m": 100}, {"m": 50_100}, {"m": 200_100}, {"m": 999_999}]
        moved = (
            Transfer(source="clinic-0", target="driver", bytes=200_000),
            # Too small to be counted: within Ray's own messages.
            Transfer(source="clinic-0", target="driver", bytes=7),
        )

        async def scenario():
            recorder = make(cluster, storage)
            await recorder.traffic(visit=0)
            await recorder.visit(record(1, transfers=moved), {0: block(1)}, anchors=None)
            await recorder.traffic(visit=1, last=True)
            await recorder.drain()

        run(scenario())
        assert [one.received["m"] for one in self.readings(storage)] == [100, 200_100]

    def test_is_left_out_where_nobody_counts(self, cluster, storage):
        async def scenario():
            recorder = make(cluster, storage)
            await recorder.traffic(visit=0)
            await recorder.traffic(visit=3, last=True)
            await recorder.drain()

        run(scenario())
        assert self.readings(storage) == []


def test_nothing_is_journalled_while_the_first_store_is_slow(cluster, storage):
    async def scenario():
        cluster.store_gate = asyncio.Event()
        recorder = make(cluster, storage)
        await recorder.start()
        await recorder.visit(record(1, accepted=False, reason="too far"), {}, anchors=None)
        await recorder.evaluation(visit=1, trip=1)
        await recorder.visit(record(2), {0: block(2)}, anchors=None)
        await asyncio.sleep(0)
        before = kinds(storage)
        cluster.store_gate.set()
        await recorder.drain()
        return before

    assert run(scenario()) == []
    assert kinds(storage) == ["start", "visit", "evaluation", "visit"]


def test_events_come_once_the_journal_has_the_record(cluster, storage):
    seen = []

    def emit(event):
        seen.append((type(event), len(Journal(storage))))

    async def scenario():
        recorder = make(cluster, storage, emit)
        await recorder.visit(record(1), {0: block(1)}, anchors=None)
        await recorder.evaluation(visit=1, trip=1)
        await recorder.drain()

    run(scenario())
    assert seen == [(VisitDecided, 1), (Evaluated, 2)]
    assert Journal(storage).visits[0].blocks == (
        BlockRecord(block=0, version=1, bytes=BLOCK_BYTES, checksum="content 0 1"),
    )


def test_what_comes_after_a_failure_is_not_journalled(cluster, storage):
    async def scenario():
        cluster.faults["store", 2] = [Fault.DIES]
        recorder = make(cluster, storage)
        await recorder.visit(record(1), {0: block(1)}, anchors=None)
        await recorder.visit(record(2), {0: block(2)}, anchors=None)
        await recorder.visit(record(3, accepted=False), {}, anchors=None)
        with pytest.raises(ProcessLostError, match="store 2 died"):
            await recorder.drain()
        with pytest.raises(ProcessLostError, match="store 2 died"):
            recorder.raise_failure()
        with pytest.raises(ProcessLostError, match="store 2 died"):
            await recorder.visit(record(4), {0: block(4)}, anchors=None)
        await recorder.close()

    run(scenario())
    assert [one.visit for one in Journal(storage).visits] == [1]


def test_a_refused_append_surfaces(cluster, storage, tmp_path):
    async def scenario():
        recorder = make(cluster, storage)
        (tmp_path / "run").write_text("a file where the folder should be")
        await recorder.visit(record(1), {0: block(1)}, anchors=None)
        with pytest.raises(StorageError):
            await recorder.drain()
        await recorder.close()

    run(scenario())


def test_a_full_backlog_holds_up_the_driver(cluster, storage):
    most = BACKLOG + 1

    async def scenario():
        cluster.store_gate = asyncio.Event()
        recorder = make(cluster, storage)
        # One is at work beside those that wait.
        for number in range(1, most + 1):
            await recorder.visit(record(number), {0: block(number)}, anchors=None)
        further = asyncio.create_task(
            recorder.visit(record(most + 1), {0: block(most + 1)}, anchors=None)
        )
        for _ in range(20):
            await asyncio.sleep(0)
        held_up = not further.done()
        cluster.store_gate.set()
        await further
        await recorder.drain()
        return held_up

    assert run(scenario())
    assert [one.visit for one in Journal(storage).visits] == [*range(1, most + 2)]


def test_close_drops_what_waits_and_outlives_a_running_append(cluster, tmp_path):
    storage = SlowStorage(str(tmp_path / "run"))

    async def scenario():
        recorder = make(cluster, storage)
        await recorder.visit(record(1), {0: block(1)}, anchors=None)
        await recorder.visit(record(2), {0: block(2)}, anchors=None)
        await until(storage.began.is_set)
        closing = asyncio.create_task(recorder.close())
        for _ in range(20):
            await asyncio.sleep(0)
        closed_early = closing.done()
        storage.gate.set()
        await closing
        return closed_early, [one.visit for one in Journal(storage).visits]

    closed_early, visits = run(scenario())
    assert not closed_early
    assert visits == [1]
    assert threading.active_count() == 1 or not any(
        thread.name.startswith("storage: write") for thread in threading.enumerate()
    )


def test_who_gives_up_waiting_ends_nothing(cluster, storage):
    async def scenario():
        cluster.store_gate = asyncio.Event()
        recorder = make(cluster, storage)
        await recorder.visit(record(1), {0: block(1)}, anchors=None)
        await recorder.visit(record(2), {0: block(2)}, anchors=None)
        waiting = asyncio.create_task(recorder.drain())
        for _ in range(20):
            await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        cluster.store_gate.set()
        await recorder.visit(record(3), {0: block(3)}, anchors=None)
        await recorder.drain()

    run(scenario())
    assert [one.visit for one in Journal(storage).visits] == [1, 2, 3]


def test_drain_of_nothing_returns(cluster, storage):
    run(make(cluster, storage).drain())
    assert kinds(storage) == []


def test_a_run_begins_with_its_initial_weights_however_late_they_are_stored(cluster, storage):
    async def scenario():
        cluster.store_gate = asyncio.Event()
        recorder = make(cluster, storage)
        await recorder.start()
        whole = {0: block(1)}
        await recorder.visit(record(1), whole, anchors=None, wholes=whole)
        cluster.store_gate.set()
        await recorder.drain()

    run(scenario())
    start, visit = Journal(storage)
    assert [one.version for one in start.blocks] == [0]
    assert [one.version for one in visit.blocks] == [1]


def test_once_another_driver_has_the_run_nothing_is_stored_journalled_or_deleted(cluster, storage):
    async def scenario():
        claim = Claim(storage)
        claim.take()
        recorder = make(cluster, storage, claim=claim)
        await recorder.start()
        await recorder.drain()
        Claim(storage).take()
        calls = dict(cluster.calls)
        await recorder.visit(record(1), {0: block(1)}, anchors=None)
        with pytest.raises(TakenOverError, match="was taken over"):
            await recorder.drain()
        assert dict(cluster.calls) == calls

    run(scenario())
    assert kinds(storage) == ["start"]
    assert [*cluster.stored] == [(0, 0)]
