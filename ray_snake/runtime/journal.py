"""The append-only record of a run: what is shown, resumed or reported derives from it.

The journal is a sequence of records in numbered segments of JSON lines, `journal/000000.jsonl`
and on. Object stores can't append, so each append writes the open segment whole; a segment is
closed after `SEGMENT_RECORDS` records, which bounds what an append writes.
"""

from __future__ import annotations

from collections.abc import Iterator

from pydantic import ValidationError

from ray_snake.errors import CheckpointError
from ray_snake.planning.cost import BlockCost
from ray_snake.runtime.records import (
    ANY_RECORD,
    BlockRecord,
    EvaluationRecord,
    JoinRecord,
    JournalRecord,
    LeaveRecord,
    StartRecord,
    VisitRecord,
)
from ray_snake.storage import Storage

SEGMENT_RECORDS = 64


class Journal:
    """The records of one run, in order, on storage.

    Args:
        storage: The run's folder.

    Raises:
        CheckpointError: If what is stored can't be read.
    """

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._records: list[JournalRecord] = []
        self._current: dict[int, BlockRecord] = {}
        self._blocks: dict[tuple[int, int], BlockRecord] = {}
        records = read_records(storage)
        while records and _is_left_open(records[-1]):
            # Of a round only its average counts, and that was not reached.
            records.pop()
        for record in records:
            self._take(record)

    def __len__(self) -> int:
        return len(self._records)

    def __iter__(self) -> Iterator[JournalRecord]:
        return iter(tuple(self._records))

    @property
    def uri(self) -> str:
        """The run's folder or URI."""
        return self._storage.uri

    @property
    def visits(self) -> list[VisitRecord]:
        """The decided visits, in order."""
        return [record for record in self._records if isinstance(record, VisitRecord)]

    @property
    def changes(self) -> list[JoinRecord | LeaveRecord]:
        """Who joined and who left, in order."""
        return [one for one in self._records if isinstance(one, JoinRecord | LeaveRecord)]

    @property
    def evaluations(self) -> list[EvaluationRecord]:
        """The evaluations, in order."""
        return [record for record in self._records if isinstance(record, EvaluationRecord)]

    @property
    def costs(self) -> tuple[BlockCost, ...]:
        """What each block costs, as measured at the run's start; () if it was not."""
        starts = [record for record in self._records if isinstance(record, StartRecord)]
        return starts[0].costs if starts else ()

    def current_blocks(self) -> list[BlockRecord]:
        """Return the current version of every block, in block order; [] for an empty journal."""
        return [self._current[block] for block in sorted(self._current)]

    def current_version(self, block: int) -> int:
        """Return the current version of a block."""
        return self._current[block].version

    def block(self, block: int, version: int) -> BlockRecord:
        """Return the record of a block version that some visit produced."""
        return self._blocks[block, version]

    def block_bytes(self, block: int, version: int) -> int | None:
        """Return the bytes of a stored block version; none if the journal doesn't have it."""
        found = self._blocks.get((block, version))
        return None if found is None else found.bytes

    def append(self, *records: JournalRecord) -> None:
        """Add records; when this returns, they are on storage.

        Raises:
            StorageError: If the storage refuses them; they are then not in the journal.
        """
        total = [*self._records, *records]
        first = len(self._records) // SEGMENT_RECORDS
        for segment in range(first, (len(total) - 1) // SEGMENT_RECORDS + 1):
            start = segment * SEGMENT_RECORDS
            lines = "".join(
                one.model_dump_json() + "\n" for one in total[start : start + SEGMENT_RECORDS]
            )
            self._storage.write(f"journal/{_segment_name(segment)}", lines.encode())
        for record in records:
            self._take(record)

    def _take(self, record: JournalRecord) -> None:
        self._records.append(record)
        if isinstance(record, StartRecord | VisitRecord):
            self._current.update((block.block, block) for block in record.blocks)
            self._blocks.update(((one.block, one.version), one) for one in record.blocks)


def _is_left_open(record: JournalRecord) -> bool:
    return isinstance(record, VisitRecord) and record.averaged and not record.ends_round


def read_records(storage: Storage, first: int = 0) -> list[JournalRecord]:
    """Return a run's records from number `first` (from 0) on; reads only the segments it needs.

    Raises:
        CheckpointError: If a segment is damaged.
    """
    segment = first // SEGMENT_RECORDS
    records = [
        record
        for name in storage.list("journal")
        if name >= _segment_name(segment)
        for record in _parse(name, storage.read(f"journal/{name}"))
    ]
    return records[first - segment * SEGMENT_RECORDS :]


def _segment_name(segment: int) -> str:
    return f"{segment:06d}.jsonl"


def _parse(name: str, content: bytes) -> list[JournalRecord]:
    try:
        # Split as bytes: text has line ends of its own that JSON leaves as they are.
        return [ANY_RECORD.validate_json(line) for line in content.splitlines()]
    except ValidationError as error:
        raise CheckpointError(
            f"journal/{name} is damaged ({str(error).splitlines()[0]})",
            "restore that file from a copy; the run can't be resumed without it",
        ) from None
