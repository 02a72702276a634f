import json

from ray_snake.telemetry.summary import run_summary


def test_summary_adds_up_the_journal(start_record, visit_record, evaluation_record):
    records = [start_record, *[visit_record(number) for number in (1, 2, 3)]]
    records.insert(3, evaluation_record(2))
    assert run_summary("runs/one", records, "ab" * 32) == {
        "run": "runs/one",
        "metrics": {"loss": 0.375, "accuracy": 0.875},
        "trips": 2,
        "visits": 3,
        "refused": 0,
        "bytes_moved": 1024 * (1 + 2 + 3),
        "nodes": {
            "clinic-0": {
                "visits": 1,
                "bytes_pulled": 2048,
                "bytes_returned": 512,
                "exchanged_bytes": 0,
            },
            "clinic-1": {
                "visits": 2,
                "bytes_pulled": 4096,
                "bytes_returned": 1024,
                "exchanged_bytes": 0,
            },
        },
        "network": {"predicted": 0, "measured": None, "links": [], "machines": {}},
        "seconds": 6.0,
        "weights_sha256": "ab" * 32,
    }


def test_refused_visits_count_in_bytes_but_not_in_metrics(visit_record):
    refused = visit_record(2, accepted=False, loss=float("nan"), accuracy=None)
    summary = run_summary("run", [visit_record(1), refused], "")
    assert summary["metrics"] == {"loss": 1.0, "accuracy": 0.5}
    assert (summary["visits"], summary["refused"]) == (1, 1)
    assert summary["bytes_moved"] == 1024 * 3
    json.dumps(summary, allow_nan=False)


def test_latest_evaluation_counts_before_later_training(visit_record, evaluation_record):
    records = [evaluation_record(0, accuracy=0.1), visit_record(1), visit_record(2)]
    assert run_summary("run", records, "")["metrics"]["accuracy"] == 0.1
    records.append(evaluation_record(2, accuracy=0.9))
    assert run_summary("run", records, "")["metrics"]["accuracy"] == 0.9


def test_accuracy_is_left_out_without_classes(visit_record, evaluation_record):
    records = [visit_record(1, accuracy=None), evaluation_record(1, accuracy=None)]
    assert run_summary("run", records, "")["metrics"] == {"loss": 0.375}


def test_seconds_count_neither_outages_nor_overlaps_twice(visit_record):
    records = [
        visit_record(1, finished_at=100.0, seconds=10.0),
        visit_record(2, finished_at=105.0, seconds=10.0),
        visit_record(3, finished_at=103.0, seconds=2.0),
        visit_record(4, finished_at=1000.0, seconds=1.5),
    ]
    assert run_summary("run", records, "")["seconds"] == 16.5


def test_empty_journal_has_an_empty_summary():
    summary = run_summary("run", [], "cd")
    assert summary["metrics"] == {}
    assert summary["visits"] == summary["trips"] == summary["bytes_moved"] == 0
    assert summary["seconds"] == 0.0


def test_what_moved_is_what_was_pulled_averaged_and_exchanged(visit_record):
    visits = [
        visit_record(1, averaged=True),
        visit_record(2, averaged=True, accepted=False, exchanged_bytes=7),
        visit_record(3, exchanged_bytes=5),
    ]
    summary = run_summary("run", visits, "")
    assert summary["bytes_moved"] == 1024 * (1 + 2 + 3) + 2 * 512 + 7 + 5
    assert summary["nodes"]["clinic-1"]["exchanged_bytes"] == 5
