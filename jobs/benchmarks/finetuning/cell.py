"""One cell: one way with one seed, trained and judged, or tuned on held-out rows."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import pyarrow as pa

from finetuning.sequence import train_in_sequence
from finetuning.ways import Way
from ray_snake import SnakeConfig
from ray_snake.config import PartitionConfig
from ray_snake.data import NodeDataset, ShardSource
from ray_snake.data.shards import partition_file, read_table, write_shard
from ray_snake.engine.evaluate import evaluate
from ray_snake.engine.objective import cross_entropy
from ray_snake.engine.profile import profile_blocks
from ray_snake.engine.samples import drawn
from ray_snake.errors import DataError
from ray_snake.planning.cost import predict_visit
from ray_snake.planning.strategy import make_strategy
from ray_snake.runtime.recipe import Recipe

ROWS_SEED = 1
HELD_OUT_ROWS = 512


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Files of a task.

    Attributes:
        shards: One per node.
        pooled: All of their rows.
        judged: Rows of no node.
    """

    shards: tuple[str, ...]
    pooled: str
    judged: str


def task_rows(task: SnakeConfig) -> Rows:
    """Return the files that a configuration names; all rows are where its nodes' are from.

    Raises:
        DataError: If there are none.
    """
    shards = task.data.shard_uris()
    if not shards:
        raise DataError(
            f"data.shards {task.data.shards}",
            "there is no such file here",
            "make model and data as the first lines of the configuration say",
        )
    facts = json.loads(Path(shards[0]).with_name("partition.json").read_text(encoding="utf-8"))
    source = Path(facts["source"])
    pooled = source / "train.arrow" if source.is_dir() else source
    return Rows(shards=shards, pooled=str(pooled), judged=str(task.evaluation.data))


def held_out_rows(rows: Rows, folder: Path) -> Rows:
    """Return the training rows in two parts: those to tune with, split as before, and others."""
    if not (folder / "nodes" / "partition.json").exists():
        folder.mkdir(parents=True, exist_ok=True)
        facts = json.loads(
            Path(rows.shards[0]).with_name("partition.json").read_text(encoding="utf-8")
        )
        table = read_table(rows.pooled)
        held_out = min(HELD_OUT_ROWS, len(table) // 4)
        order = np.random.default_rng(ROWS_SEED).permutation(len(table))
        for name, chosen in (("judged", order[:held_out]), ("train", order[held_out:])):
            part = table.take(pa.array(np.sort(chosen)))
            write_shard(str(folder / f"{name}.arrow"), part)
        split = PartitionConfig.model_validate(facts["partition"])
        partition_file(
            str(folder / "train.arrow"), split, str(folder / "nodes"), label=facts["label"]
        )
    return Rows(
        shards=tuple(str(one) for one in sorted((folder / "nodes").glob("node_*.arrow"))),
        pooled=str(folder / "train.arrow"),
        judged=str(folder / "judged.arrow"),
    )


def train(way: Way, config: SnakeConfig, rows: Rows, *, most: int | None) -> dict[str, Any]:
    """Train a cell and judge it; return what came of it.

    Args:
        way: The way.
        config: Its settings.
        rows: Its rows.
        most: Rows to judge, drawn once for all; none: all.
    """
    started, computing = time.perf_counter(), time.process_time()
    nodes = [rows.pooled] if way.pooled else rows.shards
    found = train_in_sequence(config, nodes, report=lambda line: click.echo(line, err=True))
    seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - computing
    shard = NodeDataset.open(ShardSource.of(rows.judged))
    judged = evaluate(
        found.stack,
        drawn(shard, most or len(shard), ROWS_SEED),
        task=cross_entropy,
        batch_size=config.evaluation.batch_size,
        precision=config.evaluation.precision or config.training.precision,
        device=found.device,
    )
    return {
        "seed": config.seed,
        "learning_rate": config.training.learning_rate,
        "loss": judged.loss,
        "accuracy": judged.accuracy,
        "perplexity": judged.perplexity,
        "judged_rows": judged.samples,
        "samples": found.samples,
        "steps": found.steps,
        "bytes": 0 if way.pooled else found.bytes,
        "training_losses": found.losses,
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "config_hash": config.fingerprint(),
    }


def predicted_peak(way: Way, config: SnakeConfig, rows: Rows) -> int:
    """Return the bytes of a node's largest visit, as `ray-snake plan` predicts them."""
    skeleton = Recipe(config=config).skeleton()
    nodes: Sequence[str] = [rows.pooled] if way.pooled else rows.shards
    shards = [NodeDataset.open(ShardSource.of(one)) for one in nodes]
    costs, _ = profile_blocks(skeleton, shards[0].sample_shape, integer_inputs=True, batch=1)
    strategy = make_strategy(config, nodes=len(nodes), blocks=len(skeleton))
    kinds = {visit.trained: visit for visit in iter(strategy.next, None)}
    return max(
        predict_visit(
            visit,
            costs,
            rows=max(len(one) for one in shards),
            steps=config.training.steps or 1,
            training=config.training,
            loss=config.loss,
        ).private_bytes
        for visit in kinds.values()
    )
