"""`ray-snake tune`: a sweep over settings."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ray_snake.cli.options import config_argument, json_option, set_option
from ray_snake.config import SnakeConfig
from ray_snake.errors import ConfigError
from ray_snake.telemetry.format import format_bytes, format_seconds

if TYPE_CHECKING:
    from rich.console import Console

    from ray_snake.tune.sweep import Report, Trial


@click.command()
@config_argument
@set_option
@click.option("--storage", metavar="URI", help="Folder of sweeps, in place of storage.uri.")
@click.option("--name", help="The sweep's name; by default the settings file's.")
@click.option("--resume", is_flag=True, help="Go on with an interrupted sweep.")
@click.option("--address", metavar="ADDR", help="A Ray cluster; by default an embedded one.")
@json_option
def tune(
    config: Path,
    settings: tuple[str, ...],
    storage: str | None,
    name: str | None,
    resume: bool,
    address: str | None,
    as_json: bool,
) -> None:
    """Search the settings that [tune] of the TOML file CONFIG names.

    Trials end early where others do better. What is found lands in the sweep's folder: best.toml
    for `ray-snake train`, trials.parquet, and two pictures.
    """
    loaded = SnakeConfig.load(config, settings)
    if find_spec("pandas") is None:
        raise ConfigError(
            "ray-snake tune", "needs what ray.tune needs", "pip install 'ray-snake[tune]'"
        )

    from rich.console import Console

    from ray_snake.runtime.connection import connected
    from ray_snake.runtime.preflight import check_model, check_shards
    from ray_snake.runtime.recipe import Recipe
    from ray_snake.storage import Storage
    from ray_snake.telemetry.hparams import write_hparams
    from ray_snake.trainer import evaluation_source, node_sources
    from ray_snake.tune.findings import importance, write_findings
    from ray_snake.tune.space import check_sweep
    from ray_snake.tune.sweep import Sweep

    check_sweep(loaded)
    sources = node_sources(loaded, None)
    judged = evaluation_source(loaded)
    recipe = Recipe(config=loaded)
    stack = check_model(recipe, nodes=len(sources))
    looked_at = [sources[0], *([] if judged is None else [judged])]
    check_shards(stack, looked_at, recipe.named_task())
    folder = Storage(
        storage or loaded.storage.uri, timeout_seconds=loaded.storage.timeout_seconds
    ).child(name or config.stem)
    folder.check_writable()
    console = Console(stderr=True)
    with connected(address):
        sweep = Sweep(loaded, folder, lambda report: _say(console, report, loaded.snake.trips))
        trials = sweep.run(resume=resume)
    for one in trials:
        if one.trip:
            write_hparams(Storage(one.run), one.values, failed=bool(one.error))
    names = write_findings(loaded, trials, folder)
    scored = [one for one in trials if one.score(loaded.tune.metric) is not None]
    _show(console, trials)
    mattered = importance(scored, loaded.tune.metric)
    console.print(
        "what mattered, alone: " + ", ".join(f"{key} {one:.0%}" for key, one in mattered.items()),
        highlight=False,
        soft_wrap=True,
    )
    console.print(
        f"In {folder.shown_uri}: {', '.join(names)}. What next:\n"
        f"  ray-snake train {folder.shown_uri}/best.toml\n"
        f"  tensorboard --logdir {folder.shown_uri}",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )
    if as_json:
        best = trials[0]
        line = {
            "sweep": folder.uri,
            "trials": len(trials),
            "failed": sum(bool(one.error) for one in trials),
            "best": {
                "trial": best.id,
                "run": best.run,
                "values": dict(best.values),
                "trip": best.trip,
                "accuracy": best.accuracy,
                "loss": best.loss,
            },
            "importance": mattered,
        }
        click.echo(json.dumps(line))


def _say(console: Console, report: Report, trips: int) -> None:
    from ray_snake.tune.sweep import TrialDied

    if isinstance(report, TrialDied):
        then = "goes on from its journal" if report.goes_on else "failed"
        text = f"trial {report.trial} died ({report.reason}); it {then}"
    else:
        accuracy = "" if report.accuracy is None else f"  accuracy {report.accuracy:.3f}"
        text = (
            f"trial {report.trial}  trip {report.trip}/{trips}{accuracy}  "
            f"loss {report.loss:.4g}  ({_words(report.values)})"
        )
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def _words(values: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{key}={value:.3g}" if isinstance(value, float) else f"{key}={value}"
        for key, value in values.items()
    )


def _show(console: Console, trials: Sequence[Trial]) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(title=f"{len(trials)} trials, best first", box=SIMPLE_HEAD, title_justify="left")
    table.add_column("trial", no_wrap=True)
    for heading in ("accuracy", "loss", "trip", "moved", "time"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("settings", overflow="fold")
    for one in trials:
        table.add_row(
            one.id,
            "" if one.accuracy is None else f"{one.accuracy:.4f}",
            "" if one.loss is None else f"{one.loss:.4g}",
            str(one.trip),
            format_bytes(one.bytes_moved),
            format_seconds(one.seconds),
            _words(one.values) + (f"; {one.error}" if one.error else ""),
        )
    console.print(table)
