"""The comparison's command at tiny size: its rows, that cells are kept, its table and plot."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ray_snake.data.shards import make_table, write_shard

ROOT = Path(__file__).parents[1]
KEYS = {
    "strategy",
    "norm",
    "partition",
    "seed",
    "accuracy",
    "fluctuation",
    "samples",
    "bytes",
    "bytes_with_copies",
    "peak_memory_bytes",
    "largest_peak_memory_bytes",
    "flops",
    "serial_steps",
    "seconds",
    "config_hash",
    "commit",
    "machine",
}


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """A folder with pictures as the command looks for them."""
    folder = tmp_path_factory.mktemp("comparison")
    rng = np.random.default_rng(0)
    for name, rows in (("train", 400), ("test", 100)):
        labels = np.arange(rows) % 10
        pictures = rng.integers(0, 256, (rows, 3, 32, 32), dtype=np.uint8)
        (folder / "data").mkdir(exist_ok=True)
        write_shard(str(folder / "data" / f"{name}.arrow"), make_table(pictures, labels))
    return folder


def compare(folder, *arguments):
    token = folder / "token"
    token.write_text("0" * 64)
    done = subprocess.run(
        [
            *(sys.executable, str(ROOT / "jobs/benchmarks/accuracy.py")),
            *("--scale", "tiny", "--seeds", "1", "--data", "data", "--partition", "alpha0.1"),
            *("--norm", "fixbn", "--json", *arguments),
        ],
        cwd=folder,
        env={**os.environ, "HOME": str(folder), "RAY_AUTH_TOKEN_PATH": str(token)},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])["rows"], done.stderr


@pytest.fixture(scope="module")
def rows(workplace):
    chosen = ["--strategy", "fedavg+la", "--strategy", "split+la", "--strategy", "snake"]
    return compare(workplace, *chosen, "--rate", "0.01", "--results", "results")[0]


def test_a_row_says_all_that_is_compared(rows):
    assert [row["strategy"] for row in rows] == ["fedavg+la", "split+la", "snake"]
    for row in rows:
        assert row.keys() >= KEYS
        assert all(row[key] is not None for key in KEYS)
    # A last batch of a single row is left out.
    (samples,) = {row["samples"] for row in rows}
    assert 3 * 237 <= samples <= 3 * 240


def test_bytes_memory_and_steps_are_each_strategys_own(rows):
    averaged, split, snake = rows
    assert snake["bytes"] < averaged["bytes"] / 2
    assert snake["peak_memory_bytes"] < averaged["peak_memory_bytes"]
    # Its warm-up is whole-model visits with a teacher; averages are made where copies would be.
    assert snake["largest_peak_memory_bytes"] >= averaged["peak_memory_bytes"]
    assert snake["bytes_with_copies"] > snake["bytes"]
    assert averaged["bytes_with_copies"] == averaged["bytes"]
    assert split["peak_memory_bytes"] < averaged["peak_memory_bytes"]
    # The nodes of a round train side by side.
    assert averaged["serial_steps"] < snake["serial_steps"]
    assert len({row["config_hash"] for row in rows}) == 3


def test_the_curve_ends_with_the_whole_run(rows):
    for row in rows:
        last = row["curve"][-1]
        assert (last["samples"], last["bytes"]) == (row["samples"], row["bytes"])
        assert last["serial_steps"] == row["serial_steps"]


def test_results_are_a_table_a_file_and_a_plot(rows, workplace):
    page = (workplace / "results" / "tiny.md").read_text()
    assert "| snake | 1 |" in page
    assert "accuracy.py --scale tiny" in page
    assert (workplace / "results" / "tiny-alpha0.1-rivals.png").stat().st_size > 10_000
    assert pq.read_table(workplace / "results" / "tiny.parquet").num_rows == 3


def test_what_was_trained_is_kept_and_shown_again(rows, workplace):
    again, log = compare(workplace, "--strategy", "snake", "--rate", "0.01")
    assert again == [row for row in rows if row["strategy"] == "snake"]
    assert "training" not in log


def test_a_new_machine_goes_on_with_the_rows_of_another(rows, workplace, tmp_path):
    (tmp_path / "data").symlink_to(workplace / "data")
    known = str(workplace / "results" / "tiny.parquet")
    # Neither is the snake trained again, nor its learning rate chosen anew.
    both, log = compare(
        tmp_path, "--strategy", "snake", "--strategy", "snake-no-kd", "--rows", known
    )
    assert both[0] == rows[2]
    assert both[1]["learning_rate"] == rows[2]["learning_rate"]
    trained = [line for line in log.splitlines() if line.startswith("training")]
    assert trained == ["training cell-snake-no-kd-alpha0.1-1-0.01 (1 of 1)"]
    shown, _ = compare(tmp_path, "--finished", "--rows", known)
    assert [row["strategy"] for row in shown] == ["fedavg+la", "split+la", "snake", "snake-no-kd"]


def test_rows_of_other_settings_are_trained_again(rows, workplace, tmp_path):
    (tmp_path / "data").symlink_to(workplace / "data")
    changed = {**rows[2], "config_hash": "0" * 16}
    pq.write_table(pa.Table.from_pylist([changed]), tmp_path / "other.parquet")
    again, log = compare(
        tmp_path, "--strategy", "snake", "--rate", "0.01", "--rows", "other.parquet"
    )
    assert "1 known rows are of other settings" in log
    assert "training cell-snake-alpha0.1-1-0.01" in log
    assert again[0]["accuracy"] == rows[2]["accuracy"]
