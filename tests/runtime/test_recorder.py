import asyncio
import threading

import pytest
from fakes import BLOCK_BYTES, FakeBlock, FakeEngine, Fault, run, until

from ray_snake.errors import StorageError
from ray_snake.runtime.events import Evaluated, VisitDecided
from ray_snake.runtime.handles import BlocksLostError, ProcessLostError
from ray_snake.runtime.journal import BlockRecord, Journal, VisitRecord
from ray_snake.runtime.recorder import Recorder
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


def make(cluster, storage, emit=lambda event: None, engine=None, **options):
    return Recorder(
        engine=engine or FakeEngine(cluster, 1), journal=Journal(storage), emit=emit, **options
    )


def test_a_visit_is_journalled_after_its_blocks_and_supersedes_the_old_ones_last(cluster, storage):
    async def scenario():
        engine = WatchingEngine(cluster, storage)
        recorder = make(cluster, storage, engine=engine)
        await recorder.start([block(0)])
        await recorder.visit(record(1), {0: block(1)}, {})
        await recorder.visit(record(2), {0: block(2)}, {})
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
        recorder = make(cluster, storage)
        arrived = {0: block(1), 1: block(0, 1)}
        await recorder.visit(record(4, update_norm=None), {1: block(4, 1), 0: block(4)}, arrived)
        await recorder.visit(record(5, update_norm=0.5), {0: block(5)}, {0: block(4)})
        await recorder.visit(record(6, update_norm=None, accepted=False), {}, {0: block(5)})
        await recorder.drain()

    run(scenario())
    assert [one.update_norm for one in Journal(storage).visits] == [7.0, 0.5, None]
    assert cluster.calls["update_norm"] == 1


def test_a_visit_whose_change_could_not_be_measured_is_not_journalled(cluster, storage):
    async def scenario():
        cluster.faults["update_norm", 1] = [Fault.LACKS_BLOCKS]
        recorder = make(cluster, storage)
        await recorder.visit(record(1, update_norm=None), {0: block(1)}, {0: block(0)})
        with pytest.raises(BlocksLostError, match="update_norm 1"):
            await recorder.drain()
        await recorder.close()

    run(scenario())
    assert kinds(storage) == []


def test_nothing_is_journalled_while_the_first_store_is_slow(cluster, storage):
    async def scenario():
        cluster.store_gate = asyncio.Event()
        recorder = make(cluster, storage)
        await recorder.start([block(0)])
        await recorder.visit(record(1, accepted=False, reason="too far"), {}, {})
        await recorder.evaluation(visit=1, trip=1, refs=[block(0)])
        await recorder.visit(record(2), {0: block(2)}, {})
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
        await recorder.visit(record(1), {0: block(1)}, {})
        await recorder.evaluation(visit=1, trip=1, refs=[block(1)])
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
        await recorder.visit(record(1), {0: block(1)}, {})
        await recorder.visit(record(2), {0: block(2)}, {})
        await recorder.visit(record(3, accepted=False), {}, {})
        with pytest.raises(ProcessLostError, match="store 2 died"):
            await recorder.drain()
        with pytest.raises(ProcessLostError, match="store 2 died"):
            recorder.raise_failure()
        with pytest.raises(ProcessLostError, match="store 2 died"):
            await recorder.visit(record(4), {0: block(4)}, {})
        await recorder.close()

    run(scenario())
    assert [one.visit for one in Journal(storage).visits] == [1]


def test_a_refused_append_surfaces(cluster, storage, tmp_path):
    async def scenario():
        recorder = make(cluster, storage)
        (tmp_path / "run").write_text("a file where the folder should be")
        await recorder.visit(record(1), {0: block(1)}, {})
        with pytest.raises(StorageError):
            await recorder.drain()
        await recorder.close()

    run(scenario())


def test_a_full_backlog_holds_up_the_driver(cluster, storage):
    async def scenario():
        cluster.store_gate = asyncio.Event()
        recorder = make(cluster, storage, backlog=1)
        await recorder.visit(record(1), {0: block(1)}, {})
        await recorder.visit(record(2), {0: block(2)}, {})
        third = asyncio.create_task(recorder.visit(record(3), {0: block(3)}, {}))
        for _ in range(20):
            await asyncio.sleep(0)
        held_up = not third.done()
        cluster.store_gate.set()
        await third
        await recorder.drain()
        return held_up

    assert run(scenario())
    assert [one.visit for one in Journal(storage).visits] == [1, 2, 3]


def test_close_drops_what_waits_and_outlives_a_running_append(cluster, tmp_path):
    storage = SlowStorage(str(tmp_path / "run"))

    async def scenario():
        recorder = make(cluster, storage)
        await recorder.visit(record(1), {0: block(1)}, {})
        await recorder.visit(record(2), {0: block(2)}, {})
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


def test_drain_of_nothing_returns(cluster, storage):
    run(make(cluster, storage).drain())
    assert kinds(storage) == []
