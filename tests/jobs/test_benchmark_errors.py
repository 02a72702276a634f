"""What a benchmark cannot start with is one line, and exit status 2."""

import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "jobs" / "benchmarks"


@pytest.mark.parametrize(
    ("command", "says"),
    [
        (["accuracy.py", "--data", "nowhere", "--storage", "cells"], "could not open train.arrow"),
        (["finetune.py", "--task", "reviews"], "data/reviews-8/node_*.arrow: there is no such"),
        (["heads.py", "--data", "nowhere"], "could not open train.arrow"),
    ],
)
def test_missing_data_is_one_line(tmp_path, command, says):
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / command[0]), *command[1:]],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 2
    assert says in done.stderr
    assert len(done.stderr.splitlines()) == 1
