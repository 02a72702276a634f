"""`ray-snake nodes`: who takes part in a run that goes on; nodes join and leave it."""

from __future__ import annotations

import contextlib
import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ray_snake.cli.options import json_option
from ray_snake.errors import ConfigError

if TYPE_CHECKING:
    from ray_snake.runtime.requests import Request
    from ray_snake.runtime.run_folder import RunFolder
    from ray_snake.telemetry.members import Member

POLL_SECONDS = 0.2

_wait_option = click.option(
    "--wait",
    type=click.FloatRange(min=0),
    default=60.0,
    show_default=True,
    metavar="SECONDS",
    help="How long to wait for the run's answer; the request stays.",
)


@click.group()
def nodes() -> None:
    """Show the nodes of a run, and let nodes join and leave while it goes on.

    RUN is a run's folder or URI. Nothing else is needed: the run looks there for requests.
    """


@nodes.command("list")
@click.argument("run")
@json_option
def list_nodes(run: str, as_json: bool) -> None:
    """Show who takes part in RUN, who did, and who has asked to.

    `joined` and `left` are the last visits before that; a pace of 2 is half as fast as the machine
    that measured the blocks, where the run adapts.
    """
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    from ray_snake.runtime.requests import AddRequest, Mailbox
    from ray_snake.runtime.run_folder import RunFolder

    folder = RunFolder.open(run)
    rows = [asdict(one) for one in _members(folder)]
    for request in Mailbox(folder.storage).waiting().values():
        if isinstance(request, AddRequest):
            name = request.name or Path(request.uri).stem
            rows.append({"name": name, "state": "asked to join"})
            continue
        for row in rows:
            if row.get("node") == request.node and row["state"] == "member":
                row["state"] = "asked to leave"
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for heading in ("node", "name", "state"):
        table.add_column(heading, no_wrap=True)
    for heading in ("rows", "visits", "joined", "left", "pace"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        pace = row.get("pace")
        texts = [row.get(key) for key in ("node", "name", "state", "rows", "visits")]
        texts += [row.get("joined"), row.get("left"), None if pace is None else f"{pace:.2f}"]
        table.add_row(*("" if one is None else str(one) for one in texts))
    Console(stderr=as_json).print(table)
    if as_json:
        click.echo(json.dumps({"run": folder.uri, "nodes": rows}))


@nodes.command()
@click.argument("run")
@click.argument("shard", metavar="SHARD_URI")
@click.option("--name", help="What the node is called; by default after its shard.")
@_wait_option
@json_option
def add(run: str, shard: str, name: str | None, wait: float, as_json: bool) -> None:
    """Let a node join RUN that has the Arrow or Parquet file SHARD_URI.

    The run looks at the shard where the node may live, starts the node, and then lets it take part
    from the next trip on.
    """
    from ray_snake.runtime.requests import AddRequest

    folder = _changeable(run)
    uri = shard if "://" in shard else str(Path(shard).expanduser().absolute())
    if name is not None and name in [one.name for one in _members(folder) if one.left is None]:
        raise ConfigError(f"--name {name}", "takes part already", "give another one")
    _ask(folder, AddRequest(uri=uri, name=name), name or Path(uri).name, wait, as_json)


@nodes.command()
@click.argument("run")
@click.argument("node")
@_wait_option
@json_option
def remove(run: str, node: str, wait: float, as_json: bool) -> None:
    """End the visits of NODE, a name or number, in RUN: after the one that is under way."""
    from ray_snake.runtime.requests import RemoveRequest

    folder = _changeable(run)
    members = [one for one in _members(folder) if one.left is None]
    chosen = [one for one in members if one.name == node]
    chosen = chosen or [one for one in members if str(one.node) == node]
    if len(chosen) != 1:
        known = ", ".join(f"{one.node} ({one.name})" for one in members)
        problem = "takes no part in the run" if not chosen else "is the name of several nodes"
        raise ConfigError(f"node {node}", problem, f"choose one of: {known}")
    if len(members) == 1:
        raise ConfigError(f"node {node}", "is the run's last one", "add another one first")
    request = RemoveRequest(node=chosen[0].node, name=chosen[0].name)
    _ask(folder, request, chosen[0].name, wait, as_json)


def _members(folder: RunFolder) -> list[Member]:
    from ray_snake.runtime.journal import read_records
    from ray_snake.telemetry.members import run_members

    return run_members(folder.config, folder.nodes, read_records(folder.storage))


def _changeable(run: str) -> RunFolder:
    """Return a run that nodes can join and leave.

    Raises:
        ConfigError: If it has ended, or keeps to its nodes.
    """
    from ray_snake.extensions import find
    from ray_snake.planning.strategy import why_nodes_stay
    from ray_snake.runtime.journal import read_records
    from ray_snake.runtime.records import VisitRecord
    from ray_snake.runtime.run_folder import RunFolder
    from ray_snake.telemetry.members import run_trips

    folder = RunFolder.open(run)
    config, records = folder.config, read_records(folder.storage)
    visits = sum(isinstance(one, VisitRecord) for one in records)
    if visits == run_trips(config, len(folder.nodes), records).total:
        raise ConfigError(
            f"run {run}", "has ended", "start another one with the nodes it is to have"
        )
    kind = None
    # One's own may be known to the run alone.
    with contextlib.suppress(ConfigError):
        kind = find("strategy", config.strategy)
    refusal = why_nodes_stay(config, kind)
    if refusal is not None:
        raise refusal
    return folder


def _ask(folder: RunFolder, request: Request, name: str, wait: float, as_json: bool) -> None:
    """Leave a request with a run; wait for the answer, and say what it is.

    Raises:
        ConfigError: If the run refuses.
    """
    from ray_snake.runtime.requests import Mailbox

    mailbox = Mailbox(folder.storage)
    key = mailbox.post(request)
    deadline = time.monotonic() + wait
    while (answer := mailbox.take_answer(key)) is None and time.monotonic() < deadline:
        time.sleep(min(POLL_SECONDS, wait))
    said: dict[str, object] = {"run": folder.uri, "request": key, "name": name}
    if answer is None:
        said["state"] = "asked"
        text = (
            f"{name}: the run has not answered yet. It takes requests up between visits, and when "
            "it goes on with --resume"
        )
    else:
        answer.raise_refusal()
        state = "joined" if request.kind == "add" else "left"
        said |= {"state": state, "node": answer.node, "name": answer.name, "visit": answer.visit}
        text = f"{answer.name}: {said['state']} as node {answer.node} after visit {answer.visit}"
    click.echo(text, err=as_json)
    if as_json:
        click.echo(json.dumps(said))
