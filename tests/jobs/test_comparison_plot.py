"""The comparison's picture, whatever the number of its strategies."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "jobs" / "benchmarks"))
from comparison.tables import plot


@pytest.mark.parametrize("strategies", [1, 21, 70])
def test_there_are_looks_for_every_strategy(strategies, tmp_path):
    rows = [
        {
            "strategy": f"strategy-{number}",
            "curve": [
                {"samples": end, "bytes": end, "serial_steps": end, "accuracy": 0.01 * number}
                for end in (10, 20)
            ],
        }
        for number in range(strategies)
    ]
    plot(rows, tmp_path / "picture.png", title="iid")
    assert (tmp_path / "picture.png").stat().st_size > 10_000
