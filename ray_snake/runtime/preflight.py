"""What is looked at before any actor starts, so that bad input costs nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from ray_snake.data import NodeDataset, ShardSource
from ray_snake.engine.fit import output_shape
from ray_snake.engine.stack import BlockStack
from ray_snake.errors import DataError
from ray_snake.planning.span import cut_spans
from ray_snake.runtime.messages import NodeSpec
from ray_snake.runtime.recipe import Recipe

Answer = TypeVar("Answer")


@dataclass(frozen=True, kw_only=True)
class ShardFacts:
    """What the model has to fit.

    Attributes:
        sample_shape: Shape of one input.
        integer_inputs: Whether inputs are whole numbers, such as token ids.
        class_labels: Whether labels are class numbers.
        samples: Rows.
    """

    sample_shape: tuple[int, ...]
    integer_inputs: bool
    class_labels: bool
    samples: int


def shard_facts(source: ShardSource) -> ShardFacts:
    """Open a shard and describe it.

    Raises:
        DataError: If it can't be opened.
    """
    shard = NodeDataset.open(source)
    return ShardFacts(
        sample_shape=shard.sample_shape,
        integer_inputs=shard.input_dtype.kind == "i",
        class_labels=shard.has_class_labels,
        samples=len(shard),
    )


def check_shard(source: ShardSource, classes: int | None) -> None:
    """Look through a whole shard.

    Raises:
        DataError: If a row of it would spoil a training.
    """
    NodeDataset.open(source).check(classes)


def classes_for(stack: BlockStack, facts: ShardFacts, name: str) -> int | None:
    """Return how many classes the network tells apart for such rows; none without class labels.

    Raises:
        DataError: If the network can't take such rows.
    """
    shape = output_shape(
        stack, facts.sample_shape, integer_inputs=facts.integer_inputs, subject=name
    )
    return shape[-1] if facts.class_labels and shape else None


def check_model(recipe: Recipe) -> BlockStack:
    """Build the network without weights and check that the settings' spans fit it.

    Raises:
        ModelError: If it can't be built or cut.
        ConfigError: If a span is wider than the network.
    """
    stack = recipe.skeleton()
    cut_spans(len(stack), recipe.config.snake.span_width)
    return stack


def check_shards(
    stack: BlockStack,
    sources: Sequence[ShardSource],
    on_sources: Callable[..., list[Any]] | None = None,
) -> list[NodeSpec]:
    """Check every node's shard against the network; return the nodes.

    Args:
        stack: The network without weights.
        sources: The nodes' shards.
        on_sources: Runs a function over lists of arguments where the shards are; here by default.

    Raises:
        DataError: If a shard can't be used as it is.
    """
    run = on_sources or _here
    facts: list[ShardFacts] = run(shard_facts, [(source,) for source in sources])
    for source, found in zip(sources, facts, strict=True):
        if found.samples == 0:
            raise DataError(
                source.subject, "has no rows", "leave that node out or give it some data"
            )
    kinds: dict[ShardFacts, int | None] = {}
    for source, found in zip(sources, facts, strict=True):
        kind = replace(found, samples=0)
        if kind not in kinds:
            kinds[kind] = classes_for(stack, kind, source.subject)
    classes = [kinds[replace(found, samples=0)] for found in facts]
    run(check_shard, list(zip(sources, classes, strict=True)))
    return [
        NodeSpec(
            source=source,
            sample_shape=found.sample_shape,
            integer_inputs=found.integer_inputs,
            samples=found.samples,
            classes=count,
        )
        for source, found, count in zip(sources, facts, classes, strict=True)
    ]


def _here(function: Callable[..., Answer], arguments: Sequence[tuple[Any, ...]]) -> list[Answer]:
    return [function(*one) for one in arguments]
