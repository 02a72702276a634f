"""Fine-tuning SmolLM2-135M: the snake, the whole model, and other ways to train a part of it.

Every way sees as many samples of the same rows. `full`, `badam`, `lisa` and `lora` have all of them
in one place; `snake`, `snake+lora` and `cyclic` have them on nodes with label skew. `snake` is what
the task's configuration says; all else differs from it as `finetuning/ways.py` says. Each finished
cell, a way with a seed, is kept in `--storage` and not trained again; nor are those that `--rows
docs/results/finetune-reviews.parquet` has from elsewhere, where their settings are still the same.

Make model and data as the configuration's first lines say, then in that folder

    python jobs/benchmarks/finetune.py --task reviews --seeds 3 --json

`--tune` trains each way with its `rates` in half as many trips, with seed 0 or each `--seed`, and
judges it on training rows that were held out.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import torch
from command import Benchmark
from finetuning.cell import Rows, held_out_rows, predicted_peak, task_rows, train
from finetuning.tables import read_rows, write_results
from finetuning.ways import RATES, WAYS, Way
from origin import ROOT, commit, machine, made_by

from ray_snake import SnakeConfig

TUNING_SEED = 0
Row = dict[str, Any]


@click.command(cls=Benchmark)
@click.option("--task", type=click.Choice(list(RATES)), required=True)
@click.option("--seeds", default=3, show_default=True, help="Seeds 1 to this.")
@click.option("--seed", "own_seeds", multiple=True, type=int, help="A seed, in place of those.")
@click.option("--way", "chosen", multiple=True, type=click.Choice(list(WAYS)), help="Default: all.")
@click.option("--config", "file", help="Default: jobs/configs/smollm2_TASK.toml.")
@click.option("--set", "changes", multiple=True, help="A setting of it, section.key=value.")
@click.option("--storage", default="runs/finetune", show_default=True, help="Cells are kept here.")
@click.option("--rate", type=float, help="A learning rate for all, in place of their own.")
@click.option("--judged", type=int, help="Test rows to judge on; default: all.")
@click.option("--tune", is_flag=True, help="Compare each way's learning rates; no results.")
@click.option("--finished", is_flag=True, help="Train nothing; show the cells that are there.")
@click.option("--rows", "known", help="Parquet file with rows of cells that are finished already.")
@click.option("--results", help="Folder for the table and the Parquet file.")
@click.option("--json", "as_json", is_flag=True)
def main(
    task: str,
    seeds: int,
    own_seeds: tuple[int, ...],
    chosen: tuple[str, ...],
    file: str | None,
    changes: tuple[str, ...],
    storage: str,
    rate: float | None,
    judged: int | None,
    tune: bool,
    finished: bool,
    known: str | None,
    results: str | None,
    as_json: bool,
) -> None:
    """Train every cell that is not there yet; then show one row for each."""
    path = Path(file) if file else ROOT / "jobs" / "configs" / f"smollm2_{task}.toml"
    ways = [WAYS[one] for one in chosen or WAYS]
    table = FineTuning(
        task,
        SnakeConfig.load(path, changes),
        Path(storage) / task,
        judged,
        rate=rate,
        known=[] if known is None else read_rows(Path(known)),
    )
    if tune:
        rows = table.tuned(ways, own_seeds or [TUNING_SEED])
    elif finished:
        rows = table.finished()
    else:
        rows = table.trained(ways, own_seeds or range(1, seeds + 1))
    if results is not None:
        write_results(rows, Path(results), made_by=made_by(), task=task)
    if as_json:
        click.echo(json.dumps({"task": task, **findings(rows), "rows": rows}))
    else:
        click.echo("\n".join(_line(row) for row in rows))


class FineTuning:
    """The cells of one task, each a file of its row once it is trained.

    Args:
        task: Its name.
        config: Its configuration.
        folder: Where data, runs and rows are kept.
        judged: Test rows to judge on; none: all.
        rate: Learning rate of every cell; none: its way's.
        known: Rows of cells that were trained elsewhere.
    """

    def __init__(
        self,
        task: str,
        config: SnakeConfig,
        folder: Path,
        judged: int | None,
        *,
        rate: float | None = None,
        known: Sequence[Row] = (),
    ) -> None:
        torch.set_num_threads(1)
        self._task = task
        self._config = config
        self._folder = folder.absolute()
        self._judged = judged
        self._rate = rate
        self._known = {(row["way"], row["seed"], row["config_hash"]): row for row in known}
        # Of the code that is loaded now, whatever the folder has when a cell is done.
        self._commit = commit()

    def trained(self, ways: Sequence[Way], seeds: Sequence[int]) -> list[Row]:
        """Return the rows of all ways with all seeds; the first seed's are trained first."""
        rows = task_rows(self._config)
        rates = RATES[self._task]
        cells = [(way, seed, self._rate or rates.get(way.name)) for seed in seeds for way in ways]
        return _in_order([self._row(*cell, rows, tuning=False) for cell in cells])

    def tuned(self, ways: Sequence[Way], seeds: Sequence[int]) -> list[Row]:
        """Return the rows of all ways with each of their rates, judged on held-out rows."""
        rows = held_out_rows(task_rows(self._config), self._folder / "held-out")
        cells = [(way, seed, rate) for way in ways for rate in self._rates(way) for seed in seeds]
        return [self._row(*cell, rows, tuning=True) for cell in cells]

    def _rates(self, way: Way) -> Sequence[float]:
        return way.rates if self._rate is None else [self._rate]

    def finished(self) -> list[Row]:
        """Return the rows of all trained cells."""
        files = (self._folder / "rows").glob("cell-*.json")
        here: list[Row] = [json.loads(one.read_text(encoding="utf-8")) for one in files]
        rows = self._known | {(row["way"], row["seed"], row["config_hash"]): row for row in here}
        return _in_order([*rows.values()])

    def _row(self, way: Way, seed: int, rate: float | None, rows: Rows, *, tuning: bool) -> Row:
        """Return a cell's row; train the cell if it isn't there, or was of other settings."""
        config = way.config(
            self._config, nodes=len(rows.shards), seed=seed, rate=rate, tuning=tuning
        )
        elsewhere = self._known.get((way.name, seed, config.fingerprint()))
        if elsewhere is not None and not tuning:
            return elsewhere
        kind = "tune" if tuning else "cell"
        name = f"{kind}-{way.name}-{seed}-{config.fingerprint()}"
        file = self._folder / "rows" / f"{name}.json"
        if not file.exists():
            click.echo(f"training {name}", err=True)
            row = {"way": way.name, "task": self._task} | train(
                way, config, rows, most=self._judged
            )
            row |= {
                "predicted_peak_bytes": predicted_peak(way, config, rows),
                "commit": self._commit,
                "machine": machine(),
            }
            file.parent.mkdir(parents=True, exist_ok=True)
            scratch = file.with_suffix(".part")
            scratch.write_text(json.dumps(row), encoding="utf-8")
            scratch.rename(file)
            click.echo(_line(row), err=True)
        found: Row = json.loads(file.read_text(encoding="utf-8"))
        return found


