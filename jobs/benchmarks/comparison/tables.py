"""The comparison's rows as a Parquet file, a table and plots."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from itertools import cycle, product
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from comparison.variants import DEFAULT_NORM, NORMS, VARIANTS

Row = Mapping[str, Any]
NORM_NAMES = {"fixbn": "FixBN", "batch": "BatchNorm", "group": "GroupNorm", "none": "no norm"}
SEEDS = 3
LINE_STYLES = ("-", "--", ":")
BUDGETS = ("bytes", "samples", "serial_steps")
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
        snakes = [row for row in own if row["strategy"].startswith("snake")]
        pictures = {
            "rivals": [row for row in own if row not in snakes or label(row) == "snake"],
            "snakes": snakes if {*map(label, snakes)} != {"snake"} else [],
        }
        for what, shown in pictures.items():
            if shown:
                picture = f"{name}-{partition}-{what}.png"
                plot(shown, folder / picture, title=f"{partition}, {what}")
                parts.append(f"![Accuracy by samples, bytes and serial steps: {what}]({picture})")
    file.write_text("\n\n".join(parts) + "\n", encoding="utf-8")


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
        "| strategy | seeds | accuracy | spread | fluctuation | samples | MB moved | peak MB "
        "| Tflop | serial steps | at equal bytes | at equal samples | at equal steps |\n"
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |"
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
            f"| {_mean(own, 'bytes') / 1e6:,.1f} | {_mean(own, 'peak_memory_bytes') / 1e6:,.1f} "
            f"| {_mean(own, 'flops') / 1e12:,.1f} | {_mean(own, 'serial_steps'):,.0f} "
            f"| {' | '.join(equal)} |"
        )
    return "\n".join(lines)


def accuracy_at(row: Row, key: str, budget: float) -> float | None:
    """Return the last accuracy that a run had before it used up a budget; none before the first.

    Args:
        row: A cell's row.
        key: `bytes`, `samples` or `serial_steps`.
        budget: How much of it.
    """
    within = [point["accuracy"] for point in row["curve"] if point[key] <= budget]
    return within[-1] if within else None


def plot(rows: Sequence[Row], file: Path, *, title: str) -> None:
    """Draw accuracy by samples, bytes and serial steps, a line for each strategy's first seed."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter

    axes_of = {"samples": "samples seen", "bytes": "bytes moved", "serial_steps": "serial steps"}
    figure, axes = plt.subplots(1, 3, figsize=(18, 5.5), sharey=True, layout="constrained")
    names = list(dict.fromkeys(map(label, rows)))
    # A second round of colours is dashed, a third one dotted.
    every = cycle(product(LINE_STYLES, plt.get_cmap("tab20").colors))
    looks = dict(zip(names, every, strict=False)) | {"snake": ("-", "black")}
    for axis, (key, words) in zip(axes, axes_of.items(), strict=True):
        for name in names:
            first = next(row for row in rows if label(row) == name)
            style, colour = looks[name]
            if first["curve"] and max(_totals(first, key)) > 0:
                axis.plot(
                    [point[key] for point in first["curve"]],
                    [point["accuracy"] for point in first["curve"]],
                    label=name,
                    color=colour,
                    linestyle=style,
                    linewidth=2.2 if name == "snake" else 1.2,
                    zorder=3 if name == "snake" else 2,
                )
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
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right", fontsize="x-small")
    figure.savefig(file, dpi=120)
    plt.close(figure)


def _totals(row: Row, key: str) -> list[float]:
    return [point[key] for point in row["curve"]] or [0.0]


def _mean(rows: Sequence[Row], key: str) -> float:
    return statistics.mean(row[key] for row in rows)


def _mean_at(rows: Sequence[Row], key: str, budget: float | None) -> str:
    found = [accuracy_at(row, key, budget) for row in rows] if budget else []
    known = [one for one in found if one is not None]
    return f"{statistics.mean(known):.3f}" if known else "-"
