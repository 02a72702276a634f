"""`SnakeTrainer`: takes a request, checks it, starts the driver and reports on the run."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import ray

from ray_snake.config import SnakeConfig
from ray_snake.data import ShardSource
from ray_snake.errors import ConfigError, DriverFailedError, InputError, RunError
from ray_snake.extensions import OwnClasses, import_path
from ray_snake.runtime.cluster import (
    check_resources,
    own_gpus,
    with_gpu_shares,
)
from ray_snake.runtime.connection import connected, is_embedded
from ray_snake.runtime.crew import Muster
from ray_snake.runtime.driver_actor import SnakeDriver, follow
from ray_snake.runtime.events import Evaluated, Event, Preparing, RunEnded
from ray_snake.runtime.handles import ProcessLostError
from ray_snake.runtime.journal import read_records
from ray_snake.runtime.launch import actor_class, here
from ray_snake.runtime.memory_checks import fit_nodes, known_costs
from ray_snake.runtime.messages import BlockTable, NodeSpec
from ray_snake.runtime.model_checks import ModelChecks, model_checks
from ray_snake.runtime.on_machines import on_cluster
from ray_snake.runtime.placement import NodeGroup, group_nodes
from ray_snake.runtime.preflight import check_nodes, check_settings
from ray_snake.runtime.recipe import Recipe
from ray_snake.runtime.run_folder import RunFolder, choose_run
from ray_snake.storage import Storage
from ray_snake.telemetry.history import history_table
from ray_snake.telemetry.progress import ConsoleProgress
from ray_snake.telemetry.summary import run_summary
from ray_snake.telemetry.tensorboard import EventFile

if TYPE_CHECKING:
    from torch import nn

    from ray_snake.engine.objective import TaskLoss
    from ray_snake.engine.stack import Network
    from ray_snake.planning.order import Order
    from ray_snake.planning.strategy import Strategy

HUGGINGFACE = "huggingface"


@dataclass(frozen=True)
class Result:
    """A finished run.

    Attributes:
        run: The run's folder or URI.
        summary: What `--json` prints: `run`, `metrics`, `trips`, `visits`, `bytes_moved` (bytes),
            `seconds`, `weights_sha256`.
        recipe: Settings and functions of the run.
    """

    run: str
    summary: dict[str, Any]
    recipe: Recipe

    @property
    def metrics(self) -> dict[str, float]:
        """`loss` and, with classes, `accuracy` in [0, 1], of the last evaluation."""
        metrics: dict[str, float] = self.summary["metrics"]
        return metrics

    @property
    def checkpoint(self) -> str:
        """Folder or URI of the stored blocks, one safetensors file each."""
        return Storage(self.run).child("blocks").uri

    @cached_property
    def history(self) -> pa.Table:
        """One row per visit; units stand in the schema's field metadata."""
        return history_table(read_records(Storage(self.run)))

    def model(self) -> nn.Module:
        """Return the network with the run's weights, on the CPU, in evaluation mode.

        Raises:
            CheckpointError: If the stored blocks are missing or damaged.
        """
        return load_model(RunFolder(Storage(self.run)), self.recipe)


def load_model(folder: RunFolder, recipe: Recipe) -> nn.Module:
    """Return a run's network with the weights of its last accepted visit.

    A model function that returns a list of blocks gives a `BlockStack`.

    Raises:
        CheckpointError: If the stored blocks are missing or damaged.
        ModelError: If the model isn't the run's.
    """
    from torch import nn

    from ray_snake.engine.stack import BlockStack
    from ray_snake.layers.tensors import unpack

    network = recipe.build()
    stack = BlockStack.cut(network)
    for state in folder.states():
        tensors = {name: tensor.clone() for name, tensor in unpack(state).items()}
        stack.load_part(state.block, tensors)
    stack.freeze_all_but(range(len(stack)))
    model = network if isinstance(network, nn.Module) else stack
    return model.eval()


