"""The comparison's rows as a Parquet file, a table and plots."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from itertools import cycle, product
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from comparison.variants import DEFAULT_NORM, NORMS, VARIANTS

Row = Mapping[str, Any]
NORM_NAMES = {"fixbn": "FixBN", "batch": "BatchNorm", "group": "GroupNorm", "none": "no norm"}
SEEDS = 3
LINE_STYLES = ("-", "--", ":")
BUDGETS = ("bytes", "samples", "serial_steps")
ENOUGH = 0.9
MARK = "<!-- What stands above this line is kept; what follows is written by accuracy.py. -->"


def write_results(rows: Sequence[Row], folder: Path, *, name: str, made_by: str) -> None:
    """Write `NAME.parquet`, `NAME.md` and plots of each partition: of rivals, and of snakes.

    What somebody wrote at the top of an earlier `NAME.md` stays there: see `MARK`.

    Args:
        rows: One for each cell.
        folder: Where to; made if missing.
        name: Of the files.
        made_by: Command, commit and machine, for the table's head.
    """
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist([dict(one) for one in rows]), folder / f"{name}.parquet")
    file = folder / f"{name}.md"
    above, mark, _ = file.read_text(encoding="utf-8").partition(MARK) if file.exists() else [""] * 3
    parts = [(above if mark else "") + MARK, made_by]
    if summary := by_partition(rows):
        parts.append(summary)
    for partition in dict.fromkeys(row["partition"] for row in rows):
        own = [row for row in rows if row["partition"] == partition]
        parts += [f"## {partition}", table(own)]
        for what, shown in _pictures(own).items():
            picture = f"{name}-{partition}-{what}.png"
            plot(shown, folder / picture, title=f"{partition}, {what}")
            parts.append(f"![Accuracy by samples, bytes and serial steps: {what}]({picture})")
    file.write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def _pictures(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Return a partition's rows by what a picture of them is called; the default snake is last.

    Rivals and snakes by their norm, the rivals with the snake that has the same. Where the norm is
    the default one, the snakes with others are what they are compared with.
    """
    snakes = [row for row in rows if row["strategy"].startswith("snake")]
    default = [row for row in snakes if row["strategy"] == "snake"]
    pictures = {}
    for norm in NORMS:
        end = "" if norm == DEFAULT_NORM else f"-{norm}"
        own = [row for row in rows if row["norm"] == norm and row not in default]
        last = [row for row in default if row["norm"] == norm]
        if rivals := [row for row in own if row not in snakes]:
            pictures[f"rivals{end}"] = [*rivals, *last]
        others = [row for row in own if row in snakes]
        if last and not end:
            others += [row for row in default if row["norm"] != norm]
        if others:
            pictures[f"snakes{end}"] = [*others, *last]
    return pictures


def read_rows(file: Path) -> list[dict[str, Any]]:
    """Return the rows that `write_results` has put into a Parquet file."""
    rows: list[dict[str, Any]] = pq.read_table(file).to_pylist()
    return rows


def label(row: Row) -> str:
    """Return what the tables call a row: its strategy, and its norm where it is not the default."""
    own: str = row["strategy"]
    return own if row["norm"] == DEFAULT_NORM else f"{own}, {NORM_NAMES[row['norm']]}"


def by_partition(rows: Sequence[Row]) -> str:
    """Return the accuracy of what was trained on several partitions, as a Markdown table.

    Means over seeds, with their standard deviation and where it is not of three their number; empty
    if nothing was.
    """
    partitions = list(dict.fromkeys(row["partition"] for row in rows))
    strategies, norms = [*VARIANTS], [*NORMS]
    cells: dict[str, dict[str, list[float]]] = {}
    for row in sorted(
        rows, key=lambda row: (strategies.index(row["strategy"]), norms.index(row["norm"]))
    ):
        cells.setdefault(label(row), {}).setdefault(row["partition"], []).append(row["accuracy"])
    several = {name: own for name, own in cells.items() if len(own) > 1}
    if not several:
        return ""
    lines = [
        f"| strategy | {' | '.join(partitions)} |",
        f"| --- |{' --- |' * len(partitions)}",
    ]
    for name, own in several.items():
        shown = [_mean_and_spread(own.get(one, [])) for one in partitions]
        lines.append(f"| {name} | {' | '.join(shown)} |")
    return "\n".join(lines)


def _mean_and_spread(accuracies: Sequence[float]) -> str:
    if not accuracies:
        return "-"
    mean = f"{statistics.mean(accuracies):.3f}"
    if len(accuracies) == 1:
        return f"{mean} (1 seed)"
    spread = f"{mean} ± {statistics.stdev(accuracies):.3f}"
    return spread if len(accuracies) == SEEDS else f"{spread} ({len(accuracies)} seeds)"


