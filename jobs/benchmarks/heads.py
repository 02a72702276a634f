"""Several heads: what visits at once are worth, for real and in the simulator.

- `two_over_one`: time until two heads reach an accuracy on held-out pictures, over the time that
  one head takes: 0.95 of what one head comes to at its end. The small CIFAR-10 set of the
  comparison, Dirichlet 0.1, eight nodes; both halves of a VGG-11 of a quarter's width are spans.
  Visits are half as long as there and twice as many. Spans alternate with every visit: so they do
  with two heads, and one head gains too. From the first visit's start; between evaluations in
  proportion. None where two heads never get there. All settings but `snake.heads` are the same.
  Evaluations are once in two trips: one head leaves a core for them, two don't.
- `simulated_speedup`: visits in a second with eight heads on 64 nodes over those with one, in the
  simulator: paces lognormal(1, 0.5), links of 1 to 20 MB/s.

    ray-snake data fetch cifar10 --out data/cifar10
    python jobs/benchmarks/heads.py --seeds 3 --json
"""

from __future__ import annotations

import json
import statistics
import tempfile
from pathlib import Path

import click
from command import Benchmark
from comparison.data import prepare
from comparison.scales import SCALES

from ray_snake import SnakeConfig, SnakeTrainer
from ray_snake.config import SnakeSection
from ray_snake.planning.cost import BlockCost
from ray_snake.runtime.journal import read_records
from ray_snake.runtime.records import EvaluationRecord, VisitRecord
from ray_snake.simulation.distribution import Distribution
from ray_snake.simulation.simulator import Simulator
from ray_snake.simulation.world import World
from ray_snake.storage import Storage

ROOT = Path(__file__).parents[2]
COMMON = ROOT / "jobs" / "configs" / "comparison.toml"
SHARE = 0.95
PARTITION = "alpha0.1"


@click.command(cls=Benchmark)
@click.option("--data", default="data/cifar10", show_default=True, help="Folder of the pictures.")
@click.option("--trips", default=2 * SCALES["small"].trips, show_default=True)
@click.option("--seeds", default=3, show_default=True, help="Seeds 1 to this; medians count.")
@click.option("--rate", default=0.01, show_default=True, help="Learning rate.")
@click.option("--set", "settings", multiple=True, help="Change a setting of both.")
@click.option("--simulated", is_flag=True, help="Only what needs no training.")
@click.option("--json", "as_json", is_flag=True)
def main(
    data: str,
    trips: int,
    seeds: int,
    rate: float,
    settings: tuple[str, ...],
    simulated: bool,
    as_json: bool,
) -> None:
    """Train with one head and with two; simulate one and eight."""
    figures: dict[str, object] = {"simulated_speedup": round(_simulated_speedup(), 3)}
    if not simulated:
        scale = SCALES["small"]
        with tempfile.TemporaryDirectory() as folder:
            pictures = prepare(
                Path(data),
                Path(folder) / "pictures",
                partition=PARTITION,
                nodes=scale.nodes,
                rows=scale.rows,
                held_out=scale.held_out,
                watched=scale.watched,
            )
            common = [
                f"snake.trips={trips}",
                "snake.span_width=5",
                "snake.order=diagonal",
                # Half of a middling node's rows.
                f"training.steps={scale.rows // (2 * scale.nodes * scale.batch_size)}",
                # Of visits beside others alone.
                "snake.damping=0.5",
                f'model.options={{channels=3, classes=10, norm="group", width={scale.width}}}',
                f"training.learning_rate={rate}",
                f"training.batch_size={scale.batch_size}",
                "loss.distillation=0.1",
                f'evaluation.data="{pictures.watched}"',
                f"evaluation.every_visits={2 * scale.nodes}",
                *settings,
            ]
            ratios = []
            for seed in range(1, seeds + 1):
                runs = {}
                for heads in (1, 2):
                    config = SnakeConfig.load(
                        COMMON, [*common, f"seed={seed}", f"snake.heads={heads}"]
                    )
                    trainer = SnakeTrainer(
                        nodes=[str(one) for one in pictures.shards],
                        config=config,
                        storage=folder,
                        name=f"{seed}-{heads}",
                    )
                    runs[heads] = trainer.fit().run
                curves = {heads: _curve(run) for heads, run in runs.items()}
                mark = SHARE * curves[1][-1][1]
                one, two = (_reached(curves[heads], mark) for heads in (1, 2))
                ratios.append(None if one is None or two is None else two / one)
                figures[f"seed_{seed}"] = {
                    "mark": mark,
                    "one": curves[1][-1],
                    "two": curves[2][-1],
                    "two_over_one": ratios[-1],
                    "two_over_one_whole": curves[2][-1][0] / curves[1][-1][0],
                    "idle_share": _idle_share(runs[2], 2),
                }
                click.echo(f"seed {seed}: {figures[f'seed_{seed}']}", err=True)
        known = [one for one in ratios if one is not None]
        figures["two_over_one"] = (
            round(statistics.median(known), 4) if len(known) == len(ratios) else None
        )
    click.echo(json.dumps(figures) if as_json else figures)


def _idle_share(run: str, heads: int) -> float:
    """Return the share of a run's time, from the first visit's start, that heads had no visit."""
    visits = [one for one in read_records(Storage(run)) if isinstance(one, VisitRecord)]
    began = min(one.finished_at - one.seconds for one in visits)
    whole = max(one.finished_at for one in visits) - began
    return 1 - sum(one.seconds for one in visits) / (heads * whole)


def _curve(run: str) -> list[tuple[float, float]]:
    """Return (seconds since the first visit began, accuracy) of each evaluation, in order."""
    records = read_records(Storage(run))
    visits = [one for one in records if isinstance(one, VisitRecord)]
    began = min(one.finished_at - one.seconds for one in visits)
    return [
        (one.finished_at - one.seconds - began, one.accuracy)
        for one in records
        if isinstance(one, EvaluationRecord) and one.visit and one.accuracy is not None
    ]


def _reached(curve: list[tuple[float, float]], mark: float) -> float | None:
    """Return when an accuracy was reached, between two evaluations in proportion."""
    before = (0.0, 0.0)
    for seconds, accuracy in curve:
        if accuracy >= mark:
            share = (mark - before[1]) / (accuracy - before[1])
            return before[0] + share * (seconds - before[0])
        before = (seconds, accuracy)
    return None


def _simulated_speedup() -> float:
    given = {
        name: Distribution.parse(name, text)
        for name, text in {
            "rows": "1000",
            "pace": "lognormal(1, 0.5)",
            "bytes_per_second": "uniform(1e6, 2e7)",
            "latency_seconds": "0.01",
        }.items()
    }
    costs = tuple(
        BlockCost(
            name=f"block{block}",
            weight_bytes=1_000_000,
            forward_flops=1e8,
            saved_bytes=100_000,
            input_bytes=10_000,
            output_bytes=10_000,
            forward_seconds=2e-4,
            backward_seconds=2e-4,
            training_seconds=4e-4,
        )
        for block in range(24)
    )
    seconds = [
        Simulator(
            SnakeConfig(snake=SnakeSection(span_width=2, trips=24, heads=heads)),
            World.draw(64, 1, given),
            costs,
        )
        .run()
        .summary.seconds
        for heads in (1, 8)
    ]
    return seconds[0] / seconds[1]


if __name__ == "__main__":
    main()
