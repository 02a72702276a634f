"""What goes to and from the driver beside the blocks. Importing it does not import torch."""

from __future__ import annotations

from dataclasses import dataclass

from ray_snake.data import ShardSource
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
    """

    source: ShardSource
    sample_shape: tuple[int, ...]
    integer_inputs: bool
    samples: int
    classes: int | None

    @property
    def name(self) -> str:
        """The node's name for people."""
        return self.source.name


@dataclass(frozen=True, kw_only=True)
class BlockTable:
    """What the driver knows of the network.

    Attributes:
        names: The blocks' names, in order.
        bytes: Bytes of each block's weights and persistent buffers, in order.
    """

    names: tuple[str, ...]
    bytes: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class VisitTask:
    """All that decides a visit's result, beside the node's own rows.

    Attributes:
        visit: The visit.
        versions: The version of each block that it starts from, in block order.
        learning_rate: Of every step.
        seed: Of every draw.
    """

    visit: Visit
    versions: tuple[int, ...]
    learning_rate: float
    seed: int


@dataclass(frozen=True, kw_only=True)
class VisitReport:
    """Scalars that leave the node with the trained blocks; see `VisitRecord` for their meaning."""

    samples: int
    steps: int
    loss: float
    first_loss: float
    accuracy: float | None
    update_norm: float | None
    finite: bool
    bytes_pulled: int
    bytes_returned: int
    pull_seconds: float
    train_seconds: float


@dataclass(frozen=True, kw_only=True)
class EvaluationReport:
    """How a model does on held-out rows; see `EvaluationRecord` for the meaning."""

    samples: int
    loss: float
    accuracy: float | None
    seconds: float