class SnakeTrainer:
    """Trains one network across nodes that keep their data.

    Args:
        model: A function without arguments that returns a `torch.nn.Sequential` or a list of
            modules, each feeding the next; a registered name; or a transformers model, by its
            folder or an id with a slash; none: the settings' model.
        nodes: One entry per node: a path or URI of an Arrow or Parquet file, a `pyarrow.Table`,
            or a pair (inputs, labels) of arrays; none: the settings' `data`.
        config: The settings.
        loss: (outputs, targets) -> scalar tensor, in place of the settings' loss.
        strategy: Who trains what next, in place of the settings' strategy.
        order: How the snake pairs spans and nodes, in place of the settings' order.
        evaluation: Held-out rows, in any form of `nodes`; none: the settings' `evaluation.data`.
        storage: Folder or URI of runs; none: the settings' `storage.uri`.
        name: The run's name; none: `stem`, numbered where that is taken.
        stem: What an unnamed run is called after.
        resume: Go on with an interrupted run. One that still goes on is taken over: its driver
            ends.
        address: Ray cluster to use; none: the one already joined, else an embedded one.
        progress: Show live progress on standard error.
        on_event: Told everything that happens, in order.
    """

    def __init__(
        self,
        model: Callable[[], Network] | str | None = None,
        nodes: Sequence[object] | None = None,
        config: SnakeConfig | None = None,
        *,
        loss: TaskLoss | None = None,
        strategy: type[Strategy] | None = None,
        order: type[Order] | None = None,
        evaluation: object | None = None,
        storage: str | os.PathLike[str] | None = None,
        name: str | None = None,
        stem: str = "run",
        resume: bool = False,
        address: str | None = None,
        progress: bool = True,
        on_event: Callable[[Event], None] | None = None,
    ) -> None:
        config = config or SnakeConfig()
        if isinstance(model, str):
            config = _with_model(config, model)
        config = _with_absolute_folder(config)
        if strategy is not None:
            config = config.model_copy(update={"strategy": import_path(strategy)})
        if order is not None:
            # Checked again: not every setting goes with every order.
            config = SnakeConfig.from_tree(_with(config, "snake", order=import_path(order)).tree())
        self._recipe = Recipe(
            config=config,
            function=model if callable(model) else None,
            loss=loss,
            own=OwnClasses(strategy=strategy, order=order),
        )
        self._nodes = nodes
        self._evaluation = evaluation
        self._storage = Storage(
            os.fspath(storage) if storage is not None else config.storage.uri,
            timeout_seconds=config.storage.timeout_seconds,
        )
        self._name = name
        self._stem = stem
        self._resume = resume
        self._address = address
        self._progress = progress
        self._on_event = on_event

    def fit(self) -> Result:
        """Train to the end of the last trip.

        Raises:
            InputError: If anything that was given is wrong; nothing was started or changed.
            RunError: If the run failed on the way; `resume` goes on after its last accepted visit.
        """
        with ConsoleProgress() if self._progress else contextlib.nullcontext() as console:

            def tell(event: Event) -> None:
                if console is not None:
                    console.on_event(event)
                if self._on_event is not None:
                    self._on_event(event)

            storage, sha256 = self._run(tell)
        summary = run_summary(storage.uri, read_records(storage), sha256)
        return Result(run=storage.uri, summary=summary, recipe=self._recipe)

    def _run(self, tell: Callable[[Event], None]) -> tuple[Storage, str]:
        """Check everything, then drive the run; return its folder and its weights' SHA-256."""
        config = self._recipe.config
        sources = node_sources(config, self._nodes)
        evaluation = evaluation_source(config, self._evaluation)
        judged = [] if evaluation is None else [evaluation]
        names = tuple(source.name for source in sources)
        groups = group_nodes(config.nodes, sources)
        embedded = is_embedded(self._address)
        with contextlib.ExitStack() as joined:
            # Its process is forked before there are threads of Ray, of storage or of the display.
            with model_checks(
                self._recipe, len(sources), [*sources, *judged], apart=not ray.is_initialized()
            ) as checks:
                tell(Preparing(what="looking at model and data"))
                blocks = checks.blocks()
                rows = range(len(sources), len(sources) + len(judged))
                check_nodes(checks.classes, judged, _looks(checks, rows))
                self._storage.check_writable()
                storage = choose_run(self._storage, self._stem, self._name, resume=self._resume)
                named = _with(config, "model", options=checks.options(config.model))
                if self._resume:
                    RunFolder(storage).check_resumable(named, names, checks.options)
                records = read_records(storage) if self._resume else ()
                muster = Muster(config, sources, groups, records)
                if embedded:
                    here = _looks(checks, muster.numbers_or_sources())
                    specs = check_nodes(checks.classes, muster.sources, here)
                tell(Preparing(what="starting Ray" if embedded else "joining the Ray cluster"))
                joined.enter_context(connected(self._address))
                own = own_gpus(config)
                present = with_gpu_shares(muster.groups, own)
                check_resources(config.nodes, present, muster.sources, own)
                if not embedded:
                    there = on_cluster(config.nodes, present)
                    specs = check_nodes(checks.classes, muster.sources, there)
                check_settings(config, specs)
                costs = known_costs(config, muster.remaining(specs), checks.costs)
            nodes = fit_nodes(config, muster.first_specs(specs), costs, self._recipe.own)
            blocks = replace(blocks, costs=costs if config.snake.adapt else ())
            # From here on the run leaves a folder behind; all that can be checked was.
            if not self._resume:
                custom = self._recipe.function is not None
                RunFolder.create(storage, named, names, custom_model=custom)
            groups = muster.first_groups(present)
            return storage, self._drive(blocks, nodes, evaluation, storage, groups, tell)

    def _drive(
        self,
        blocks: BlockTable,
        specs: Sequence[NodeSpec],
        evaluation: ShardSource | None,
        storage: Storage,
        groups: Sequence[NodeGroup],
        tell: Callable[[Event], None],
    ) -> str:
        """Start the driver and pass on what it tells; return SHA-256 of the final weights."""
        config = self._recipe.config
        recipe = ray.put(self._recipe)
        driver_class = actor_class(
            SnakeDriver, num_cpus=0, max_restarts=0, scheduling_strategy=here()
        )
        recoveries_left = config.failures.recoveries
        board = _Board(storage)

        def pass_on(event: Event) -> None:
            tell(event)
            if isinstance(event, (Evaluated, RunEnded)):
                board.write()

        while True:
            driver = driver_class.remote(
                config,
                blocks,
                specs,
                [recipe],
                storage,
                evaluation,
                groups,
                self._recipe.own,
                # Of a trial: the driver would leave it, and its nodes with it.
                ray.util.get_current_placement_group(),
            )
            try:
                return follow(driver, pass_on)
            except ProcessLostError as error:
                if recoveries_left == 0:
                    raise DriverFailedError(
                        str(error), "look into why, then go on with --resume"
                    ) from None
                recoveries_left -= 1
            except InputError as error:
                # Met by a run that had started, it is a failed run.
                raise RunError(
                    f"{error.subject}: {error.problem}", f"{error.remedy}, then --resume"
                ) from error
            finally:
                ray.kill(driver)


