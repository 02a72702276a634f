import math
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ray_snake.errors import CheckpointError, StorageError
from ray_snake.runtime.journal import SEGMENT_RECORDS, Journal, read_records
from ray_snake.runtime.records import BlockRecord, EvaluationRecord, StartRecord, VisitRecord
from ray_snake.storage import Storage


def evaluation(visit, **changes):
    values = {"trip": 1, "samples": 4, "loss": 0.5, "accuracy": 0.5, "seconds": 0.1}
    return EvaluationRecord(visit=visit, finished_at=1.0, **{**values, **changes})


def block(number, version):
    return BlockRecord(block=number, version=version, bytes=8, checksum=f"{number}.{version}")


def visit(number, blocks):
    return VisitRecord(
        visit=number,
        trip=1,
        node=0,
        node_name="clinic",
        span=(0, 1),
        trained=tuple(one.block for one in blocks),
        learning_rate=0.1,
        accepted=bool(blocks),
        samples=8,
        steps=2,
        loss=0.5,
        first_loss=1.0,
        accuracy=None,
        update_norm=1.0,
        bytes_pulled=8,
        bytes_returned=8,
        pull_seconds=0.0,
        train_seconds=0.0,
        seconds=0.0,
        finished_at=1.0,
        blocks=tuple(blocks),
    )


def filled(storage, records):
    journal = Journal(storage)
    for number in range(records):
        journal.append(evaluation(number))
    return journal


def lines(storage, name):
    return storage.read(f"journal/{name}").decode().splitlines()


def test_a_new_journal_is_empty_and_makes_no_files(storage):
    journal = Journal(storage)
    assert len(journal) == 0
    assert journal.current_blocks() == []
    assert not Path(storage.uri).exists()


def test_records_are_read_back_in_order_as_they_were(storage):
    records = [
        StartRecord(blocks=(block(0, 0), block(1, 0)), finished_at=1.5),
        visit(1, [block(1, 1)]),
        visit(2, []),
        evaluation(2, loss=math.inf, accuracy=None),
    ]
    journal = Journal(storage)
    for record in records:
        journal.append(record)
    assert list(Journal(storage)) == records
    assert [one.visit for one in Journal(storage).visits] == [1, 2]
    assert [one.visit for one in Journal(storage).evaluations] == [2]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_values_that_json_lacks_survive(storage, value):
    Journal(storage).append(evaluation(1, loss=value))
    (record,) = read_records(storage)
    assert record.loss == value or (math.isnan(value) and math.isnan(record.loss))


def test_current_blocks_are_the_latest_of_each(storage):
    journal = Journal(storage)
    journal.append(StartRecord(blocks=(block(0, 0), block(1, 0), block(2, 0)), finished_at=1.0))
    journal.append(visit(1, [block(2, 1), block(0, 1)]))
    journal.append(visit(2, [block(0, 2)]))
    expected = [block(0, 2), block(1, 0), block(2, 1)]
    assert journal.current_blocks() == expected
    assert Journal(storage).current_blocks() == expected


def test_segments_are_closed_after_so_many_records(storage):
    filled(storage, SEGMENT_RECORDS + 1)
    assert storage.list("journal") == ["000000.jsonl", "000001.jsonl"]
    assert len(lines(storage, "000000.jsonl")) == SEGMENT_RECORDS
    assert len(lines(storage, "000001.jsonl")) == 1


def test_a_closed_segment_is_never_written_again(storage):
    journal = filled(storage, SEGMENT_RECORDS)
    closed = Path(storage.uri, "journal", "000000.jsonl")
    before = closed.stat()
    journal.append(evaluation(SEGMENT_RECORDS))
    after = closed.stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


@pytest.mark.parametrize("done", [3, SEGMENT_RECORDS])
def test_a_reopened_journal_goes_on_where_it_ended(storage, done):
    filled(storage, done)
    Journal(storage).append(evaluation(done))
    assert [record.visit for record in read_records(storage)] == list(range(done + 1))


@pytest.mark.parametrize("first", [0, 5, SEGMENT_RECORDS - 1, SEGMENT_RECORDS, SEGMENT_RECORDS + 2])
def test_reads_from_a_record_on(storage, first):
    filled(storage, SEGMENT_RECORDS + 3)
    found = [record.visit for record in read_records(storage, first)]
    assert found == list(range(first, SEGMENT_RECORDS + 3))


def test_reading_past_the_end_gives_nothing(storage):
    filled(storage, 3)
    assert read_records(storage, 3) == []
    assert read_records(storage, SEGMENT_RECORDS) == []


def test_reading_on_does_not_look_at_earlier_segments(storage):
    filled(storage, SEGMENT_RECORDS + 1)
    storage.write("journal/000000.jsonl", b"damaged")
    (record,) = read_records(storage, SEGMENT_RECORDS)
    assert record.visit == SEGMENT_RECORDS


@pytest.mark.parametrize(
    "damage", [b"{", b"\xff\n", b'{"kind": "unknown"}\n', b'{"kind":"visit"}\n']
)
def test_a_damaged_segment_is_named(storage, damage):
    filled(storage, 2)
    storage.write("journal/000000.jsonl", storage.read("journal/000000.jsonl") + damage)
    with pytest.raises(CheckpointError, match=r"journal/000000\.jsonl is damaged"):
        Journal(storage)


def test_a_refused_append_leaves_the_journal_as_it_was(storage):
    journal = filled(storage, 2)
    folder = Path(storage.uri) / "journal"
    folder.rename(folder.with_name("kept"))
    folder.write_text("a file where the folder should be")
    with pytest.raises(StorageError):
        journal.append(evaluation(2))
    assert len(journal) == 2
    folder.unlink()
    folder.with_name("kept").rename(folder)
    journal.append(evaluation(9))
    assert [record.visit for record in read_records(storage)] == [0, 1, 9]


APPENDS_FOR_EVER = """
import itertools, sys
from ray_snake.runtime.journal import Journal
from ray_snake.runtime.records import EvaluationRecord
from ray_snake.storage import Storage

journal = Journal(Storage(sys.argv[1]))
for number in itertools.count():
    journal.append(EvaluationRecord(
        visit=number, trip=1, samples=4, loss=0.5, accuracy=None, seconds=0.0, finished_at=1.0
    ))
    print(number, flush=True)
"""


def test_a_killed_writer_leaves_every_appended_record(storage):
    writer = subprocess.Popen(
        [sys.executable, "-c", APPENDS_FOR_EVER, storage.uri], stdout=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 60
    try:
        while time.monotonic() < deadline:
            line = writer.stdout.readline()
            if not line or int(line) >= SEGMENT_RECORDS + 5:
                break
    finally:
        writer.send_signal(signal.SIGKILL)
    appended = int((line + writer.communicate()[0]).split()[-1]) + 1
    assert appended > SEGMENT_RECORDS
    found = [record.visit for record in read_records(Storage(storage.uri))]
    assert found == list(range(len(found)))
    assert len(found) in (appended, appended + 1)
