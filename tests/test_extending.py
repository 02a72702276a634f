"""docs/extending.md: its file trains a network, by path, by entry point and as objects."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from ray_snake import SnakeConfig, SnakeTrainer
from ray_snake.runtime.journal import Journal
from ray_snake.runtime.run_folder import RunFolder
from ray_snake.storage import Storage

PAGE = (Path(__file__).parents[1] / "docs" / "extending.md").read_text(encoding="utf-8")
SNIPPETS = dict(
    zip(("file", "calls"), re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL), strict=True)
)
ENTRY_POINTS = re.findall(r"```toml\n(\[project.*?)```", PAGE, re.DOTALL)[0]
SETTINGS = """
[model]
name = "mlp"
options = { inputs = 64, classes = 10, hidden = [16] }
[data]
source = "builtin://digits/train"
partition = { scheme = "iid", nodes = 2 }
[nodes]
nodes_per_actor = 2
[snake]
trips = 2
span_width = 1
[training]
steps = 2
"""


@pytest.fixture
def folder(tmp_path):
    """A folder with the page's file, and with what installing it would leave behind."""
    (tmp_path / "my_extensions.py").write_text(SNIPPETS["file"])
    info = tmp_path / "my_extensions-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: my-extensions\nVersion: 1.0\n")
    points = re.sub(r'\[project\.entry-points\."(.*?)"\]', r"[\1]", ENTRY_POINTS)
    (info / "entry_points.txt").write_text(points.replace('"', ""))
    (tmp_path / "config.toml").write_text(SETTINGS)
    return tmp_path


def call(folder, *arguments):
    token = folder / "token"
    token.write_text("0" * 64)
    return subprocess.run(
        [sys.executable, "-c", "from ray_snake.cli.main import main; main()", *arguments],
        cwd=folder,
        env={
            **os.environ,
            "HOME": str(folder),
            "RAY_AUTH_TOKEN_PATH": str(token),
            "PYTHONPATH": os.pathsep.join([str(folder), *sys.path]),
        },
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def train(folder, *settings):
    changed = [word for one in settings for word in ("--set", one)]
    done = call(folder, "train", "config.toml", "--json", *changed)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def trained(run):
    return [one.trained for one in Journal(Storage(run)).visits]


def test_a_strategy_and_a_loss_by_import_path(folder):
    summary = train(
        folder, "strategy=my_extensions:HeadFirst", "loss.name=my_extensions:focal_loss"
    )
    *first, _, last = trained(folder / summary["run"])
    assert [len(one) for one in first] == [1, 1]
    assert len(last) > 1


def test_an_order_and_a_loss_by_entry_point(folder):
    summary = train(folder, "snake.order=back_to_front", "loss.name=focal")
    heads = [one[0] for one in trained(folder / summary["run"])]
    assert heads == sorted(heads, reverse=True)


def test_classes_and_functions_as_objects(raylets, folder, monkeypatch):
    monkeypatch.syspath_prepend(str(folder))
    # From the main program they would travel by value; a test's own file can't be imported there.
    source = {"__name__": "__main__"}
    exec(compile(SNIPPETS["file"], "main program", "exec"), source)  # noqa: S102 - the page's file
    config = SnakeConfig.from_tree(
        {
            "model": {"name": "mlp", "options": {"inputs": 64, "classes": 10, "hidden": [16]}},
            "data": {
                "source": "builtin://digits/train",
                "partition": {"scheme": "iid", "nodes": 2},
            },
            "nodes": {"nodes_per_actor": 2},
            "snake": {"trips": 2, "span_width": 1},
            "training": {"steps": 2},
        }
    )
    options = {"config": config, "storage": folder / "runs", "progress": False}
    own = SnakeTrainer(strategy=source["HeadFirst"], loss=source["focal_loss"], **options).fit()
    assert len(trained(own.run)[0]) == 1
    ordered = SnakeTrainer(order=source["BackToFront"], **options).fit()
    assert trained(ordered.run)[0][0] > 0
    recipe = RunFolder.open(ordered.run).config
    assert (recipe.strategy, recipe.snake.order) == ("snake", "__main__:BackToFront")
    assert "order=BackToFront" in SNIPPETS["calls"]
    recorded = json.loads(Storage(own.run).read("run.json"))
    assert "HeadFirst" in json.dumps(recorded)


BROKEN = """
import ray_snake

class Unfinished(ray_snake.Strategy):
    pass

class Raises(ray_snake.Strategy):
    def plan(self, number, trip, node):
        raise KeyError("x")

class ForgetsToReturn(ray_snake.Strategy):
    def plan(self, number, trip, node):
        self.whole(number, trip, node)

class Divides(ray_snake.Order):
    def choose(self, turn, least_trained):
        return 1 // 0

class Misspelt(ray_snake.Order):
    def chose(self, turn, least_trained):
        return least_trained[0]

class Elsewhere(ray_snake.Order):
    def choose(self, turn, least_trained):
        return 99

def of_one(outputs):
    return outputs.mean()

def of_each(outputs, labels):
    return outputs
"""


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("strategy=broken:Unfinished", "strategy: broken:Unfinished has no plan of its own; name"),
        ("strategy=broken:Raises", "broken:Raises raised KeyError: 'x' (broken.py, line 9)"),
        ("strategy=broken:ForgetsToReturn", "broken:ForgetsToReturn.plan returned None; return a"),
        ("strategy=broken:Raise", "module 'broken' has no 'Raise'; did you mean 'Raises'? name"),
        ("snake.order=broken:Divides", "snake.order: broken:Divides raised ZeroDivisionError"),
        (
            "snake.order=broken:Misspelt",
            "snake.order: broken:Misspelt has no choose of its own; na",
        ),
        ("snake.order=broken:Elsewhere", "broken:Elsewhere chose 99, and the spans that coverage"),
        ("loss.name=broken:of_one", "loss.name: broken:of_one can't compare outputs (2, 10) with"),
        ("loss.name=broken:of_each", "loss.name: broken:of_each can't compare outputs (2, 10)"),
        ("loss.name=broken:ray_snake", "loss.name: "),
    ],
)
@pytest.mark.parametrize("command", ["plan", "train"])
def test_what_is_broken_is_named_in_one_line_before_anything_starts(folder, command, setting, said):
    (folder / "broken.py").write_text(BROKEN)
    done = call(folder, command, "config.toml", "--set", setting)
    assert done.returncode == 2, done.stderr
    *progress, line = done.stderr.strip().splitlines()
    assert said in line
    assert not any("Traceback" in one or "File" in one for one in progress)
    assert not (folder / "runs").exists()
