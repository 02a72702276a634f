"""The fine-tuning benchmark at tiny size: its rows, that cells are kept, its table, its tuning."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "jobs" / "benchmarks"))
from finetune import findings
from finetuning.sequence import train_in_sequence

from ray_snake import SnakeConfig, SnakeTrainer
from ray_snake.config import PartitionConfig
from ray_snake.data.shards import make_table, partition_file, write_shard
from ray_snake.engine.stack import BlockStack

ROOT = Path(__file__).parents[2]
TOKENS, LENGTH, NODES = 12, 8, 2
CONFIG = """
seed = 1
[model]
name = "decoder"
options = {{ vocabulary = 12, width = 16, layers = 4, heads = 2, {options} }}
[data]
shards = "data/{task}-2/node_*.arrow"
[evaluation]
data = "data/{task}-tokens/test.arrow"
[snake]
spans = [[3, 4], [1, 2]]
trips = 2
[training]
optimizer = "adamw"
learning_rate = 0.01
batch_size = 4
steps = 4
group_lengths = true
[loss]
distillation = 0.0
"""
OPTIONS = {
    "reviews": 'task = "sequence_classification", classes = 2, padding = 0',
    "shakespeare": "tied = true",
}
KEYS = {
    "way",
    "task",
    "seed",
    "learning_rate",
    "loss",
    "samples",
    "steps",
    "bytes",
    "predicted_peak_bytes",
    "seconds",
    "cpu_seconds",
    "config_hash",
    "commit",
    "machine",
}


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """A folder with both tasks' data, and configurations that fit it."""
    folder = tmp_path_factory.mktemp("finetune")
    draw = np.random.Generator(np.random.PCG64(1))
    for task, options in OPTIONS.items():
        tokens = folder / "data" / f"{task}-tokens"
        tokens.mkdir(parents=True)
        for name, rows in (("train", 80), ("test", 24)):
            inputs = draw.integers(1, TOKENS, (rows, LENGTH)).astype(np.int32)
            inputs[::2, 5:] = 0
            labels = np.arange(rows) % 2 if task == "reviews" else np.roll(inputs, -1, 1)
            kept = {} if task == "reviews" else {"work": np.arange(rows) % 4}
            table = make_table(inputs, labels)
            for column, values in kept.items():
                table = table.append_column(column, [values])
            write_shard(str(tokens / f"{name}.arrow"), table)
        partition_file(
            str(tokens / "train.arrow"),
            PartitionConfig(scheme="dirichlet", nodes=NODES, alpha=5.0, seed=1),
            str(folder / "data" / f"{task}-2"),
            label="label" if task == "reviews" else "work",
        )
        config = CONFIG.format(task=task, options=options)
        (folder / f"{task}.toml").write_text(config, encoding="utf-8")
    return folder


def compare(folder, task, *arguments):
    token = folder / "token"
    token.write_text("0" * 64)
    done = subprocess.run(
        [
            *(sys.executable, str(ROOT / "jobs/benchmarks/finetune.py"), "--task", task),
            *("--seeds", "1", "--config", f"{task}.toml", "--json", *arguments),
        ],
        cwd=folder,
        env={**os.environ, "HOME": str(folder), "RAY_AUTH_TOKEN_PATH": str(token)},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1]), done.stderr


def ways(*names):
    return [part for name in names for part in ("--way", name)]


@pytest.fixture(scope="module")
def reviews(workplace):
    chosen = ways("full", "snake", "badam", "lisa")
    return compare(workplace, "reviews", *chosen, "--results", "results")[0]


def test_every_way_sees_as_many_samples(reviews):
    rows = {row["way"]: row for row in reviews["rows"]}
    assert [*rows] == ["full", "snake", "badam", "lisa"]
    for row in rows.values():
        assert row.keys() >= KEYS
        assert all(row[key] is not None for key in KEYS)
        assert row["samples"] == 2 * NODES * 4 * 4
        assert 0 <= row["accuracy"] <= 1
        assert row["judged_rows"] == 24
    assert len({row["config_hash"] for row in rows.values()}) == 4


def test_only_what_goes_between_nodes_is_moved_and_less_trained_takes_less(reviews):
    rows = {row["way"]: row for row in reviews["rows"]}
    assert rows["snake"]["bytes"] > 0
    assert rows["full"]["bytes"] == rows["badam"]["bytes"] == rows["lisa"]["bytes"] == 0
    for way in ("snake", "badam", "lisa"):
        assert rows[way]["predicted_peak_bytes"] < rows["full"]["predicted_peak_bytes"]


