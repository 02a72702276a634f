"""The rows of fine-tuning as a Parquet file and a table."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

Row = Mapping[str, Any]
HEAD = (
    "| way | seeds | {score} | spread | samples | MB moved | predicted peak MB | CPU s |\n"
    "| --- | --- | --- | --- | --- | --- | --- | --- |"
)


def write_results(rows: Sequence[Row], folder: Path, *, task: str, made_by: str) -> None:
    """Write `finetune-TASK.parquet` and `finetune-TASK.md`.

    Args:
        rows: One for each cell.
        folder: Where to; made if missing.
        task: Its name.
        made_by: Command, commit and machine, for the table's head.
    """
    folder.mkdir(parents=True, exist_ok=True)
    table_of = pa.Table.from_pylist([dict(one) for one in rows])
    pq.write_table(table_of, folder / f"finetune-{task}.parquet")
    page = f"{made_by}\n\n{table(rows)}\n"
    (folder / f"finetune-{task}.md").write_text(page, encoding="utf-8")


def read_rows(file: Path) -> list[dict[str, Any]]:
    """Return the rows that `write_results` has put into a Parquet file."""
    rows: list[dict[str, Any]] = pq.read_table(file).to_pylist()
    return rows


def table(rows: Sequence[Row]) -> str:
    """Return the rows as a Markdown table, a line per way, means over seeds."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row["way"], []).append(row)
    score = "accuracy" if rows and rows[0]["perplexity"] is None else "perplexity"
    lines = [HEAD.format(score=score)]
    for way, own in groups.items():
        scores = [row[score] for row in own]
        spread = statistics.stdev(scores) if len(own) > 1 else 0.0
        lines.append(
            f"| {way} | {', '.join(str(row['seed']) for row in own)} "
            f"| {statistics.mean(scores):.4f} | {spread:.4f} | {_mean(own, 'samples'):,.0f} "
            f"| {_mean(own, 'bytes') / 1e6:,.1f} "
            f"| {_mean(own, 'predicted_peak_bytes') / 1e6:,.0f} "
            f"| {_mean(own, 'cpu_seconds'):,.0f} |"
        )
    return "\n".join(lines)


def _mean(rows: Sequence[Row], key: str) -> float:
    return statistics.mean(row[key] for row in rows)
