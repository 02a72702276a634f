import io
import subprocess
import sys
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
from tensorboard.summary.writer.record_writer import RecordWriter

from ray_snake.errors import StorageError
from ray_snake.storage import Storage
from ray_snake.telemetry.tensorboard import EventFile


@pytest.fixture
def storage(tmp_path):
    return Storage(str(tmp_path / "run"))


def parts(storage):
    return storage.list("tensorboard")


def accumulator(storage):
    return EventAccumulator(str(Path(storage.uri) / "tensorboard"))


def points(reader, tag):
    return [(event.step, event.value) for event in reader.Scalars(tag)]


def test_scalars_are_read_back_with_steps_and_times(storage, visit_record, evaluation_record):
    events = EventFile(storage)
    for record in (visit_record(1), visit_record(2, accepted=False), evaluation_record(2)):
        events.add(record)
    events.flush()
    reader = accumulator(storage).Reload()
    assert set(reader.Tags()["scalars"]) == {
        "loss/train",
        "loss/test",
        "accuracy/train",
        "accuracy/test",
        "learning_rate",
        "update_norm",
        "trip",
        "visits/refused",
        "bytes/pulled",
        "bytes/returned",
        "bytes/exchanged",
        "bytes/total",
        "seconds/visit",
        "seconds/pull",
        "seconds/train",
        "seconds/evaluation",
    }
    assert points(reader, "loss/train") == [(1, 1.0), (2, 0.5)]
    assert points(reader, "bytes/total") == [(1, 1024.0), (2, 3072.0)]
    assert points(reader, "visits/refused") == [(1, 0.0), (2, 1.0)]
    assert points(reader, "accuracy/test") == [(2, 0.875)]
    assert [event.wall_time for event in reader.Scalars("trip")] == [1002.0, 1004.0]


def test_an_open_reader_sees_later_flushes(storage, visit_record):
    events = EventFile(storage, [visit_record(1)])
    events.flush()
    reader = accumulator(storage).Reload()
    assert points(reader, "trip") == [(1, 1.0)]
    events.add(visit_record(2))
    events.add(visit_record(3))
    events.flush()
    assert points(reader.Reload(), "trip") == [(1, 1.0), (2, 1.0), (3, 2.0)]


def test_stored_parts_never_change(storage, visit_record):
    events = EventFile(storage, [visit_record(1)])
    events.flush()
    (first,) = parts(storage)
    content = storage.read(f"tensorboard/{first}")
    events.add(visit_record(2))
    events.flush()
    events.flush()
    assert parts(storage) == [
        "events.out.tfevents.00000000-00000000.ray_snake",
        "events.out.tfevents.00000001-00000001.ray_snake",
    ]
    assert storage.read(f"tensorboard/{first}") == content


def test_a_resumed_run_writes_what_is_missing_and_nothing_twice(
    storage, start_record, visit_record
):
    journal = [start_record, *(visit_record(number) for number in range(1, 6))]
    before = EventFile(storage)
    for record in journal[:4]:
        before.add(record)
        before.flush()

    # The journal had two more records when the first process died before its next flush.
    resumed = EventFile(storage, journal)
    resumed.add(visit_record(6))
    resumed.flush()
    reader = accumulator(storage).Reload()
    assert [step for step, _ in points(reader, "trip")] == [1, 2, 3, 4, 5, 6]
    assert points(reader, "bytes/total")[-1] == (6, 1024.0 * 21)


def test_resuming_a_finished_run_stores_nothing(storage, visit_record):
    EventFile(storage, [visit_record(1)]).flush()
    EventFile(storage, [visit_record(1)]).flush()
    assert len(parts(storage)) == 1


def test_a_refused_write_is_made_good_by_the_next_flush(storage, visit_record):
    events = EventFile(storage, [visit_record(1)])
    blocker = Path(storage.uri) / "tensorboard"
    blocker.parent.mkdir()
    blocker.write_text("a file where the folder should be")
    with pytest.raises(StorageError):
        events.flush()
    blocker.unlink()
    events.flush()
    assert points(accumulator(storage).Reload(), "trip") == [(1, 1.0)]


def test_labels_that_are_no_classes_have_no_accuracy(storage, visit_record, evaluation_record):
    records = [visit_record(1, accuracy=None), evaluation_record(1, accuracy=None)]
    EventFile(storage, records).flush()
    tags = accumulator(storage).Reload().Tags()["scalars"]
    assert "loss/test" in tags
    assert not [tag for tag in tags if tag.startswith("accuracy")]


def test_records_are_framed_as_tensorboards_own_writer_frames_them(storage, visit_record):
    EventFile(storage, [visit_record(1), visit_record(2)]).flush()
    (path,) = (Path(storage.uri) / "tensorboard").iterdir()
    records = list(RawEventFileLoader(str(path)).Load())
    assert len(records) == 3
    buffer = io.BytesIO()
    writer = RecordWriter(buffer)
    for record in records:
        writer.write(record)
    assert path.read_bytes() == buffer.getvalue()


def test_import_needs_neither_torch_nor_tensorflow_nor_ray_nor_a_client_of_s3():
    code = (
        "import sys, ray_snake.telemetry.tensorboard; "
        "print([name for name in ('torch', 'tensorflow', 'ray', 'boto3') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
