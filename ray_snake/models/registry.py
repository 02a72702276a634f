"""Finds a network by its name or import path and builds it with checked options.

To add a network, add a file to this package with a function under `@register("its_name")`: the
registry imports every module of the package, and checks the options of a network against its
function's signature.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import json
import operator
import pkgutil
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, TypeVar

from pydantic import ConfigDict, PydanticUserError, TypeAdapter, ValidationError
from pydantic_core import PydanticSerializationError, to_jsonable_python
from torch import nn

import ray_snake.models
from ray_snake.errors import ModelError, did_you_mean
from ray_snake.extensions import import_path

BuilderT = TypeVar("BuilderT", bound=Callable[..., Any])

_builders: dict[str, Callable[..., Any]] = {}


def register(name: str) -> Callable[[BuilderT], BuilderT]:
    """Return a decorator that makes a function known as the network `name`.

    The function takes keyword-only, annotated options and returns an `nn.Sequential` of blocks,
    any other `nn.Module`, or a list of blocks.

    Raises:
        ValueError: If another function has that name already.
    """

    def decorate(builder: BuilderT) -> BuilderT:
        known = _builders.get(name)
        if known is not None and import_path(known) != import_path(builder):
            raise ValueError(f"model {name!r} is {import_path(known)} already; take another name")
        _builders[name] = builder
        return builder

    return decorate


def model_names() -> tuple[str, ...]:
    """Return the names of all registered networks, sorted."""
    _import_package()
    return tuple(sorted(_builders))


def build_model(name: str, options: Mapping[str, Any]) -> nn.Module | list[nn.Module]:
    """Build a network with initial weights from torch's global generator.

    Args:
        name: A registered name, or `package.module:function`.
        options: The function's keyword arguments; JSON and TOML lists stand for tuples too.

    Returns:
        What the function returns: an `nn.Sequential` whose children are the blocks, another
        `nn.Module`, or a list of blocks.

    Raises:
        ModelError: If the name or an option is unknown, a value is missing or refused, the
            function can't be imported, fails, or returns something else.
    """
    builder = _find(name)
    arguments = _check_options(name, builder, options)
    try:
        model = builder(**arguments)
    except ModelError:
        raise
    except Exception as error:
        raise ModelError(
            "model.options",
            f"{name} can't be built with {dict(options)!r} ({type(error).__name__}: {error})",
            "correct the options, or the function that builds the model",
        ) from error
    return _check_result(name, model)


def all_options(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return a network's options, those at their default too, as JSON has them.

    What is built from them stays the same when a default changes. Not among them is what JSON
    can't carry, and None, which says that there is no such option.

    Args:
        name: A registered name, or `package.module:function`.
        options: Those that are given.

    Raises:
        ModelError: If `build_model` would refuse them.
    """
    builder = _find(name)
    checked = _check_options(name, builder, options)
    found = dict(options)
    for key, parameter in _named(_signature(builder)).items():
        value = checked.get(key, parameter.default)
        if value is None:
            continue
        with contextlib.suppress(PydanticSerializationError, ModelError):
            plain = to_jsonable_python(value, exclude_none=True)
            if _check_value(parameter, plain) == value:
                found[key] = plain
    return found


def _find(name: str) -> Callable[..., Any]:
    if ":" in name:
        return _import_builder(name)
    names = model_names()
    if name in names:
        return _builders[name]
    raise ModelError(
        "model.name",
        f"unknown model {name!r}",
        f"{did_you_mean(name, names)}known models: {', '.join(names)}, or give an import path "
        "package.module:function",
    )


