"""`ray-snake simulate` shows what a run would take on other nodes, and trains nothing."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
from torch import nn
from workplaces import DIGITS, MODEL, SHORT

from ray_snake.cli.simulate import _base_bytes
from ray_snake.data import make_table, write_shard
from ray_snake.engine.stack import BlockStack

CONFIG = MODEL + DIGITS + SHORT


def test_a_simulation_is_shown_drawn_and_written(workplace):
    config = workplace.write(CONFIG)
    done = workplace.call(
        *("simulate", config, "--nodes", "5", "--pace", "lognormal(1, 0.5)", "--link", "1e6"),
        *("--trips", "3", "--plot", "picture.png", "--out", "trips.parquet", "--json"),
    )
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert (summary["nodes"], summary["trips"], summary["visits"]) == (5, 3, 15)
    assert "5 nodes, 15 visits" in done.stderr
    assert (workplace.folder / "picture.png").read_bytes().startswith(b"\x89PNG")
    assert pq.read_table(workplace.folder / "trips.parquet").num_rows == 3
    assert not (workplace.folder / "runs").exists()


def test_nodes_as_a_run_showed_them_take_as_long(workplace):
    config = workplace.write(CONFIG)
    trained = workplace.call("train", config, "--json", "--set", "snake.adapt=true")
    assert trained.returncode == 0, trained.stderr
    run = json.loads(trained.stdout)["run"]
    done = workplace.call("simulate", config, "--set", "snake.adapt=true", "--like", run, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["visits"] == json.loads(trained.stdout)["visits"]


class Adapted(nn.Linear):
    never_trains = ("weight",)


def test_nodes_pull_the_bases_that_no_file_holds():
    assert _base_bytes(BlockStack.skeleton(lambda: [Adapted(3, 2), nn.Linear(2, 2)])) == 3 * 2 * 4
    assert _base_bytes(BlockStack.skeleton(lambda: [nn.Linear(3, 2)])) == 0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--pace", "fast"), "--pace: 'fast' is no distribution"),
        (("--online", "3"), "--online: goes with --offline"),
        (
            ("--online", "0", "--offline", "3"),
            "--online: 0 with --offline 3: nodes are there for less than a millionth of the time",
        ),
        (
            ("--online", "1e-9", "--offline", "1e9"),
            "--online: 1e-9 with --offline 1e9: nodes are there for less than a millionth",
        ),
        (("--trace", "none.csv"), "none.csv"),
        (("--trace", "none.csv", "--set", "model.name=no:thing"), "none.csv"),
        (
            ("--set", 'nodes.each=[{match="nobody_*", cpus=2}]'),
            "nodes.each[0].match: 'nobody_*' matches none of the nodes",
        ),
        (("--like", "runs/none"), "runs/none: holds no run (there is no run.json)"),
        (("--like", "runs/none", "--nodes", "3"), "--like: says all of the nodes"),
        (("--link", "0"), "--link: leaves a node 0 bytes per second; use numbers above 0"),
        (
            ("--plot", "none/trips.png"),
            "--plot none/trips.png: is in no folder: none is not there; make that",
        ),
        (("--plot", "trips.xyz"), "--plot trips.xyz: ends in '.xyz', which is no kind of picture"),
        (("--out", "none/trips.parquet"), "--out none/trips.parquet: is in no folder: none is"),
    ],
)
def test_what_can_not_be_simulated_is_refused_in_one_line(workplace, options, words):
    done = workplace.call("simulate", workplace.write(CONFIG), *options)
    assert done.returncode == 2
    (line,) = done.stderr.strip().splitlines()
    assert words in line


def test_what_training_refuses_of_the_rows_is_refused(workplace):
    rows = make_table(np.zeros((8, 4), dtype=np.float32), np.zeros(8, dtype=np.int64))
    write_shard(workplace.folder / "flat.arrow", rows)
    config = workplace.write(
        '[model]\nname = "mlp"\noptions = { inputs = 4, classes = 2 }\n'
        '[data]\nshards = ["flat.arrow"]\n[augmentation]\nflip = true\n'
    )
    done = workplace.call_forked("simulate", config)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "augmentation.flip: True is for pictures" in line
