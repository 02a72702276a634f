"""A sweep: trials with Ray Tune, resumable, and what came of each."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune.experiment import Trial as TuneTrial
from ray.tune.schedulers import (
    ASHAScheduler,
    FIFOScheduler,
    MedianStoppingRule,
    TrialScheduler,
)
from ray.tune.search import Searcher
from ray.tune.search.basic_variant import BasicVariantGenerator

from ray_snake.config import SnakeConfig
from ray_snake.errors import MOST_OF_A_MESSAGE, ConfigError, RunError, StorageError
from ray_snake.storage import Storage
from ray_snake.tune.space import applied, domains
from ray_snake.tune.trial import make_trainable, trial_run, tune_resources

EXPERIMENT = "tune"
RUNS = "runs"
# Tune warns of many things that a sweep does on purpose, and shows tables of its own.
QUIET = {"RAY_AIR_NEW_OUTPUT": "0", "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1"}
# How often Tune stores which trials are done: a killed sweep repeats no more than that.
STATE_SECONDS = "5"


@dataclass(frozen=True, kw_only=True)
class Trial:
    """What came of a trial.

    Attributes:
        id: Its id.
        run: Folder or URI of its run.
        values: By dotted key, those that counted.
        trip: Trips that it did.
        accuracy: On held-out rows after the last of them, in [0, 1]; none without classes.
        loss: Likewise.
        bytes_moved: Bytes of blocks that moved.
        seconds: What it took.
        error: What ended it; empty if nothing did.
    """

    id: str
    run: str
    values: Mapping[str, Any]
    trip: int = 0
    accuracy: float | None = None
    loss: float | None = None
    bytes_moved: int = 0
    seconds: float = 0.0
    error: str = field(default="")

    def score(self, metric: str) -> float | None:
        """Return what trials are ranked by: more is better; none without a number."""
        if metric == "accuracy":
            return self.accuracy
        return None if self.loss is None or math.isnan(self.loss) else -self.loss


@dataclass(frozen=True, kw_only=True)
class TripReport:
    """A trial has done a trip."""

    trial: str
    values: Mapping[str, Any]
    trip: int
    accuracy: float | None
    loss: float


@dataclass(frozen=True, kw_only=True)
class TrialDied:
    """A trial's process ended before its run did."""

    trial: str
    reason: str
    goes_on: bool


Report = TripReport | TrialDied


class Sweep:
    """The trials that `[tune]` of some settings asks for.

    Args:
        config: The settings, checked by `space.check_sweep`.
        storage: The sweep's folder.
        tell: Told of each trip of each trial, and of those that died.
    """

    def __init__(
        self, config: SnakeConfig, storage: Storage, tell: Callable[[Report], None]
    ) -> None:
        self._storage = storage
        section = config.storage.model_copy(update={"uri": storage.child(RUNS).uri})
        self._config = config.model_copy(update={"storage": section})
        self._tell = tell

    def run(self, *, resume: bool) -> list[Trial]:
        """Do all trials, or go on with those that were not done; return them, best first.

        A cluster must be joined. Finished trials are not done again, others go on from their
        journals.

        Raises:
            StorageError: If there is a sweep already, or none to go on with.
            RunError: If no trial came to its first trip, or none has a number to be ranked by.
        """
        filesystem, path = self._storage.filesystem()
        where = f"{path}/{EXPERIMENT}"
        there = self._storage.exists(f"{EXPERIMENT}/tuner.pkl")
        if there != resume:
            raise StorageError(
                f"sweep {self._storage.shown_uri}",
                "is there already" if there else "is not there",
                "add --resume to go on with it, or choose another --name"
                if there
                else "leave --resume out to start it",
            )
        trainable = tune.with_resources(make_trainable(self._config), tune_resources(self._config))
        _Listener.tell = staticmethod(self._tell)
        with _quiet():
            if resume:
                tuner = tune.Tuner.restore(
                    where,
                    trainable,
                    resume_unfinished=True,
                    resume_errored=True,
                    param_space=domains(self._config.tune),
                    storage_filesystem=filesystem,
                )
            else:
                tuner = self._tuner(trainable, filesystem, path)
            results = tuner.fit()
        trials = [self._trial(one) for one in results._experiment_analysis.trials]
        return self._ranked(trials)

    def _tuner(self, trainable: Any, filesystem: Any, path: str) -> tune.Tuner:  # noqa: ANN401 - Ray's and pyarrow's
        config = self._config.tune
        return tune.Tuner(
            trainable,
            param_space=domains(config),
            tune_config=tune.TuneConfig(
                metric=config.metric,
                mode="max" if config.metric == "accuracy" else "min",
                num_samples=config.samples,
                max_concurrent_trials=config.concurrency,
                time_budget_s=config.budget_seconds,
                scheduler=self._scheduler(),
                search_alg=_search(config.search, config.seed),
                trial_dirname_creator=lambda trial: str(trial.trial_id),
            ),
            run_config=tune.RunConfig(
                name=EXPERIMENT,
                storage_path=path,
                storage_filesystem=filesystem,
                failure_config=tune.FailureConfig(max_failures=config.max_failures),
                checkpoint_config=tune.CheckpointConfig(num_to_keep=1),
                callbacks=[_Listener(self._config)],
                verbose=0,
            ),
        )

    def _scheduler(self) -> TrialScheduler:
        config, trips = self._config.tune, self._config.snake.trips
        grace = min(config.grace_trips, trips)
        if config.scheduler == "asha":
            return ASHAScheduler(
                time_attr="trip",
                max_t=trips,
                grace_period=grace,
                reduction_factor=config.reduction,
                # A trial that reaches its last trip ends by itself.
                stop_last_trials=False,
            )
        if config.scheduler == "median":
            return MedianStoppingRule(time_attr="trip", grace_period=grace)
        return FIFOScheduler()

    def _trial(self, one: TuneTrial) -> Trial:
        found = one.last_result or {}
        return Trial(
            id=one.trial_id,
            run=self._storage.child(RUNS, trial_run(one.trial_id)).uri,
            values=applied(self._config.tune.space, one.config),
            trip=int(found.get("trip", 0)),
            accuracy=found.get("accuracy"),
            loss=found.get("loss"),
            bytes_moved=int(found.get("bytes_moved", 0)),
            seconds=float(found.get("time_total_s", 0.0)),
            error=_reason(one) if one.status == TuneTrial.ERROR else "",
        )

    def _ranked(self, trials: list[Trial]) -> list[Trial]:
        metric = self._config.tune.metric
        scores = [one.score(metric) for one in trials]
        if all(score is None for score in scores):
            cause = next((one.error for one in trials if one.error), "no reason given")
            raise RunError(
                f"no trial has a number as its {metric}"
                if any(one.trip for one in trials)
                else f"no trial came to the end of a trip ({cause})",
                "look into it, then go on with --resume",
            )

        def rank(pair: tuple[Trial, float | None]) -> tuple[bool, float, str]:
            trial, score = pair
            return score is None, -(score or 0.0), trial.id

        return [one for one, _ in sorted(zip(trials, scores, strict=True), key=rank)]


