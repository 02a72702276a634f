"""The benchmark that compares devices, with the CPU on both sides."""

import json
import subprocess
import sys
from pathlib import Path

BENCHMARK = Path(__file__).parents[2] / "jobs" / "benchmarks" / "devices.py"


def run(*options):
    return subprocess.run(
        [sys.executable, str(BENCHMARK), *options],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_a_device_comes_to_what_it_comes_to_itself():
    done = run("--device", "cpu", "--network", "decoder", "--network", "cnn", "--json")
    figures = json.loads(done.stdout)
    assert figures["largest_difference"] == 0
    assert len(figures["rows"]) == 37
    for row in figures["rows"]:
        assert row["repeats"], row
        assert row["loss"] == row["device_loss"]


def test_a_device_that_is_not_there_is_named_in_one_line(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    done = run("--device", "cuda")
    assert done.returncode == 2
    assert "torch finds no GPU here" in done.stderr
