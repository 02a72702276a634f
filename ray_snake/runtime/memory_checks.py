"""Whether visits fit the memory that nodes have, and how each node trains so that they do."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from ray_snake.config import SnakeConfig
from ray_snake.errors import ConfigError
from ray_snake.extensions import OwnClasses
from ray_snake.planning.blocks import BlockCost
from ray_snake.planning.fit import Fit, fit_visits
from ray_snake.planning.span import Visit
from ray_snake.planning.strategy import make_strategy
from ray_snake.runtime.messages import NodeSpec
from ray_snake.runtime.placement import asked_bytes, setting_of

_Kinds = dict[tuple[tuple[int, ...], int | None], Visit]


def has_limits(config: SnakeConfig) -> bool:
    """Return whether any node has a memory limit, so that blocks have to be measured."""
    each = [entry.memory_bytes for entry in config.nodes.each]
    return any([config.nodes.memory_bytes, *each])


def most_demanding(nodes: Sequence[NodeSpec]) -> NodeSpec:
    """Return the node whose rows are largest, which may differ in length: it stands for all."""
    return max(nodes, key=lambda one: math.prod(one.sample_shape))


def known_costs(
    config: SnakeConfig,
    nodes: Sequence[NodeSpec],
    measure: Callable[[tuple[int, ...], bool, bool], tuple[BlockCost, ...]],
) -> tuple[BlockCost, ...]:
    """Return what each block costs where a run needs to know it; else nothing.

    Args:
        config: The run's settings.
        nodes: The nodes, checked.
        measure: `model_checks.ModelChecks.costs`.
    """
    if not (config.snake.adapt or has_limits(config)):
        return ()
    node = most_demanding(nodes)
    return measure(node.sample_shape, node.integer_inputs, config.snake.adapt)


@dataclass(frozen=True, kw_only=True)
class Entry:
    """Where in a run that goes on a node is to join it.

    Attributes:
        node: The number that it gets.
        gone: The numbers of nodes that have left.
        trip: The last trip that has begun; it takes part from the next one on.
    """

    node: int
    gone: tuple[int, ...]
    trip: int


class _Course:
    """The visits that each node may be given.

    Any node may come to any of a run's spans, as others leave. Visits that need more than most
    nodes can give are for those alone that the order gives them.

    Args:
        blocks: Number of the network's blocks.
        own: A user's own classes; none: what the settings name.
        nodes: Number of the nodes.
        entry: Where the last of them joins; none: they start together.
    """

    def __init__(
        self, blocks: int, own: OwnClasses | None, *, nodes: int, entry: Entry | None = None
    ) -> None:
        self._blocks = blocks
        self._own = own
        self._nodes = nodes
        self._entry = entry

    def visits(self, config: SnakeConfig) -> list[list[Visit]]:
        """Return for each node one visit of each kind, under these settings."""
        common: _Kinds = {}
        own: list[_Kinds] = [{} for _ in range(self._nodes)]
        strategy = make_strategy(config, nodes=self._nodes, blocks=self._blocks, own=self._own)
        for node in self._entry.gone if self._entry else ():
            strategy.leave(node)
        begun = self._entry.trip if self._entry else 0
        while (visit := strategy.next()) is not None:
            if visit.trip <= begun:
                continue
            found = own[visit.node] if strategy.is_warm_up(visit) else common
            found.setdefault((visit.trained, visit.cut), visit)
        return [list((common | one).values()) for one in own]


def fit_nodes(
    config: SnakeConfig,
    nodes: Sequence[NodeSpec],
    costs: Sequence[BlockCost],
    own: OwnClasses | None = None,
) -> list[NodeSpec]:
    """Return the nodes with how each of them trains, so that its visits fit its memory.

    Args:
        config: The run's settings.
        nodes: The nodes, checked.
        costs: What each block costs; empty: nobody has a limit.
        own: A user's own classes; none: what the settings name.

    Raises:
        ConfigError: If there is no way for a node. With `snake.adapt` a node may be given the spans
            alone that it bears, so that one is enough.
    """
    if not costs:
        return list(nodes)
    course = _Course(len(costs), own, nodes=len(nodes))
    visits = course.visits(config)
    fitted = []
    for number, node in enumerate(nodes):
        fit = _fit(config, node, visits[number], costs)
        if fit is not None and fit.lacking_bytes:
            remedies = _remedies(config, course, number, node, costs, fit)
            raise _refusal(config, node, fit, ", or ".join(remedies))
        fitted.append(node if fit is None else replace(node, training=fit.training))
    return fitted


def fit_joining(
    config: SnakeConfig,
    node: NodeSpec,
    costs: Sequence[BlockCost],
    entry: Entry,
    own: OwnClasses | None = None,
) -> NodeSpec:
    """Return a node that is to join with how it trains, so that its visits fit its memory.

    Args:
        config: The run's settings.
        node: The node, checked.
        costs: What each block costs.
        entry: Where it joins.
        own: A user's own classes; none: what the settings name.

    Raises:
        ConfigError: If there is no way: see `fit_nodes`.
    """
    course = _Course(len(costs), own, nodes=entry.node + 1, entry=entry)
    fit = _fit(config, node, course.visits(config)[entry.node], costs)
    if fit is not None and fit.lacking_bytes:
        remedy = f"resume the run with at least {fit.private_bytes} for it, or leave it out"
        raise _refusal(config, node, fit, remedy)
    return node if fit is None else replace(node, training=fit.training)


def _fit(
    config: SnakeConfig, node: NodeSpec, visits: Sequence[Visit], costs: Sequence[BlockCost]
) -> Fit | None:
    """Return how a node trains; none where nothing of the settings is to be chosen for it."""
    limit = asked_bytes(config.nodes, node.source) or None
    if not visits or (limit is None and config.training.micro_batch != "auto"):
        return None
    return fit_visits(
        visits,
        costs,
        rows=node.samples,
        limit=limit,
        config=config,
        any_will_do=config.snake.adapt,
    )


def _remedies(
    config: SnakeConfig,
    course: _Course,
    number: int,
    node: NodeSpec,
    costs: Sequence[BlockCost],
    fit: Fit,
) -> list[str]:
    """Return what would make a node's visits fit."""

    def fits(section: str, **changes: object) -> Fit | None:
        changed = getattr(config, section).model_copy(update=changes)
        other = config.model_copy(update={section: changed})
        found = _fit(other, node, course.visits(other)[number], costs)
        return None if found is None or found.lacking_bytes else found

    remedies = []
    for key in ("suffix", "span"):
        if getattr(config.training, key) != "auto" and fits("training", **{key: "auto"}):
            remedies.append(f'set training.{key} to "auto"')
    if config.training.micro_batch != "auto" and (way := fits("training", micro_batch="auto")):
        remedies.append(
            f'set training.micro_batch to "auto": with {way.training.micro_batch} rows at once, '
            f"{way.training.residency}, it fits"
        )
    if not remedies and config.snake.spans is None:
        for width in range(config.snake.span_width - 1, 0, -1):
            if fits("snake", span_width=width):
                remedies.append(f"set snake.span_width to {width}")
                break
    return [*remedies, f"give it {fit.private_bytes} bytes"]


def _refusal(config: SnakeConfig, node: NodeSpec, fit: Fit, remedy: str) -> ConfigError:
    """Return the error that says by how much a node's visits don't fit."""
    limit = fit.private_bytes - fit.lacking_bytes
    return ConfigError(
        setting_of(config.nodes, node.source, "memory_bytes"),
        f"{limit} bytes are {fit.lacking_bytes} too few for {node.name}: training blocks "
        f"{fit.visit.span} takes {fit.private_bytes}",
        remedy,
    )
