"""`ray-snake plan` shows what would run, and trains nothing."""

import subprocess
import sys
from pathlib import Path

CONFIG = Path(__file__).parents[2] / "jobs" / "configs" / "quickstart.toml"


def plan(folder, *options):
    return subprocess.run(
        [
            *(sys.executable, "-c", "from ray_snake.cli.main import main; main()"),
            *("plan", str(CONFIG), "--trips", "1"),
            *(word for one in options for word in ("--set", one)),
        ],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_the_plan_names_blocks_nodes_and_predictions_and_starts_nothing(tmp_path):
    done = plan(tmp_path, "data.partition.nodes=3")
    assert done.returncode == 0
    found = ("conv1", "digits/train[2]", "0-1 4", "131.4 KiB", "span_major", "whole run about")
    for words in found:
        assert words in done.stdout
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_plan_that_does_not_fit_a_nodes_memory_says_by_how_much(tmp_path):
    done = plan(tmp_path, "nodes.memory_bytes=100000")
    assert done.returncode == 2
    assert "nodes.memory_bytes: 100000 bytes are" in done.stderr
    assert "too few for digits/train[0]" in done.stderr


def test_a_plan_refuses_settings_for_nodes_that_are_not_there_as_training_does(tmp_path):
    done = plan(tmp_path, 'nodes.each=[{match="nobody_*", cpus=2}]')
    assert done.returncode == 2
    assert "nodes.each[0].match: 'nobody_*' matches none of the nodes" in done.stderr


def test_a_plan_shows_the_rows_at_once_that_a_nodes_memory_bears(tmp_path):
    done = plan(tmp_path, "nodes.memory_bytes=700000", "training.micro_batch=auto")
    assert done.returncode == 0
    rows = [line.split() for line in done.stdout.splitlines() if "digits/train[0]" in line]
    assert int(rows[0][7]) < 16


def test_a_plan_for_nodes_on_gpus_shows_what_visits_take_of_their_memory(tmp_path):
    done = plan(tmp_path, "nodes.gpus=0.5")
    assert done.returncode == 0
    assert "GPU memory" in done.stdout