def table(rows: Sequence[Row]) -> str:
    """Return one partition's rows as a Markdown table, a line per strategy, means over seeds."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(label(row), []).append(row)
    # At equal budgets means: what the default snake used.
    reference = groups.get("snake", [])
    budgets = {
        key: statistics.mean(max(_totals(row, key)) for row in reference) if reference else None
        for key in BUDGETS
    }
    head = (
        "| strategy | seeds | accuracy | spread | fluctuation | samples | MB moved | with copies "
        "| peak MB | largest | Tflop | serial steps "
        "| at equal bytes | at equal samples | at equal steps |\n"
        f"|{' --- |' * 15}"
    )
    lines = [head]
    for name, own in groups.items():
        accuracies = [row["accuracy"] for row in own]
        spread = f"{statistics.stdev(accuracies):.3f}" if len(own) > 1 else "-"
        equal = [_mean_at(own, key, budgets[key]) for key in BUDGETS]
        lines.append(
            f"| {name} | {', '.join(str(row['seed']) for row in own)} "
            f"| {statistics.mean(accuracies):.3f} | {spread} "
            f"| {_mean(own, 'fluctuation'):.3f} | {_mean(own, 'samples'):,.0f} "
            f"| {_megabytes(own, 'bytes')} | {_megabytes(own, 'bytes_with_copies')} "
            f"| {_megabytes(own, 'peak_memory_bytes')} "
            f"| {_megabytes(own, 'largest_peak_memory_bytes')} "
            f"| {_mean(own, 'flops') / 1e12:,.1f} | {_mean(own, 'serial_steps'):,.0f} "
            f"| {' | '.join(equal)} |"
        )
    return "\n".join(lines)


def accuracy_at(row: Row, key: str, budget: float) -> float | None:
    """Return the last accuracy that a run had before it used up a budget.

    None before its first one, and where it ends with less than nine tenths of the budget: it might
    have become better.

    Args:
        row: A cell's row.
        key: `bytes`, `samples` or `serial_steps`.
        budget: How much of it.
    """
    within = [point["accuracy"] for point in row["curve"] if point[key] <= budget]
    return within[-1] if within and max(_totals(row, key)) >= ENOUGH * budget else None


def plot(rows: Sequence[Row], file: Path, *, title: str) -> None:
    """Draw accuracy by samples, bytes and serial steps, a line for each strategy.

    It is the mean over seeds, with all of them in its shade. What moves nothing between nodes after
    its first visit has a level line by bytes, at its last accuracy.
    """
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter

    axes_of = {"samples": "samples seen", "bytes": "bytes moved", "serial_steps": "serial steps"}
    figure, axes = plt.subplots(1, 3, figsize=(18, 5.5), sharey=True, layout="constrained")
    names = list(dict.fromkeys(map(label, rows)))
    # A second round of colours is dashed, a third one dotted.
    every = cycle(product(LINE_STYLES, plt.get_cmap("tab10").colors))
    for name in names:
        own = [row for row in rows if label(row) == name and row["curve"]]
        if not own:
            continue
        is_snake = own[0]["strategy"] == "snake" and name in names[-1:]
        style, colour = ("-", "black") if is_snake else next(every)
        look = {"color": colour, "linestyle": style, "linewidth": 2.2 if is_snake else 1.2}
        accuracy = _over_seeds(own, "accuracy")
        for axis, key in zip(axes, axes_of, strict=True):
            spent = _over_seeds(own, key).mean(axis=0)
            if spent[0] == spent[-1]:
                axis.axhline(accuracy.mean(axis=0)[-1], **look)
                continue
            axis.plot(spent, accuracy.mean(axis=0), label=name, zorder=2 + is_snake, **look)
            ends = accuracy.min(axis=0), accuracy.max(axis=0)
            axis.fill_between(spent, *ends, color=colour, alpha=0.12, linewidth=0)
    for axis, (key, words) in zip(axes, axes_of.items(), strict=True):
        axis.set_xlabel(words)
        axis.grid(alpha=0.3)
        if key == "bytes":
            axis.set_xscale("log")
            axis.xaxis.set_major_locator(LogLocator(subs=(1, 3)))
            axis.xaxis.set_major_formatter(EngFormatter(unit="B"))
            axis.xaxis.set_minor_formatter(NullFormatter())
        else:
            axis.xaxis.set_major_formatter(EngFormatter())
    axes[0].set_ylabel("accuracy on watched test rows")
    figure.suptitle(f"CIFAR-10, {title}")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right", fontsize="small")
    figure.savefig(file, dpi=120)
    plt.close(figure)


def _over_seeds(rows: Sequence[Row], key: str) -> npt.NDArray[np.float64]:
    """Return what a strategy's curves have, (seeds, points), up to the shortest one's end."""
    points = min(len(row["curve"]) for row in rows)
    return np.array([[point[key] for point in row["curve"][:points]] for row in rows])


def _totals(row: Row, key: str) -> list[float]:
    return [point[key] for point in row["curve"]] or [0.0]


def _mean(rows: Sequence[Row], key: str) -> float:
    return statistics.mean(row[key] for row in rows)


def _megabytes(rows: Sequence[Row], key: str) -> str:
    """Return the mean in MB; older rows lack some figures."""
    known = [row[key] for row in rows if row.get(key) is not None]
    return f"{statistics.mean(known) / 1e6:,.1f}" if known else "-"


def _mean_at(rows: Sequence[Row], key: str, budget: float | None) -> str:
    found = [accuracy_at(row, key, budget) for row in rows] if budget else []
    known = [one for one in found if one is not None]
    return f"{statistics.mean(known):.3f}" if known else "-"