def _looks(checks: ModelChecks, sources: Sequence[int | ShardSource]) -> Callable[..., list[Any]]:
    """Return a runner that calls a function for each source, where the network is looked at.

    Args:
        checks: What looks.
        sources: The sources, or their numbers there.
    """

    def run(function: Callable[..., Any], arguments: Sequence[tuple[Any, ...]]) -> list[Any]:
        return [
            checks.look(function, source, *others)
            for source, (_, *others) in zip(sources, arguments, strict=True)
        ]

    return run


def _with(config: SnakeConfig, section: str, **values: object) -> SnakeConfig:
    changed = getattr(config, section).model_copy(update=values)
    return config.model_copy(update={section: changed})


def _with_model(config: SnakeConfig, model: str) -> SnakeConfig:
    if Path(model).is_dir() or ("/" in model and ":" not in model):
        options = {**config.model.options, "model": model}
        return _with(config, "model", name=HUGGINGFACE, options=options)
    return _with(config, "model", name=model)


def with_absolute_paths(config: SnakeConfig, folder: Path) -> SnakeConfig:
    """Return settings whose local paths are all in full: a sweep's trials work in other folders.

    A run's own settings keep the data's paths as they were given: whoever goes on with it may have
    them elsewhere, as the next job of a cluster has its working directory.

    Args:
        config: The settings.
        folder: What relative paths begin at.
    """
    config = _with_absolute_folder(config, folder)
    data, held_out = config.data, config.evaluation.data
    if shards := tuple(_absolute(one, folder) for one in data.shard_uris(folder)):
        config = _with(config, "data", shards=shards)
    if data.source is not None:
        config = _with(config, "data", source=_absolute(data.source, folder))
    if held_out is not None:
        config = _with(config, "evaluation", data=_absolute(held_out, folder))
    return _with(config, "storage", uri=_absolute(config.storage.uri, folder))


