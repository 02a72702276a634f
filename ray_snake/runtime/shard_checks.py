"""What is asked of a shard before any actor starts, by a process that can open it.

On a cluster that is one that was started for it alone, so importing this does not import torch.
"""

from __future__ import annotations

from dataclasses import dataclass

from ray_snake.data import NodeDataset, ShardSource


@dataclass(frozen=True, kw_only=True)
class ShardFacts:
    """What the model has to fit.

    Attributes:
        sample_shape: Shape of one input.
        integer_inputs: Whether inputs are whole numbers, such as token ids.
        class_labels: Whether labels are class numbers.
        token_labels: Whether they are the tokens that follow each position.
        label_shape: Shape of one label.
        integer_labels: Whether labels are whole numbers, of whatever shape.
        largest: Largest input, where inputs are whole numbers; else 0.
        samples: Rows.
    """

    sample_shape: tuple[int, ...]
    integer_inputs: bool
    class_labels: bool
    token_labels: bool
    label_shape: tuple[int, ...]
    integer_labels: bool
    largest: int
    samples: int


def shard_facts(source: ShardSource) -> ShardFacts:
    """Open a shard and describe it.

    Raises:
        DataError: If it can't be opened, or holds tokens below 0.
    """
    shard = NodeDataset.open(source)
    return ShardFacts(
        sample_shape=shard.sample_shape,
        integer_inputs=shard.input_dtype.kind == "i",
        class_labels=shard.has_class_labels,
        token_labels=shard.has_token_labels,
        label_shape=shard.label_shape,
        integer_labels=shard.label_dtype.kind == "i",
        largest=shard.largest_input(),
        samples=len(shard),
    )


def check_shard(source: ShardSource, classes: int | None) -> None:
    """Look through a whole shard.

    Raises:
        DataError: If a row of it would spoil a training.
    """
    NodeDataset.open(source).check(classes)
