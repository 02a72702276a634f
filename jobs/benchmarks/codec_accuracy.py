"""What a codec costs in accuracy: the same run with blocks that travel whole and as differences.

VGG-11 of a quarter of the width on 20,000 of CIFAR-10's pictures, over 8 nodes with label skew.
Finished runs are kept in the storage folder and not done again, unfinished ones are resumed.

    ray-snake data fetch cifar10 --out data/cifar10
    python jobs/benchmarks/codec_accuracy.py --data data/cifar10 --json
"""

from __future__ import annotations

import json
import statistics
from pathlib import Path

import click
import numpy as np
import pyarrow as pa
from command import Benchmark

from ray_snake import SnakeConfig, SnakeTrainer
from ray_snake.config import PartitionConfig
from ray_snake.data.shards import partition_file, read_table, write_shard
from ray_snake.storage import Storage

CONFIG = Path(__file__).parents[1] / "configs" / "cifar10_vgg11.toml"
ROWS_SEED = 1


@click.command(cls=Benchmark)
@click.option("--data", default="data/cifar10", show_default=True, help="Folder of the pictures.")
@click.option("--storage", default="runs/codec_accuracy", show_default=True)
@click.option("--rows", default=20_000, show_default=True)
@click.option("--trips", default=12, show_default=True)
@click.option("--alpha", default=0.5, show_default=True, help="Label skew (Dirichlet).")
@click.option("--codec", "codecs", multiple=True, default=("none", "int8"), show_default=True)
@click.option("--seed", "seeds", multiple=True, type=int, default=(1, 2, 3), show_default=True)
@click.option("--json", "as_json", is_flag=True)
def main(
    data: str,
    storage: str,
    rows: int,
    trips: int,
    alpha: float,
    codecs: tuple[str, ...],
    seeds: tuple[int, ...],
    as_json: bool,
) -> None:
    """Train with every codec and seed; compare test accuracies with the first codec's."""
    shards = _shards(Path(data), Path(storage), rows, alpha)
    accuracies: dict[str, list[float]] = {}
    for codec in codecs:
        for seed in seeds:
            settings = [
                f"seed={seed}",
                f"data.shards={json.dumps([str(one) for one in shards])}",
                f"evaluation.data={json.dumps(str(Path(data) / 'test.arrow'))}",
                f"evaluation.every_visits={trips * len(shards)}",
                f"snake.trips={trips}",
                f'codec.name="{codec}"',
                f"nodes.nodes_per_actor={len(shards)}",
            ]
            accuracies.setdefault(codec, []).append(
                _accuracy(settings, storage, f"{codec}-{rows}-{trips}-{alpha:g}-{seed}")
            )
    means = {codec: statistics.mean(found) for codec, found in accuracies.items()}
    base = means[codecs[0]]
    figures = {
        "accuracies": accuracies,
        "means": {codec: round(mean, 4) for codec, mean in means.items()},
        "points_lost": {
            codec: round(100 * (base - mean), 2)
            for codec, mean in means.items()
            if mean is not base
        },
        "rows": rows,
        "trips": trips,
        "alpha": alpha,
        "seeds": list(seeds),
    }
    click.echo(json.dumps(figures) if as_json else figures)


def _shards(data: Path, storage: Path, rows: int, alpha: float) -> list[Path]:
    """Return eight files with some of the training pictures, made where they are missing."""
    folder = (storage / f"data-{rows}-{alpha:g}").absolute()
    if not (folder / "partition.json").exists():
        table: pa.Table = read_table(str(data / "train.arrow"))
        chosen = np.sort(np.random.default_rng(ROWS_SEED).permutation(len(table))[:rows])
        source = folder.with_name(f"{folder.name}.arrow")
        write_shard(str(source), table.take(pa.array(chosen)))
        split = PartitionConfig(scheme="dirichlet", alpha=alpha, nodes=8, seed=ROWS_SEED)
        partition_file(str(source), split, str(folder))
    return sorted(folder.glob("node_*.arrow"))


def _accuracy(settings: list[str], storage: str, name: str) -> float:
    known = Storage(storage).child(name).exists("run.json")
    trainer = SnakeTrainer(
        config=SnakeConfig.load(CONFIG, settings), storage=storage, name=name, resume=known
    )
    return float(trainer.fit().metrics["accuracy"])


if __name__ == "__main__":
    main()