class _Listener(tune.Callback):
    """Passes on what becomes of trials. Tune stores it with a sweep; who is told is set anew."""

    tell: Callable[[Report], None] = staticmethod(lambda report: None)

    def __init__(self, config: SnakeConfig) -> None:
        self._config = config

    def on_trial_result(
        self,
        iteration: int,
        trials: list[TuneTrial],
        trial: TuneTrial,
        result: dict[str, Any],
        **info: object,
    ) -> None:
        """Tell what a trial reports of a trip."""
        del iteration, trials, info
        self.tell(
            TripReport(
                trial=trial.trial_id,
                values=applied(self._config.tune.space, trial.config),
                trip=int(result["trip"]),
                accuracy=result.get("accuracy"),
                loss=float(result["loss"]),
            )
        )

    def on_trial_recover(
        self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: object
    ) -> None:
        """Tell of a trial that goes on."""
        del iteration, trials, info
        self.tell(TrialDied(trial=trial.trial_id, reason=_reason(trial), goes_on=True))

    def on_trial_error(
        self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: object
    ) -> None:
        """Tell of a trial that does not."""
        del iteration, trials, info
        self.tell(TrialDied(trial=trial.trial_id, reason=_reason(trial), goes_on=False))


def _reason(trial: TuneTrial) -> str:
    """Return in a line what ended a trial last; empty if nothing did."""
    # Written on this machine first; Tune brings it into the sweep's folder now and then.
    file = Path(trial.error_file or "")
    text = file.read_text(encoding="utf-8") if file.is_file() else str(trial.get_error() or "")
    # Each failure adds a heading and what a traceback ends with: the error.
    lines = text.strip().splitlines() or [""]
    return re.sub(r"^ray_snake\.errors\.\w+: ", "", lines[-1].strip())[:MOST_OF_A_MESSAGE]


def _search(name: str, seed: int) -> Searcher | BasicVariantGenerator:
    """Return what draws the trials' values.

    Raises:
        ConfigError: If it is not installed.
    """
    if name == "random":
        return BasicVariantGenerator(random_state=seed)
    try:
        import optuna  # noqa: F401 - whether it is there
    except ImportError:
        raise ConfigError(
            "tune.search", "'optuna' is not installed", "pip install 'ray-snake[tune]'"
        ) from None
    from ray.tune.search.optuna import OptunaSearch

    return OptunaSearch(seed=seed)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep Tune from writing beside what the command shows."""
    settings = {**QUIET, "TUNE_GLOBAL_CHECKPOINT_S": STATE_SECONDS}
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    level = logging.getLogger("ray.tune").level
    # It shows tracebacks of what died; the listener has a line for that.
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.getLogger("ray.tune").setLevel(level)
        for name, text in before.items():
            if text is None:
                del os.environ[name]
            else:
                os.environ[name] = text
