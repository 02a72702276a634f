"""The benchmark of what fine-tuning takes, at a size that trains in a moment."""

import json
import subprocess
import sys
from pathlib import Path

BENCHMARK = Path(__file__).parents[2] / "jobs" / "benchmarks" / "memory.py"


def run(*options):
    done = subprocess.run(
        [sys.executable, str(BENCHMARK), "--shape", "tiny", "--repeats", "1", "--json", *options],
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


def test_it_prints_what_each_way_takes_and_what_was_predicted():
    figures = run("--only", "memory", "--builder", "huggingface")
    peaks = figures["peak_mib"]
    assert peaks["snake_stream"] < peaks["snake_resident"] < peaks["full"]
    assert figures["full_over_snake_stream"] > figures["full_over_snake_resident"] > 1
    assert peaks["snake_adapters_stream"] < peaks["snake_adapters_resident"] < peaks["lora"]
    assert figures["lora_over_snake_stream"] > 0
    assert figures["lora_over_snake_adapters_stream"] > 1
    assert set(figures["predicted_over_measured_by_way"]) == {
        "full",
        "snake_adapters_resident",
        "snake_adapters_stream",
        *(
            f"snake_{residency}_{place}"
            for residency in ("resident", "stream")
            for place in ("first", "last", "embedding")
        ),
    }
    assert 0.75 < figures["predicted_over_measured"] < 1.3
    for whole, private in zip(
        figures["process_peak_mib"].values(), figures["process_private_mib"].values(), strict=True
    ):
        assert whole > private > 0


def test_it_prints_what_a_step_takes_for_each_span():
    figures = run("--only", "steps")
    for network, spans in (("vgg11", 10), ("language_model", 6)):
        ratios = figures[f"cached_step_over_full_step_{network}_by_span"]
        assert len(ratios) == spans
        assert all(one > 0 for one in ratios)
    assert figures["cached_step_over_full_step"] == max(
        figures[f"cached_step_over_full_step_{one}"] for one in ("vgg11", "language_model")
    )


def test_a_gpu_that_is_not_there_is_named_in_one_line(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    done = subprocess.run(
        [sys.executable, str(BENCHMARK), "--shape", "tiny", "--device", "cuda"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 2
    assert "torch finds no GPU here" in done.stderr
    assert "Traceback" not in done.stderr
