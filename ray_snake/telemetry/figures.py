"""The report's figures, drawn from a run's journal as SVG. Needs matplotlib (extra `plots`)."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from typing import Any

import numpy as np

from ray_snake.runtime.records import EvaluationRecord, VisitRecord
from ray_snake.telemetry.format import BINARY_UNITS
from ray_snake.telemetry.summary import busy_periods

MOST_COLOURS = 20
"""Above this, nodes have the colours of a scale."""
MOST_NAMES = 32
"""Above this, an axis numbers nodes and blocks in place of naming each."""
MOST_MARKS = 1000
"""Above this, marks are drawn as pixels: an SVG of all of them would be slow to show."""

WIDTH = 10.0
PIXELS_PER_INCH = 130
TIMES = (("hours", 3600), ("minutes", 60))
OPACITIES = (0.35, 1.0, 0.12)
"""Of the parts of a visit's time: waiting for blocks, training, on its way and being stored."""


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One picture.

    Attributes:
        title: What it shows.
        caption: How to read it.
        svg: The picture, an SVG document.
    """

    title: str
    caption: str
    svg: str


@dataclass(frozen=True, kw_only=True)
class Course:
    """What a run did, as figures need it.

    Attributes:
        names: Names of all nodes that it has had, by number.
        blocks: Number of blocks.
        visits: Its decided visits, in order.
        judged: Its evaluations, in order.
    """

    names: Sequence[str]
    blocks: int
    visits: Sequence[VisitRecord]
    judged: Sequence[EvaluationRecord]
    _clock: tuple[list[float], list[float]] = field(init=False)

    def __post_init__(self) -> None:
        periods = busy_periods([*self.visits, *self.judged])
        ends = [0.0, *accumulate(end - start for start, end in periods)]
        clock = (
            [moment for period in periods for moment in period],
            [second for both in pairwise(ends) for second in both],
        )
        object.__setattr__(self, "_clock", clock)

    def busy(self, moment: float) -> float:
        """Return for how many seconds anything had been under way at a Unix time."""
        return float(np.interp(moment, *self._clock))


def draw(course: Course) -> list[Figure]:
    """Return all figures that there is something to show for."""
    if not course.visits:
        return []
    with _drawing():
        return [
            *([_learned(course)] if course.judged else []),
            _losses(course),
            _trained(course),
            _timeline(course),
            _coverage(course),
            _bytes(course),
        ]


@contextmanager
def _drawing() -> Iterator[None]:
    import matplotlib as mpl

    mpl.use("Agg")
    settings: dict[Any, Any] = {
        # Node names are text, whatever is in them.
        "text.parse_math": False,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "font.size": 9,
        # The same run gives the same bytes.
        "svg.hashsalt": "ray_snake",
    }
    with mpl.rc_context(settings):
        yield


def _learned(course: Course) -> Figure:
    """Return how good the model was on held-out rows, by what it had cost."""
    name, unit, value = _metric(course.judged)
    totals = [*accumulate(one.bytes_moved for one in course.visits)]
    moved = dict(zip((one.visit for one in course.visits), totals, strict=True))
    scale, scaled = _binary(totals[-1])
    seconds, timed = _time(course.busy(course.judged[-1].finished_at))
    axes_of: dict[str, Callable[[EvaluationRecord], float]] = {
        "visits": lambda one: one.visit,
        # The initial weights are judged before anything moves.
        f"{scale} moved": lambda one: scaled(moved.get(one.visit, 0)),
        f"{seconds} of work": lambda one: timed(course.busy(one.finished_at)),
    }
    figure, axes = _axes(columns=len(axes_of), height=3.0)
    values = [value(one) for one in course.judged]
    for axis, (label, place) in zip(axes, axes_of.items(), strict=True):
        axis.plot(
            [place(one) for one in course.judged],
            values,
            color="black",
            linewidth=1.3,
            marker="o" if len(values) <= 30 else None,
            markersize=3,
        )
        axis.set_xlabel(label)
        axis.grid(alpha=0.3)
    axes[0].set_ylabel(f"{name}{unit}")
    rows = course.judged[-1].samples
    return _figure(
        figure,
        title=f"{name.capitalize()} on held-out rows",
        caption=f"Of the model after a visit, on {rows:,} rows that no node has. Work is time in "
        "which a visit or an evaluation was under way.",
    )


def _metric(
    judged: Sequence[EvaluationRecord],
) -> tuple[str, str, Callable[[EvaluationRecord], float]]:
    """Return a name, a unit, and where the value is."""
    last = judged[-1]
    if last.perplexity is not None:
        return "perplexity", "", lambda one: one.perplexity or math.nan
    if last.accuracy is not None:
        return "accuracy", " (%)", lambda one: 100 * (one.accuracy or 0.0)
    return "loss", "", lambda one: one.loss


def _losses(course: Course) -> Figure:
    """Return the training loss of each visit, in the colour of its node."""
    figure, (axis,) = _axes(height=3.2)
    colours = _colours(len(course.names))
    accepted = [one for one in course.visits if one.accepted]
    refused = [one for one in course.visits if not one.accepted]
    axis.plot(
        [one.visit for one in accepted],
        [one.loss for one in accepted],
        color="0.8",
        linewidth=0.8,
        zorder=1,
    )
    for node in sorted({one.node for one in accepted}):
        own = [one for one in accepted if one.node == node]
        axis.scatter(
            [one.visit for one in own],
            [one.loss for one in own],
            s=12,
            color=colours[node],
            label=course.names[node],
            rasterized=len(course.visits) > MOST_MARKS,
            zorder=2,
        )
    lost = [one for one in refused if math.isfinite(one.loss)]
    if lost:
        axis.scatter(
            [one.visit for one in lost],
            [one.loss for one in lost],
            marker="x",
            color="red",
            label="refused",
            zorder=3,
        )
    axis.set(
        xlabel="visit",
        ylabel="training loss",
        xlim=(0.5, max(one.visit for one in course.visits) + 0.5),
    )
    axis.grid(alpha=0.3)
    if len(course.names) <= MOST_COLOURS:
        figure.legend(loc="outside right", frameon=False)
    return _figure(
        figure,
        title="Training loss",
        caption="Mean over a visit's last pass, all terms of the loss. A node that keeps away from "
        "the others has data unlike theirs.",
    )


def _trained(course: Course) -> Figure:
    """Return which blocks each visit trained, in the colour of its node."""
    figure, (axis,) = _axes(height=_height(course.blocks))
    colours = np.array(_colours(len(course.names)))
    picture = np.ones((course.blocks, len(course.visits), 3))
    for column, visit in enumerate(course.visits):
        picture[list(visit.trained), column] = colours[visit.node]
        if not visit.accepted:
            picture[list(visit.trained), column] = 0.85
    axis.imshow(
        picture,
        aspect="auto",
        interpolation="nearest",
        extent=(0.5, len(course.visits) + 0.5, course.blocks - 0.5, -0.5),
    )
    axis.set(xlabel="visit, as decided", ylabel="block")
    _name(axis.yaxis, [str(block) for block in range(course.blocks)])
    return _figure(
        figure,
        title="What each visit trained",
        caption="Its blocks, in the colour of its node; grey where the result was refused.",
    )


def _timeline(course: Course) -> Figure:
    """Return when each node was at work."""
    figure, (axis,) = _axes(height=_height(len(course.names)))
    colours = _colours(len(course.names))
    unit, scaled = _time(course.busy(max(one.finished_at for one in course.visits)))
    for node in sorted({one.node for one in course.visits}):
        own = [one for one in course.visits if one.node == node]
        for part, opacity in enumerate(OPACITIES):
            axis.broken_barh(
                [(scaled(start), scaled(length)) for start, length in _part(course, own, part)],
                (node - 0.4, 0.8),
                color=(*colours[node], opacity),
                # A short one is seen too.
                linewidth=0.6 if opacity == 1 else 0.0,
                rasterized=len(course.visits) > MOST_MARKS,
            )
    axis.set(xlabel=f"{unit} of work", ylim=(len(course.names) - 0.5, -0.5), xlim=(0, None))
    _name(axis.yaxis, course.names)
    return _figure(
        figure,
        title="Who worked when",
        caption="Each visit from when it was sent out to its decision: waiting for blocks (light), "
        "training (full), on its way and being stored (faint). Time in which nothing was under way "
        "is left out.",
    )


def _part(
    course: Course, visits: Sequence[VisitRecord], part: int
) -> Iterator[tuple[float, float]]:
    """Yield beginning and length of one of the parts of visits, in seconds of work."""
    for visit in visits:
        waited = min(visit.pull_seconds + visit.fetch_seconds, visit.seconds)
        trained = min(visit.train_seconds, visit.seconds - waited)
        lengths = (waited, trained, visit.seconds - waited - trained)
        start = visit.finished_at - visit.seconds + sum(lengths[:part])
        begins = course.busy(start)
        yield begins, course.busy(start + lengths[part]) - begins


def _coverage(course: Course) -> Figure:
    """Return how often each node trained each block."""
    counts = np.zeros((len(course.names), course.blocks))
    for visit in course.visits:
        if visit.accepted:
            counts[visit.node, list(visit.trained)] += 1
    figure, (axis,) = _axes(height=_height(len(course.names)))
    image = axis.imshow(counts, aspect="auto", cmap="Greens", vmin=0, interpolation="nearest")
    figure.colorbar(image, ax=axis, label="accepted visits", fraction=0.03, pad=0.01)
    _name(axis.yaxis, course.names)
    _name(axis.xaxis, [str(block) for block in range(course.blocks)])
    axis.set_xlabel("block")
    return _figure(
        figure,
        title="Coverage",
        caption="How often each node trained each block. A row that is pale has a node whose data "
        "the model has seen less of.",
    )


def _bytes(course: Course) -> Figure:
    """Return what moved in each trip."""
    last = max(one.trip for one in course.visits)
    pulled, returned, exchanged = np.zeros((3, last))
    for visit in course.visits:
        pulled[visit.trip - 1] += visit.bytes_pulled
        returned[visit.trip - 1] += visit.bytes_returned if visit.averaged else 0
        exchanged[visit.trip - 1] += visit.exchanged_bytes
    parts = {
        "pulled by nodes": pulled,
        "returned to be averaged": returned,
        "exchanged with a server": exchanged,
    }
    unit, scaled = _binary((pulled + returned + exchanged).max())
    figure, (axis,) = _axes(height=2.6)
    bottom = np.zeros(last)
    for name, counts in parts.items():
        if counts.any():
            heights = scaled(counts)
            axis.bar(np.arange(1, last + 1), heights, bottom=bottom, label=name, width=0.9)
            bottom += heights
    axis.set(xlabel="trip", ylabel=unit, xlim=(0.5, last + 0.5))
    axis.grid(alpha=0.3, axis="y")
    if len(axis.containers) > 1:
        figure.legend(loc="outside upper right", ncols=len(parts), frameon=False)
    return _figure(
        figure,
        title="Bytes moved",
        caption="By trip, as if every node were alone on its machine, each block counted once.",
    )


def _axes(*, height: float, columns: int = 1) -> tuple[Any, Any]:
    from matplotlib import pyplot as plt
    from matplotlib.ticker import MaxNLocator

    figure, axes = plt.subplots(
        1, columns, figsize=(WIDTH, height), layout="constrained", sharey=True, squeeze=False
    )
    if columns == 1:
        axes[0, 0].xaxis.set_major_locator(MaxNLocator("auto", integer=True))
    return figure, axes[0]


def _figure(figure: Any, *, title: str, caption: str) -> Figure:  # noqa: ANN401 - matplotlib's
    from matplotlib import pyplot as plt

    buffer = io.StringIO()
    figure.savefig(
        buffer, format="svg", dpi=PIXELS_PER_INCH, metadata={"Date": None}, transparent=True
    )
    plt.close(figure)
    return Figure(title=title, caption=caption, svg=buffer.getvalue())


def _colours(nodes: int) -> list[tuple[float, ...]]:
    """Return a colour for each node."""
    import matplotlib as mpl

    if nodes <= MOST_COLOURS:
        palette = mpl.colormaps["tab10" if nodes <= MOST_COLOURS // 2 else "tab20"]
        return [palette(node)[:3] for node in range(nodes)]
    return [mpl.colormaps["turbo"](node / (nodes - 1))[:3] for node in range(nodes)]


def _height(rows: int) -> float:
    """Return the inches of a figure with so many rows."""
    return min(max(1.8, 0.9 + 0.22 * rows), 8.0)


def _name(axis: Any, names: Sequence[str]) -> None:  # noqa: ANN401 - matplotlib's
    if len(names) <= MOST_NAMES:
        axis.set_ticks(range(len(names)), names)


def _binary(largest: float) -> tuple[str, Callable[[Any], Any]]:
    """Return the unit that suits a number of bytes, and how to turn bytes, or arrays, into it."""
    power = 0 if largest < 1024 else min(int(math.log(largest, 1024)), len(BINARY_UNITS))
    unit = "bytes" if power == 0 else BINARY_UNITS[power - 1]
    return unit, lambda count: count / 1024**power


def _time(longest: float) -> tuple[str, Callable[[float], float]]:
    """Return the unit that suits a number of seconds, and how to turn seconds into it."""
    fitting = (one for one in TIMES if longest >= 3 * one[1])
    unit, seconds = next(fitting, ("seconds", 1))
    return unit, lambda value: value / seconds
