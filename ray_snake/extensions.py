"""What users can add: strategies, orders and losses.

A name is one of the project's own, an entry point of an installed package (in the group
`ray_snake.strategies`, `ray_snake.orders` or `ray_snake.losses`), or `package.module:Name`.
"""

from __future__ import annotations

import importlib
import inspect
import operator
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from ray_snake.errors import ConfigError, SnakeError, did_you_mean

if TYPE_CHECKING:
    from ray_snake.planning.order import Order
    from ray_snake.planning.strategy import Strategy

Answer = TypeVar("Answer")

Kind = Literal["strategy", "order", "loss"]

KEYS: Mapping[Kind, str] = {"strategy": "strategy", "order": "snake.order", "loss": "loss.name"}
GROUPS: Mapping[Kind, str] = {
    "strategy": "ray_snake.strategies",
    "order": "ray_snake.orders",
    "loss": "ray_snake.losses",
}
# By import path, so that looking at a name imports nothing else.
OWN: Mapping[Kind, Mapping[str, str]] = {
    "strategy": {
        "snake": "ray_snake.planning.snake:Snake",
        "centralised": "ray_snake.baselines.sequential:Alone",
        "local": "ray_snake.baselines.sequential:Alone",
        "cyclic": "ray_snake.baselines.sequential:Cyclic",
        "fedcybgd": "ray_snake.baselines.sequential:FedCyBGD",
        "fedavg": "ray_snake.baselines.averaging:FedAvg",
        "fedprox": "ray_snake.baselines.averaging:FedProx",
        "fedpart": "ray_snake.baselines.averaging:FedPart",
        "lisa": "ray_snake.baselines.lisa:Lisa",
        "split": "ray_snake.baselines.split:Split",
        "splitfed": "ray_snake.baselines.split:SplitFed",
    },
    "order": {
        "span_major": "ray_snake.planning.order:SpanMajor",
        "diagonal": "ray_snake.planning.order:Diagonal",
        "random": "ray_snake.planning.order:RandomOrder",
    },
    "loss": {
        "cross_entropy": "ray_snake.engine.objective:cross_entropy",
        "mse": "ray_snake.engine.objective:mean_squared_error",
    },
}


@dataclass(frozen=True, kw_only=True)
class OwnClasses:
    """What a user gave as classes.

    Attributes:
        strategy: In place of the one that the settings name; none: that one.
        order: Likewise.
    """

    strategy: type[Strategy] | None = None
    order: type[Order] | None = None


def find(kind: Kind, name: str) -> Any:  # noqa: ANN401 - whatever the user registered
    """Return the class or function of a name.

    Raises:
        ConfigError: If nothing has that name, or it can't be imported, or is no class or function.
    """
    path = _path(kind, name)
    module_name, _, attribute = path.partition(":")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        # A user's module may raise anything when it is imported.
        raise ConfigError(
            KEYS[kind],
            f"{name!r} can't be imported ({type(error).__name__}: {error})",
            "install it, or put its folder on PYTHONPATH, here and on every machine of the cluster",
        ) from None
    try:
        found = operator.attrgetter(attribute)(module)
    except AttributeError:
        raise ConfigError(
            KEYS[kind],
            f"module {module_name!r} has no {attribute!r}",
            f"{did_you_mean(attribute, dir(module))}name something in that module",
        ) from None
    if not callable(found):
        raise ConfigError(
            KEYS[kind],
            f"{name!r} is a {type(found).__name__}, no class or function",
            "name one in that module",
        )
    return found


def import_path(own: object) -> str:
    """Return where a class or function is imported from, `module:name`; else what it looks like."""
    name = getattr(own, "__qualname__", None)
    return repr(own) if name is None else f"{own.__module__}:{name}"


def check_class(kind: Kind, found: object, base: type[object]) -> Any:  # noqa: ANN401 - `base`, or below
    """Return a strategy's or order's class; check that it is one, with all that it has to have.

    Raises:
        ConfigError: If it is no subclass of `base`, or has not all of its methods.
    """
    wanted = f"ray_snake.{base.__name__}"
    if not (isinstance(found, type) and issubclass(found, base)):
        raise ConfigError(
            KEYS[kind], f"{import_path(found)} is no subclass of {wanted}", "derive it from that"
        )
    if inspect.isabstract(found):
        lacking = ", ".join(sorted(getattr(found, "__abstractmethods__", ())))
        raise ConfigError(
            KEYS[kind],
            f"{import_path(found)} has no {lacking} of its own",
            f"name a class derived from {wanted} that has it",
        )
    return found


def is_ours(own: object) -> bool:
    """Return whether a class or function is this project's, not a user's."""
    return import_path(own).startswith("ray_snake.")


def ask(kind: Kind, own: type[object], call: Callable[..., Answer], *arguments: Any) -> Answer:  # noqa: ANN401 - whatever `call` takes
    """Call what a user's class has to answer; of what it raises say which class did, and where.

    Args:
        kind: What it is registered as.
        own: The class; where it is this project's, errors come as they are.
        call: Its method, or itself.
        arguments: What to call that with.

    Raises:
        ConfigError: If it raised anything.
    """
    try:
        return call(*arguments)
    except SnakeError:
        raise
    except Exception as error:
        if is_ours(own):
            raise
        *_, last = traceback.extract_tb(error.__traceback__)
        place = f"{Path(last.filename).name}, line {last.lineno}"
        raise ConfigError(
            KEYS[kind],
            f"{import_path(own)} raised {type(error).__name__}: "
            f"{' '.join(str(error).split())[:160]} ({place})",
            "correct it",
        ) from error


def _path(kind: Kind, name: str) -> str:
    """Return the import path, `module:attribute`, of a name."""
    if name in OWN[kind]:
        return OWN[kind][name]
    if ":" in name:
        return name
    installed = _installed(kind)
    if name in installed:
        return installed[name].value
    known = [*OWN[kind], *installed]
    raise ConfigError(
        KEYS[kind],
        f"there is no {kind} {name!r}",
        f"{did_you_mean(name, known)}known: {', '.join(known)}; or give package.module:Name",
    )


def _installed(kind: Kind) -> dict[str, EntryPoint]:
    return {one.name: one for one in entry_points(group=GROUPS[kind])}
