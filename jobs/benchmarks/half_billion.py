"""A language model of 494 million parameters on 8 nodes of this machine, and the memory it takes.

Trains `jobs/configs/half_billion.toml` by `ray-snake train`, with a process for each node, and
samples the memory of that command and all that it starts.

- `peak_gib`: the most that all of it took at once: proportional set sizes, in which a page that
  several processes share, as of the object store, counts once. `peak_gib_by_process` is how it was
  made up. `largest_node_gib`: the most that a node's process took, its share of those pages too.
- `whole_on_all_nodes_gib`: 16 bytes for each parameter of each node - weight, gradient and AdamW's
  two averages in fp32 - which training the whole model on all of them takes at least.
- `predicted_visit_gib`, `predicted_full_gib`: what the project's memory model says of a visit, the
  dearest one, and of a step of the whole model on one node; `_without_embedding` of visits to
  layers alone.
- `first_loss`, `last_loss`: of the first and the last visit's training rows, nats per token;
  `perplexity` at the end, of the rows that no node has.

    python jobs/benchmarks/half_billion.py --json
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

import click
from command import Benchmark
from forked import forked
from process_tree import Usage, measure

from ray_snake import SnakeConfig

CONFIG = Path(__file__).parents[1] / "configs" / "half_billion.toml"
GIB = 2**30
STATE_BYTES = 16
"""Of a parameter that trains: itself, its gradient and AdamW's averages, four bytes each."""
INTERVAL_SECONDS = 0.25
TINY = (
    "model.options.config.vocab_size=16384",
    "model.options.config.hidden_size=32",
    "model.options.config.intermediate_size=64",
    "model.options.config.num_attention_heads=4",
    "nodes.nodes_per_actor=4",
)


@click.command(cls=Benchmark)
@click.option("--config", default=CONFIG, type=click.Path(path_type=Path), show_default=True)
@click.option("--set", "settings", multiple=True, help="A setting, as of `ray-snake train`.")
@click.option("--tiny", is_flag=True, help="A model of the same depth that trains in a moment.")
@click.option("--json", "as_json", is_flag=True)
def main(config: Path, settings: tuple[str, ...], tiny: bool, as_json: bool) -> None:
    """Train it, and report what that took."""
    settings = (*settings, *(TINY if tiny else ()))
    figures = forked(_predicted, config, settings)
    with tempfile.TemporaryDirectory() as name:
        usage = _train(config, settings, Path(name))
        figures |= forked(_recorded, Path(name) / "runs" / "run")
    figures |= _memory(usage)
    if as_json:
        click.echo(json.dumps(figures))
        return
    for name, figure in figures.items():
        click.echo(f"{name}: {figure}")


def _train(config: Path, settings: tuple[str, ...], folder: Path) -> Usage:
    environment = {
        name: text
        for name, text in os.environ.items()
        if name not in ("RAY_ADDRESS", "RAY_AUTH_TOKEN_PATH")
    }
    environment |= {"HOME": str(folder), "RAY_TMPDIR": str(folder), "OMP_NUM_THREADS": "1"}
    # Ray's workers step back for other programs by default.
    environment["RAY_worker_niceness"] = "0"
    command = [sys.executable, "-m", "ray_snake", "train", str(config)]
    command += ["--storage", str(folder / "runs"), "--name", "run"]
    for one in settings:
        command += ["--set", one]
    return measure(command, environment, folder, memory=True, interval=INTERVAL_SECONDS)


def _memory(usage: Usage) -> dict[str, Any]:
    nodes = [
        size for name, size in usage.largest_by_process.items() if name.startswith("ray::SnakeNode")
    ]
    kinds: dict[str, int] = defaultdict(int)
    for name, size in usage.peak_by_process.items():
        kinds[name.rpartition(":")[0].partition(".")[0]] += size
    return {
        "peak_gib": round(usage.peak_bytes / GIB, 3),
        "largest_node_gib": round(max(nodes) / GIB, 3),
        "peak_gib_by_process": {name: round(size / GIB, 3) for name, size in kinds.items()},
        "wall_seconds": round(usage.times[-1] - usage.times[0], 1),
    }


def _recorded(run: Path) -> dict[str, Any]:
    """Return what a run's journal says."""
    from ray_snake.runtime.journal import read_records
    from ray_snake.runtime.records import EvaluationRecord, VisitRecord
    from ray_snake.storage import Storage

    records = read_records(Storage(str(run)))
    visits = [one for one in records if isinstance(one, VisitRecord) and one.accepted]
    judged = [one for one in records if isinstance(one, EvaluationRecord)]
    return {
        "visits": len(visits),
        "nodes_visited": len({one.node for one in visits}),
        "spans_trained": sorted({one.span for one in visits}),
        "first_loss": round(visits[0].first_loss, 4),
        "last_loss": round(visits[-1].loss, 4),
        "losses": [round(one.loss, 4) for one in visits],
        "perplexity": judged[-1].perplexity,
        "bytes_moved": sum(one.bytes_moved for one in visits),
        "train_seconds": round(sum(one.train_seconds for one in visits), 1),
        "visit_seconds": [round(one.seconds, 1) for one in visits],
    }


def _predicted(config: Path, settings: tuple[str, ...]) -> dict[str, Any]:
    """Return what is known of the model before it is trained."""
    from ray_snake.planning.cost import predict_visit
    from ray_snake.planning.span import Span, Visit
    from ray_snake.planning.strategy import make_strategy
    from ray_snake.runtime.forecast import measured_costs
    from ray_snake.runtime.preflight import check_model, check_shards
    from ray_snake.runtime.recipe import Recipe
    from ray_snake.trainer import node_sources

    loaded = SnakeConfig.load(config, settings)
    sources = node_sources(loaded, None)
    stack = check_model(Recipe(config=loaded), nodes=len(sources))
    (node, *_) = check_shards(stack, sources[:1])
    costs = measured_costs(
        loaded,
        stack,
        sample_shape=node.sample_shape,
        integer_inputs=node.integer_inputs,
        timed=False,
    )

    def peak(visit: Visit, **changes: object) -> int:
        training = loaded.training.model_copy(update=changes)
        return predict_visit(
            visit,
            costs,
            rows=node.samples,
            steps=training.steps or 1,
            training=training,
            loss=loaded.loss,
        ).private_bytes

    strategy = make_strategy(loaded, nodes=len(sources), blocks=len(stack))
    visits = {one.trained: one for one in iter(strategy.next, None)}
    peaks = {trained: peak(one) for trained, one in visits.items()}
    whole = tuple(range(len(stack)))
    full = Visit(number=1, trip=1, node=0, span=Span(0, len(stack)), trained=whole)
    parameters = sum(stack.block_bytes()) // 4
    return {
        "parameters": parameters,
        "nodes": len(sources),
        "tokens_per_step": loaded.training.batch_size * node.sample_shape[0],
        "whole_on_all_nodes_gib": round(STATE_BYTES * parameters * len(sources) / GIB, 3),
        "predicted_full_gib": round(peak(full, residency="resident") / GIB, 3),
        "predicted_visit_gib": round(max(peaks.values()) / GIB, 3),
        "predicted_visit_without_embedding_gib": round(
            max(size for trained, size in peaks.items() if 0 not in trained) / GIB, 3
        ),
    }


if __name__ == "__main__":
    main()
