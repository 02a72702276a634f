"""Snake Learning on Ray: train one network across nodes that keep their data.

    from ray_snake import SnakeConfig, SnakeTrainer

    result = SnakeTrainer(model=build, nodes=[...], config=SnakeConfig(...)).fit()

`SnakeTrainer` and `Result` are loaded on first use, so that settings alone cost no start-up.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ray_snake.config import (
    AcceptanceConfig,
    AugmentationConfig,
    BaselineConfig,
    CodecConfig,
    DataConfig,
    EvaluationConfig,
    FailureConfig,
    LossConfig,
    ModelConfig,
    NodesConfig,
    PartitionConfig,
    SnakeConfig,
    SnakeSection,
    StorageConfig,
    TrainingConfig,
    TransportConfig,
)
from ray_snake.errors import InputError, RunError, SnakeError
from ray_snake.planning.order import Order, Turn
from ray_snake.planning.span import Span, Visit
from ray_snake.planning.strategy import Strategy

if TYPE_CHECKING:
    from ray_snake.trainer import Result, SnakeTrainer

__all__ = [
    "AcceptanceConfig",
    "AugmentationConfig",
    "BaselineConfig",
    "CodecConfig",
    "DataConfig",
    "EvaluationConfig",
    "FailureConfig",
    "InputError",
    "LossConfig",
    "ModelConfig",
    "NodesConfig",
    "Order",
    "PartitionConfig",
    "Result",
    "RunError",
    "SnakeConfig",
    "SnakeError",
    "SnakeSection",
    "SnakeTrainer",
    "Span",
    "StorageConfig",
    "Strategy",
    "TrainingConfig",
    "TransportConfig",
    "Turn",
    "Visit",
]

__version__ = "0.1.0"


def __getattr__(name: str) -> object:
    if name in ("Result", "SnakeTrainer"):
        from ray_snake import trainer

        return getattr(trainer, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
