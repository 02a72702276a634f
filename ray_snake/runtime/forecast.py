"""A run's first trips as they would go: the strategy, the ledger and the cost model together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ray_snake.config import SnakeConfig, TrainingConfig
from ray_snake.engine.profile import profile_blocks, time_blocks
from ray_snake.engine.stack import BlockStack
from ray_snake.layers.codec import encoded_nbytes
from ray_snake.layers.ledger import Ledger, Parcel
from ray_snake.planning.anchor import make_anchors
from ray_snake.planning.cost import BlockCost, VisitCost
from ray_snake.planning.memory import carried_sets, rows_at_once
from ray_snake.planning.outlook import Facts
from ray_snake.planning.span import Visit
from ray_snake.planning.strategy import make_strategy
from ray_snake.runtime.bases import bases_at_hand
from ray_snake.runtime.memory_checks import fit_nodes, most_demanding
from ray_snake.runtime.messages import NodeSpec
from ray_snake.runtime.placement import asked_bytes
from ray_snake.runtime.records import DRIVER


@dataclass(frozen=True, kw_only=True)
class VisitForecast:
    """One visit, predicted.

    Attributes:
        visit: The visit.
        cost: Its operations and memory, and its time on a node like this machine.
        bytes_pulled: Bytes of the blocks its node will lack.
    """

    visit: Visit
    cost: VisitCost
    bytes_pulled: int


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """A run, predicted.

    Attributes:
        blocks: What each block costs.
        training: How each node trains.
        visits: The visits of the first trips.
        run_seconds: Training time of all trips, one visit after another.
        flops_per_second: This machine's speed on this network.
    """

    blocks: tuple[BlockCost, ...]
    training: tuple[TrainingConfig, ...]
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

    Raises:
        ConfigError: If there is no way for a node's visits to fit its memory.
    """
    largest = most_demanding(nodes)
    costs = measured_costs(
        config,
        stack,
        sample_shape=largest.sample_shape,
        integer_inputs=largest.integer_inputs,
    )
    nodes = fit_nodes(config, nodes, costs)
    facts = Facts(
        rows=tuple(node.samples for node in nodes),
        costs=costs,
        training=tuple(node.training for node in nodes),
        limits=tuple(asked_bytes(config.nodes, node.source) for node in nodes),
    )
    strategy = make_strategy(config, nodes=len(nodes), blocks=len(stack))
    outlook = strategy.know(facts)
    shipping = _Shipping(config, stack)
    listed = []
    seconds = 0.0
    while (visit := strategy.next()) is not None:
        cost = outlook.cost(visit, visit.node)
        seconds += cost.seconds
        if visit.trip <= trips:
            listed.append(VisitForecast(visit=visit, cost=cost, bytes_pulled=shipping.visit(visit)))
    return Forecast(
        blocks=costs,
        training=tuple(node.training or config.training for node in nodes),
        visits=tuple(listed),
        run_seconds=seconds,
        flops_per_second=facts.flops_per_second,
    )


def measured_costs(
    config: SnakeConfig,
    stack: BlockStack,
    *,
    sample_shape: tuple[int, ...],
    integer_inputs: bool,
    timed: bool = True,
) -> tuple[BlockCost, ...]:
    """Return what each block costs, measured on this machine with the nodes' kind of rows.

    Args:
        config: The run's settings.
        stack: The network without weights.
        sample_shape: Shape of one input.
        integer_inputs: Whether inputs are whole numbers.
        timed: Whether seconds are asked for; bytes and operations need a single row.
    """
    batch = rows_at_once(config.training, config.training.batch_size)[0] if timed else 1
    costs, _ = profile_blocks(stack, sample_shape, integer_inputs=integer_inputs, batch=batch)
    if not timed:
        return tuple(costs)
    return time_blocks(
        stack,
        costs,
        sample_shape,
        integer_inputs=integer_inputs,
        training=config.training,
        loss=config.loss,
        threads=config.nodes.threads,
    )


class _Shipping:
    """What each visit pulls, with every node alone on its machine."""

    def __init__(self, config: SnakeConfig, stack: BlockStack) -> None:
        self._whole_bytes = stack.part_bytes()
        self._bytes = [
            encoded_nbytes(stack.part(block), config.codec)
            + carried_sets(config.training)
            * sum(one.nbytes for one in stack.trainable(block).values())
            for block in range(len(stack))
        ]
        # Of the trip whose visits are averaged, what they trained.
        self._round: tuple[int, set[int]] = (0, set())
        self._at_hand = [(one.block, 0) for one in bases_at_hand(stack)]
        parts = range(len(stack.owners))
        self._anchors = make_anchors(config.codec, blocks=len(parts))
        versions = [0 for _ in parts]
        self._ledger: Ledger[None] = Ledger(
            versions,
            [self._whole(part, 0) for part in parts],
            None if self._anchors is None else versions,
        )

    def visit(self, visit: Visit) -> int:
        """Do a visit; return the bytes that its node pulled for it."""
        if self._round[1] and self._round[0] != visit.trip:
            self._average(visit.number)
        ledger, node, machine = self._ledger, visit.node, str(visit.node)
        anchors = None
        if self._anchors is not None:
            anchors = self._anchors.at(visit, ledger.versions)
            ledger.anchor(anchors)
            self._anchors.advance(visit, anchors)
        # Nodes are on machines like this one.
        ledger.holds(node, self._at_hand)
        needed = [one for one in ledger.needs(visit.trained) if visit.on_node(one[0])]
        lacking = ledger.lacks(node, needed)
        sources = [ledger.source(node, machine, *one) for one in lacking]
        parcels = [one for one in sources if one is not None]
        parcels += ledger.differences(visit.trained)
        pulled = sum(ledger.deliver(node, machine, one)[0] for one in parcels)
        ledger.holds(node, lacking)
        ledger.let_go(node, ledger.used(visit.trained))
        if visit.averaged:
            self._round = (visit.trip, self._round[1].union(visit.trained))
            return pulled
        made = {
            block: Parcel[None](
                block=block,
                version=visit.number,
                ref=None,
                bytes=self._bytes[block],
                origin=machine,
                base=None if anchors is None else anchors[block],
                machines={machine},
                nodes={node},
            )
            for block in visit.trained
        }
        ledger.commit(visit.number, made)
        if anchors is not None:
            for block in visit.trained:
                ledger.add(self._whole(block, visit.number))
        return pulled

    def _average(self, version: int) -> None:
        """Make the mean of a trip's visits current, which no node has yet."""
        blocks = sorted(self._round[1])
        self._round = (0, set())
        self._ledger.commit(version, {block: self._whole(block, version) for block in blocks})

    def _whole(self, block: int, version: int) -> Parcel[None]:
        return Parcel(
            block=block,
            version=version,
            ref=None,
            bytes=self._whole_bytes[block],
            origin=DRIVER,
            machines={DRIVER},
        )