def findings(rows: Sequence[Row]) -> Row:
    """Return what the rows show: means over the seeds that both ways have.

    Of rows with different numbers of samples those with most count.
    """
    by_way: dict[str, dict[int, Row]] = {}
    for row in sorted(rows, key=lambda one: one["samples"]):
        by_way.setdefault(row["way"], {})[row["seed"]] = row
    snake, full = by_way.get("snake", {}), by_way.get("full", {})
    seeds = sorted(snake.keys() & full.keys())
    if not seeds:
        return {}
    if snake[seeds[0]]["perplexity"] is not None:
        ratios = [snake[one]["perplexity"] / full[one]["perplexity"] for one in seeds]
        return {"seeds": seeds, "snake_over_full_perplexity": statistics.mean(ratios)}
    accuracy = statistics.mean(snake[one]["accuracy"] for one in seeds)
    other = statistics.mean(full[one]["accuracy"] for one in seeds)
    return {
        "seeds": seeds,
        "snake_accuracy": accuracy,
        "full_accuracy": other,
        "snake_minus_full_points": 100 * (accuracy - other),
    }


def _in_order(rows: Sequence[Row]) -> list[Row]:
    order = [*WAYS]
    return sorted(rows, key=lambda row: (order.index(row["way"]), row["seed"]))


def _line(row: Row) -> str:
    return (
        f"{row['way']:8} seed {row['seed']}  rate {row['learning_rate']:g}  "
        f"loss {row['loss']:.4f}  accuracy {row['accuracy']:.4f}  {row['samples']:,} samples  "
        f"{row['bytes'] / 1e6:,.1f} MB  {row['cpu_seconds']:,.0f} s"
    )


if __name__ == "__main__":
    main()
