"""A run's visits as an Arrow table."""

from __future__ import annotations

from collections.abc import Iterable

import pyarrow as pa

from ray_snake.runtime.records import EvaluationRecord, JournalRecord, VisitRecord


def _column(
    name: str, kind: pa.DataType, description: str, unit: str = "", *, nullable: bool = False
) -> pa.Field:
    metadata = {"description": description, "unit": unit}
    return pa.field(name, kind, nullable=nullable, metadata=metadata)


HISTORY_SCHEMA: pa.Schema = pa.schema(
    [
        _column("visit", pa.int64(), "The visit's number, from 1."),
        _column("trip", pa.int64(), "The trip it belongs to, from 1."),
        _column("node", pa.int64(), "The node's number, from 0."),
        _column("node_name", pa.string(), "The node's name."),
        _column("machine", pa.string(), "The machine it was on, by Ray's id."),
        _column("span_start", pa.int64(), "First block of the span, from 0."),
        _column("span_stop", pa.int64(), "The block after the span's last."),
        _column("learning_rate", pa.float64(), "The visit's learning rate."),
        _column("accepted", pa.bool_(), "Whether its result became part of the model."),
        _column("averaged", pa.bool_(), "Whether it was averaged with its trip's others."),
        _column("reason", pa.string(), "Why it was refused; empty for an accepted visit."),
        _column("samples", pa.int64(), "Samples seen by the optimizer.", "samples"),
        _column("steps", pa.int64(), "Optimizer steps.", "steps"),
        _column("loss", pa.float64(), "Mean training loss over the last epoch."),
        _column("first_loss", pa.float64(), "Mean training loss over the first epoch."),
        _column(
            "accuracy",
            pa.float64(),
            "Training accuracy over the last epoch, in [0, 1]; null without classes.",
            nullable=True,
        ),
        _column(
            "update_norm",
            pa.float64(),
            "L2 norm of the change to the trained weights; null for a refused visit whose change "
            "nobody had to measure.",
            nullable=True,
        ),
        _column(
            "bytes_pulled",
            pa.int64(),
            "Block versions that the node pulled, as if it were alone on its machine.",
            "bytes",
        ),
        _column("bytes_returned", pa.int64(), "Block versions that it returned.", "bytes"),
        _column(
            "exchanged_bytes",
            pa.int64(),
            "Activations, labels and gradients that it exchanged with the server of split "
            "learning; else 0.",
            "bytes",
        ),
        _column(
            "network_bytes",
            pa.int64(),
            "What went between machines for it, to the node and to the driver's side.",
            "bytes",
        ),
        _column("pull_seconds", pa.float64(), "Getting and loading those blocks.", "seconds"),
        _column(
            "fetch_seconds",
            pa.float64(),
            "Waiting for blocks that were still being fetched ahead of the visit.",
            "seconds",
        ),
        _column("train_seconds", pa.float64(), "Training, prefix and teacher included.", "seconds"),
        _column("seconds", pa.float64(), "From sending the visit to its decision.", "seconds"),
        _column(
            "predicted_seconds",
            pa.float64(),
            "What `seconds` was predicted to be; null where nothing was.",
            "seconds",
            nullable=True,
        ),
        _column(
            "predicted_bytes",
            pa.int64(),
            "The node's own peak memory, as predicted; null where nothing was.",
            "bytes",
            nullable=True,
        ),
        _column("why", pa.string(), "Why the driver left the fixed order; empty if it did not."),
        _column("late", pa.bool_(), "Whether it was stopped at its deadline."),
        _column(
            "staleness", pa.int64(), "Results that came in between its start and its decision."
        ),
        _column("finished_at", pa.float64(), "Unix time of the decision.", "seconds since 1970"),
        _column(
            "test_loss",
            pa.float64(),
            "Mean task loss on held-out rows after this visit; null where not evaluated.",
            nullable=True,
        ),
        _column(
            "test_accuracy",
            pa.float64(),
            "Accuracy on held-out rows after this visit, in [0, 1]; null where not evaluated or "
            "without classes.",
            nullable=True,
        ),
        _column(
            "test_perplexity",
            pa.float64(),
            "Perplexity on held-out rows after this visit; null where not evaluated or of other "
            "than language models.",
            nullable=True,
        ),
    ]
)
"""The columns of a history, each with its description and unit in its field's metadata."""

_SAME_NAME = tuple(name for name in HISTORY_SCHEMA.names if name in VisitRecord.model_fields)


def history_table(records: Iterable[JournalRecord]) -> pa.Table:
    """Return the decided visits of a journal, refused ones too, one row each, in their order.

    An evaluation stands in the row of the last visit that the model contained; where a visit was
    evaluated more than once, the latest counts. The evaluation of the initial weights has no row.

    Args:
        records: The journal, in order.

    Returns:
        A table with the columns of `HISTORY_SCHEMA`.
    """
    visits: list[VisitRecord] = []
    evaluations: dict[int, EvaluationRecord] = {}
    for record in records:
        if isinstance(record, VisitRecord):
            visits.append(record)
        elif isinstance(record, EvaluationRecord):
            evaluations[record.visit] = record
    rows = []
    for visit in visits:
        row: dict[str, object] = {name: getattr(visit, name) for name in _SAME_NAME}
        row["span_start"], row["span_stop"] = visit.span
        row["network_bytes"] = sum(one.bytes for one in visit.transfers)
        # A refused visit may be done again under its number: its result was never evaluated.
        evaluation = evaluations.get(visit.visit) if visit.accepted else None
        row["test_loss"] = None if evaluation is None else evaluation.loss
        row["test_accuracy"] = None if evaluation is None else evaluation.accuracy
        row["test_perplexity"] = None if evaluation is None else evaluation.perplexity
        rows.append(row)
    return pa.Table.from_pylist(rows, schema=HISTORY_SCHEMA)
