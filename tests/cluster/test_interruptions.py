"""The whole command is killed or interrupted; with --resume it ends with the same weights."""

import json
import os
import signal
import subprocess
import sysconfig
from pathlib import Path

import psutil
import pytest
from scenarios import DEADLINE_SECONDS, NODES, SETTINGS, VISITS, kill_tree, toml, until
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from ray_snake.config import SnakeConfig
from ray_snake.runtime.journal import Journal
from ray_snake.storage import Storage

COMMAND = Path(sysconfig.get_path("scripts")) / "ray-snake"
# How nodes share processes doesn't change the weights, and one process starts sooner than three.
OPTIONS = ("--name", "run", "--json", "--set", f"nodes.nodes_per_actor={NODES}")


class Command:
    """`ray-snake train` of the common settings in a folder of its own, started as often as told."""

    def __init__(self, folder):
        self._folder = folder
        self.run = Storage(str(folder / "runs" / "run"))
        (folder / "home").mkdir()
        (folder / "digits.toml").write_text(toml(SETTINGS))
        assert SnakeConfig.load(folder / "digits.toml") == SnakeConfig.from_tree(SETTINGS)

    def start(self, *arguments):
        hidden = ("RAY_ADDRESS", "RAY_AUTH_TOKEN_PATH")
        inherited = {name: value for name, value in os.environ.items() if name not in hidden}
        return subprocess.Popen(
            [COMMAND, "train", "digits.toml", *OPTIONS, *arguments],
            cwd=self._folder,
            env={**inherited, "HOME": str(self._folder / "home")},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def visits(self):
        return [record.visit for record in Journal(self.run).visits]

    def wait_for_visits(self, process, count):
        def enough():
            assert process.poll() is None, process.communicate()[1]
            return len(self.visits()) >= count

        until(enough, f"the journal has {count} visits")

    def finish(self, *arguments):
        process = self.start(*arguments)
        out, err = process.communicate(timeout=DEADLINE_SECONDS)
        assert process.returncode == 0, err
        return json.loads(out.splitlines()[-1])


def stop_nodes(process):
    """Leave a run in the middle of a visit."""
    nodes = [
        one
        for one in psutil.Process(process.pid).children(recursive=True)
        if one.cmdline()[:1] == ["ray::SnakeNode"] or one.name().startswith("ray::SnakeNode")
    ]
    assert nodes
    for one in nodes:
        one.suspend()


@pytest.fixture
def command(tmp_path):
    return Command(tmp_path)


def test_a_run_killed_twice_is_resumed_to_the_same_weights(command, reference):
    counts = []
    for count, arguments in ((2, ()), (9, ("--resume",))):
        process = command.start(*arguments)
        command.wait_for_visits(process, count)
        tree = kill_tree(process)
        process.communicate()
        assert len(tree) > 4
        counts.append(len(command.visits()))
    assert 2 <= counts[0] < counts[1] < VISITS
    summary = command.finish("--resume")
    assert summary["weights_sha256"] == reference.summary["weights_sha256"]
    assert summary["metrics"] == reference.summary["metrics"]
    assert summary["visits"] == VISITS
    assert command.visits() == list(range(1, VISITS + 1))
    evaluations = [record.visit for record in Journal(command.run).evaluations]
    assert evaluations == list(range(NODES, VISITS + 1, NODES))
    points = EventAccumulator(str(Path(command.run.uri) / "tensorboard")).Reload()
    assert [one.step for one in points.Scalars("loss/train")] == list(range(1, VISITS + 1))
    assert [one.step for one in points.Scalars("accuracy/test")] == evaluations


def test_an_interrupted_run_says_so_and_is_resumed_to_the_same_weights(command, raylets, reference):
    cluster = ("--address", raylets.address)
    counts = []
    for number, count, arguments in (
        (signal.SIGINT, 2, ()),
        (signal.SIGTERM, 9, ("--resume",)),
    ):
        process = command.start(*cluster, *arguments)
        command.wait_for_visits(process, count)
        process.send_signal(number)
        out, err = process.communicate(timeout=DEADLINE_SECONDS)
        assert process.returncode == 130, err
        assert out == ""
        assert "--resume" in err.splitlines()[-1]
        assert "Traceback" not in err
        counts.append(len(command.visits()))
    assert 2 <= counts[0] < counts[1] < VISITS
    summary = command.finish(*cluster, "--resume")
    assert summary["weights_sha256"] == reference.summary["weights_sha256"]


def test_a_run_that_is_resumed_while_it_goes_on_is_the_second_ones(command, reference):
    first = command.start()
    command.wait_for_visits(first, 2)
    stop_nodes(first)
    summary = command.finish("--resume")
    out, err = first.communicate(timeout=DEADLINE_SECONDS)
    assert first.returncode == 1, err
    assert out == ""
    last = err.splitlines()[-1]
    assert last.startswith(f"ray-snake: run {command.run.uri} was taken over by a driver on ")
    assert last.endswith("leave it to that one, or end it and --resume here")
    assert "Traceback" not in err
    assert summary["weights_sha256"] == reference.summary["weights_sha256"]
    assert command.visits() == list(range(1, VISITS + 1))
