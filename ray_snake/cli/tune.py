"""`ray-snake tune`: a sweep over settings."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
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
    from ray_snake.storage import Storage
    from ray_snake.telemetry.hparams import write_hparams
    from ray_snake.tune.findings import importance, write_findings
    from ray_snake.tune.space import check_sweep
    from ray_snake.tune.sweep import Sweep

    check_sweep(loaded, partial(_check_run, loaded.tune.metric))
    folder = Storage(
        loaded.storage.uri if storage is None else storage,
        timeout_seconds=loaded.storage.timeout_seconds,
    ).child(config.stem if name is None else name)
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


def _check_run(metric: str, config: SnakeConfig) -> None:
    """Check all of a trial's settings that can be checked before it starts.

    Raises:
        InputError: If the trial could not be, or not be ranked by the metric.
    """
    from ray_snake.runtime.preflight import check_model, check_nodes, check_settings, classes_for
    from ray_snake.runtime.recipe import Recipe
    from ray_snake.trainer import evaluation_source, node_sources

    sources = node_sources(config, None)
    judged = evaluation_source(config)
    recipe = Recipe(config=config)
    stack = check_model(recipe, nodes=len(sources))
    classes_of = partial(classes_for, stack, task=recipe.named_task())
    held_out = check_nodes(classes_of, [] if judged is None else [judged], _looks)
    check_settings(config, check_nodes(classes_of, sources, _looks))
    for one in held_out:
        if metric == "accuracy" and one.classes is None and one.tokens is None:
            raise ConfigError(
                "tune.metric",
                f"'accuracy' is for classes and tokens, and the labels of {one.name} are numbers",
                'set it to "loss"',
            )


def _looks(function: Callable[..., Any], arguments: Sequence[tuple[Any, ...]]) -> list[Any]:
    return [_look(function, *one) for one in arguments]


@cache
def _look(function: Callable[..., Any], *arguments: Any) -> Any:  # noqa: ANN401 - what it returns
    """Call a function with a source, once: most trials' shards are the same."""
    return function(*arguments)


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
