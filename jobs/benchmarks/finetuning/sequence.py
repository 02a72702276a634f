"""A run without a cluster: one visit after another in this process, to the bits of a real one.

A visit is a function of weights, rows and seed alone, so that where it is done changes nothing.
What nodes would have pulled is counted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from ray_snake import SnakeConfig
from ray_snake.data import NodeDataset, ShardSource
from ray_snake.engine.device import repeatably, take_device
from ray_snake.engine.stack import BlockStack
from ray_snake.engine.trained import Carried
from ray_snake.engine.visit import train_visit
from ray_snake.layers.tensors import weighted_mean
from ray_snake.planning.strategy import make_strategy
from ray_snake.runtime.final_mean import Counts, count
from ray_snake.runtime.recipe import Recipe
from ray_snake.seeds import derive_seed


@dataclass(kw_only=True)
class Trained:
    """What came of a run.

    Attributes:
        stack: The network with its final weights.
        device: Where it is.
        samples: Samples that the optimizer saw.
        steps: Optimizer steps.
        bytes: Block versions that nodes pulled, each as if alone on its machine.
        losses: Mean training loss of each visit.
    """

    stack: BlockStack
    device: torch.device
    samples: int
    steps: int
    bytes: int
    losses: list[float]


def train_in_sequence(
    config: SnakeConfig, shards: Sequence[str], *, report: Callable[[str], None] = lambda _: None
) -> Trained:
    """Do the visits of a strategy that averages nothing, with nodes that stay.

    Args:
        config: The settings, with codec.name = "none". With a GPU share, `nodes.gpus`, all is done
            on this machine's GPU.
        shards: A file for each node.
        report: Told a line after each trip.
    """
    recipe = Recipe(config=config)
    device = take_device(1.0 if config.nodes.gpus else 0.0)
    stack = recipe.initial().to(device)
    stack.move_constants(device)
    rows = [NodeDataset.open(ShardSource.of(one)) for one in shards]
    objectives = [recipe.objective(_label_counts(config, one)) for one in rows]
    strategy = make_strategy(config, nodes=len(rows), blocks=len(stack))
    weights = stack.block_bytes()
    sizes = [*weights]
    versions = [0] * len(stack)
    held: list[dict[int, int]] = [{} for _ in rows]
    carried: Carried | None = {} if config.training.optimizer_state == "carry" else None
    found = Trained(stack=stack, device=device, samples=0, steps=0, bytes=0, losses=[])
    mean = _Mean(strategy.mean or range(0), stack)
    for visit in iter(strategy.next, None):
        mine = held[visit.node]
        found.bytes += sum(
            size for block, size in enumerate(sizes) if mine.get(block) != versions[block]
        )
        train = partial(
            train_visit,
            stack,
            rows[visit.node],
            trained=visit.trained,
            learning_rate=strategy.learning_rate(visit),
            seed=derive_seed(config.seed, "visit", visit.number),
            training=config.training,
            objective=objectives[visit.node].weighted(strategy.distillation(visit)),
            augmentation=config.augmentation,
            fix_norms=config.fixes_norms(visit.trip),
            proximal=config.loss.proximal,
            carried=carried,
            device=device,
        )
        outcome = repeatably(train, device)
        for block in visit.trained:
            versions[block] = visit.number
            kept = {} if carried is None else carried[block]
            sizes[block] = weights[block] + sum(one.nbytes for one in kept.values())
        mine.update(enumerate(versions))
        mean.count(visit.number, versions)
        found.samples += outcome.samples
        found.steps += outcome.steps
        found.losses.append(outcome.loss)
        if strategy.ends_trip(visit.number):
            report(f"trip {visit.trip}: loss {outcome.loss:.4f}")
    mean.take_its_place()
    return found


class _Mean:
    """The mean over the models that a run's last visits left, as `snake.mean_visits` has it.

    Args:
        visits: Their numbers; empty: no mean.
        stack: The network that trains.
    """

    def __init__(self, visits: range, stack: BlockStack) -> None:
        self._visits = visits
        self._stack = stack
        self._counts: Counts = {}
        self._weights: dict[tuple[int, int], dict[str, Tensor]] = {}

    def count(self, visit: int, versions: Sequence[int]) -> None:
        """Take the model after a visit into account, if it is one of them."""
        if visit not in self._visits:
            return
        count(self._counts, dict(enumerate(versions)))
        for key in enumerate(versions):
            if key not in self._weights:
                tensors = self._stack.tensors(key[0]).items()
                self._weights[key] = {name: one.detach().clone() for name, one in tensors}

    def take_its_place(self) -> None:
        """Load the mean into the network."""
        for block, counts in self._counts.items():
            versions = (self._weights[block, version] for version in counts)
            mean = weighted_mean(versions, [*counts.values()])
            self._stack.load(block, mean, trainable=False)


def _label_counts(config: SnakeConfig, rows: NodeDataset) -> object:
    """Return a node's rows of each class, (classes,); none of a language model."""
    if not rows.has_class_labels:
        return None
    return rows.label_counts(int(config.model.options["classes"]))
