"""What moved between machines: what the ledger says beside what the object managers counted."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ray_snake.runtime.records import DRIVER, JournalRecord, TrafficRecord, VisitRecord


class Traffic:
    """Sums of a run's journal so far, in bytes. Everything is 0 on a single machine.

    Attributes:
        links: What the ledger says went from one node (or `driver`) to another, by both.
        predicted: The same by the machine that it came to.
        measured: What each machine's object manager received meanwhile: other jobs' objects too,
            and twice what was sent twice, but no block below 100 kB, which Ray sends within its
            messages. Counted from the run's start or resume to the last reading; {} where there
            was none.
    """

    def __init__(self) -> None:
        self.links: dict[tuple[str, str], int] = {}
        self.predicted: dict[str, int] = {}
        self.measured: dict[str, int] = {}
        self._driver_machine = ""
        self._before: dict[str, int] = {}
        self._since: dict[str, int] = {}

    def add(self, record: JournalRecord) -> None:
        """Take the journal's next record."""
        if isinstance(record, VisitRecord):
            for one in record.transfers:
                key = (one.source, one.target)
                self.links[key] = self.links.get(key, 0) + one.bytes
                machine = self._driver_machine if one.target == DRIVER else record.machine
                self.predicted[machine] = self.predicted.get(machine, 0) + one.bytes
        elif isinstance(record, TrafficRecord):
            self._driver_machine = record.driver_machine
            if record.first:
                self._since, self._before = dict(self.measured), record.received
            for machine, received in record.received.items():
                grown = received - self._before.setdefault(machine, received)
                self.measured[machine] = self._since.get(machine, 0) + grown

    @property
    def predicted_total(self) -> int:
        """Bytes that the ledger says went between machines."""
        return sum(self.links.values())

    @property
    def measured_total(self) -> int | None:
        """Bytes that object managers received; none where nobody counted."""
        return sum(self.measured.values()) if self.measured else None

    def summary(self) -> dict[str, Any]:
        """Return all of it as JSON values."""
        return {
            "predicted": self.predicted_total,
            "measured": self.measured_total,
            "links": [
                {"source": source, "target": target, "bytes": count}
                for (source, target), count in sorted(self.links.items())
            ],
            "machines": {
                machine: {
                    "predicted": self.predicted.get(machine, 0),
                    "measured": self.measured.get(machine),
                }
                for machine in sorted({*self.predicted, *self.measured})
            },
        }


def traffic(records: Iterable[JournalRecord]) -> Traffic:
    """Return what a journal says of what moved."""
    found = Traffic()
    for record in records:
        found.add(record)
    return found
