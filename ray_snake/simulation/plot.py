"""What became of each trip of simulated runs, as a picture."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from ray_snake.errors import ConfigError
from ray_snake.simulation.simulator import Simulation, Trip

Quantity = Callable[[Simulation, Trip, float], float | None]

PANELS: tuple[tuple[str, Quantity], ...] = (
    ("seconds of a trip", lambda run, trip, seconds: seconds),
    ("MiB moved in a trip", lambda run, trip, seconds: trip.bytes / 2**20),
    (
        "share of node time spent computing, %",
        lambda run, trip, seconds: 100 * trip.busy_seconds / (run.nodes * seconds or 1),
    ),
    (
        "pairs of node and span trained, %",
        lambda run, trip, seconds: None if trip.covered is None else 100 * trip.covered,
    ),
)


def check_picture(path: Path) -> None:
    """See that a picture can be drawn, before there is one.

    Raises:
        ConfigError: If matplotlib is not installed, or draws no pictures of that ending.
    """
    try:
        from matplotlib.backend_bases import FigureCanvasBase
    except ImportError:
        raise ConfigError(
            "--plot", "needs matplotlib", "pip install 'ray-snake[plots]', or leave it out"
        ) from None
    known = FigureCanvasBase.get_supported_filetypes()
    if path.suffix.lower().removeprefix(".") not in known:
        raise ConfigError(
            f"--plot {path}",
            f"ends in {path.suffix!r}, which is no kind of picture",
            f"let it end in one of: {', '.join(sorted(known))}",
        )


def plot(runs: Mapping[str, Simulation], path: Path) -> None:
    """Draw runs by name into a picture file, whose form its ending gives; see `check_picture`.

    With several heads a trip begins before the one before has ended; a trip's seconds are those
    from the end of the one before to its own.
    """
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.ticker import MaxNLocator

    figure, axes = plt.subplots(2, 2, figsize=(9, 6), layout="constrained", sharex=True)
    for axis, (title, quantity) in zip(axes.flat, PANELS, strict=True):
        axis.set_title(title, loc="left", fontsize=10)
        for name, run in runs.items():
            ends = [0.0, *(trip.ended_at_seconds for trip in run.trips)]
            values = [
                (trip.trip, value)
                for before, trip in zip(ends, run.trips, strict=False)
                if (value := quantity(run, trip, trip.ended_at_seconds - before)) is not None
            ]
            marker = "o" if len(values) <= 30 else None
            axis.plot(*zip(*values, strict=True), label=name, marker=marker, markersize=3)
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.3)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    for axis in axes[1]:
        axis.set_xlabel("trip")
    axes[0, 0].legend(fontsize=8)
    figure.savefig(path, dpi=150)
    plt.close(figure)
