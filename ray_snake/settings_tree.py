"""What settings are made of: sections, their types, `--set`, and what is wrong with them."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

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


def none_if_named(value: object) -> object:
    """Return none for the word `none`."""
    # TOML has no null, so that a default could not be switched off without a word for it.
    return None if value == "none" else value


class Section(BaseModel):
    """A frozen group of settings that refuses unknown keys."""

    model_config: ClassVar[ConfigDict] = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False
    )

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown_keys(cls, values: object) -> object:
        if isinstance(values, Mapping):
            for key in values:
                if key not in cls.model_fields:
                    raise ValueError(unknown_key(str(key), list(cls.model_fields)))
        return values


def apply_setting(tree: dict[str, Any], setting: str) -> None:
    """Put a `section.key=value` setting into a tree; the value is TOML, or else taken as text.

    Raises:
        ConfigError: If it is not of that form, or leads through a key that is no section.
    """
    key, separator, text = setting.partition("=")
    parts = key.strip().split(".")
    if not separator or not all(parts):
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


def differences(key: str, mine: object, theirs: object) -> list[str]:
    """Return the dotted keys below `key` whose values are not the same in both trees."""
    if isinstance(mine, dict) and isinstance(theirs, dict):
        return [
            difference
            for name in sorted(mine.keys() | theirs.keys())
            for difference in differences(f"{key}.{name}", mine.get(name), theirs.get(name))
        ]
    return [] if mine == theirs else [key]


def unknown_key(key: str, known: list[str]) -> str:
    """Return what to say of a key that isn't known, with the nearest one that is."""
    hint = did_you_mean(key, known).rstrip() or f"known keys: {', '.join(known)}"
    return f"unknown key {key!r}; {hint}"


def first_problem(error: ValidationError, root: type[BaseModel]) -> tuple[str, str, str]:
    """Return the key, the problem and the remedy of the first thing wrong with some settings.

    Args:
        error: What pydantic said.
        root: The model of all settings.
    """
    problem = error.errors(include_url=False)[0]
    key = _dotted_key(problem["loc"], root) or "config"
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "value_error" and "; " in message:
        what, _, remedy = message.partition("; ")
        return key, what, remedy
    value = json.dumps(problem["input"], default=str)
    shown = value if len(value) <= 60 else value[:57] + "..."
    return key, f"{message} (got {shown})", "correct this value"


def _dotted_key(location: tuple[str | int, ...], root: type[BaseModel]) -> str:
    """Return the settings key of a pydantic location, without its names of union members."""
    parts: list[str] = []
    section: Any = root
    for part in location:
        field = section.model_fields.get(part) if section is not None else None
        if field is None:
            break
        parts.append(str(part))
        annotation = field.annotation
        candidates = (annotation, *get_args(annotation))
        section = next((one for one in candidates if _is_section(one)), None)
    return ".".join(parts)


def _is_section(annotation: object) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)
