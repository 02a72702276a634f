"""The benchmark of what frozen blocks behind the span take."""

import json
import subprocess
import sys
from pathlib import Path

BENCHMARK = Path(__file__).parents[2] / "jobs" / "benchmarks" / "suffix.py"


def test_it_prints_ratios_of_bytes_and_seconds_for_each_span():
    options = ["--width", "0.125", "--batch", "4", "--repeats", "1", "--norm", "batch", "--json"]
    done = subprocess.run(
        [sys.executable, str(BENCHMARK), *options],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    spans = json.loads(done.stdout)["spans"]
    assert [one["trained"] for one in spans[:2]] == [[0, 1, 9], [2, 3, 9]]
    assert spans[0]["lean_bytes_ratio"] < spans[0]["recompute_bytes_ratio"] < 1
    assert all(one["lean_seconds_ratio"] > 0 for one in spans)
