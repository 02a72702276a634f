"""What is looked at before any actor starts, so that bad input costs nothing.

Importing this does not import torch; what has a network as an argument does.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

from ray_snake.config import SnakeConfig
from ray_snake.data import ShardSource
from ray_snake.errors import ConfigError, DataError
from ray_snake.extensions import import_path, is_ours
from ray_snake.planning.strategy import make_strategy
from ray_snake.runtime.memory_checks import Entry, fit_joining, has_limits
from ray_snake.runtime.messages import NodeSpec
from ray_snake.runtime.recipe import Recipe
from ray_snake.runtime.shard_checks import ShardFacts, check_shard, shard_facts

if TYPE_CHECKING:
    from ray_snake.engine.objective import TaskLoss
    from ray_snake.engine.stack import BlockStack

Answer = TypeVar("Answer")


def classes_for(
    stack: BlockStack, facts: ShardFacts, name: str, task: TaskLoss | None = None
) -> int | None:
    """Return how many classes, or tokens, the network tells apart for such rows.

    None where labels are neither.

    Args:
        stack: The network without weights.
        facts: What the rows are.
        name: The file that they come from, for the message.
        task: The loss that they are trained with; none: it is not looked at.

    Raises:
        DataError: If the network can't take such rows, gives no scores for such labels, or the loss
            can't compare the two.
    """
    from ray_snake.engine.fit import output_shape

    shape = output_shape(
        stack,
        facts.sample_shape,
        integer_inputs=facts.integer_inputs,
        subject=name,
        largest=facts.largest,
    )
    if facts.token_labels and shape[:-1] != facts.label_shape:
        raise DataError(
            name,
            f"labels have the shape {facts.label_shape}, and the model scores "
            + (f"positions of shape {shape[:-1]}" if len(shape) > 1 else "whole rows"),
            'set model.options.task to "language_modelling", or name a column of classes',
        )
    if facts.class_labels and facts.integer_inputs and len(shape) > 1:
        raise DataError(
            name,
            "has one label for each row, and the model scores each position",
            'set model.options.task to "sequence_classification", or name a column of tokens',
        )
    if task is not None:
        _try_loss(task, shape, facts, name)
    return shape[-1] if (facts.class_labels or facts.token_labels) and shape else None


def _try_loss(task: TaskLoss, shape: tuple[int, ...], facts: ShardFacts, name: str) -> None:
    import torch

    kind = torch.int64 if facts.integer_labels else torch.float32
    # One position tells as much as a whole text, whose scores may be large.
    outputs, labels = ((1, shape[-1]), (1,)) if facts.token_labels else (shape, facts.label_shape)
    scores = torch.zeros((2, *outputs), requires_grad=True)
    try:
        torch.autograd.backward(task(scores, torch.zeros((2, *labels), dtype=kind)))
    except Exception as error:
        # It may be one that a user has registered, which raises anything.
        if not is_ours(task):
            raise ConfigError(
                "loss.name",
                f"{import_path(task)} can't compare outputs {tuple(scores.shape)} with labels of "
                f"{name}, {str(kind).removeprefix('torch.')} {(2, *labels)}: "
                f"{type(error).__name__}: {' '.join(str(error).split())[:160]}",
                "give a function of outputs and labels that returns one number, or other labels",
            ) from None
        raise DataError(
            name,
            f"labels ({str(kind).removeprefix('torch.')} of shape {facts.label_shape}) and the "
            f"model's outputs (of shape {shape}) don't fit the loss, which says "
            f"{' '.join(str(error).split())[:160]}",
            "choose another loss.name, or name another column as data.label",
        ) from None


def check_model(recipe: Recipe, *, nodes: int) -> BlockStack:
    """Build the network without weights and check that strategy and loss fit it.

    Raises:
        ModelError: If it can't be built or cut.
        ConfigError: If strategy, order or loss are not known, or don't fit nodes or network, such
            as a cut between two blocks with a tied weight.
    """
    stack = recipe.skeleton()
    strategy = make_strategy(recipe.config, nodes=nodes, blocks=len(stack), own=recipe.own)
    first = strategy.next()
    if first is not None and first.cut is not None:
        _refuse_cut_ties(stack, first.cut)
        if len(stack.owners) > len(stack):
            raise ConfigError(
                "strategy",
                f"{recipe.config.strategy!r} trains blocks whole, and this model's have adapters",
                "leave model.options.lora out, or choose another strategy",
            )
    recipe.objective()
    return stack


def _refuse_cut_ties(stack: BlockStack, cut: int) -> None:
    for block in range(cut, len(stack)):
        across = [one for one in stack.reads[block] if one < cut]
        if across:
            raise ConfigError(
                "baseline.cut",
                f"{cut} parts block {stack.names[block]!r} from {stack.names[across[0]]!r}, whose "
                "weight it computes with",
                "choose a model without tied weights, or another strategy",
            )


def check_shards(
    stack: BlockStack, sources: Sequence[ShardSource], task: TaskLoss | None = None
) -> list[NodeSpec]:
    """Check every node's shard against the network, here; return the nodes.

    Args:
        stack: The network without weights.
        sources: The nodes' shards.
        task: The loss that they are trained with; none: it is not looked at.

    Raises:
        DataError: If a shard can't be used as it is.
    """
    return check_nodes(functools.partial(classes_for, stack, task=task), sources, _here)


def check_nodes(
    classes_of: Callable[[ShardFacts, str], int | None],
    sources: Sequence[ShardSource],
    run: Callable[..., list[Any]],
) -> list[NodeSpec]:
    """Check every node's shard against the network; return the nodes.

    Args:
        classes_of: Tells the network's classes: see `classes_for`.
        sources: The nodes' shards.
        run: Runs a function over lists of arguments where the shards are; the first of each list
            is the source.

    Raises:
        DataError: If a shard can't be used as it is.
    """
    facts: list[ShardFacts] = run(shard_facts, [(source,) for source in sources])
    for source, found in zip(sources, facts, strict=True):
        if found.samples == 0:
            raise DataError(
                source.subject, "has no rows", "leave that node out or give it some data"
            )
    kinds: dict[ShardFacts, int | None] = {}
    # Of each kind the shard with the largest number stands for all.
    for source, found in sorted(
        zip(sources, facts, strict=True), key=lambda pair: pair[1].largest, reverse=True
    ):
        kind = _kind(found)
        if kind not in kinds:
            kinds[kind] = classes_of(replace(found, samples=0), source.subject)
    classes = [kinds[_kind(found)] for found in facts]
    run(check_shard, list(zip(sources, classes, strict=True)))
    return [
        NodeSpec(
            source=source,
            sample_shape=found.sample_shape,
            integer_inputs=found.integer_inputs,
            samples=found.samples,
            classes=count if found.class_labels else None,
            tokens=count if found.token_labels else None,
        )
        for source, found, count in zip(sources, facts, classes, strict=True)
    ]


def check_settings(config: SnakeConfig, nodes: Sequence[NodeSpec]) -> None:
    """Check that augmentation and teacher fit the nodes' rows.

    Raises:
        ConfigError: If what is to be mirrored or cropped are not floats of shape (channels, height,
            width), or if the likeliest classes are to be kept and there are none.
    """
    for node in nodes:
        if node.classes is None and node.tokens is None and config.loss.teacher == "top_k":
            raise ConfigError(
                "loss.teacher",
                f"'top_k' is for classes, and the labels of {node.name} are numbers",
                'set it to "logits"',
            )
    settings = config.augmentation
    key = "flip" if settings.flip else "crop"
    if not (settings.flip or settings.crop):
        return
    for node in nodes:
        if len(node.sample_shape) != 3 or node.integer_inputs:
            raise ConfigError(
                f"augmentation.{key}",
                f"{getattr(settings, key)} is for pictures (channels, height, width), and rows of "
                f"{node.name} have shape {node.sample_shape}",
                "leave augmentation out",
            )


def check_joining(recipe: Recipe, source: ShardSource, entry: Entry) -> NodeSpec:
    """Check a node that joins a run: what is checked of all others before it starts.

    Imports torch in the process that it is called in, once the shard is known to have rows.

    Args:
        recipe: The run's settings and functions.
        source: The node's shard.
        entry: Where it joins.

    Raises:
        InputError: If the shard can't be used, or does not fit the model or the settings, or if
            visits don't fit the node's memory.
    """

    def classes(facts: ShardFacts, name: str) -> int | None:
        return classes_for(recipe.skeleton(), facts, name, recipe.named_task())

    config = recipe.config
    (spec,) = check_nodes(classes, [source], _here)
    check_settings(config, [spec])
    if not has_limits(config):
        return spec
    from ray_snake.runtime.forecast import measured_costs

    costs = measured_costs(
        config,
        recipe.skeleton(),
        sample_shape=spec.sample_shape,
        integer_inputs=spec.integer_inputs,
        timed=False,
    )
    return fit_joining(config, spec, costs, entry, recipe.own)


def _kind(facts: ShardFacts) -> ShardFacts:
    return replace(facts, samples=0, largest=0)


def _here(function: Callable[..., Answer], arguments: Sequence[tuple[Any, ...]]) -> list[Answer]:
    return [function(*one) for one in arguments]
