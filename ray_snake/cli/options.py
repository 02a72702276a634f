"""Arguments that several subcommands share."""

from __future__ import annotations

from pathlib import Path

import click

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
