"""`ray-snake train`: one run from a settings file."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import click

from ray_snake.cli.options import config_argument, json_option, set_option
from ray_snake.config import SnakeConfig
from ray_snake.telemetry.format import format_bytes, format_seconds


@click.command()
@config_argument
@set_option
@click.option("--storage", metavar="URI", help="Folder of runs, in place of storage.uri.")
@click.option("--name", help="The run's name; by default after the settings file.")
@click.option(
    "--resume",
    is_flag=True,
    help="Go on with an interrupted run. One that still goes on is taken over: its driver ends.",
)
@click.option("--address", metavar="ADDR", help="A Ray cluster; by default an embedded one.")
@json_option
def train(
    config: Path,
    settings: tuple[str, ...],
    storage: str | None,
    name: str | None,
    resume: bool,
    address: str | None,
    as_json: bool,
) -> None:
    """Train as the TOML file CONFIG says."""
    loaded = SnakeConfig.load(config, settings)

    from ray_snake.trainer import SnakeTrainer

    result = SnakeTrainer(
        config=loaded,
        storage=storage,
        name=name,
        stem=config.stem,
        resume=resume,
        address=address,
    ).fit()
    _say_what_next(result.run, result.summary)
    if as_json:
        click.echo(json.dumps(result.summary))


def _on_path(program: str) -> str:
    """Return how to call a program of this environment from here, activated or not."""
    if shutil.which(program):
        return program
    return os.path.relpath(Path(sys.executable).parent / program)


def _say_what_next(run: str, summary: dict[str, Any]) -> None:
    metrics = ", ".join(f"{key} {value:.4f}" for key, value in summary["metrics"].items())
    click.echo(
        f"\nDone: {metrics or 'no metrics'} after {summary['visits']} visits in "
        f"{summary['trips']} trips, {format_bytes(summary['bytes_moved'])} moved, "
        f"{format_seconds(summary['seconds'])}.\n"
        f"The run is in {run}\n\n"
        "What next:\n"
        f"  {_on_path('tensorboard')} --logdir {run}/tensorboard\n"
        f"  {_on_path('ray-snake')} report {run} --out report.html\n"
        f"  {_on_path('ray-snake')} evaluate {run}\n"
        f"  {_on_path('ray-snake')} export {run} --format safetensors --out model.safetensors",
        err=True,
    )
