"""One cell of the comparison: one variant on one partition with one seed, trained and measured."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from comparison.data import Pictures
from comparison.scales import Scale
from comparison.variants import DEFAULT_NORM, NORMS, Variant
from ray_snake import SnakeConfig, SnakeTrainer
from ray_snake.data import NodeDataset, ShardSource
from ray_snake.engine.batch_result import BatchResult
from ray_snake.engine.device import take_device
from ray_snake.engine.evaluate import evaluate
from ray_snake.engine.memory import peak_bytes
from ray_snake.engine.objective import cross_entropy
from ray_snake.engine.profile import profile_blocks
from ray_snake.engine.residency import place
from ray_snake.engine.split import Reply, train_front
from ray_snake.engine.stack import BlockStack
from ray_snake.engine.visit import VisitControl, train_visit
from ray_snake.planning.cost import predict_visit
from ray_snake.planning.strategy import make_strategy
from ray_snake.runtime.journal import read_records
from ray_snake.runtime.recipe import Recipe
from ray_snake.runtime.records import EvaluationRecord, JournalRecord, VisitRecord
from ray_snake.storage import Storage
from ray_snake.trainer import Result

FLUCTUATION_TRIPS = 3
MEASURED_STEPS = 3
NOTHING = BatchResult(samples=0, loss=0.0, right=0, judged=0)


@dataclass(frozen=True, kw_only=True)
class Cell:
    """What to train.

    Attributes:
        variant: The row's variant.
        partition: The name of the partition.
        seed: Of initial weights, batches and whatever is drawn.
        rate: Learning rate.
        norm: A name in `NORMS`.
        tuning: Whether it is judged on held-out rows, after few trips, to choose a rate.
    """

    variant: Variant
    partition: str
    seed: int
    rate: float
    norm: str = DEFAULT_NORM
    tuning: bool = False

    @property
    def key(self) -> str:
        """A name for files."""
        kind = "tune" if self.tuning else "cell"
        norm = "" if self.norm == DEFAULT_NORM else f"-{self.norm}"
        return f"{kind}-{self.variant.name}{norm}-{self.partition}-{self.seed}-{self.rate:g}"


def settings(
    cell: Cell, scale: Scale, pictures: Pictures, common: Mapping[str, Any]
) -> SnakeConfig:
    """Return a cell's settings: the common ones, the scale's, its norm's, its variant's."""
    trips = scale.tuning_trips if cell.tuning else scale.trips
    nodes = 1 if cell.variant.pooled or cell.variant.alone else scale.nodes
    merged = dict(common)
    tree: dict[str, Any] = {
        "seed": cell.seed,
        "model": {"name": "vgg11", "options": {"width": scale.width}},
        "snake": {"trips": trips},
        "training": {"learning_rate": cell.rate, "batch_size": scale.batch_size},
        "nodes": {"nodes_per_actor": nodes, "gpus": scale.gpus * nodes},
        "evaluation": {
            "data": str(pictures.held_out if cell.tuning else pictures.watched),
            "gpus": scale.gpus,
            "last_visits": 0 if cell.tuning else FLUCTUATION_TRIPS * nodes,
        },
    }
    if not cell.variant.name.startswith("split"):
        tree["training"]["precision"] = scale.precision
    for own in (tree, NORMS[cell.norm], cell.variant.settings):
        merged = _merged(merged, own)
    return SnakeConfig.from_tree(merged)


def train(cell: Cell, scale: Scale, pictures: Pictures, config: SnakeConfig, runs: Path) -> Row:
    """Train a cell, or go on where it was interrupted; return its row."""
    if cell.variant.alone:
        own = [
            _train(cell, config, [shard], pictures, runs, f"{cell.key}-node{node}")
            for node, shard in enumerate(pictures.shards)
        ]
        row = _mean(own)
    else:
        nodes = [pictures.pooled] if cell.variant.pooled else pictures.shards
        row = _train(cell, config, nodes, pictures, runs, cell.key)
    if not cell.tuning:
        largest = max(pictures.shards, key=lambda one: one.stat().st_size)
        shard = pictures.pooled if cell.variant.pooled else largest
        row |= peak_memory(
            config, shard, nodes=config.nodes.nodes_per_actor, device=_device(config)
        )
    return row


Row = dict[str, Any]


def _train(
    cell: Cell,
    config: SnakeConfig,
    nodes: Sequence[Path],
    pictures: Pictures,
    runs: Path,
    name: str,
) -> Row:
    known = Storage(str(runs)).child(name).exists("run.json")
    result = SnakeTrainer(
        nodes=list(nodes), config=config, storage=runs, name=name, resume=known, progress=False
    ).fit()
    records = read_records(Storage(result.run))
    curve = _curve(records)
    row = {
        "strategy": cell.variant.name,
        "norm": cell.norm,
        "partition": cell.partition,
        "seed": cell.seed,
        "learning_rate": cell.rate,
        "samples": curve[-1]["samples"],
        "bytes": result.summary["bytes_moved"],
        "bytes_with_copies": sum(
            one.bytes_pulled + one.bytes_returned + one.exchanged_bytes
            for one in records
            if isinstance(one, VisitRecord)
        ),
        "serial_steps": curve[-1]["serial_steps"],
        "seconds": result.summary["seconds"],
        "config_hash": config.fingerprint(),
        "curve": curve,
    }
    if cell.tuning:
        return {**row, "accuracy": curve[-1]["accuracy"]}
    late = [
        one["accuracy"] for one in curve if one["trip"] > config.snake.trips - FLUCTUATION_TRIPS
    ]
    return {
        **row,
        "accuracy": _test_accuracy(result, pictures.test, _device(config)),
        "fluctuation": statistics.pstdev(late),
        "flops": _flops(config, result, nodes),
    }


def _curve(records: Sequence[JournalRecord]) -> list[dict[str, Any]]:
    """Return what was seen, moved and stepped up to each evaluation, with its accuracy."""
    points = []
    samples = bytes_moved = serial = 0
    round_steps: list[int] = []
    for record in records:
        if isinstance(record, VisitRecord):
            samples += record.samples
            bytes_moved += record.bytes_moved
            if record.averaged:
                round_steps.append(record.steps)
                if record.ends_round:
                    # The nodes of a round train at the same time.
                    serial += max(round_steps)
                    round_steps = []
            else:
                serial += record.steps
        elif isinstance(record, EvaluationRecord):
            points.append(
                {
                    "visit": record.visit,
                    "trip": record.trip,
                    "samples": samples,
                    "bytes": bytes_moved,
                    "serial_steps": serial,
                    "accuracy": record.accuracy,
                }
            )
    return points


def _device(config: SnakeConfig) -> torch.device:
    """Return what this process computes on: a GPU where nodes have a share of one."""
    return take_device(1.0 if config.nodes.gpus else 0.0)


def _test_accuracy(result: Result, test: Path, device: torch.device) -> float:
    stack = BlockStack.cut(result.model()).to(device)
    stack.move_constants(device)
    judged = evaluate(
        stack,
        NodeDataset.open(ShardSource.of(str(test))),
        task=cross_entropy,
        batch_size=500,
        device=device,
    )
    return float(judged.accuracy or 0.0)


def _flops(config: SnakeConfig, result: Result, nodes: Sequence[Path]) -> float:
    """Return floating-point operations of all visits, as the cost model counts them."""
    stack = Recipe(config=config).initial()
    shards = [NodeDataset.open(ShardSource.of(str(one))) for one in nodes]
    costs, _ = profile_blocks(
        stack, shards[0].batch([0])[0].shape[1:], integer_inputs=False, batch=8
    )
    strategy = make_strategy(config, nodes=len(nodes), blocks=len(stack))
    steps = result.history["steps"].to_pylist()
    visits = iter(strategy.next, None)
    return sum(
        predict_visit(
            visit,
            costs,
            rows=len(shards[visit.node]),
            steps=count,
            training=config.training,
            loss=config.loss,
            augmentation=config.augmentation,
        ).flops
        for visit, count in zip(visits, steps, strict=True)
    )


class _FewSteps(VisitControl):
    """Ends a visit after its third step: what later ones take is the same."""

    def ends_early(self) -> bool:
        """Return whether there were three."""
        return self.step >= MEASURED_STEPS


def peak_memory(
    config: SnakeConfig, shard: Path, *, nodes: int, device: torch.device
) -> dict[str, int]:
    """Return the peak bytes of a node's visit, measured, over all kinds of visits of its schedule.

    That is, what torch allocates from loading the weights to the end of the third step, on the
    largest shard, and the weights that arrived on its device: on the CPU views of the object store,
    which a node that is alone on its machine has for itself. Files are not in it.

    Returns:
        `peak_memory_bytes`, without visits that only some nodes are able to do, the snake's
        warm-up; and `largest_peak_memory_bytes`, with them.
    """
    recipe = Recipe(config=config)
    samples = NodeDataset.open(ShardSource.of(str(shard)))
    strategy = make_strategy(config, nodes=nodes, blocks=len(recipe.initial()))
    kinds: dict[tuple[tuple[int, ...], int | None], bool] = {}
    for visit in iter(strategy.next, None):
        kind = visit.trained, visit.cut
        kinds[kind] = kinds.get(kind, True) and strategy.is_warm_up(visit)
    peaks = {kind: _peak_of(recipe, samples, *kind, device=device) for kind in kinds}
    usual = [peak for kind, peak in peaks.items() if not kinds[kind]]
    return {
        "peak_memory_bytes": max(usual),
        "largest_peak_memory_bytes": max(peaks.values()),
    }


def _peak_of(
    recipe: Recipe,
    samples: NodeDataset,
    trained: tuple[int, ...],
    cut: int | None,
    *,
    device: torch.device,
) -> int:
    config = recipe.config
    stack = recipe.initial()
    place(stack, trained, training=config.training, device=device)
    common: dict[str, Any] = {
        "learning_rate": config.training.learning_rate,
        "seed": 1,
        "training": config.training,
        "augmentation": config.augmentation,
        "device": device,
        "control": _FewSteps(),
    }
    if cut is None:
        visit = partial(
            train_visit,
            trained=trained,
            objective=recipe.objective(samples.label_counts(10)),
            proximal=config.loss.proximal,
            **common,
        )
    else:
        visit = partial(train_front, cut=cut, exchange=_reply, **common)
    held = sum(
        tensor.nbytes
        for block in range(len(stack) if cut is None else cut)
        for tensor in stack.tensors(block).values()
        if tensor.device.type == device.type
    )
    return held + peak_bytes(partial(visit, stack, samples), device)


def _reply(outputs: torch.Tensor, targets: torch.Tensor) -> Reply:
    del targets
    return Reply(gradient=outputs.clone(), batch=NOTHING)


def _mean(rows: Sequence[Row]) -> Row:
    """Return the row of nodes that each trained alone, at the same time."""
    first = rows[0]
    return {
        **first,
        "accuracy": statistics.mean(one["accuracy"] for one in rows),
        "fluctuation": statistics.mean(one.get("fluctuation", 0.0) for one in rows),
        "samples": sum(one["samples"] for one in rows),
        "bytes": 0,
        "bytes_with_copies": 0,
        "serial_steps": max(one["serial_steps"] for one in rows),
        "seconds": sum(one["seconds"] for one in rows),
        "flops": sum(one.get("flops", 0.0) for one in rows),
        "curve": [],
    }


def _merged(base: dict[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in own.items():
        known = merged.get(key)
        merged[key] = (
            _merged(known, value)
            if isinstance(known, dict) and isinstance(value, Mapping)
            else value
        )
    return merged
