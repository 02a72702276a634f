"""The snake and its rivals on CIFAR-10 with VGG-11: accuracy, bytes, memory, operations, steps.

Every strategy trains on the same pictures, nodes, seeds and engine. Its learning rate is chosen
from the same grid, on held-out rows with another seed. Each finished cell is kept and not trained
again; an interrupted one goes on where it was. `--scale small` fits two cores, `paper` a GPU.

    ray-snake data fetch cifar10 --out data/cifar10
    python jobs/benchmarks/accuracy.py --scale small --seeds 3 --jobs 2 --json

`--rows docs/results/small.parquet` takes cells that were trained elsewhere as finished, where their
settings are still the same.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple, dataclass, replace
from pathlib import Path
from typing import IO, cast

import click
import tomllib
import torch
from command import Benchmark, end_with_parent
from comparison.cell import Cell, Row, settings, train
from comparison.data import PARTITIONS, Pictures, prepare
from comparison.scales import SCALES, Scale
from comparison.tables import label, read_rows, write_results
from comparison.variants import NORMS, VARIANTS
from origin import ROOT, commit, machine, made_by

ROWS_SAY = "A row's own commit and machine stand in the Parquet file."
COMMON = ROOT / "jobs" / "configs" / "comparison.toml"
TUNING_SEED = 0


@click.command(cls=Benchmark)
@click.option("--scale", "scale_name", type=click.Choice(list(SCALES)), default="small")
@click.option("--seeds", default=3, show_default=True, help="Seeds 1 to this.")
@click.option("--data", default="data/cifar10", show_default=True, help="Folder of the pictures.")
@click.option("--storage", default="runs/accuracy", show_default=True, help="Cells are kept here.")
@click.option("--strategy", "chosen", multiple=True, help="Variants; by default all.")
@click.option("--partition", "partitions", multiple=True, type=click.Choice(list(PARTITIONS)))
@click.option("--norm", "norms", multiple=True, type=click.Choice(list(NORMS)))
@click.option("--rate", type=float, help="A learning rate for all, in place of choosing one.")
@click.option("--jobs", default=1, show_default=True, help="Cells trained at the same time.")
@click.option("--finished", is_flag=True, help="Train nothing; show the cells that are there.")
@click.option("--rows", "known", help="Parquet file with rows of cells that are finished already.")
@click.option("--results", help="Folder for the table, Parquet file and plots.")
@click.option("--only", help="Train this one cell (used by the command itself).", hidden=True)
@click.option("--json", "as_json", is_flag=True)
def main(
    scale_name: str,
    seeds: int,
    data: str,
    storage: str,
    chosen: tuple[str, ...],
    partitions: tuple[str, ...],
    norms: tuple[str, ...],
    rate: float | None,
    jobs: int,
    finished: bool,
    known: str | None,
    results: str | None,
    only: str | None,
    as_json: bool,
) -> None:
    """Train every cell that is not there yet; then show one row for each.

    Without `--partition` or `--norm` a variant has its own: rivals and the default snake all
    partitions, what changes one thing of the default the most skewed one.
    """
    comparison = Comparison(
        SCALES[scale_name],
        Path(data),
        Path(storage) / scale_name,
        known=[] if known is None else read_rows(Path(known)),
    )
    if only is not None:
        end_with_parent()
        chosen_cell = json.loads(only)
        chosen_cell["variant"] = VARIANTS[chosen_cell["variant"]]
        comparison.train(Cell(**chosen_cell))
        return
    if finished:
        rows = comparison.finished()
    else:
        arguments = ["--scale", scale_name, "--data", data, "--storage", storage]
        every = setups(chosen, partitions, norms)
        comparison.train_all([] if rate else comparison.tuning_cells(every), arguments, jobs)
        cells = [
            one.cell(seed, rate or comparison.best_rate(one))
            for seed in range(1, seeds + 1)
            for one in every
        ]
        comparison.train_all(cells, arguments, jobs)
        rows = comparison.in_order([comparison.row(cell) for cell in cells])
    if results is not None:
        write_results(rows, Path(results), name=scale_name, made_by=f"{made_by()} {ROWS_SAY}")
    click.echo(json.dumps({"scale": scale_name, "rows": rows}) if as_json else _lines(rows))


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What has a learning rate of its own: a variant's name, a partition and a norm."""

    name: str
    partition: str
    norm: str

    def cell(self, seed: int, rate: float, *, tuning: bool = False) -> Cell:
        """Return one of its cells."""
        return Cell(
            variant=VARIANTS[self.name],
            partition=self.partition,
            norm=self.norm,
            seed=seed,
            rate=rate,
            tuning=tuning,
        )

    @property
    def tuned_as(self) -> Setup:
        """The one whose learning rate it takes."""
        return replace(self, name=VARIANTS[self.name].tuned_as)


