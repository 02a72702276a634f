"""What a sweep searches: settings with values from axes, and what does not fit before it starts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from ray_snake.config import SnakeConfig
from ray_snake.config.tune import Axis, TuneConfig
from ray_snake.errors import ConfigError, InputError

# Sections whose settings are the sweep's.
NOT_SEARCHED = ("tune", "storage")


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


def check_sweep(config: SnakeConfig, check: Callable[[SnakeConfig], object]) -> None:
    """Check a sweep's settings: the run's own, and with each value of each axis.

    A value can be if it can alone, or along with values of the other axes.

    Args:
        config: The settings.
        check: Of a run's settings all that can be checked before it starts.

    Raises:
        ConfigError: Naming the axis and the value that can't be.
        InputError: From `check`, of the settings without any axis.
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
        if key.partition(".")[0] in NOT_SEARCHED:
            raise ConfigError(subject, "is the sweep's own setting, not a trial's", "set it once")
        if tune.search == "optuna" and axis.grid is not None:
            raise ConfigError(subject, "is a grid, which optuna does not know", "use choice")
        for other, wanted in axis.when.items():
            if other not in tune.space or wanted not in _candidates(tune.space[other]):
                raise ConfigError(
                    subject,
                    f"waits for {other} to be {wanted!r}, which no axis gives it",
                    "correct `when`",
                )
    check(config)
    for key, axis in tune.space.items():
        for value in _candidates(axis):
            _check_value(config, key, value, check)


def _check_value(
    config: SnakeConfig, key: str, value: object, check: Callable[[SnakeConfig], object]
) -> None:
    refused: list[InputError] = []
    for values in _trials_with(config.tune.space, key, value):
        try:
            check(with_values(config, values))
        except InputError as error:
            refused.append(error)
        else:
            return
    problem = f"{refused[0].subject}: {refused[0].problem}"
    raise ConfigError(f'tune.space."{key}"', problem, refused[0].remedy)


def _trials_with(space: Mapping[str, Axis], key: str, value: object) -> Iterator[dict[str, Any]]:
    """Yield an axis's value alone, and with the other axes', so that each of theirs turns up."""
    yield {**space[key].when, key: value}
    others = {other: _candidates(axis) for other, axis in space.items()}
    for turn in range(max(len(values) for values in others.values())):
        drawn = {other: values[turn % len(values)] for other, values in others.items()}
        yield applied(space, {**drawn, **space[key].when, key: value})


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
