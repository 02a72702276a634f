"""The local manager: one node's shard and block versions. The node actor is a shell around it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, replace
from functools import partial

import torch
from torch import Tensor

from ray_snake.data import NodeDataset
from ray_snake.engine.device import free_bytes, repeatably
from ray_snake.engine.residency import brings_in
from ray_snake.engine.split import Exchange, train_front
from ray_snake.engine.stack import BlockStack
from ray_snake.engine.visit import VisitControl, VisitOutcome, VisitStoppedError, train_visit
from ray_snake.layers.codec import decode, encode
from ray_snake.layers.state import OPTIMIZER, Array, BlockDelta, LayerState
from ray_snake.layers.tensors import pack, unpack, unpack_optimizer
from ray_snake.planning.sharing import check_may_share
from ray_snake.runtime.messages import NodeSpec, VisitReport, VisitTask
from ray_snake.runtime.recipe import Recipe

Connect = Callable[[Array | None], Exchange]
"""Begins a visit at the server with the node's label counts (classes,), none without classes."""


class LocalManager:
    """One node: opens its shard, keeps the block versions it was sent, trains spans.

    Nothing it holds between visits is needed to do a visit again elsewhere. Frozen blocks stay
    the read-only views in which they arrived; only a visit's trained blocks are private copies.

    Args:
        spec: The node.
        recipe: The run's settings and functions.
        stack: The network without weights; shared by the nodes of a process, loaded per visit.
        device: Where to compute.
    """

    def __init__(
        self, spec: NodeSpec, recipe: Recipe, stack: BlockStack, device: torch.device
    ) -> None:
        self._recipe = recipe
        self._training = spec.training or recipe.config.training
        self._stack = stack
        self._stack.move_constants(device)
        self._device = device
        self._held: dict[tuple[int, int], LayerState] = {}
        self._shard = NodeDataset.open(spec.source)
        self._shard.check(spec.classes if spec.tokens is None else spec.tokens)
        self._label_counts = (
            None if spec.classes is None else self._shard.label_counts(spec.classes)
        )
        self._objective = recipe.objective(self._label_counts)

    @property
    def samples(self) -> int:
        """Rows in the shard."""
        return len(self._shard)

    def visit(
        self,
        task: VisitTask,
        pulled: Iterable[LayerState | BlockDelta],
        pull_seconds: float,
        control: VisitControl,
        connect: Connect | None = None,
    ) -> tuple[VisitReport, list[LayerState | BlockDelta]]:
        """Train the visit's blocks; return what happened and their new versions as they travel.

        Args:
            task: What to do.
            pulled: What this node lacked: whole versions, and trained blocks' differences.
            pull_seconds: How long getting all that took.
            control: For progress and stopping.
            connect: Reaches the server of a visit with a cut.

        Raises:
            ConfigError: If the visit has a cut and the settings don't let activations leave.
            VisitStoppedError: If `control.stop` was set before it had ended.
        """
        started = time.perf_counter()
        deltas = {}
        pull_bytes = 0
        for one in pulled:
            pull_bytes += one.nbytes
            if isinstance(one, BlockDelta):
                deltas[one.block] = one
            else:
                self.hold(one)
        load_seconds = time.perf_counter() - started
        carry_out = partial(self._carry_out, task, deltas, control, connect)
        # The server of a cut network can't begin anew.
        alone = task.visit.cut is None
        outcome, trained, seconds = repeatably(carry_out, self._device) if alone else carry_out()
        load_seconds += seconds
        parcels = [self._parcel(task, block, tensors) for block, tensors in trained.items()]
        if control.stop.is_set():
            # What it started from may have been sent again since, and is then another visit's.
            raise VisitStoppedError
        for block in trained:
            # Only what this visit started from: a fetch may have brought something newer.
            if task.anchors is None or task.anchors[block] != task.versions[block]:
                self.release(block, task.versions[block])
        if outcome.update_norm is not None:
            outcome = replace(outcome, update_norm=task.damping * outcome.update_norm)
        report = VisitReport(
            **asdict(outcome),
            parcel_bytes=tuple(parcel.nbytes for parcel in parcels),
            pull_seconds=pull_seconds + load_seconds,
            pull_bytes=pull_bytes,
            free_bytes=free_bytes(self._device),
        )
        return report, parcels

    def _carry_out(
        self,
        task: VisitTask,
        deltas: Mapping[int, BlockDelta],
        control: VisitControl,
        connect: Connect | None,
    ) -> tuple[VisitOutcome, dict[int, dict[str, Tensor]], float]:
        """Load the network and train; return what happened, what returns, and loading's seconds."""
        started = time.perf_counter()
        self._load(task, deltas)
        load_seconds = time.perf_counter() - started
        carried = self._carried(task)
        try:
            outcome = self._train(task, control, connect, carried)
            trained = {
                block: self._damped(task, block)
                for block in task.visit.trained
                if task.visit.on_node(block)
            }
        finally:
            self._unload()
        for block, kept in (carried or {}).items():
            trained[block] |= {f"{OPTIMIZER}{name}": one for name, one in kept.items()}
        return outcome, trained, load_seconds

    def _damped(self, task: VisitTask, block: int) -> dict[str, Tensor]:
        """Return a trained block with the share of its change that is to be returned."""
        trained = self._stack.part(block)
        if task.damping == 1:
            return trained
        arrived = unpack(self._holding(block, task.versions[block]), self._device)
        return {
            name: torch.lerp(arrived[name], one.detach(), task.damping)
            if one.is_floating_point()
            else one
            for name, one in trained.items()
        }

    def _carried(self, task: VisitTask) -> dict[int, dict[str, Tensor]] | None:
        """Return what optimizers left with the trained blocks; none where each starts anew."""
        if self._recipe.config.training.optimizer_state == "reset":
            return None
        return {
            block: unpack_optimizer(self._holding(block, task.versions[block]), self._device)
            for block in task.visit.trained
        }

    def _train(
        self,
        task: VisitTask,
        control: VisitControl,
        connect: Connect | None,
        carried: dict[int, dict[str, Tensor]] | None,
    ) -> VisitOutcome:
        config = self._recipe.config
        training = self._training
        if task.visit.steps is not None:
            training = training.model_copy(update={"steps": task.visit.steps})
        # The decision needs the norm only then; otherwise it is taken behind the next visit.
        measure_update = config.acceptance.max_update_norm is not None
        if task.visit.cut is None:
            return train_visit(
                self._stack,
                self._shard,
                trained=task.visit.trained,
                learning_rate=task.learning_rate,
                seed=task.seed,
                training=training,
                objective=self._objective.weighted(task.distillation),
                augmentation=config.augmentation,
                fix_norms=config.fixes_norms(task.visit.trip),
                proximal=config.loss.proximal,
                carried=carried,
                measure_update=measure_update,
                device=self._device,
                control=control,
            )
        # Whatever strategy planned it: nothing leaves that the settings don't name.
        check_may_share(config)
        if connect is None:
            raise RuntimeError(f"visit {task.visit.number} has a cut, and there is no server")
        outcome = train_front(
            self._stack,
            self._shard,
            cut=task.visit.cut,
            exchange=connect(self._label_counts),
            learning_rate=task.learning_rate,
            seed=task.seed,
            training=training,
            augmentation=config.augmentation,
            fix_norms=config.fixes_norms(task.visit.trip),
            measure_update=measure_update,
            device=self._device,
            control=control,
        )
        counted = 0 if self._label_counts is None else self._label_counts.nbytes
        return replace(outcome, sent_bytes=outcome.sent_bytes + counted)

    def hold(self, state: LayerState) -> None:
        """Keep a whole block version for visits to come."""
        self._held[state.block, state.version] = state

    def decode(self, delta: BlockDelta) -> LayerState:
        """Return the version that a difference from one that the node holds stands for."""
        base = unpack(self._holding(delta.block, delta.base))
        return pack(delta.block, delta.version, decode(delta, base, self._recipe.config.codec))

    def release(self, block: int, version: int) -> None:
        """Let go of a superseded block version, so that the object store can free it."""
        self._held.pop((block, version), None)

    def _parcel(
        self, task: VisitTask, block: int, tensors: Mapping[str, Tensor]
    ) -> LayerState | BlockDelta:
        """Return a trained block as it travels."""
        if task.anchors is None:
            return pack(block, task.visit.number, tensors)
        anchor = task.anchors[block]
        return encode(
            block,
            task.visit.number,
            {name: tensor.detach().cpu() for name, tensor in tensors.items()},
            base=unpack(self._holding(block, anchor)),
            base_version=anchor,
            config=self._recipe.config.codec,
            seed=task.seed,
        )

    def _load(self, task: VisitTask, deltas: Mapping[int, BlockDelta]) -> None:
        for block, version in enumerate(task.versions):
            owner = self._stack.owners[block]
            if not task.visit.on_node(owner):
                continue
            # A difference is only sent for a block that this visit trains: what it is decoded to
            # is the node's own.
            delta = deltas.get(block)
            state = self._holding(block, version) if delta is None else self.decode(delta)
            # What comes and goes, or changes its precision, waits in the store.
            trains = owner in task.visit.trained and block < len(self._stack)
            waits = not trains and brings_in(self._training)
            device = None if waits else self._device
            self._stack.load_part(block, unpack(state, device))

    def _holding(self, block: int, version: int) -> LayerState:
        state = self._held.get((block, version))
        if state is None:
            held = [str(other) for one, other in self._held if one == block]
            raise RuntimeError(
                f"version {version} of block {block} is needed; the node holds "
                f"{', '.join(held) or 'none'}"
            )
        return state

    def _unload(self) -> None:
        for block in range(len(self._stack)):
            self._stack.unload(block)
