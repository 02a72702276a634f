"""Arguments that several subcommands share."""

from __future__ import annotations

import tempfile
from pathlib import Path

import click

from ray_snake.errors import StorageError

config_argument = click.argument("config", type=click.Path(path_type=Path))

set_option = click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="SECTION.KEY=VALUE",
    help="Change one setting; may be given several times.",
)

json_option = click.option(
    "--json",
    "as_json",
    is_flag=True,
    help="End standard output with one JSON object; all else goes to standard error.",
)


def check_new(option: str, path: Path, kind: str = "file") -> None:
    """See that a file can be written, before the work is done whose result it is to hold.

    Args:
        option: The option that names it, for the message.
        path: The file; one that is there is replaced.
        kind: `file`, or `folder`, which must not be there.

    Raises:
        StorageError: If it can't.
    """
    problem = ""
    if not path.parent.is_dir() or (path.is_dir() if kind == "file" else path.exists()):
        problem = f"is no new {kind} in a folder that exists"
    else:
        try:
            tempfile.TemporaryFile(dir=path.parent).close()
        except OSError as error:
            problem = f"can't be written ({error.strerror})"
    if problem:
        raise StorageError(f"{option} {path}", problem, f"name a new {kind}")
