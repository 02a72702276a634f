"""Snake Learning on Ray: train one network across nodes that keep their data.

    from ray_snake import SnakeConfig, SnakeTrainer

    result = SnakeTrainer(model=build, nodes=[...], config=SnakeConfig(...)).fit()

`SnakeTrainer` and `Result` are loaded on first use, so that settings alone cost no start-up.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ray_snake.config import (
    AcceptanceConfig,
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

if TYPE_CHECKING:
    from ray_snake.trainer import Result, SnakeTrainer

__all__ = [
    "AcceptanceConfig",
    "CodecConfig",
    "DataConfig",
    "EvaluationConfig",
    "FailureConfig",
    "InputError",
    "LossConfig",
    "ModelConfig",
    "NodesConfig",
    "PartitionConfig",
    "Result",
    "RunError",
    "SnakeConfig",
    "SnakeError",
    "SnakeSection",
    "SnakeTrainer",
    "StorageConfig",
    "TrainingConfig",
    "TransportConfig",
]

__version__ = "0.1.0"


def __getattr__(name: str) -> object:
    if name in ("Result", "SnakeTrainer"):
        from ray_snake import trainer

        return getattr(trainer, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
