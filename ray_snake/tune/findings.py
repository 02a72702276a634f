"""What a sweep found: a table of trials, the best settings, and which settings mattered."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ray_snake.config import SnakeConfig
from ray_snake.storage import Storage
from ray_snake.tune.space import with_values
from ray_snake.tune.sweep import Trial

GROUPS = 4
"""How many groups of about equal size the values of a number are cut into."""


def trials_table(trials: Sequence[Trial]) -> pa.Table:
    """Return one row for each trial, best first; a setting's column is JSON, null where unset."""
    keys = sorted({key for one in trials for key in one.values})
    return pa.table(
        {
            "trial": [one.id for one in trials],
            "run": [one.run for one in trials],
            **{
                key: [json.dumps(one.values[key]) if key in one.values else None for one in trials]
                for key in keys
            },
            "trip": pa.array([one.trip for one in trials], pa.int64()),
            "accuracy": pa.array([one.accuracy for one in trials], pa.float64()),
            "loss": pa.array([one.loss for one in trials], pa.float64()),
            "bytes_moved": pa.array([one.bytes_moved for one in trials], pa.int64()),
            "seconds": pa.array([one.seconds for one in trials], pa.float64()),
            "error": [one.error for one in trials],
        }
    )


def best_settings(config: SnakeConfig, best: Trial) -> str:
    """Return settings with the best trial's values as TOML that `ray-snake train` takes."""
    return with_values(config, best.values).toml()


def write_findings(config: SnakeConfig, trials: Sequence[Trial], storage: Storage) -> list[str]:
    """Write `trials.parquet`, `best.toml` and, with matplotlib, two pictures; return the names.

    Args:
        config: The sweep's settings.
        trials: The trials, best first.
        storage: The sweep's folder.
    """
    sink = pa.BufferOutputStream()
    pq.write_table(trials_table(trials), sink)
    storage.write("trials.parquet", sink.getvalue().to_pybytes())
    storage.write("best.toml", best_settings(config, trials[0]).encode())
    names = ["trials.parquet", "best.toml"]
    try:
        import matplotlib as mpl
    except ImportError:
        return names
    mpl.use("Agg")
    scored = [one for one in trials if one.score(config.tune.metric) is not None]
    for name, draw in (("parallel.png", _parallel), ("importance.png", _importance)):
        storage.write(name, draw(scored, config.tune.metric))
        names.append(name)
    return names


def importance(trials: Sequence[Trial], metric: str) -> dict[str, float]:
    """Return how much of the scores' variance goes with each setting alone, in [0, 1].

    That is the correlation ratio eta squared (Pearson 1905): variance of the means of groups over
    the whole variance. Groups are a setting's values, or of a number four of about equal size.
    With few trials chance alone gives a setting some of it.
    """
    scores = np.array([one.score(metric) for one in trials], dtype=np.float64)
    whole = float(((scores - scores.mean()) ** 2).sum())
    found = {}
    for key in sorted({key for one in trials for key in one.values}):
        groups = _groups([one.values.get(key) for one in trials])
        between = sum(
            int((groups == group).sum()) * (scores[groups == group].mean() - scores.mean()) ** 2
            for group in np.unique(groups)
        )
        found[key] = float(between / whole) if whole > 0 else 0.0
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def _groups(values: Sequence[Any]) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Return the group of each value."""
    texts = [json.dumps(one) for one in values]
    distinct = sorted(set(texts))
    numbers = all(isinstance(one, int | float) and not isinstance(one, bool) for one in values)
    if not numbers or len(distinct) <= GROUPS:
        return np.array([distinct.index(one) for one in texts], dtype=np.int64)
    order = np.argsort(np.argsort(np.array(values, dtype=np.float64), kind="stable"))
    return (order * GROUPS // len(values)).astype(np.int64)


def _parallel(trials: Sequence[Trial], metric: str) -> bytes:
    """Draw each trial as a line through its values, coloured by its score."""
    from matplotlib import pyplot as plt

    keys = sorted({key for one in trials for key in one.values})
    figure, axis = plt.subplots(figsize=(2.2 * (len(keys) + 1), 4.5), layout="constrained")
    shown = {metric: [getattr(one, metric) for one in trials]}
    scores = np.array(shown[metric], dtype=np.float64)
    colours = plt.get_cmap("viridis" if metric == "accuracy" else "viridis_r")
    spread = float(np.ptp(scores)) or 1.0
    columns = []
    for place, key in enumerate([*keys, metric]):
        values = shown.get(key) or [one.values.get(key) for one in trials]
        heights, ticks = _heights(values)
        columns.append(heights)
        axis.axvline(place, color="0.7", linewidth=0.8)
        for height, text in ticks:
            axis.text(place + 0.04, height, text, fontsize=7, va="center")
    for index, score in reversed(list(enumerate(scores))):
        axis.plot(
            range(len(columns)),
            [column[index] for column in columns],
            color=colours((score - scores.min()) / spread),
            linewidth=2.2 if index == 0 else 1.0,
        )
    axis.set_xticks(range(len(columns)), [*keys, metric], fontsize=8)
    axis.set_yticks([])
    axis.set_xlim(-0.1, len(keys) + 0.4)
    axis.set_title("trials; the best is the thick line", loc="left", fontsize=10)
    for side in ("top", "right", "left", "bottom"):
        axis.spines[side].set_visible(False)
    return _png(figure)


def _heights(values: Sequence[Any]) -> tuple[list[float], list[tuple[float, str]]]:
    """Return where values lie on an axis from 0 to 1, and its labels."""
    known = [one for one in values if one is not None]
    numeric = all(isinstance(one, int | float) and not isinstance(one, bool) for one in known)
    if numeric and len(set(known)) > GROUPS:
        numbers = np.array(known, dtype=np.float64)
        logarithmic = numbers.min() > 0 and numbers.max() / numbers.min() > 20
        scaled = np.log(numbers) if logarithmic else numbers
        low, width = float(scaled.min()), float(np.ptp(scaled)) or 1.0

        def height(value: float) -> float:
            return ((np.log(value) if logarithmic else value) - low) / width

        ends = [float(numbers.min()), float(numbers.max())]
        return (
            [-0.1 if one is None else height(one) for one in values],
            [(height(one), f"{one:.3g}") for one in ends],
        )
    texts = ["unset" if one is None else json.dumps(one) for one in values]
    distinct = sorted(set(texts), key=lambda one: (len(one), one))
    step = 1 / max(1, len(distinct) - 1)
    return [distinct.index(one) * step for one in texts], [
        (place * step, text.strip('"')) for place, text in enumerate(distinct)
    ]


def _importance(trials: Sequence[Trial], metric: str) -> bytes:
    """Draw how much each setting mattered."""
    from matplotlib import pyplot as plt

    found = importance(trials, metric)
    figure, axis = plt.subplots(figsize=(7, 0.6 * len(found) + 1.4), layout="constrained")
    axis.barh(list(found)[::-1], [100 * one for one in found.values()][::-1], color="tab:blue")
    axis.set_xlim(0, 100)
    axis.set_xlabel(f"variance of {metric} that goes with the setting alone, %")
    axis.set_title(f"{len(trials)} trials", loc="left", fontsize=10)
    axis.grid(axis="x", alpha=0.3)
    return _png(figure)


def _png(figure: Any) -> bytes:  # noqa: ANN401 - matplotlib has no types
    from matplotlib import pyplot as plt

    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    plt.close(figure)
    return buffer.getvalue()
