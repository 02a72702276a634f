import pyarrow as pa
import pyarrow.parquet as pq

from ray_snake.runtime.records import VisitRecord
from ray_snake.telemetry.history import HISTORY_SCHEMA, history_table


def test_every_scalar_of_a_visit_has_a_column_with_a_description():
    no_scalars = {"kind", "span", "trained", "blocks", "transfers", "ends_round", "versions"}
    # What a journal needs to go on, and no reader.
    no_scalars |= {"place", "planned_steps", "pull_bytes", "free_bytes"}
    scalars = set(VisitRecord.model_fields) - no_scalars
    added = {"span_start", "span_stop", "network_bytes", "test_loss", "test_accuracy"}
    added |= {"test_perplexity"}
    assert set(HISTORY_SCHEMA.names) == scalars | added
    assert all(field.metadata[b"description"] for field in HISTORY_SCHEMA)


def test_rows_are_the_visits_in_order_with_the_evaluations_beside_them(
    start_record, visit_record, evaluation_record
):
    records = [
        start_record,
        evaluation_record(0),
        visit_record(1),
        visit_record(2),
        evaluation_record(2),
    ]
    table = history_table(records)
    assert table.schema.equals(HISTORY_SCHEMA, check_metadata=True)
    assert table.column("visit").to_pylist() == [1, 2]
    assert table.column("bytes_pulled").to_pylist() == [1024, 2048]
    assert table.column("span_start").to_pylist() == [2, 2]
    assert table.column("span_stop").to_pylist() == [4, 4]
    assert table.column("test_accuracy").to_pylist() == [None, 0.875]
    assert table.column("test_loss").to_pylist() == [None, 0.375]


def test_refused_visit_has_a_row_without_an_evaluation(visit_record, evaluation_record):
    refused = visit_record(1, accepted=False, reason="loss is not finite", loss=float("nan"))
    table = history_table([refused, visit_record(1), evaluation_record(1)])
    assert table.column("accepted").to_pylist() == [False, True]
    assert table.column("reason").to_pylist() == ["loss is not finite", ""]
    assert table.column("test_accuracy").to_pylist() == [None, 0.875]


def test_a_change_that_nobody_measured_is_null(visit_record):
    table = history_table([visit_record(1, accepted=False, update_norm=None), visit_record(1)])
    assert table.column("update_norm").to_pylist() == [None, 0.25]


def test_table_without_visits_has_the_columns_too():
    assert history_table([]).schema == HISTORY_SCHEMA
    assert history_table([]).num_rows == 0


def test_table_goes_through_parquet_unchanged(visit_record, tmp_path):
    table = history_table([visit_record(1, accuracy=None), visit_record(2)])
    pq.write_table(table, tmp_path / "history.parquet")
    back = pq.read_table(tmp_path / "history.parquet")
    assert back.equals(table)
    assert back.schema.field("bytes_pulled").metadata[b"unit"] == b"bytes"
    assert back.schema.field("accuracy").type == pa.float64()
