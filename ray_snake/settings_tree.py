"""What settings are made of: sections, their types, `--set`, and what is wrong with them."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from types import UnionType
from typing import Annotated, Any, ClassVar, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic.fields import FieldInfo

from ray_snake.errors import ConfigError, did_you_mean

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


PositiveInt = Annotated[int, Field(gt=0)]
TwoOrMore = Annotated[int, Field(ge=2)]
PositiveFloat = Annotated[float, Field(gt=0)]
NonNegativeInt = Annotated[int, Field(ge=0)]
NonNegativeFloat = Annotated[float, Field(ge=0)]
PositiveFraction = Annotated[float, Field(gt=0, le=1)]
Fraction = Annotated[float, Field(ge=0, le=1)]
# TOML and JSON have no tuples: a list stands for one.
Texts = Annotated[tuple[str, ...], Field(strict=False)]
Integers = Annotated[tuple[NonNegativeInt, ...], Field(strict=False, min_length=1)]
Numbers = Annotated[tuple[float, ...], Field(strict=False)]


class RefusedError(ValueError):
    """Why a validator refuses settings.

    Args:
        key: The key at fault, within the section whose validator it is; empty: that itself.
        problem: What is wrong with it, including the value.
        remedy: What to do about it.
    """

    def __init__(self, key: str, problem: str, remedy: str) -> None:
        super().__init__(f"{key}: {problem}; {remedy}" if key else f"{problem}; {remedy}")
        self.key = key
        self.problem = problem
        self.remedy = remedy


class Section(BaseModel):
    """A frozen group of settings that refuses unknown keys.

    TOML has no null: where a setting may be none, the word `none` stands for it.
    """

    model_config: ClassVar[ConfigDict] = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False
    )

    @model_validator(mode="before")
    @classmethod
    def _know_keys_and_none(cls, values: object) -> object:
        if not isinstance(values, Mapping):
            return values
        for key in values:
            if key not in cls.model_fields:
                raise _unknown_key(str(key), list(cls.model_fields))
        return {
            key: None if value == "none" and takes_none(cls.model_fields[key]) else value
            for key, value in values.items()
        }


def takes_none(field: FieldInfo) -> bool:
    """Return whether a setting may be none."""
    return type(None) in get_args(field.annotation)


def apply_setting(tree: dict[str, Any], setting: str) -> None:
    """Put a `section.key=value` setting into a tree.

    Args:
        tree: The tree.
        setting: Key and value as in TOML; what is no value of TOML's is taken as text.

    Raises:
        ConfigError: If it is not of that form, or leads through a key that is no section.
    """
    key, separator, text = setting.partition("=")
    parts = _parts(key) if separator else []
    if not parts:
        raise ConfigError(
            f"--set {setting}", "is not section.key=value", "write for example snake.trips=20"
        )
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text.strip()
    branch = tree
    for part in parts[:-1]:
        inner = branch.setdefault(part, {})
        if not isinstance(inner, dict):
            raise ConfigError(f"--set {setting}", f"{part!r} is not a section", "check the key")
        branch = inner
    branch[parts[-1]] = value


def _parts(key: str) -> list[str]:
    """Return the parts of a key of TOML, which may be quoted; empty if it is none."""
    try:
        inner: Any = tomllib.loads(f"{key} = 0")
    except tomllib.TOMLDecodeError:
        return []
    parts = []
    while isinstance(inner, dict) and inner:
        part, inner = next(iter(inner.items()))
        parts.append(part)
    return parts


def differences(key: str, mine: object, theirs: object) -> list[str]:
    """Return the dotted keys below `key` whose values are not the same in both trees."""
    if isinstance(mine, dict) and isinstance(theirs, dict):
        return [
            difference
            for name in sorted(mine.keys() | theirs.keys())
            for difference in differences(f"{key}.{name}", mine.get(name), theirs.get(name))
        ]
    return [] if mine == theirs else [key]


def first_problem(error: ValidationError, root: type[BaseModel]) -> tuple[str, str, str]:
    """Return the key, the problem and the remedy of the first thing wrong with some settings.

    Args:
        error: What pydantic said.
        root: The model of all settings.
    """
    problem = error.errors(include_url=False)[0]
    key = _dotted_key(problem["loc"], root)
    cause = problem.get("ctx", {}).get("error")
    if isinstance(cause, RefusedError):
        where = ".".join(one for one in (key, cause.key) if one)
        return where or "config", cause.problem, cause.remedy
    if problem["type"] == "missing":
        return key, "is missing", "set it"
    value = json.dumps(problem["input"], default=str)
    shown = value if len(value) <= 60 else value[:57] + "..."
    return key or "config", f"{problem['msg']} (got {shown})", "correct this value"


def _unknown_key(key: str, known: list[str]) -> RefusedError:
    hint = did_you_mean(key, known).rstrip() or f"known keys: {', '.join(known)}"
    return RefusedError("", f"unknown key {key!r}", hint)


def _dotted_key(location: tuple[str | int, ...], root: type[BaseModel]) -> str:
    """Return the settings key of a pydantic location, without its names of union members."""
    key = ""
    kinds: list[Any] = [root]
    for part in location:
        for kind in kinds:
            origin, inner = get_origin(kind), get_args(kind)
            if isinstance(part, int) and origin is tuple:
                key, kinds = f"{key}[{part}]", _members(inner[0])
            elif isinstance(part, str) and origin is dict:
                key, kinds = f"{key}.{_quoted(part)}", _members(inner[1])
            elif _is_section(kind) and part in kind.model_fields:
                key, kinds = f"{key}.{part}", _members(kind.model_fields[part].annotation)
            else:
                continue
            break
    return key.removeprefix(".")


def _members(annotation: object) -> list[object]:
    """Return the types that a value may have."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _members(inner[0])
    if origin in (Union, UnionType):
        return [member for one in inner for member in _members(one)]
    return [annotation]


def _quoted(part: str) -> str:
    """Return a part of a key as TOML has it."""
    bare = part.replace("-", "").replace("_", "")
    return part if bare.isascii() and bare.isalnum() else json.dumps(part, ensure_ascii=False)


def _is_section(annotation: object) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)
