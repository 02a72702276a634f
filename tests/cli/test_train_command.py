import json
from pathlib import Path

from ray_snake.runtime.run_folder import RunFolder


def test_json_is_all_of_standard_output(trained):
    workplace, finished = trained
    (line,) = finished.stdout.splitlines()
    summary = json.loads(line)
    assert set(summary) >= {
        "run",
        "metrics",
        "trips",
        "visits",
        "bytes_moved",
        "seconds",
        "weights_sha256",
    }
    assert summary["run"] == str(workplace.runs / "digits")
    assert set(summary["metrics"]) == {"accuracy", "loss"}
    assert (summary["trips"], summary["visits"]) == (2, 4)
    assert summary["bytes_moved"] > 0
    assert len(bytes.fromhex(summary["weights_sha256"])) == 32


def test_what_to_do_next_goes_to_standard_error(trained):
    _, finished = trained
    assert "trip 2/2" in finished.stderr
    assert "ray-snake evaluate" in finished.stderr


def test_a_run_is_called_after_its_settings_and_keeps_them(trained):
    workplace, _ = trained
    folder = RunFolder.open(str(workplace.runs / "digits"))
    assert folder.config.snake.trips == 2
    assert folder.config.model.options["norm"] == "batch"
    assert [record.visit for record in folder.journal().visits] == [1, 2, 3, 4]
    assert len(list(Path(folder.uri).rglob("*.safetensors"))) == 5


def test_a_finished_run_can_not_be_started_again_by_its_name(trained):
    workplace, _ = trained
    again = workplace.call_forked("train", "digits.toml", "--name", "digits")
    assert again.returncode == 2
    assert "--resume" in again.stderr