def _with_absolute_folder(config: SnakeConfig, beside: Path = Path()) -> SnakeConfig:
    """Return settings that name a pretrained model's folder in full: actors work in others."""
    model = config.model.options.get("model")
    if config.model.name != HUGGINGFACE or not isinstance(model, str):
        return config
    folder = beside / Path(model).expanduser()
    if not folder.is_dir():
        return config
    options = {**config.model.options, "model": str(folder.absolute())}
    return _with(config, "model", options=options)


def node_sources(config: SnakeConfig, nodes: Sequence[object] | None) -> list[ShardSource]:
    """Return the nodes' shards, from what the caller gave or else from the settings.

    Raises:
        ConfigError: If there are no nodes.
    """
    data = config.data
    if nodes is None and data.source is not None and data.partition is not None:
        return [
            ShardSource(
                uri=str(_absolute(data.source)),
                partition=data.partition,
                index=index,
                input=data.input,
                label=data.label,
                mean=data.mean,
                std=data.std,
            )
            for index in range(data.partition.nodes)
        ]
    given = data.shard_uris() if nodes is None else nodes
    if not given:
        found = f"{data.shards!r} matches no file" if nodes is None and data.shards else "no nodes"
        raise ConfigError(
            "data.shards" if nodes is None else "nodes",
            found,
            "give one file per node, or set data.source with data.partition",
        )
    return [
        ShardSource.of(
            _absolute(one),
            index=index,
            input=data.input,
            label=data.label,
            mean=data.mean,
            std=data.std,
        )
        for index, one in enumerate(given)
    ]


def evaluation_source(config: SnakeConfig, given: object | None = None) -> ShardSource | None:
    """Return the held-out rows, from what the caller gave or else from the settings; or none."""
    data = config.data
    uri = config.evaluation.data if given is None else given
    if uri is None:
        return None
    return ShardSource.of(
        _absolute(uri), input=data.input, label=data.label, mean=data.mean, std=data.std
    )


def _absolute(data: object, beside: Path = Path()) -> object:
    """Return a local path as an absolute one, since actors work in other folders."""
    if isinstance(data, (str, os.PathLike)) and "://" not in os.fspath(data):
        return str((beside / Path(data).expanduser()).absolute())
    return data


class _Board:
    """Keeps a run's TensorBoard files level with its journal."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        records = read_records(storage)
        self._read = len(records)
        self._file = EventFile(storage, records)

    def write(self) -> None:
        fresh = read_records(self._storage, self._read)
        for record in fresh:
            self._file.add(record)
        self._read += len(fresh)
        self._file.flush()