def setups(names: Sequence[str], partitions: Sequence[str], norms: Sequence[str]) -> list[Setup]:
    """Return what these variants, by default all, are trained as.

    Args:
        names: Of variants.
        partitions: On which; none: each on its own.
        norms: With which; none: each with its own.
    """
    return [
        Setup(name=name, partition=partition, norm=norm)
        for partition in PARTITIONS
        for norm in NORMS
        for name in names or VARIANTS
        if partition in (partitions or VARIANTS[name].partitions)
        and norm in (norms or VARIANTS[name].norms)
    ]


class Comparison:
    """The cells of one scale, each a file of its row once it is trained.

    Args:
        scale: The size of every cell.
        source: Folder of CIFAR-10's pictures.
        folder: Where data, runs and rows are kept.
        known: Rows of cells that were trained elsewhere: those with a variant's present settings
            need no training.
    """

    def __init__(
        self, scale: Scale, source: Path, folder: Path, *, known: Sequence[Row] = ()
    ) -> None:
        self._scale = scale
        self._source = source
        self._folder = folder.absolute()
        self._common = tomllib.loads(COMMON.read_text(encoding="utf-8"))
        self._known = self._still_valid(known)

    def pictures(self, partition: str) -> Pictures:
        """Return the files of a partition; make those that are missing."""
        return prepare(
            self._source,
            self._folder / "data",
            partition=partition,
            nodes=self._scale.nodes,
            rows=self._scale.rows,
            held_out=self._scale.held_out,
            watched=self._scale.watched,
        )

    def tuning_cells(self, setups: Sequence[Setup]) -> list[Cell]:
        """Return the cells that learning rates are chosen by, but for those that are known."""
        # An ablation differs from the default in one thing alone.
        tuned = dict.fromkeys(one.tuned_as for one in setups)
        return [
            one.cell(TUNING_SEED, rate, tuning=True)
            for one in tuned
            if self._known_rate(one) is None
            for rate in self._scale.rates
        ]

    def best_rate(self, setup: Setup) -> float:
        """Return the learning rate with the best accuracy on held-out rows.

        It is the known rows' where there are some: they were trained with their best one.
        """
        known = self._known_rate(setup.tuned_as)
        if known is not None:
            return known
        return max(self.tuning_cells([setup]), key=lambda one: self.row(one)["accuracy"]).rate

    def train_all(self, cells: Sequence[Cell], arguments: Sequence[str], jobs: int) -> None:
        """Train those cells that are not there yet, each in a process of its own."""
        missing = [one for one in cells if not self._is_there(one)]
        for partition in {one.partition for one in missing}:
            self.pictures(partition)

        def run(number: int, cell: Cell) -> None:
            click.echo(f"training {cell.key} ({number} of {len(missing)})", err=True)
            chosen = {**vars(cell), "variant": cell.variant.name}
            command = [sys.executable, __file__, *arguments, "--only", json.dumps(chosen)]
            pipe, nowhere = subprocess.PIPE, subprocess.DEVNULL
            with subprocess.Popen(command, stdin=pipe, stdout=nowhere) as process:
                running.append(process)
                process.wait()
            if process.returncode != 0:
                click.echo(f"{cell.key} failed with exit status {process.returncode}", err=True)

        running: list[subprocess.Popen[bytes]] = []
        with ThreadPoolExecutor(jobs) as pool:
            try:
                list(pool.map(run, range(1, len(missing) + 1), missing))
            finally:
                for process in running:
                    # They end with that; where this process is killed, the kernel closes it.
                    cast(IO[bytes], process.stdin).close()
        lost = [one.key for one in missing if not self._file(one).exists()]
        if lost:
            raise click.ClickException(f"{len(lost)} cells failed: {', '.join(lost[:5])}")

    def train(self, cell: Cell) -> None:
        """Train a cell and keep its row."""
        torch.set_num_threads(1)
        pictures = self.pictures(cell.partition)
        config = settings(cell, self._scale, pictures, self._common)
        row = train(cell, self._scale, pictures, config, self._folder / "runs")
        row |= {"commit": commit(), "machine": machine()}
        file = self._file(cell)
        file.parent.mkdir(parents=True, exist_ok=True)
        scratch = file.with_suffix(".part")
        scratch.write_text(json.dumps(row), encoding="utf-8")
        scratch.rename(file)

    def row(self, cell: Cell) -> Row:
        """Return a trained cell's row."""
        file = self._file(cell)
        if file.exists():
            found: Row = json.loads(file.read_text(encoding="utf-8"))
            return found
        return self._known[cell.key]

    def finished(self) -> list[Row]:
        """Return the rows of all trained cells: rivals first, then the snake's variants."""
        files = (self._folder / "rows").glob("cell-*.json")
        here: list[Row] = [json.loads(one.read_text(encoding="utf-8")) for one in files]
        rows = {_place(row): row for row in [*self._known.values(), *here]}
        return self.in_order(list(rows.values()))

    def in_order(self, rows: Sequence[Row]) -> list[Row]:
        """Return rows by partition and variant, each with its norms in order."""
        orders = [*PARTITIONS], [*VARIANTS], [*NORMS]
        keys = ("partition", "strategy", "norm")
        return sorted(
            rows,
            key=lambda row: (
                *(order.index(row[key]) for order, key in zip(orders, keys, strict=True)),
                row["seed"],
            ),
        )

    def _still_valid(self, rows: Sequence[Row]) -> dict[str, Row]:
        """Return rows by their cell's key, but for those of variants that have changed since."""
        valid = {}
        for row in rows:
            if row["strategy"] not in VARIANTS:
                continue
            setup = Setup(name=row["strategy"], partition=row["partition"], norm=row["norm"])
            cell = setup.cell(row["seed"], row["learning_rate"])
            config = settings(cell, self._scale, self.pictures(cell.partition), self._common)
            if config.fingerprint() == row["config_hash"]:
                valid[cell.key] = row
        if len(valid) < len(rows):
            click.echo(f"{len(rows) - len(valid)} known rows are of other settings", err=True)
        return valid

    def _known_rate(self, setup: Setup) -> float | None:
        known = (row for row in self._known.values() if _place(row)[:3] == astuple(setup))
        return next((float(row["learning_rate"]) for row in known), None)

    def _is_there(self, cell: Cell) -> bool:
        return self._file(cell).exists() or cell.key in self._known

    def _file(self, cell: Cell) -> Path:
        return self._folder / "rows" / f"{cell.key}.json"


def _place(row: Row) -> tuple[str, str, str, int]:
    return row["strategy"], row["partition"], row["norm"], row["seed"]


def _lines(rows: Sequence[Row]) -> str:
    return "\n".join(
        f"{row['partition']:10} {label(row):24} seed {row['seed']}  "
        f"accuracy {row['accuracy']:.4f}  {row['bytes'] / 1e6:9.1f} MB"
        for row in rows
    )


if __name__ == "__main__":
    main()
