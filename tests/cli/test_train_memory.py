"""The command's own process has no torch: what needs it is looked at in a process apart."""

import json
import os
import subprocess
import sys
from pathlib import Path

from workplaces import DIGITS, SHORT

# Calls the command and watches it; what happens to its children is up to the test.
WATCHED = """
import json, os, signal, sys, threading, time
from pathlib import Path

def mapped(pid):
    return "libtorch" in Path(f"/proc/{pid}/maps").read_text()

from ray_snake.runtime import model_checks
kills = sys.argv.pop(1) == "kill"
made = model_checks.Apart

class Watched(made):
    def __init__(self, target, **named):
        super().__init__(target, **named)
        Path("apart.json").write_text(json.dumps(self.pid))

    def call(self, method, *arguments):
        if kills and method == "look":
            os.kill(self.pid, signal.SIGKILL)
        answer = super().call(method, *arguments)
        if method == "blocks":
            Path("there").write_text(str(mapped(self.pid)))
        return answer

model_checks.Apart = Watched
from ray_snake.cli.main import main
try:
    main()
finally:
    Path("here").write_text(str(mapped(os.getpid())))
"""
MODULE = """
from torch import nn

def network(width):
    if width > 99:
        raise ValueError("too wide for me")
    return nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.Linear(width, 10))
"""


def watched(workplace, what, *arguments):
    path = [str(workplace.folder), *filter(None, [os.environ.get("PYTHONPATH")])]
    return subprocess.run(
        [sys.executable, "-c", WATCHED, what, *arguments],
        cwd=workplace.folder,
        env=workplace.environment(PYTHONPATH=os.pathsep.join(path)),
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )


def read(workplace, name):
    return (workplace.folder / name).read_text()


def test_the_command_never_maps_torch_and_a_model_function_works(workplace):
    (workplace.folder / "mine.py").write_text(MODULE)
    config = workplace.write(
        '[model]\nname = "mine:network"\noptions = { width = 8 }\n' + DIGITS + SHORT
    )
    done = watched(workplace, "look", "train", config, "--json", "--set", "snake.adapt=true")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["visits"] == 4
    assert (read(workplace, "there"), read(workplace, "here")) == ("True", "False")
    assert not Path("/proc", read(workplace, "apart.json")).exists()


def refused(workplace, what, *settings):
    (workplace.folder / "mine.py").write_text(MODULE)
    config = workplace.write(
        '[model]\nname = "mine:network"\noptions = { width = 8 }\n' + DIGITS + SHORT
    )
    done = watched(workplace, what, "train", config, *(w for s in settings for w in ("--set", s)))
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.splitlines()
    assert read(workplace, "here") == "False"
    assert not workplace.runs.exists()
    return line


def test_what_is_wrong_with_a_model_is_one_line(workplace):
    line = refused(workplace, "look", "model.options.width=100")
    assert line.startswith("ray-snake: model.options: mine:network can't be built")
    assert "too wide for me" in line


def test_what_is_wrong_with_a_shard_is_one_line(workplace):
    line = refused(workplace, "look", "data.source=none.arrow")
    assert line.startswith("ray-snake: ")
    assert "no such file" in line


def test_settings_that_do_not_fit_the_network_are_one_line(workplace):
    line = refused(workplace, "look", "snake.span_width=9")
    assert line.startswith("ray-snake: snake.span_width: 9 blocks")


def test_a_process_that_is_killed_is_one_line(workplace):
    line = refused(workplace, "kill")
    assert line.startswith("ray-snake: the process that looks at model and data: was ended by SIG")
    assert "out of memory" in line
