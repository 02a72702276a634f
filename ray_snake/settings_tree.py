"""Settings as a nested mapping, before they are checked: `--set`, comparing, unknown keys."""

from __future__ import annotations

import difflib
import sys
from typing import Any

from ray_snake.errors import ConfigError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


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
    nearest = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    hint = f"did you mean {nearest[0]!r}?" if nearest else f"known keys: {', '.join(known)}"
    return f"unknown key {key!r}; {hint}"
