"""The report: what a run did, as one HTML page that needs nothing beside it."""

from __future__ import annotations

import base64
import datetime
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jinja2

from ray_snake import __version__
from ray_snake.config import SnakeConfig
from ray_snake.location import without_secrets
from ray_snake.runtime.records import (
    EvaluationRecord,
    JoinRecord,
    JournalRecord,
    LeaveRecord,
    StartRecord,
    VisitRecord,
)
from ray_snake.telemetry.figures import Course, draw
from ray_snake.telemetry.format import format_bytes, format_seconds
from ray_snake.telemetry.members import Member, all_names, run_members, run_trips
from ray_snake.telemetry.status import NodeStatus, run_status
from ray_snake.telemetry.summary import run_summary

TEMPLATE = "report.html"
MOST_INCIDENTS = 200
"""Above this, the page says how many more there are."""


@dataclass(frozen=True, kw_only=True)
class NodeLine:
    """A node's line of the table.

    Attributes:
        member: Who it is.
        samples: Samples that its accepted visits trained on.
        bytes_pulled: What it pulled, as if alone on its machine.
        refused: Visits whose result was refused.
        status: What it has done besides.
    """

    member: Member
    samples: int
    bytes_pulled: int
    refused: int
    status: NodeStatus


@dataclass(frozen=True, kw_only=True)
class Incident:
    """Something that did not go as planned, or a node that came or went.

    Attributes:
        visit: The visit it was, or the last one before it.
        node: The node's name.
        what: What happened.
    """

    visit: int
    node: str
    what: str


def render_report(
    run: str, config: SnakeConfig, names: Sequence[str], records: Sequence[JournalRecord]
) -> str:
    """Return a run's report as an HTML document; pictures are in it, scripts are not.

    Args:
        run: The run's folder or URI.
        config: Its settings.
        names: Its nodes' names at its start, by number.
        records: Its journal; the run may go on.
    """
    visits = [one for one in records if isinstance(one, VisitRecord)]
    judged = [one for one in records if isinstance(one, EvaluationRecord)]
    start = next((one for one in records if isinstance(one, StartRecord)), None)
    nodes = all_names(names, records)
    course = Course(
        names=nodes,
        blocks=len(start.blocks) if start else 0,
        visits=visits,
        judged=judged,
    )
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("ray_snake.telemetry", package_path=""),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"bytes": format_bytes, "duration": format_seconds, "picture": _picture}
    return environment.get_template(TEMPLATE).render(
        run=without_secrets(run),
        name=without_secrets(run).rstrip("/").rpartition("/")[2],
        config=config,
        state=_state(config, names, records),
        facts=_facts(course, records),
        figures=draw(course),
        nodes=[
            _node(member, status, [one for one in visits if one.node == member.node])
            for member, status in zip(
                run_members(config, names, records),
                run_status(config, names, records).nodes,
                strict=True,
            )
        ],
        incidents=_incidents(nodes, records),
        most_incidents=MOST_INCIDENTS,
        settings=SnakeConfig.from_tree(_shown(config.tree())).toml(),
        version=__version__,
        made_at=_moment(datetime.datetime.now(datetime.timezone.utc).timestamp()),
    )


def _state(config: SnakeConfig, names: Sequence[str], records: Sequence[JournalRecord]) -> str:
    trips = run_trips(config, len(names), records)
    if not records:
        return "not begun"
    if trips.is_over:
        return "finished"
    return f"in trip {trips.trip} of {config.snake.trips}; last heard of {_moment(_end(records))}"


def _facts(course: Course, records: Sequence[JournalRecord]) -> Mapping[str, str]:
    """Return what the run came to: text by name."""
    summary = run_summary("", records, "")
    between, metrics = summary["network"]["predicted"], summary["metrics"]
    accepted = [one for one in course.visits if one.accepted]
    of = "on held-out rows" if course.judged else "in training"
    facts = {
        **({f"accuracy {of}": f"{metrics['accuracy']:.2%}"} if "accuracy" in metrics else {}),
        **({f"perplexity {of}": f"{metrics['perplexity']:.2f}"} if "perplexity" in metrics else {}),
        **({f"loss {of}": f"{metrics['loss']:.4g}"} if "loss" in metrics else {}),
        "trips": f"{summary['trips']:,}",
        "visits": f"{summary['visits']:,}",
        **({"refused visits": f"{summary['refused']:,}"} if summary["refused"] else {}),
        "samples": f"{sum(one.samples for one in accepted):,}",
        "optimizer steps": f"{sum(one.steps for one in accepted):,}",
        "bytes moved": format_bytes(summary["bytes_moved"]),
        **({"between machines": format_bytes(between)} if between else {}),
        "time of work": format_seconds(summary["seconds"]),
    }
    if records:
        facts |= {"begun": _moment(records[0].finished_at), "last entry": _moment(_end(records))}
    return facts


def _end(records: Sequence[JournalRecord]) -> float:
    return max(one.finished_at for one in records)


def _node(member: Member, status: NodeStatus, visits: Sequence[VisitRecord]) -> NodeLine:
    return NodeLine(
        member=member,
        samples=sum(one.samples for one in visits if one.accepted),
        bytes_pulled=sum(one.bytes_pulled for one in visits),
        refused=sum(not one.accepted for one in visits),
        status=status,
    )


def _incidents(names: Sequence[str], records: Sequence[JournalRecord]) -> list[Incident]:
    """Return in order what the reader of a report may have to explain."""
    found = []
    for one in records:
        if isinstance(one, VisitRecord):
            what = [
                *([f"refused: {one.reason}"] if not one.accepted else []),
                *([f"stopped at its deadline after {one.steps} steps"] if one.late else []),
                *([one.why] if one.why else []),
            ]
            if what:
                found.append(Incident(visit=one.visit, node=one.node_name, what="; ".join(what)))
        elif isinstance(one, JoinRecord):
            what_came = f"joined with {one.rows:,} rows"
            found.append(Incident(visit=one.visit, node=one.name, what=what_came))
        elif isinstance(one, LeaveRecord):
            found.append(Incident(visit=one.visit, node=names[one.node], what="left"))
    return found


def _picture(svg: str) -> str:
    """Return an SVG document as the address of a picture: as a document its names would clash."""
    return f"data:image/svg+xml;base64,{base64.b64encode(svg.encode()).decode()}"


def _shown(value: Any) -> Any:  # noqa: ANN401 - a tree of settings
    """Return settings without the credentials of their locations."""
    if isinstance(value, dict):
        return {key: _shown(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_shown(one) for one in value]
    return without_secrets(value) if isinstance(value, str) else value


def _moment(seconds: float) -> str:
    """Return a Unix time as text."""
    moment = datetime.datetime.fromtimestamp(seconds, datetime.timezone.utc)
    return f"{moment:%Y-%m-%d %H:%M:%S} UTC"
