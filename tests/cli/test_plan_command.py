"""`ray-snake plan` shows what would run, and trains nothing."""

import subprocess
import sys
from pathlib import Path

CONFIG = Path(__file__).parents[2] / "jobs" / "configs" / "quickstart.toml"


def test_the_plan_names_blocks_nodes_and_predictions_and_starts_nothing(tmp_path):
    done = subprocess.run(
        [
            *(sys.executable, "-c", "from ray_snake.cli.main import main; main()"),
            *("plan", str(CONFIG), "--trips", "1", "--set", "data.partition.nodes=3"),
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    found = ("conv1", "digits/train[2]", "0-1 4", "130.2 KiB", "span_major", "whole run about")
    for words in found:
        assert words in done.stdout
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []
