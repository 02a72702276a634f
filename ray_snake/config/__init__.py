"""The settings of a run: one tree, from a TOML file or from Python, checked at construction.

`SnakeConfig` is the root; every section is a frozen, keyword-only model whose field descriptions
are the reference (docs/configuration.md is generated from them). An unknown key is an error that
suggests the nearest known one.
"""

from ray_snake.config.cluster import (
    AcceptanceConfig,
    CodecConfig,
    FailureConfig,
    NodesConfig,
    StorageConfig,
    TransportConfig,
)
from ray_snake.config.data import DataConfig, EvaluationConfig, ModelConfig, PartitionConfig
from ray_snake.config.method import (
    AdaptationConfig,
    AugmentationConfig,
    BaselineConfig,
    LossConfig,
    SnakeSection,
    TrainingConfig,
)
from ray_snake.config.root import SnakeConfig

__all__ = [
    "AcceptanceConfig",
    "AdaptationConfig",
    "AugmentationConfig",
    "BaselineConfig",
    "CodecConfig",
    "DataConfig",
    "EvaluationConfig",
    "FailureConfig",
    "LossConfig",
    "ModelConfig",
    "NodesConfig",
    "PartitionConfig",
    "SnakeConfig",
    "SnakeSection",
    "StorageConfig",
    "TrainingConfig",
    "TransportConfig",
]