def test_the_line_says_how_far_the_snake_is_from_full_fine_tuning(reviews):
    rows = {row["way"]: row for row in reviews["rows"]}
    points = 100 * (rows["snake"]["accuracy"] - rows["full"]["accuracy"])
    assert reviews["snake_minus_full_points"] == pytest.approx(points)
    assert reviews["snake_accuracy"] == rows["snake"]["accuracy"]
    assert reviews["seeds"] == [1]


def test_findings_are_of_the_rows_with_most_samples():
    rows = [
        {"way": way, "seed": 1, "samples": samples, "accuracy": accuracy, "perplexity": None}
        for way, samples, accuracy in (
            ("full", 200, 0.75),
            ("full", 100, 0.5),
            ("snake", 200, 0.5),
            ("snake", 100, 0.25),
        )
    ]
    assert findings(rows)["snake_minus_full_points"] == -25


def test_results_are_a_table_and_a_file(reviews, workplace):
    page = (workplace / "results" / "finetune-reviews.md").read_text()
    assert "| snake | 1 |" in page
    assert "finetune.py --task reviews" in page
    assert pq.read_table(workplace / "results" / "finetune-reviews.parquet").num_rows == 4


def test_what_was_trained_is_kept_and_shown_again(reviews, workplace):
    again, log = compare(workplace, "reviews", *ways("snake"))
    assert again["rows"] == [row for row in reviews["rows"] if row["way"] == "snake"]
    assert "training" not in log
    shown, _ = compare(workplace, "reviews", "--finished")
    assert shown["rows"] == reviews["rows"]


def test_a_new_machine_goes_on_with_the_rows_of_another(reviews, workplace):
    known = ["--storage", "elsewhere", "--rows", "results/finetune-reviews.parquet"]
    both, log = compare(workplace, "reviews", *ways("snake", "badam"), *known)
    assert both["rows"] == reviews["rows"][1:3]
    assert "training" not in log
    # The snake's settings change, so that its row is of others.
    again, log = compare(workplace, "reviews", *ways("snake"), *known, "--set", "snake.trips=1")
    assert "training cell-snake-1" in log
    assert again["rows"][0]["samples"] == 32


def test_rates_are_compared_on_training_rows_that_are_held_out(reviews, workplace):
    tuned, _ = compare(workplace, "reviews", *ways("lisa"), "--tune")
    assert len({row["learning_rate"] for row in tuned["rows"]}) == len(tuned["rows"]) == 3
    # A quarter of the training rows, in half of the trips.
    assert {(row["judged_rows"], row["samples"]) for row in tuned["rows"]} == {(20, 32)}
    one, _ = compare(workplace, "reviews", *ways("lisa"), "--tune", "--rate", "0.01")
    assert [(row["learning_rate"], row["seed"]) for row in one["rows"]] == [(0.01, 0)]
    seeds = ["--seed", "0", "--seed", "4"]
    two, log = compare(workplace, "reviews", *ways("lisa"), "--tune", "--rate", "0.01", *seeds)
    assert [(row["seed"], row["judged_rows"]) for row in two["rows"]] == [(0, 20), (4, 20)]
    assert log.count("training") == 1


@pytest.mark.parametrize(("kept", "mean"), [("reset", "none"), ("carry", "none"), ("carry", "3")])
def test_the_snake_ends_with_the_weights_and_bytes_of_a_run_on_ray(
    kept, mean, workplace, monkeypatch
):
    monkeypatch.chdir(workplace)
    chosen = [
        "nodes.nodes_per_actor=2",
        f"training.optimizer_state={kept}",
        f"snake.mean_visits={mean}",
    ]
    config = SnakeConfig.load("reviews.toml", chosen)
    found = train_in_sequence(config, config.data.shard_uris())
    result = SnakeTrainer(config=config, storage="runs", progress=False).fit()
    trained = BlockStack.cut(result.model())
    for block in range(len(trained)):
        own = found.stack.tensors(block)
        assert all(torch.equal(one, own[name]) for name, one in trained.tensors(block).items())
    assert result.summary["bytes_moved"] == found.bytes


def test_language_models_are_compared_by_perplexity(workplace):
    found, _ = compare(workplace, "shakespeare", *ways("full", "snake"), "--judged", "10")
    full, snake = found["rows"]
    ratio = snake["perplexity"] / full["perplexity"]
    assert found["snake_over_full_perplexity"] == pytest.approx(ratio)
    assert full["judged_rows"] == snake["judged_rows"] == 10
