"""What a sweep searches: settings with values from axes, and what does not fit before it starts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ray_snake.config import SnakeConfig
from ray_snake.config.tune import Axis, TuneConfig
from ray_snake.errors import ConfigError


def with_values(config: SnakeConfig, values: Mapping[str, Any]) -> SnakeConfig:
    """Return settings with others in place of some, and without a sweep's own.

    Args:
        config: The settings.
        values: By dotted key, such as `training.learning_rate`.

    Raises:
        ConfigError: If a key or value is refused.
    """
    tree = config.tree() | {"tune": {}}
    for key, value in values.items():
        branch = tree
        *sections, name = key.split(".")
        for section in sections:
            inner = branch.setdefault(section, {})
            if not isinstance(inner, dict):
                raise ConfigError(key, f"{section!r} is not a section", "check the key")
            branch = inner
        branch[name] = value
    return SnakeConfig.from_tree(tree)


def applied(space: Mapping[str, Axis], values: Mapping[str, Any]) -> dict[str, Any]:
    """Return those of a trial's values whose conditions hold."""
    return {
        key: value
        for key, value in values.items()
        if key not in space
        or all(values.get(other) == wanted for other, wanted in space[key].when.items())
    }


def check_sweep(config: SnakeConfig) -> None:
    """Check a sweep's settings against the run's.

    Raises:
        ConfigError: Naming the axis and the value that can't be.
    """
    tune = config.tune
    if not tune.space:
        raise ConfigError("tune.space", "is empty", "name at least one setting and its values")
    if config.evaluation.data is None:
        raise ConfigError(
            "evaluation.data", "is missing, and trials are judged by it", "give held-out rows"
        )
    for key, axis in tune.space.items():
        subject = f'tune.space."{key}"'
        if tune.search == "optuna" and axis.grid is not None:
            raise ConfigError(subject, "is a grid, which optuna does not know", "use choice")
        for other, wanted in axis.when.items():
            if other not in tune.space or wanted not in _candidates(tune.space[other]):
                raise ConfigError(
                    subject,
                    f"waits for {other} to be {wanted!r}, which no axis gives it",
                    "correct `when`",
                )
        for value in _candidates(axis):
            _check_value(config, subject, {**axis.when, key: value})


def _check_value(config: SnakeConfig, subject: str, values: Mapping[str, Any]) -> None:
    try:
        with_values(config, values)
    except ConfigError as error:
        raise ConfigError(subject, f"{error.subject}: {error.problem}", error.remedy) from None


def _candidates(axis: Axis) -> tuple[Any, ...]:
    """Return all values of an axis, or the ends of its range."""
    if axis.randint is not None:
        return axis.randint[0], axis.randint[1] - 1
    return axis.choice or axis.grid or axis.uniform or axis.loguniform or ()


def domains(tune: TuneConfig) -> dict[str, Any]:
    """Return a sweep's space as Ray Tune's domains."""
    from ray.tune import choice, grid_search, loguniform, randint, uniform

    found: dict[str, Any] = {}
    for key, axis in tune.space.items():
        if axis.choice is not None:
            found[key] = choice(list(axis.choice))
        elif axis.grid is not None:
            found[key] = grid_search(list(axis.grid))
        elif axis.uniform is not None:
            found[key] = uniform(*axis.uniform)
        elif axis.loguniform is not None:
            found[key] = loguniform(*axis.loguniform)
        elif axis.randint is not None:
            found[key] = randint(*axis.randint)
    return found
