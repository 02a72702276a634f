"""`ray-snake report`: what a run did, as one HTML page."""

from __future__ import annotations

from pathlib import Path

import click

from ray_snake.aside import written_aside
from ray_snake.cli.options import LocalPath, check_new
from ray_snake.errors import ConfigError


@click.command()
@click.argument("run")
@click.option("--out", type=LocalPath(), required=True, help="HTML file to write or replace.")
def report(run: str, out: Path) -> None:
    """Write a page that shows what RUN did, a run's folder or URI; it may go on meanwhile."""
    check_new("--out", out)
    try:
        import matplotlib  # noqa: F401 - whether it is there
    except ImportError:
        raise ConfigError(
            "report", "its figures need matplotlib", "pip install 'ray-snake[plots]'"
        ) from None

    from ray_snake.runtime.journal import read_records
    from ray_snake.runtime.run_folder import RunFolder
    from ray_snake.telemetry.report import render_report

    folder = RunFolder.open(run)
    page = render_report(folder.uri, folder.config, folder.nodes, read_records(folder.storage))
    with written_aside(out) as unfinished:
        unfinished.write_text(page, encoding="utf-8")
    click.echo(f"wrote {out}", err=True)
