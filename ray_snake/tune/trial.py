"""A trial: a whole run with some settings changed, which goes on from its journal if it dies."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray_snake.config import SnakeConfig
from ray_snake.runtime.events import Evaluated, Event
from ray_snake.runtime.journal import read_records
from ray_snake.runtime.placement import group_nodes
from ray_snake.runtime.records import EvaluationRecord, VisitRecord
from ray_snake.runtime.run_folder import SETTINGS
from ray_snake.storage import Storage
from ray_snake.trainer import SnakeTrainer, node_sources, with_absolute_paths
from ray_snake.tune.space import applied, with_values

if TYPE_CHECKING:
    from ray.tune import PlacementGroupFactory

REFERENCE = "run.json"


def trial_run(trial: str) -> str:
    """Return the name of a trial's run."""
    return f"trial-{trial}"


def make_trainable(config: SnakeConfig) -> Callable[[Mapping[str, Any]], None]:
    """Return a function for `ray.tune.Tuner`: it trains `config` with a trial's values.

    A trial's parameters are dotted keys (`training.learning_rate`); other keys are refused. It
    reports after each trip: `trip`, `visit`, `accuracy` (in [0, 1]), `loss`, `bytes_moved`. Its run
    is in `config.storage` under the trial's id, and its checkpoint is that run's location, no
    weights: a trial that died goes on from its journal. Relative paths, a parameter's too, begin at
    the folder in which this was called.

    Args:
        config: The settings; of its sweep only `when` of the axes counts.
    """
    folder = Path.cwd()
    config = with_absolute_paths(config, folder)

    def train(values: Mapping[str, Any]) -> None:
        from ray import tune

        name = trial_run(tune.get_context().get_trial_id())
        own = with_values(config, applied(config.tune.space, values))
        own = with_absolute_paths(own, folder)
        if own.nodes.gpus == "auto":
            # All that the cluster has would be shared out to each trial.
            own = with_values(own, {"nodes.gpus": 0.0})
        run = Storage(own.storage.uri, timeout_seconds=own.storage.timeout_seconds).child(name)
        reports = _Reports(run, nodes=len(node_sources(own, None)))
        resume = run.exists(SETTINGS)
        if resume:
            reports.catch_up()
        SnakeTrainer(
            config=own, name=name, resume=resume, progress=False, on_event=reports.on_event
        ).fit()

    return train


def tune_resources(config: SnakeConfig) -> PlacementGroupFactory:
    """Return what a trial reserves, for `ray.tune.with_resources`.

    One CPU for each visit that may be under way at once; and what node actors reserve, if they do,
    a bundle for each, on machines with `nodes.labels`.
    """
    from ray.tune import PlacementGroupFactory

    groups = group_nodes(config.nodes, node_sources(config, None))
    asked = [group.request for group in groups if group.request.amounts]
    if not asked:
        return PlacementGroupFactory([{"CPU": float(config.snake.heads)}])
    bundles = [{"CPU": 1.0}, *[request.amounts for request in asked]]
    labels: list[dict[str, str]] = [{}, *[dict(request.labels) for request in asked]]
    if not any(labels):
        return PlacementGroupFactory(bundles)
    return PlacementGroupFactory(bundles, bundle_label_selector=labels)


class _Reports:
    """Tells Tune what became of each trip."""

    def __init__(self, run: Storage, *, nodes: int) -> None:
        self._run = run
        self._nodes = nodes
        self._read = 0
        self._bytes = 0

    def catch_up(self) -> None:
        """Report the last trip that was judged before the trial died."""
        judged = [one for one in read_records(self._run) if isinstance(one, EvaluationRecord)]
        ended = [one for one in judged if one.visit and one.visit % self._nodes == 0]
        if ended:
            self._report(ended[-1])

    def on_event(self, event: Event) -> None:
        if isinstance(event, Evaluated) and event.record.visit % self._nodes == 0:
            self._report(event.record)

    def _report(self, record: EvaluationRecord) -> None:
        from ray import tune

        fresh = read_records(self._run, self._read)
        self._read += len(fresh)
        self._bytes += sum(one.bytes_moved for one in fresh if isinstance(one, VisitRecord))
        metrics: dict[str, Any] = {
            "trip": record.trip,
            "visit": record.visit,
            "loss": record.loss,
            "bytes_moved": self._bytes,
        }
        if record.accuracy is not None:
            metrics["accuracy"] = record.accuracy
        with tempfile.TemporaryDirectory() as folder:
            reference = {"run": self._run.shown_uri, "trip": record.trip}
            (Path(folder) / REFERENCE).write_text(json.dumps(reference))
            tune.report(metrics, checkpoint=tune.Checkpoint.from_directory(folder))
