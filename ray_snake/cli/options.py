"""Arguments that several subcommands share."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import click

from ray_snake.errors import StorageError
from ray_snake.location import without_secrets

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


class LocalPath(click.Path):
    """A file or folder of this machine. A URI is refused: as a path it would lose a slash."""

    def __init__(self) -> None:
        super().__init__(path_type=Path)

    def convert(
        self,
        value: str | os.PathLike[str],
        param: click.Parameter | None,
        ctx: click.Context | None,
    ) -> str | bytes | os.PathLike[str]:
        """Return the path.

        Raises:
            StorageError: If it is a URI.
        """
        text = os.fspath(value)
        if "://" in text:
            option = "path" if param is None else param.opts[0]
            raise StorageError(
                f"{option} {without_secrets(text)}",
                "is no local path",
                "name one on this machine",
            )
        return super().convert(value, param, ctx)


def check_new(option: str, path: Path, kind: str = "file") -> None:
    """See that a file can be written, before the work is done whose result it is to hold.

    Args:
        option: The option that names it, for the message.
        path: The file; one that is there is replaced.
        kind: `file`, or `folder`, which must not be there.

    Raises:
        StorageError: If it can't.
    """
    problem, remedy = "", f"name a new {kind}"
    if not path.parent.is_dir():
        problem, remedy = f"is in no folder: {path.parent} is not there", "make that folder first"
    elif kind == "file" and path.is_dir():
        problem, remedy = "is a folder", "name a file"
    elif kind == "folder" and path.exists():
        problem = "is there already"
    else:
        try:
            tempfile.TemporaryFile(dir=path.parent).close()
        except OSError as error:
            problem = f"can't be written ({error.strerror})"
    if problem:
        raise StorageError(f"{option} {path}", problem, remedy)
