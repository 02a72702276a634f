"""`ray-snake status`: where a run is, from another shell."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from ray_snake.cli.options import json_option
from ray_snake.errors import ConfigError, StorageError
from ray_snake.telemetry.format import format_bytes, format_seconds

if TYPE_CHECKING:
    from rich.console import Console

    from ray_snake.telemetry.status import RunStatus


@click.command()
@click.argument("run", metavar="RUN|JOB")
@click.option("--address", metavar="URL", help="The cluster's dashboard, where JOB is known.")
@json_option
def status(run: str, address: str | None, as_json: bool) -> None:
    """Show trip, visit, accuracy and nodes of RUN (a folder or URI), or of a job's run."""
    from rich.console import Console

    from ray_snake.runtime.journal import read_records
    from ray_snake.runtime.run_folder import RunFolder
    from ray_snake.telemetry.status import run_status

    shown: dict[str, object] = {}
    console = Console(stderr=as_json)
    if address is not None:
        from ray_snake.runtime.jobs import Jobs

        jobs = Jobs(address)
        job = jobs.job(run)
        if not job.run:
            raise ConfigError(f"job {run}", "trains no run", "give a job of ray-snake submit")
        shown |= {"job": job.id, "status": job.status, "run": job.run}
        why = f": {jobs.cause(job)}" if job.status == "FAILED" else ""
        console.print(f"job {job.id}: {job.status}{why}", markup=False, highlight=False)
        run = job.run
    try:
        folder = RunFolder.open(run)
    except StorageError:
        if not shown:
            raise
        console.print(f"run {run}: nothing there yet", markup=False, highlight=False)
        if as_json:
            click.echo(json.dumps(shown))
        return
    found = run_status(folder.config, folder.nodes, read_records(folder.storage))
    _show(run, found, console)
    if as_json:
        click.echo(json.dumps({"run": run, **shown, **asdict(found)}))


def _show(run: str, found: RunStatus, console: Console) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    numbers = [
        f"trip {found.trip}/{found.trips}",
        f"visit {found.visits}/{found.all_visits}",
        *([f"{found.refused} refused"] if found.refused else []),
        *([] if found.accuracy is None else [f"accuracy {found.accuracy:.3f}"]),
        *([] if found.loss is None else [f"loss {found.loss:.4g}"]),
        f"moved {format_bytes(found.bytes_moved)}",
    ]
    if found.idle_seconds is not None and found.visits < found.all_visits:
        numbers.append(f"last heard of {format_seconds(found.idle_seconds)} ago")
    console.print(f"run {run}: {', '.join(numbers)}", markup=False, highlight=False)
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("node", no_wrap=True)
    for heading in ("visits", "last trip", "time a visit", "late"):
        table.add_column(heading, justify="right", no_wrap=True)
    for node in found.nodes:
        table.add_row(
            f"{node.name} (left)" if node.left else node.name,
            str(node.visits),
            str(node.trip),
            "" if node.seconds is None else format_seconds(node.seconds),
            str(node.late),
        )
    console.print(table)
