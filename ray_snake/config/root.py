"""`SnakeConfig`: all sections, read from TOML and written as a tree."""

from __future__ import annotations

import hashlib
import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import tomli_w
from pydantic import Field, ValidationError, model_validator

from ray_snake.config.cluster import (
    AcceptanceConfig,
    CodecConfig,
    FailureConfig,
    NodesConfig,
    StorageConfig,
    TransportConfig,
)
from ray_snake.config.data import DataConfig, EvaluationConfig, ModelConfig
from ray_snake.config.method import (
    AdaptationConfig,
    AugmentationConfig,
    BaselineConfig,
    LossConfig,
    SnakeSection,
    TrainingConfig,
)
from ray_snake.config.tune import TuneConfig
from ray_snake.errors import ConfigError
from ray_snake.settings_tree import (
    NonNegativeInt,
    RefusedError,
    Section,
    apply_setting,
    differences,
    first_problem,
)

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


class SnakeConfig(Section):
    """All settings of a run.

    Raises:
        ConfigError: From `load` and `from_tree`, naming the key, its value and the remedy.
        pydantic.ValidationError: From the constructor, for the same reasons.
    """

    seed: NonNegativeInt = Field(default=0, description="Every random draw derives from it.")
    strategy: str = Field(
        default="snake",
        description="`snake`, or a rival: `fedavg`, `fedprox`, `fedpart`, `cyclic`, `fedcybgd`, "
        "`lisa`, `split`, `splitfed`, `centralised`, `local`; or one of your own; see "
        "docs/extending.md.",
    )
    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    nodes: NodesConfig = NodesConfig()
    snake: SnakeSection = SnakeSection()
    adaptation: AdaptationConfig = AdaptationConfig()
    training: TrainingConfig = TrainingConfig()
    augmentation: AugmentationConfig = AugmentationConfig()
    loss: LossConfig = LossConfig()
    transport: TransportConfig = TransportConfig()
    codec: CodecConfig = CodecConfig()
    baseline: BaselineConfig = BaselineConfig()
    acceptance: AcceptanceConfig = AcceptanceConfig()
    failures: FailureConfig = FailureConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    storage: StorageConfig = StorageConfig()
    tune: TuneConfig = TuneConfig()

    # Sections whose values decide a run's weights; the others may change between resumes.
    DECISIVE: ClassVar[tuple[str, ...]] = (
        "seed",
        "strategy",
        "model",
        "data",
        "snake",
        "adaptation",
        "training",
        "augmentation",
        "loss",
        "codec",
        "baseline",
        "acceptance",
    )

    @model_validator(mode="after")
    def _differences_carry_weights_alone(self) -> SnakeConfig:
        if self.training.optimizer_state == "carry" and self.codec.name != "none":
            raise RefusedError(
                "training.optimizer_state",
                f'"carry" goes with codec.name "none", not "{self.codec.name}"',
                "change one of them",
            )
        return self

    @model_validator(mode="after")
    def _whole_models_have_a_teacher_where_others_have(self) -> SnakeConfig:
        # What a visit takes is predicted from the one weight.
        if self.snake.warmup_distillation is not None and not self.loss.distillation:
            raise RefusedError(
                "snake.warmup_distillation",
                f"{self.snake.warmup_distillation:g} goes with loss.distillation above 0",
                "set both, or neither",
            )
        return self

    @model_validator(mode="after")
    def _losses_of_two_epochs_are_compared(self) -> SnakeConfig:
        ratio, training = self.acceptance.max_loss_ratio, self.training
        if ratio is not None and training.steps is None and training.epochs == 1:
            raise RefusedError(
                "acceptance.max_loss_ratio",
                f"{ratio:g} compares a visit's last epoch with its first, and it has one alone",
                'set training.epochs to 2 or more, or the ratio to "none"',
            )
        return self

    def fixes_norms(self, trip: int) -> bool:
        """Return whether batch norms keep their statistics in visits of a trip (from 1)."""
        after = self.training.fix_norms_after_trips
        if after is None:
            return False
        return trip > (math.ceil(self.snake.trips / 3) if after == "auto" else after)

    @classmethod
    def load(cls, path: str | Path, settings: Sequence[str] = ()) -> SnakeConfig:
        """Read a TOML file and apply `section.key=value` settings on top.

        Args:
            path: The file.
            settings: Each `section.key=value`; the value is TOML, or else taken as text.

        Raises:
            ConfigError: If the file can't be read or a key or value is refused.
        """
        file = Path(path)
        try:
            tree = tomllib.loads(file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise ConfigError(str(file), "no such file", "give the path of a TOML file") from None
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(str(file), f"can't be read ({error})", "check the file") from None
        except tomllib.TOMLDecodeError as error:
            raise ConfigError(str(file), f"is not TOML ({error})", "correct that line") from None
        return cls.from_tree(tree, settings)

    @classmethod
    def from_tree(cls, tree: Mapping[str, Any], settings: Sequence[str] = ()) -> SnakeConfig:
        """Check a nested mapping, as TOML or JSON gives it, with settings applied on top.

        Raises:
            ConfigError: If a key or value is refused.
        """
        # TOML's dates and times are no setting's value: as text they are refused by key.
        merged = json.loads(json.dumps(tree, default=str))
        for setting in settings:
            apply_setting(merged, setting)
        try:
            return cls.model_validate_json(json.dumps(merged, default=str))
        except ValidationError as error:
            raise ConfigError(*first_problem(error, cls)) from None

    def tree(self) -> dict[str, Any]:
        """Return the settings as a nested mapping of JSON values; `from_tree` reads it back."""
        return self.model_dump(mode="json")

    def toml(self) -> str:
        """Return the settings that are not at their default as TOML; `load` reads them back."""
        # TOML has no null; what is none and not so by default has a word for it.
        return tomli_w.dumps(_named_none(self.model_dump(mode="json", exclude_defaults=True)))

    def changed_keys(self, other: SnakeConfig) -> list[str]:
        """Return the dotted keys that decide a run's weights and differ in `other`."""
        mine, theirs = self.tree(), other.tree()
        return [
            key
            for section in self.DECISIVE
            for key in differences(section, mine[section], theirs[section])
        ]

    def fingerprint(self) -> str:
        """Return a short hash of all settings that decide a run's weights (hexadecimal).

        Those at their default don't count, so that a setting that is new leaves it as it was.
        """
        tree = self.model_dump(mode="json", exclude_defaults=True)
        decisive = json.dumps({key: tree.get(key) for key in self.DECISIVE}, sort_keys=True)
        return hashlib.sha256(decisive.encode()).hexdigest()[:16]


def _named_none(tree: dict[str, Any]) -> dict[str, Any]:
    return {
        key: _named_none(value) if isinstance(value, dict) else "none" if value is None else value
        for key, value in tree.items()
    }
