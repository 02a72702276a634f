from ray_snake.runtime.records import TrafficRecord, Transfer
from ray_snake.telemetry.traffic import traffic


def reading(visit, *, first=False, **received):
    return TrafficRecord(
        visit=visit, driver_machine="m0", received=received, first=first, finished_at=1.0
    )


def transfers(*moves):
    return tuple(Transfer(source=s, target=t, bytes=n) for s, t, n in moves)


def test_a_journal_without_transfers_says_that_nobody_counted():
    assert traffic([]).summary() == {
        "predicted": 0,
        "measured": None,
        "links": [],
        "machines": {},
    }


def test_predictions_stand_beside_measurements_by_machine(visit_record):
    up = transfers(("driver", "clinic-1", 100), ("clinic-1", "driver", 30))
    across = transfers(("clinic-1", "clinic-0", 30), ("clinic-0", "driver", 30))
    found = traffic(
        [
            reading(0, first=True, m0=1000, m1=0, m2=7),
            visit_record(1, machine="m1", transfers=up),
            visit_record(2, machine="m2", transfers=across),
            reading(2, m0=1061, m1=101, m2=37),
        ]
    )
    assert found.summary() == {
        "predicted": 190,
        "measured": 192,
        "links": [
            {"source": "clinic-0", "target": "driver", "bytes": 30},
            {"source": "clinic-1", "target": "clinic-0", "bytes": 30},
            {"source": "clinic-1", "target": "driver", "bytes": 30},
            {"source": "driver", "target": "clinic-1", "bytes": 100},
        ],
        "machines": {
            "m0": {"predicted": 60, "measured": 61},
            "m1": {"predicted": 100, "measured": 101},
            "m2": {"predicted": 30, "measured": 30},
        },
    }


def test_what_others_moved_before_the_run_and_between_its_parts_does_not_count(visit_record):
    found = traffic(
        [
            reading(0, first=True, m0=50),
            reading(1, m0=60),
            # Resumed, on a cluster whose counters had gone on, and with a machine more.
            reading(1, first=True, m0=500, m1=9),
            reading(2, m0=505, m1=10, m2=70),
            reading(3, m0=505, m1=10, m2=75),
        ]
    )
    assert found.measured == {"m0": 15, "m1": 1, "m2": 5}
