"""`ray-snake doctor`: what works here, and what to do about the rest."""

from __future__ import annotations

import json
from dataclasses import asdict

import click

from ray_snake.cli.options import json_option
from ray_snake.config import StorageConfig

MARKS = {"works": "ok", "note": "note", "broken": "BROKEN"}


@click.command()
@click.option("--address", metavar="ADDR", help="A Ray cluster; by default one is started here.")
@click.option("--storage", metavar="URI", help="Folder of runs to try to write to.")
@json_option
def doctor(address: str | None, storage: str | None, as_json: bool) -> None:
    """Look at versions, GPUs, storage and cluster; say what works and what to do.

    Exit status 1 if something is broken.
    """
    from rich.console import Console
    from rich.text import Text

    from ray_snake.doctor import look

    console = Console(stderr=as_json)
    findings = []
    for one in look(address, StorageConfig().uri if storage is None else storage):
        findings.append(one)
        line = Text(f"{MARKS[one.state]:7}{one.subject}: {one.found}")
        line.append(f"; {one.remedy}" if one.remedy else "")
        console.print(line, soft_wrap=True, highlight=False)
    works = all(one.state != "broken" for one in findings)
    if as_json:
        click.echo(json.dumps({"works": works, "findings": [asdict(one) for one in findings]}))
    if not works:
        raise click.exceptions.Exit(1)
