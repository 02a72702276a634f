"""Two drivers of one run: one of them stops, and nothing that was accepted is lost."""

import signal
import subprocess
import sys
import time
from pathlib import Path

from ray_snake.runtime.journal import VisitRecord, read_records
from ray_snake.storage import Storage

CONFIG = Path(__file__).parents[1] / "jobs" / "configs" / "quickstart.toml"
SECONDS = 120
TRIPS = 400


def start(storage, *options):
    command = "from ray_snake.cli.main import main; main()"
    return subprocess.Popen(
        [
            *(sys.executable, "-c", command, "train", str(CONFIG), "--storage", str(storage)),
            *("--name", "both", "--set", f"snake.trips={TRIPS}"),
            *("--set", "data.partition.nodes=2", "--set", "nodes.nodes_per_actor=2"),
            *options,
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def visits(storage):
    run = Storage(storage / "both")
    return [one.visit for one in read_records(run) if isinstance(one, VisitRecord)]


def wait_for(condition):
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_run_that_goes_on_twice_goes_on_once(tmp_path):
    first = start(tmp_path)
    second = None
    try:
        wait_for(lambda: visits(tmp_path))
        second = start(tmp_path, "--resume")
        both = (first, second)
        wait_for(lambda: any(one.poll() is not None for one in both))
        (lost,) = (one for one in both if one.poll() is not None)
        (other,) = (one for one in both if one is not lost)
        _, said = lost.communicate(timeout=SECONDS)
        assert lost.returncode == 1, said
        assert "another driver goes on with run" in said
        assert "Traceback" not in said
        before = visits(tmp_path)
        wait_for(lambda: len(visits(tmp_path)) > len(before) + 2)
        other.send_signal(signal.SIGINT)
        _, said = other.communicate(timeout=SECONDS)
        assert other.returncode == 130, said
        found = visits(tmp_path)
        assert found == list(range(1, len(found) + 1))
        assert len(found) > len(before)
    finally:
        for one in (first, second):
            if one is not None and one.poll() is None:
                one.kill()
                one.wait()
