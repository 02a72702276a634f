"""What goes to and from the driver beside the blocks. Importing it does not import torch."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

from ray_snake.config import TrainingConfig
from ray_snake.data import ShardSource
from ray_snake.planning.cost import BlockCost
from ray_snake.planning.span import Visit


@dataclass(frozen=True, kw_only=True)
class NodeSpec:
    """A node that passed the checks.

    Attributes:
        source: Its shard.
        sample_shape: Shape of one input.
        integer_inputs: Whether inputs are whole numbers, such as token ids.
        samples: Rows of the shard.
        classes: How many classes the network tells apart; none without class labels.
        tokens: How many tokens it scores at each position; none unless labels are tokens.
        training: How it trains so that visits fit its memory; none: as the run's settings say.
    """

    source: ShardSource
    sample_shape: tuple[int, ...]
    integer_inputs: bool
    samples: int
    classes: int | None
    tokens: int | None = None
    training: TrainingConfig | None = None

    @property
    def name(self) -> str:
        """The node's name for people."""
        return self.source.name


@dataclass(frozen=True, kw_only=True)
class BlockTable:
    """What the driver knows of the network.

    Attributes:
        names: The blocks' names, in order.
        bytes: Bytes of each block's weights and persistent buffers, in order; then of each base, in
            the order of the network's parts.
        costs: What each block costs, where the run adapts; else empty.
    """

    names: tuple[str, ...]
    bytes: tuple[int, ...]
    costs: tuple[BlockCost, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Delivery:
    """A block version on its way to a node.

    Attributes:
        block: The block's number.
        version: The version.
        base: The version that the object is the difference from; none: the version whole.
        ref: Leads to the object. Ray fetches no ref within a message.
    """

    block: int
    version: int
    base: int | None
    ref: Any


@dataclass(frozen=True, kw_only=True)
class VisitTask:
    """All that decides a visit's result, beside the node's own rows.

    Attributes:
        visit: The visit.
        versions: The version of each block that it starts from, in block order; then of the bases,
            as everywhere where versions are counted.
        anchors: The version of each block that the result is encoded against, in block order;
            none: trained blocks travel whole.
        learning_rate: Of every step.
        seed: Of every draw.
        back: The blocks from the visit's cut on, for the server to pull; empty without a cut.
        distillation: The loss's weight of distillation; none: what the settings say.
    """

    visit: Visit
    versions: tuple[int, ...]
    anchors: tuple[int, ...] | None
    learning_rate: float
    seed: int
    back: tuple[Delivery, ...] = ()
    distillation: float | None = None


@dataclass(frozen=True, kw_only=True)
class VisitReport:
    """Scalars that leave the node with the trained blocks; see `VisitRecord` for their meaning.

    `parcel_bytes` are those of each block that the node trained as it travels, ascending by block;
    `sent_bytes` and `received_bytes` what it exchanged with the server of a visit with a cut.
    """

    samples: int
    steps: int
    loss: float
    first_loss: float
    accuracy: float | None
    update_norm: float | None
    finite: bool
    parcel_bytes: tuple[int, ...]
    pull_seconds: float
    train_seconds: float
    sent_bytes: int = 0
    received_bytes: int = 0
    pull_bytes: int = 0
    free_bytes: int | None = None


@dataclass(frozen=True, kw_only=True)
class BackReport:
    """What the server of a visit with a cut says of its side; see `VisitReport`."""

    finite: bool
    update_norm: float | None


def with_back(report: VisitReport, back: BackReport) -> VisitReport:
    """Return what a node reports of a visit with what the server says of its side."""
    change = None
    if report.update_norm is not None and back.update_norm is not None:
        change = math.hypot(report.update_norm, back.update_norm)
    return replace(report, finite=report.finite and back.finite, update_norm=change)


@dataclass(frozen=True, kw_only=True)
class EvaluationReport:
    """How a model does on held-out rows; see `EvaluationRecord` for the meaning."""

    samples: int
    loss: float
    accuracy: float | None
    seconds: float
    perplexity: float | None = None
