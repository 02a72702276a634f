"""A run's first trips as they would go: the schedule, the ledger and the cost model together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ray_snake.config import SnakeConfig
from ray_snake.engine.profile import profile_blocks
from ray_snake.engine.stack import BlockStack
from ray_snake.engine.visit import total_steps
from ray_snake.layers.ledger import Ledger
from ray_snake.planning.cost import BlockCost, VisitCost, predict_visit
from ray_snake.planning.schedule import Schedule
from ray_snake.planning.span import Visit
from ray_snake.runtime.messages import NodeSpec


@dataclass(frozen=True, kw_only=True)
class VisitForecast:
    """One visit, predicted.

    Attributes:
        visit: The visit.
        cost: Its operations and memory.
        seconds: Its training time on a node like this machine.
        bytes_pulled: Bytes of the blocks its node will lack.
    """

    visit: Visit
    cost: VisitCost
    seconds: float
    bytes_pulled: int


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """A run, predicted.

    Attributes:
        blocks: What each block costs.
        visits: The visits of the first trips.
        run_seconds: Training time of all trips, one visit after another.
        flops_per_second: This machine's speed on this network.
    """

    blocks: tuple[BlockCost, ...]
    visits: tuple[VisitForecast, ...]
    run_seconds: float
    flops_per_second: float


def forecast(
    config: SnakeConfig, stack: BlockStack, nodes: Sequence[NodeSpec], *, trips: int
) -> Forecast:
    """Predict a run on nodes like this machine; trains nothing.

    Args:
        config: The run's settings.
        stack: The network without weights.
        nodes: The nodes, checked.
        trips: How many trips to list.
    """
    costs, speed = profile_blocks(
        stack,
        nodes[0].sample_shape,
        integer_inputs=nodes[0].integer_inputs,
        batch=config.training.batch_size,
    )
    schedule = Schedule(config.snake, nodes=len(nodes), blocks=len(stack), seed=config.seed)
    ledger: Ledger[None] = Ledger([0] * len(stack), [None] * len(stack))
    produced: dict[int, dict[int, int]] = {}
    listed = []
    seconds = 0.0
    while (visit := schedule.next()) is not None:
        rows = nodes[visit.node].samples
        cost = predict_visit(
            visit,
            costs,
            rows=rows,
            steps=total_steps(rows, config.training),
            training=config.training,
            loss=config.loss,
        )
        seconds += cost.flops / speed
        if visit.trip > trips:
            continue
        own = produced.setdefault(visit.node, {})
        stale = ledger.stale(visit.node)
        pulled = [block for block in stale if own.get(block) != ledger.versions[block]]
        ledger.holds(visit.node, stale)
        ledger.let_go(visit.node, visit.trained)
        ledger.commit(visit.number, dict.fromkeys(visit.trained))
        own.update(dict.fromkeys(visit.trained, visit.number))
        listed.append(
            VisitForecast(
                visit=visit,
                cost=cost,
                seconds=cost.flops / speed,
                bytes_pulled=sum(costs[block].weight_bytes for block in pulled),
            )
        )
    return Forecast(
        blocks=tuple(costs), visits=tuple(listed), run_seconds=seconds, flops_per_second=speed
    )
