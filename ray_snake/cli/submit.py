"""`ray-snake submit`: a run as a job of a Ray cluster, which needs nobody to wait for it."""

from __future__ import annotations

import json
import sys
import uuid
from pathlib import Path
from typing import Any

import click

from ray_snake import __version__
from ray_snake.cli.options import json_option, set_option
from ray_snake.config import SnakeConfig
from ray_snake.errors import ConfigError
from ray_snake.storage import Storage

STOPPED = 130


@click.command()
@click.argument("config", required=False, type=click.Path(path_type=Path))
@set_option
@click.option(
    "--address",
    envvar="RAY_API_SERVER_ADDRESS",
    metavar="URL",
    required=True,
    help="The cluster's dashboard, such as http://head:8265 (or RAY_API_SERVER_ADDRESS).",
)
@click.option("--storage", metavar="URI", help="Folder of runs, in place of storage.uri.")
@click.option("--name", help="The run's name; by default one that no other has.")
@click.option("--resume", is_flag=True, help="Go on with the interrupted run NAME.")
@click.option("--follow", is_flag=True, help="Show the job's output, and end as it ends.")
@click.option("--stop", metavar="JOB", help="Stop this job in place of submitting one.")
@click.option(
    "--working-dir",
    type=click.Path(path_type=Path),
    default=Path(),
    help="Folder that the job gets a copy of, with CONFIG in it; by default the current one.",
)
@click.option(
    "--runtime-env", type=click.Path(path_type=Path), help="YAML or JSON file: packages, excludes."
)
@json_option
def submit(
    config: Path | None,
    settings: tuple[str, ...],
    address: str,
    storage: str | None,
    name: str | None,
    resume: bool,
    follow: bool,
    stop: str | None,
    working_dir: Path,
    runtime_env: Path | None,
    as_json: bool,
) -> None:
    """Train as the TOML file CONFIG says, in a job of the cluster at --address."""
    if stop is not None and config is not None:
        raise ConfigError(
            "--stop",
            f"stops a job that is there, and {config} is for one to submit",
            "leave out one of them",
        )
    if stop is not None:
        _stop(address, stop, as_json=as_json)
        return
    if config is None:
        raise ConfigError("CONFIG", "is missing", "give a TOML file, or --stop JOB")
    if resume and name is None:
        raise ConfigError("--resume", "needs the run's name", "add --name")
    loaded = SnakeConfig.load(config, settings)
    uri = (
        _lasting(loaded.storage.uri, "storage.uri")
        if storage is None
        else _lasting(storage, "--storage")
    )
    inside = _inside(working_dir, config)
    environment = _environment(runtime_env, working_dir)
    job = f"{config.stem if name is None else name}-{uuid.uuid4().hex[:6]}"
    run = job if name is None else name

    from ray_snake.runtime.jobs import Jobs

    jobs = Jobs(address)
    arguments = ["train", inside, "--storage", uri, "--name", run]
    arguments += ["--resume"] if resume else []
    arguments += [word for one in settings for word in ("--set", one)]
    folder = Storage(uri).child(run)
    jobs.submit(arguments, job=job, run=folder.uri, runtime_env=environment, by=__version__)
    click.echo(f"job {job}, run {folder.shown_uri}", err=True)
    if not follow:
        click.echo(
            f"ray-snake status {job} --address {address}\n"
            f"ray-snake submit --stop {job} --address {address}",
            err=True,
        )
        if as_json:
            click.echo(json.dumps({"job": job, "run": folder.uri}))
        return
    ended = jobs.follow(job, lambda text: click.echo(text, nl=False, err=as_json))
    if as_json:
        click.echo(json.dumps({"job": job, "run": ended.run, "status": ended.status}))
    if ended.status == "SUCCEEDED":
        return
    if ended.status == "STOPPED":
        click.echo(f"ray-snake: job {job} was stopped; --resume --name {run} goes on", err=True)
        sys.exit(STOPPED)
    click.echo(f"ray-snake: job {job} failed: {jobs.cause(ended)}", err=True)
    sys.exit(ended.exit_status or 1)


def _stop(address: str, job: str, *, as_json: bool) -> None:
    from ray_snake.runtime.jobs import Jobs

    ended = Jobs(address).stop(job)
    click.echo(f"job {job}: {ended.status}", err=True)
    if as_json:
        click.echo(json.dumps({"job": job, "run": ended.run, "status": ended.status}))


def _lasting(uri: str, key: str) -> str:
    """Return a storage that outlasts a job: a URI, or a folder that is not relative.

    Raises:
        ConfigError: If it is relative.
    """
    if "://" not in uri and not Path(uri).is_absolute():
        raise ConfigError(
            key,
            f"{uri!r} would lie in the job's own folder, which goes when the job ends",
            "give --storage with an absolute path or a URI that the cluster's machines share",
        )
    return uri


def _inside(working_dir: Path, config: Path) -> str:
    """Return where a settings file lies within the folder that the job gets.

    Raises:
        ConfigError: If it doesn't.
    """
    try:
        return config.resolve().relative_to(working_dir.resolve()).as_posix()
    except ValueError:
        raise ConfigError(
            str(config), f"is not within {working_dir.resolve()}", "give another --working-dir"
        ) from None


def _environment(file: Path | None, working_dir: Path) -> dict[str, Any]:
    """Return the job's runtime environment.

    Raises:
        ConfigError: If the file can't be read.
    """
    from ray_snake.runtime.jobs import EXCLUDES

    environment: dict[str, Any] = {}
    if file is not None:
        import yaml

        try:
            read = yaml.safe_load(file.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            reason = " ".join(str(error).split())
            raise ConfigError(
                str(file), f"can't be read ({reason})", "check --runtime-env"
            ) from None
        if not isinstance(read, dict):
            raise ConfigError(str(file), "is no mapping", "give a Ray runtime environment")
        environment = read
    return {"excludes": list(EXCLUDES), **environment, "working_dir": str(working_dir.resolve())}
