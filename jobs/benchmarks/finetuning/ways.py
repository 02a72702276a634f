"""The ways that are compared, as settings that differ from the task's configuration."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ray_snake import SnakeConfig
from ray_snake.config import SnakeSection

PLAIN = {"logit_adjustment": 0.0, "distillation": 0.0}
CARRIED = {"optimizer_state": "carry"}
ADAPTERS = {"options": {"lora": {"rank": 16, "alpha": 32.0}}}


@dataclass(frozen=True, kw_only=True)
class Way:
    """A row of the table.

    Attributes:
        name: What the table calls it.
        settings: Sections of settings that differ from the task's configuration.
        pooled: Whether all rows lie in one place; they are then one node's.
        trips: Its trips as multiples of the configuration's: its visits are shorter by as much.
        layers: Layers of a span, counted from the last layer to the first; none: the
            configuration's spans.
        rates: Learning rates to choose from.
    """

    name: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    pooled: bool = True
    trips: int = 1
    layers: int | None = None
    rates: tuple[float, ...]

    def config(
        self, task: SnakeConfig, *, nodes: int, seed: int, rate: float | None, tuning: bool = False
    ) -> SnakeConfig:
        """Return a cell's settings, with as many samples for every way.

        Args:
            task: The task's configuration: that of the snake.
            nodes: Its number of nodes.
            seed: Of first weights, batches and whatever is drawn.
            rate: Learning rate; none: the configuration's.
            tuning: Whether it makes half of the trips.
        """
        steps = (task.training.steps or 1) * (nodes if self.pooled else 1)
        trips = task.snake.trips * self.trips
        tree: dict[str, Any] = {
            "seed": seed,
            "data": {"shards": None},
            "evaluation": {"data": None},
            "nodes": {"nodes_per_actor": 1 if self.pooled else nodes},
            "snake": {"trips": -(-trips // 2) if tuning else trips},
            "training": {"steps": -(-steps // self.trips)},
        }
        if rate is not None:
            tree["training"]["learning_rate"] = rate
        if self.pooled:
            # One node has no others to keep in line with, and its last visit has seen all rows.
            tree["loss"] = PLAIN
            tree["snake"]["mean_visits"] = None
        if self.layers is not None:
            tree["snake"]["spans"] = _spans(task.snake, self.layers)
        return SnakeConfig.from_tree(_merged(_merged(task.tree(), tree), self.settings))


def _spans(snake: SnakeSection, layers: int) -> list[list[int]]:
    """Return all layers up to the last of the configuration's spans, a few in each."""
    last = max(block for span in snake.spans or () for block in span)
    return [[*range(max(1, top - layers + 1), top + 1)] for top in range(last, 0, -layers)]


def _merged(base: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    return {
        **base,
        **{
            key: _merged(base[key], value)
            if isinstance(value, Mapping) and isinstance(base.get(key), Mapping)
            else value
            for key, value in own.items()
        },
    }


WAYS = {
    one.name: one
    for one in (
        # All weights, all rows in one place, one optimizer from the first step to the last.
        Way(
            name="full",
            settings={"strategy": "centralised", "training": CARRIED},
            rates=(5e-5, 1e-4, 2e-4),
        ),
        Way(name="snake", pooled=False, rates=(1e-4, 2e-4, 4e-4, 8e-4)),
        # Hu et al. (2021), arXiv:2106.09685: adapters of all linear layers, and the head.
        Way(
            name="lora",
            settings={"strategy": "centralised", "training": CARRIED, "model": ADAPTERS},
            rates=(3e-4, 1e-3, 3e-3),
        ),
        # Adapters inside the span, which are all that travels.
        Way(
            name="snake+lora",
            settings={"model": ADAPTERS},
            pooled=False,
            rates=(5e-4, 1e-3, 2e-3),
        ),
        # Luo et al. (2024), arXiv:2404.02827: one layer at a time, AdamW anew with each.
        Way(
            name="badam",
            settings={"training": {"optimizer_state": "reset"}},
            trips=8,
            layers=1,
            rates=(1e-4, 3e-4, 1e-3),
        ),
        # Pan et al. (2024), arXiv:2403.17919: both ends and two layers that are drawn.
        Way(
            name="lisa",
            settings={"strategy": "lisa", "training": CARRIED},
            trips=4,
            rates=(3e-5, 1e-4, 3e-4),
        ),
        # The whole model from node to node, at the snake's losses.
        Way(name="cyclic", settings={"strategy": "cyclic"}, pooled=False, rates=(3e-5, 1e-4)),
    )
}
RATES: Mapping[str, Mapping[str, float]] = {
    "reviews": {
        "full": 5e-5,
        "lora": 1e-3,
        "snake+lora": 1e-3,
        "badam": 3e-4,
        "lisa": 3e-4,
        "cyclic": 5e-5,
    },
    "shakespeare": {"full": 2e-4, "lora": 3e-3, "badam": 1e-3, "lisa": 3e-4, "cyclic": 5e-5},
}
"""What `finetune.py --tune` found on held-out rows; the snake's stands in its configuration."""
