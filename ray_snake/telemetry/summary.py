"""What a run came to, as the object that `--json` prints."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from typing import Any

from ray_snake.runtime.records import EvaluationRecord, JournalRecord, VisitRecord
from ray_snake.telemetry.traffic import traffic


def run_summary(run: str, records: Iterable[JournalRecord], weights_sha256: str) -> dict[str, Any]:
    """Return the JSON object of a run, from its journal.

    Args:
        run: The run's folder or URI.
        records: The journal, in order; it may be a part of a run.
        weights_sha256: SHA-256 of the weights after the last record, hexadecimal.

    Returns:
        An object with the keys

        - `run`: as given;
        - `metrics`: `loss`, and `accuracy` (in [0, 1]) where there are classes, of the latest
          evaluation, else of the training in the last accepted visit; empty where neither is;
          and of an evaluated language model its `perplexity`;
        - `trips`: number of the last trip with a decided visit;
        - `visits`: accepted visits;
        - `refused`: refused visits;
        - `bytes_moved`: bytes of all blocks that nodes pulled, for refused visits too, as if each
          node were alone on its machine. What a node returns is counted once: where the next node
          pulls it, or where it goes to be averaged. With split learning, what nodes exchanged with
          the server besides;
        - `nodes`: by node name, `visits`, `bytes_pulled`, `bytes_returned` and `exchanged_bytes` in
          the same way;
        - `network`: what went between machines: `predicted` by the ledger and `measured` by the
          object managers (none where nobody counted), in all and by the receiving one of
          `machines`; and `links`, the predicted bytes from node to node;
        - `prediction_error`: of a run that adapts, the median over the visits after the first trip
          of how far their seconds were from the prediction, as a share of what they were;
        - `seconds`: time in which a visit or an evaluation was under way; time between a crash and
          its resume is not counted, nor are visits at the same time counted twice;
        - `weights_sha256`: as given.
    """
    records = list(records)
    journal = [one for one in records if isinstance(one, VisitRecord | EvaluationRecord)]
    visits = [record for record in journal if isinstance(record, VisitRecord)]
    return {
        "run": run,
        "metrics": _metrics(journal),
        "trips": max((visit.trip for visit in visits), default=0),
        "visits": sum(visit.accepted for visit in visits),
        "refused": sum(not visit.accepted for visit in visits),
        "bytes_moved": bytes_moved(visits),
        "nodes": _nodes(visits),
        "network": traffic(records).summary(),
        **_predictions(visits),
        "seconds": round(busy_seconds(journal), 3),
        "weights_sha256": weights_sha256,
    }


def _nodes(visits: Iterable[VisitRecord]) -> dict[str, dict[str, int]]:
    nodes: dict[str, dict[str, int]] = {}
    counted = ("bytes_pulled", "bytes_returned", "exchanged_bytes")
    for visit in visits:
        own = nodes.setdefault(visit.node_name, dict.fromkeys(("visits", *counted), 0))
        own["visits"] += 1
        for name in counted:
            own[name] += getattr(visit, name)
    return nodes


def _predictions(visits: Iterable[VisitRecord]) -> dict[str, float]:
    errors = [visit.prediction_error for visit in visits if visit.trip > 1]
    known = [one for one in errors if one is not None]
    return {"prediction_error": statistics.median(known)} if known else {}


def bytes_moved(visits: Iterable[VisitRecord]) -> int:
    """Return the bytes of all that moved for these visits: see `VisitRecord.bytes_moved`."""
    return sum(visit.bytes_moved for visit in visits)


def busy_seconds(records: Iterable[VisitRecord | EvaluationRecord]) -> float:
    """Return for how long at least one of these visits and evaluations was under way."""
    return sum(end - start for start, end in busy_periods(records))


def busy_periods(
    records: Iterable[VisitRecord | EvaluationRecord],
) -> list[tuple[float, float]]:
    """Return when at least one of these visits and evaluations was under way.

    Returns:
        Beginning and end of each such period in Unix time, ascending; none touches the next.
    """
    periods: list[tuple[float, float]] = []
    for start, end in sorted((one.finished_at - one.seconds, one.finished_at) for one in records):
        if periods and start <= periods[-1][1]:
            first, last = periods.pop()
            start, end = first, max(last, end)
        periods.append((start, end))
    return periods


def _metrics(journal: list[VisitRecord | EvaluationRecord]) -> dict[str, float]:
    latest: VisitRecord | EvaluationRecord | None = None
    for record in journal:
        if isinstance(record, EvaluationRecord) or (
            record.accepted and not isinstance(latest, EvaluationRecord)
        ):
            latest = record
    if latest is None:
        return {}
    metrics = {"loss": latest.loss}
    if latest.accuracy is not None:
        metrics["accuracy"] = latest.accuracy
    if isinstance(latest, EvaluationRecord) and latest.perplexity is not None:
        metrics["perplexity"] = latest.perplexity
    return metrics
