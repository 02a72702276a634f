"""Whether visits fit the memory that nodes have, and how each node trains so that they do."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

from ray_snake.config import SnakeConfig
from ray_snake.errors import ConfigError
from ray_snake.planning.blocks import BlockCost
from ray_snake.planning.fit import Fit, fit_visits
from ray_snake.planning.span import Visit
from ray_snake.planning.strategy import Strategy, make_strategy
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


def fit_nodes(
    config: SnakeConfig,
    nodes: Sequence[NodeSpec],
    costs: Sequence[BlockCost],
    kind: type[Strategy] | None = None,
) -> list[NodeSpec]:
    """Return the nodes with how each of them trains, so that its visits fit its memory.

    Args:
        config: The run's settings.
        nodes: The nodes, checked.
        costs: What each block costs; empty: nobody has a limit.
        kind: A user's own strategy; none: what the settings name.

    Raises:
        ConfigError: If there is no way for a node. With `snake.adapt` a node may be given the spans
            alone that it bears, so that one is enough.
    """
    if not costs:
        return list(nodes)
    visits = _kinds_of_visits(config, nodes, len(costs), kind)
    fitted = []
    for number, (node, own) in enumerate(zip(nodes, visits, strict=True)):
        limit = asked_bytes(config.nodes, node.source) or None
        if not own or (limit is None and config.training.micro_batch != "auto"):
            fitted.append(node)
            continue
        fit = fit_visits(
            own,
            costs,
            rows=node.samples,
            limit=limit,
            config=config,
            any_will_do=config.snake.adapt,
        )
        if fit.lacking_bytes and limit is not None:
            raise _refusal(config, nodes, number, costs, fit, kind)
        fitted.append(replace(node, training=fit.training))
    return fitted


def _kinds_of_visits(
    config: SnakeConfig, nodes: Sequence[NodeSpec], blocks: int, kind: type[Strategy] | None
) -> list[list[Visit]]:
    """Return for each node one visit of each kind that it may be given.

    Any node may come to any of a run's spans, as others leave. Visits that need more than most
    nodes can give are for those alone that the order gives them.
    """
    common: _Kinds = {}
    own: list[_Kinds] = [{} for _ in nodes]
    strategy = make_strategy(config, nodes=len(nodes), blocks=blocks, kind=kind)
    while (visit := strategy.next()) is not None:
        found = own[visit.node] if strategy.is_warm_up(visit) else common
        found.setdefault((visit.trained, visit.cut), visit)
    return [list((common | one).values()) for one in own]


def _refusal(
    config: SnakeConfig,
    nodes: Sequence[NodeSpec],
    number: int,
    costs: Sequence[BlockCost],
    fit: Fit,
    kind: type[Strategy] | None,
) -> ConfigError:
    """Return the error that says by how much a node's visits don't fit, and what would."""
    node = nodes[number]
    limit = fit.private_bytes - fit.lacking_bytes

    def fits(section: str, **changes: object) -> Fit | None:
        changed = getattr(config, section).model_copy(update=changes)
        other = config.model_copy(update={section: changed})
        found = fit_visits(
            _kinds_of_visits(other, nodes, len(costs), kind)[number],
            costs,
            rows=node.samples,
            limit=limit,
            config=other,
            any_will_do=config.snake.adapt,
        )
        return None if found.lacking_bytes else found

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
    remedies.append(f"give it {fit.private_bytes} bytes")
    return ConfigError(
        setting_of(config.nodes, node.source, "memory_bytes"),
        f"{limit} bytes are {fit.lacking_bytes} too few for {node.name}: training blocks "
        f"{fit.visit.span} takes {fit.private_bytes}",
        ", or ".join(remedies),
    )
