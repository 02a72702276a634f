"""A run's scalars for TensorBoard, written from its journal to any storage.

The events are written in parts, each a file that never changes once written. One growing file
would need less of them, but object stores can't append, and TensorBoard's default reader keeps a
file that was replaced under its name open and never sees the new one.

The records are framed here: importing tensorboard's writer loads its plugins and a client of S3,
which takes the command half a CPU second.
"""

from __future__ import annotations

import functools
import re
import struct
from collections.abc import Iterable, Sequence

from tensorboard.compat.proto import event_pb2, summary_pb2

from ray_snake.runtime.records import EvaluationRecord, JournalRecord, TrafficRecord, VisitRecord
from ray_snake.storage import Storage
from ray_snake.telemetry.traffic import Traffic

FOLDER = "tensorboard"
FILE_VERSION = "brain.Event:2"
_PART_NAME = re.compile(r"events\.out\.tfevents\.(\d+)-(\d+)\.ray_snake")


class EventFile:
    """The TensorBoard events of one run.

    A visit is a step: `loss/train`, `accuracy/train`, `learning_rate`, `update_norm`, `trip`,
    `visits/refused` (so far), `bytes/pulled`, `bytes/returned`, `bytes/exchanged`,
    `bytes/total` (all that moved so far, each block once),
    `seconds/visit`, `seconds/pull`, `seconds/train`; and, from evaluations, `loss/test`,
    `accuracy/test`, `perplexity/test`, `seconds/evaluation`. Where there are several machines,
    `network/predicted` and `network/measured` are what went between them so far,
    `network/to/MACHINE` what one of them received. Bytes and seconds are plain numbers in those
    units.

    A part's name says which of the journal's records it holds, counted from 0. So a run that
    resumes goes on after what is stored, and no point is there twice.

    Args:
        storage: The run's folder; parts go to its folder `tensorboard`.
        records: What the journal holds already, from its first record on. What of it is not stored
            yet is written by the next `flush`.

    Raises:
        StorageError: If the folder can't be listed.
    """

    def __init__(self, storage: Storage, records: Iterable[JournalRecord] = ()) -> None:
        self._storage = storage
        self._stored = 0
        for name in storage.list(FOLDER):
            if part := _PART_NAME.fullmatch(name):
                self._stored = max(self._stored, int(part[2]) + 1)
        self._added = 0
        self._bytes_total = 0
        self._traffic = Traffic()
        self._refused = 0
        self._pending: list[event_pb2.Event] = []
        for record in records:
            self.add(record)

    def add(self, record: JournalRecord) -> None:
        """Take the journal's next record; it is stored by the next `flush`."""
        self._traffic.add(record)
        if isinstance(record, VisitRecord):
            self._bytes_total += record.bytes_moved
            self._refused += not record.accepted
        is_fresh = self._added >= self._stored
        if is_fresh and isinstance(record, VisitRecord | EvaluationRecord | TrafficRecord):
            self._pending.append(self._event(record))
        self._added += 1

    def flush(self) -> None:
        """Store what was added since the last flush, as one part; nothing, if nothing was.

        TensorBoard opens every part, so flush when a trip or an evaluation ends rather than after
        every visit of a long run.

        Raises:
            StorageError: If the storage refuses it; the next flush tries again.
        """
        if not self._pending:
            return
        name = f"events.out.tfevents.{self._stored:08d}-{self._added - 1:08d}.ray_snake"
        write_events(self._storage, f"{FOLDER}/{name}", self._pending)
        self._stored = self._added
        self._pending.clear()

    def _event(self, record: VisitRecord | EvaluationRecord | TrafficRecord) -> event_pb2.Event:
        scalars = self._scalars(record)
        values = [
            summary_pb2.Summary.Value(tag=tag, simple_value=value)
            for tag, value in scalars.items()
            if value is not None
        ]
        return event_pb2.Event(
            wall_time=record.finished_at,
            step=record.visit,
            summary=summary_pb2.Summary(value=values),
        )

    def _scalars(
        self, record: VisitRecord | EvaluationRecord | TrafficRecord
    ) -> dict[str, float | None]:
        match record:
            case VisitRecord():
                return self._visit_scalars(record)
            case EvaluationRecord():
                return {
                    "loss/test": record.loss,
                    "accuracy/test": record.accuracy,
                    "perplexity/test": record.perplexity,
                    "seconds/evaluation": record.seconds,
                }
            case TrafficRecord():
                return {
                    "network/predicted": self._traffic.predicted_total,
                    "network/measured": self._traffic.measured_total,
                    **{f"network/to/{to}": n for to, n in self._traffic.measured.items()},
                }

    def _visit_scalars(self, record: VisitRecord) -> dict[str, float | None]:
        return {
            "loss/train": record.loss,
            "accuracy/train": record.accuracy,
            "learning_rate": record.learning_rate,
            "update_norm": record.update_norm,
            "trip": record.trip,
            "visits/refused": self._refused,
            "bytes/pulled": record.bytes_pulled,
            "bytes/returned": record.bytes_returned,
            "bytes/exchanged": record.exchanged_bytes,
            "bytes/total": self._bytes_total,
            "seconds/visit": record.seconds,
            "seconds/pull": record.pull_seconds,
            "seconds/train": record.train_seconds,
            "seconds/predicted": record.predicted_seconds,
            "prediction_error": record.prediction_error,
        }


def write_events(storage: Storage, name: str, events: Sequence[event_pb2.Event]) -> None:
    """Write a file of events, at least one.

    Raises:
        StorageError: If the storage refuses it.
    """
    header = event_pb2.Event(wall_time=events[0].wall_time, file_version=FILE_VERSION)
    parts = [_framed(one.SerializeToString()) for one in (header, *events)]
    storage.write(name, b"".join(parts))


def _framed(data: bytes) -> bytes:
    """Return a record as TFRecord files have it: length, its checksum, data, its checksum."""
    length = struct.pack("<Q", len(data))
    checksums = [struct.pack("<I", _masked_crc32c(one)) for one in (length, data)]
    return length + checksums[0] + data + checksums[1]


def _masked_crc32c(data: bytes) -> int:
    """Return CRC-32C (Castagnoli, RFC 3720) as TFRecord masks it, so that a CRC of CRCs is safe."""
    table = _crc32c_table()
    crc = 0xFFFFFFFF
    for byte in data:
        crc = table[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    crc ^= 0xFFFFFFFF
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


@functools.cache
def _crc32c_table() -> list[int]:
    table = []
    for byte in range(256):
        for _ in range(8):
            byte = byte >> 1 ^ (0x82F63B78 if byte & 1 else 0)
        table.append(byte)
    return table
