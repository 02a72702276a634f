"""What a test bed is made of: one `MachineSpec` per virtual machine, from Python or from TOML."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Annotated

from pydantic import Field, ValidationError, field_validator

from ray_snake.errors import ConfigError
from ray_snake.settings_tree import Section

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

# tc's own spelling and its decimal multiples: bits, not bytes.
_RATE = re.compile(r"(?P<number>\d+(?:\.\d+)?)(?P<unit>|k|m|g)bit")
_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9}
UNLIMITED = "none"


class MachineSpec(Section):
    """One virtual machine and its link."""

    link: str | None = Field(
        default=None,
        description="Rate of its link in each direction, such as 20mbit; none: unlimited.",
    )
    cpus: Annotated[int, Field(ge=0)] = Field(
        default=2, description="CPUs that its raylet offers (a count: the real ones are shared)."
    )
    labels: dict[str, str] = Field(default={}, description="Its raylet's labels.")
    object_store_bytes: Annotated[int, Field(ge=78_643_200)] = Field(
        default=256 * 2**20, description="Size of its object store, bytes; Ray's least is 75 MiB."
    )

    @field_validator("link")
    @classmethod
    def _check_link(cls, link: str | None) -> str | None:
        if link is None or link == UNLIMITED:
            return None
        if not bits_per_second(link):
            raise ValueError("is no rate; give one such as 20mbit, 512kbit or 1gbit, or 'none'")
        return link


class _Profile(Section):
    machine: list[MachineSpec] = Field(min_length=1)


def bits_per_second(link: str) -> int:
    """Return the rate of a link in tc's spelling, bits per second; 0 where it is none."""
    match = _RATE.fullmatch(link)
    return round(float(match["number"]) * _UNITS[match["unit"]]) if match else 0


def load_profile(path: str | Path) -> list[MachineSpec]:
    """Read a TOML file with one `[[machine]]` table per virtual machine, the head's first.

    Raises:
        ConfigError: If the file can't be read, or a key or value is refused.
    """
    file = Path(path)
    try:
        tree = tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(
            str(file), f"can't be read ({error.strerror})", "check --profile"
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(str(file), f"is not TOML ({error})", "correct that line") from None
    try:
        return _Profile.model_validate(tree).machine
    except ValidationError as error:
        raise config_error(error, str(file)) from None


def config_error(error: ValidationError, source: str) -> ConfigError:
    """Return the first thing that is wrong with a machine, as an error that names its source."""
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"])
    given = "" if isinstance(first["input"], (dict, list)) else f" {first['input']!r}"
    problem = f"{key}{given} {first['msg'].removeprefix('Value error, ')}"
    return ConfigError(source, problem, "see cluster/README.md for what a machine has")
