"""A benchmark that is ended, in whatever way, ends what it has begun."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from ray_snake.data.shards import make_table, write_shard

ACCURACY = Path(__file__).parents[2] / "jobs" / "benchmarks" / "accuracy.py"
SECONDS = 120.0


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGKILL])
def test_its_cells_end_with_it(tmp_path, sent):
    (tmp_path / "token").write_text("0" * 64)
    rng = np.random.default_rng(0)
    (tmp_path / "data").mkdir()
    for name, rows in (("train", 400), ("test", 100)):
        pictures = rng.integers(0, 256, (rows, 3, 32, 32), dtype=np.uint8)
        write_shard(
            str(tmp_path / "data" / f"{name}.arrow"), make_table(pictures, np.arange(rows) % 10)
        )
    chosen = ["--partition", "iid", "--strategy", "snake", "--rate", "0.01", "--seeds", "1"]
    benchmark = subprocess.Popen(
        [sys.executable, ACCURACY, "--scale", "tiny", "--data", "data", *chosen],
        cwd=tmp_path,
        env={**os.environ, "HOME": str(tmp_path), "RAY_AUTH_TOKEN_PATH": str(tmp_path / "token")},
        stderr=subprocess.DEVNULL,
    )
    started = []
    try:
        until(lambda: [one for one in begun(benchmark.pid) if "ray::SnakeNode" in command(one)])
        started = begun(benchmark.pid)
        benchmark.send_signal(sent)
        until(lambda: not [one for one in started if alive(one)])
        assert benchmark.wait(SECONDS) == (143 if sent == signal.SIGTERM else -sent)
    finally:
        benchmark.kill()
        for one in filter(alive, started):
            one.kill()
        benchmark.wait()


def begun(pid):
    return psutil.Process(pid).children(recursive=True)


def command(process):
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def alive(process):
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def until(condition):
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)