def _import_builder(path: str) -> Callable[..., Any]:
    module_name, _, function_name = path.partition(":")
    if not all(
        part.isidentifier() for part in [*module_name.split("."), *function_name.split(".")]
    ):
        raise ModelError(
            "model.name",
            f"{path!r} is not an import path",
            "write it as package.module:function",
        )
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        raise ModelError(
            "model.name",
            f"{module_name!r} can't be imported ({type(error).__name__}: {error})",
            "install it, or put its folder on PYTHONPATH, here and on every machine of the cluster",
        ) from error
    try:
        builder = operator.attrgetter(function_name)(module)
    except AttributeError:
        public = [key for key, value in vars(module).items() if callable(value) and key[0] != "_"]
        raise ModelError(
            "model.name",
            f"module {module_name!r} has no {function_name!r}",
            f"{did_you_mean(function_name, public)}name a function of that module",
        ) from None
    if not callable(builder):
        raise ModelError(
            "model.name",
            f"{path!r} is a {type(builder).__name__}, not a function",
            "name a function that returns the model",
        )
    found: Callable[..., Any] = builder
    return found


def _check_options(
    name: str, builder: Callable[..., Any], options: Mapping[str, Any]
) -> dict[str, Any]:
    signature = _signature(builder)
    named = _named(signature)
    takes_any = any(one.kind is one.VAR_KEYWORD for one in signature.parameters.values())
    checked = {}
    for key, value in options.items():
        if key in named:
            checked[key] = _check_value(named[key], value)
        elif takes_any:
            checked[key] = value
        else:
            raise ModelError(
                f"model.options.{key}",
                f"{name} has no such option",
                f"{did_you_mean(key, named)}options of {name}: {', '.join(named) or 'none'}",
            )
    for key, parameter in named.items():
        if key not in options and parameter.default is parameter.empty:
            raise ModelError(
                f"model.options.{key}", f"{name} needs it and it is not set", "set this option"
            )
    return checked


def _named(signature: inspect.Signature) -> dict[str, inspect.Parameter]:
    return {
        key: parameter
        for key, parameter in signature.parameters.items()
        if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
    }


def _signature(builder: Callable[..., Any]) -> inspect.Signature:
    try:
        return inspect.signature(builder, eval_str=True)
    except (NameError, TypeError, AttributeError, SyntaxError):
        # A user's annotation may only exist for the type checker: its values go unchecked then.
        return inspect.signature(builder)
    except ValueError:
        # Some callables of extension modules say nothing about what they take.
        return inspect.Signature([inspect.Parameter("options", inspect.Parameter.VAR_KEYWORD)])


def _check_value(parameter: inspect.Parameter, value: object) -> object:
    annotation = parameter.annotation
    if annotation is inspect.Parameter.empty or isinstance(annotation, str):
        return value
    try:
        adapter: TypeAdapter[object] = TypeAdapter(
            annotation, config=ConfigDict(arbitrary_types_allowed=True)
        )
    except PydanticUserError:
        # pydantic takes no config beside types that bring their own.
        adapter = TypeAdapter(annotation)
    try:
        try:
            text = json.dumps(value)
        except (TypeError, ValueError):
            return adapter.validate_python(value, strict=True)
        # JSON has no tuples, so that here, unlike in Python, a list may stand for one.
        return adapter.validate_json(text, strict=True)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        inside = "".join(f"[{part}]" for part in problem["loc"])
        raise ModelError(
            f"model.options.{parameter.name}",
            f"{problem['msg']} (got {value!r}{', at ' + inside if inside else ''})",
            "correct this value",
        ) from None


def _check_result(name: str, model: object) -> nn.Module | list[nn.Module]:
    if isinstance(model, nn.Module):
        return model
    if isinstance(model, list | tuple) and model:
        blocks = [block for block in model if isinstance(block, nn.Module)]
        if len(blocks) == len(model):
            return blocks
    raise ModelError(
        "model.name",
        f"{name} returned {type(model).__name__}, not a list of torch modules",
        "return an nn.Sequential of blocks, or a list of blocks",
    )


@cache
def _import_package() -> None:
    for module in pkgutil.iter_modules(ray_snake.models.__path__, "ray_snake.models."):
        importlib.import_module(module.name)
