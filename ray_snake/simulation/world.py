"""The nodes of a simulated run: how fast each computes and pulls, what it has, when it is there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
from numpy.typing import NDArray

from ray_snake.errors import DataError
from ray_snake.seeds import derive_seed
from ray_snake.simulation.distribution import Distribution

COLUMNS = {
    "pace": "how many times as long as the measuring machine a node computes",
    "rows": "rows of its shard",
    "bytes_per_second": "rate of its link",
    "latency_seconds": "seconds that a visit takes beside computing and pulling",
    "online_from_seconds": "when it joins",
    "online_until_seconds": "when it leaves",
}
"""Columns that a trace may have, one row for each node."""
LEAST = {"rows": 1.0, "bytes_per_second": 1.0}
"""The least number of a column, where it is not 0."""
ENDLESS = ("bytes_per_second", "online_until_seconds")
"""Columns that may hold infinity: nothing limits it."""


@dataclass(frozen=True, kw_only=True)
class World:
    """All nodes, one element for each.

    Attributes:
        rows: Rows of its shard.
        pace: How many times as long it computes as the machine that measured the blocks.
        bytes_per_second: Rate of its link, both ways; infinite where nothing travels.
        latency_seconds: What a visit takes beside computing and pulling.
        online_from: Virtual seconds at which it is there first.
        online_until: Virtual seconds from which on it is gone for good.
        online_seconds: For how long it is there at a time; none: always.
        offline_seconds: For how long it is away in between; none: never.
        seed: Of when it comes and goes.
        corrections: How much longer all nodes take than measured blocks say, by trained blocks.
        base_bytes: Bytes of the blocks' bases, where each node pulls them with its first visit.
    """

    rows: NDArray[np.int64]
    pace: NDArray[np.float64]
    bytes_per_second: NDArray[np.float64]
    latency_seconds: NDArray[np.float64]
    online_from: NDArray[np.float64]
    online_until: NDArray[np.float64]
    online_seconds: Distribution | None = None
    offline_seconds: Distribution | None = None
    seed: int = 0
    corrections: Mapping[tuple[int, ...], float] = field(default_factory=dict)
    base_bytes: int = 0

    def __len__(self) -> int:
        return len(self.rows)

    @classmethod
    def draw(cls, nodes: int, seed: int, given: Mapping[str, Distribution]) -> World:
        """Draw nodes; each quantity from a stream of its own, so that more of one move no other.

        Args:
            nodes: How many.
            seed: Of the draws.
            given: Distributions by quantity: `rows`, and of `COLUMNS` those that are not to be 1,
                infinite or 0; `online_seconds` and `offline_seconds` too.
        """
        usual = {"pace": 1.0, "bytes_per_second": np.inf, "online_until_seconds": np.inf}

        def of(name: str) -> NDArray[np.float64]:
            if name not in given:
                return np.full(nodes, usual.get(name, 0.0))
            return given[name].draw(np.random.default_rng(derive_seed(seed, name, 0)), nodes)

        return cls(
            rows=np.maximum(1, of("rows").round().astype(np.int64)),
            pace=of("pace"),
            bytes_per_second=of("bytes_per_second"),
            latency_seconds=of("latency_seconds"),
            online_from=of("online_from_seconds"),
            online_until=of("online_until_seconds"),
            online_seconds=given.get("online_seconds"),
            offline_seconds=given.get("offline_seconds"),
            seed=seed,
        )

    def with_rows(self, rows: NDArray[np.int64]) -> World:
        """Return a world whose nodes have these rows."""
        return replace(self, rows=rows)

    def with_known(
        self,
        *,
        pace: Sequence[float],
        latency_seconds: Sequence[float],
        bytes_per_second: Sequence[float],
        corrections: Mapping[tuple[int, ...], float],
    ) -> World:
        """Return a world with these in place of what was drawn; see `World`."""
        return replace(
            self,
            pace=np.array(pace),
            latency_seconds=np.array(latency_seconds),
            bytes_per_second=np.array(bytes_per_second),
            corrections=corrections,
        )

    def with_trace(self, table: pa.Table) -> World:
        """Return a world with what a table says of each node in place of what was drawn.

        Args:
            table: What `read_trace` returned.

        Raises:
            DataError: If it has not as many rows as there are nodes.
        """
        if len(table) != len(self):
            raise DataError(
                "--trace",
                f"has {len(table)} rows for {len(self)} nodes",
                "give one row for each node",
            )
        columns = {name: table[name].to_numpy() for name in table.column_names}
        online = {
            field: columns.pop(name)
            for name, field in (
                ("online_from_seconds", "online_from"),
                ("online_until_seconds", "online_until"),
            )
            if name in columns
        }
        if "rows" in columns:
            columns["rows"] = columns["rows"].astype(np.int64)
        return replace(self, **columns, **online)

    def presence(self, node: int) -> Iterator[tuple[float, float]]:
        """Yield when a node comes and when it goes, in order, for as long as one asks."""
        came, gone = float(self.online_from[node]), float(self.online_until[node])
        if self.online_seconds is None or self.offline_seconds is None:
            yield came, gone
            return
        draw = np.random.default_rng(derive_seed(self.seed, "presence", node))
        while came < gone:
            there, away = (
                float(one.draw(draw, 1)[0]) for one in (self.online_seconds, self.offline_seconds)
            )
            yield came, min(came + there, gone)
            came += there + away


def read_trace(path: str) -> pa.Table:
    """Return the table of a trace file, its numbers as 64-bit floats.

    Args:
        path: A CSV or Parquet file with a row for each node and some of `COLUMNS`.

    Raises:
        DataError: If it can't be read, or has other columns or numbers out of range.
    """
    try:
        read = pa.parquet.read_table if Path(path).suffix == ".parquet" else pa.csv.read_csv
        table: pa.Table = read(path)
        unknown = [name for name in table.column_names if name not in COLUMNS]
        if unknown:
            raise DataError(
                path, f"has a column {unknown[0]!r}", f"use some of {', '.join(COLUMNS)}"
            )
        table = table.cast(pa.schema([(name, pa.float64()) for name in table.column_names]))
    except (OSError, pa.ArrowException) as error:
        raise DataError(
            path, f"can't be read ({' '.join(str(error).split())})", "give a CSV or Parquet file"
        ) from None
    if any(column.null_count for column in table.columns):
        raise DataError(path, "lacks values", "fill every column of every row")
    for name in table.column_names:
        values, least = table[name].to_numpy(), LEAST.get(name, 0.0)
        # NaN is not as large as anything.
        wrong = ~(values >= least)
        if name not in ENDLESS:
            wrong |= np.isinf(values)
        if wrong.any():
            row = int(np.argmax(wrong))
            raise DataError(
                path,
                f"column {name!r} holds {values[row]:g} in row {row}",
                f"use numbers from {least:g}",
            )
    return table
