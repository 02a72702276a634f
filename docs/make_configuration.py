"""Write docs/configuration.md from the descriptions of the settings."""

from __future__ import annotations

import inspect
import sys
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from ray_snake.config import SnakeConfig
from ray_snake.settings_tree import Section

PAGE = Path(__file__).with_name("configuration.md")

HEAD = """# Settings

One tree, from a TOML file (`ray-snake train run.toml`), from `--set section.key=value`, or from
Python (`SnakeConfig(snake=SnakeSection(trips=20))`). Everything has a default but the data. An
unknown key or a wrong value is refused before anything starts. TOML has no null: where a setting
may be none, the word `"none"` stands for it.

This page is written by `python docs/make_configuration.py`.
"""


def page() -> str:
    """Return the page's text."""
    own, sections = [], []
    for name, field in SnakeConfig.model_fields.items():
        section = _section(field)
        if section is None:
            own.append(_row(name, field))
        else:
            sections += _table(name, section)
    return "\n".join([HEAD, "## Top level", "", *_header(), *own, *sections, ""])


def _section(field: FieldInfo) -> type[Section] | None:
    for one in (field.annotation, *get_args(field.annotation)):
        if isinstance(one, type) and issubclass(one, Section):
            return one
    return None


def _table(name: str, section: type[Section]) -> list[str]:
    lines = ["", f"## [{name}]", "", inspect.cleandoc(section.__doc__ or ""), "", *_header()]
    inner = []
    for key, field in section.model_fields.items():
        lines.append(_row(key, field))
        nested = _section(field)
        if nested is not None:
            inner += _table(f"{name}.{key}", nested)
    return lines + inner


def _header() -> list[str]:
    return ["| key | type | default | meaning |", "| --- | --- | --- | --- |"]


def _row(name: str, field: FieldInfo) -> str:
    default = field.get_default(call_default_factory=True)
    shown = "" if default is PydanticUndefined else f"`{_toml(default)}`"
    return f"| `{name}` | {_type(field)} | {shown} | {(field.description or '')} |"


def _type(field: FieldInfo) -> str:
    return "section" if _section(field) is not None else _words(field.annotation)


def _words(annotation: object, plural: str = "") -> str:
    """Return a type in TOML's words, several of it with the ending of the plural."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _words(inner[0], plural)
    if origin is Literal:
        return " or ".join(f"`{_toml(one)}`" for one in inner)
    if origin in (Union, UnionType):
        return " or ".join(_words(one, plural) for one in inner)
    if origin is tuple:
        return f"list{plural} of {_words(inner[0], 's')}"
    names: dict[object, str] = {str: "string", int: "integer", float: "number", bool: "boolean"}
    names[Any] = "value"
    if annotation is type(None):
        return f"`{_toml(None)}`"
    return names.get(annotation, "table") + plural


def _toml(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return f"[{', '.join(_toml(one) for one in value)}]"
    if value is None:
        return '"none"'
    return f'"{value}"' if isinstance(value, str) else str(value)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    sys.exit(0)
