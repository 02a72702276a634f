"""The local manager: one node's shard and block versions. The node actor is a shell around it."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict

import torch

from ray_snake.data import NodeDataset
from ray_snake.engine.stack import BlockStack
from ray_snake.engine.visit import VisitControl, train_visit
from ray_snake.layers.state import LayerState
from ray_snake.layers.tensors import pack, unpack
from ray_snake.runtime.messages import NodeSpec, VisitReport, VisitTask
from ray_snake.runtime.recipe import Recipe


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
        self._stack = stack
        self._device = device
        self._held: dict[int, LayerState] = {}
        self._produced: dict[int, int] = {}
        self._bytes_pulled = 0
        self._shard = NodeDataset.open(spec.source)
        self._shard.check(spec.classes)
        self._objective = recipe.objective(
            None if spec.classes is None else self._shard.label_counts(spec.classes)
        )

    @property
    def samples(self) -> int:
        """Rows in the shard."""
        return len(self._shard)

    def visit(
        self,
        task: VisitTask,
        pulled: Mapping[int, LayerState],
        pull_seconds: float,
        control: VisitControl,
    ) -> tuple[VisitReport, list[LayerState]]:
        """Train the visit's blocks; return what happened and their new versions, ascending.

        Args:
            task: What to do.
            pulled: Current versions of the blocks that this node lacked.
            pull_seconds: How long getting them took.
            control: For progress and stopping.
        """
        started = time.perf_counter()
        self._take(pulled.values())
        bytes_pulled, self._bytes_pulled = self._bytes_pulled, 0
        self._load(task)
        load_seconds = time.perf_counter() - started
        config = self._recipe.config
        try:
            outcome = train_visit(
                self._stack,
                self._shard,
                trained=task.visit.trained,
                learning_rate=task.learning_rate,
                seed=task.seed,
                training=config.training,
                objective=self._objective,
                proximal=config.loss.proximal,
                # The decision needs it only then; otherwise it is taken behind the next visit.
                measure_update=config.acceptance.max_update_norm is not None,
                device=self._device,
                control=control,
            )
            states = [
                pack(block, task.visit.number, self._stack.tensors(block))
                for block in task.visit.trained
            ]
        finally:
            self._unload()
        for state in states:
            # Only what this visit started from: a prefetch may have brought something newer.
            self.release(state.block, task.versions[state.block])
            self._produced[state.block] = state.version
        report = VisitReport(
            **asdict(outcome),
            bytes_pulled=bytes_pulled,
            bytes_returned=sum(state.nbytes for state in states),
            pull_seconds=pull_seconds + load_seconds,
        )
        return report, states

    def prefetch(self, states: Iterable[LayerState]) -> None:
        """Keep block versions for the next visit; their bytes count towards it."""
        self._take(states)

    def release(self, block: int, version: int) -> None:
        """Let go of a superseded block version, so that the object store can free it."""
        held = self._held.get(block)
        if held is not None and held.version == version:
            del self._held[block]

    def _take(self, states: Iterable[LayerState]) -> None:
        for state in states:
            if self._produced.get(state.block) != state.version:
                self._bytes_pulled += state.nbytes
            self._held[state.block] = state

    def _load(self, task: VisitTask) -> None:
        for block, version in enumerate(task.versions):
            state = self._held.get(block)
            if state is None or state.version != version:
                have = "nothing" if state is None else f"version {state.version}"
                raise RuntimeError(
                    f"visit {task.visit.number} needs version {version} of block {block}; "
                    f"the node holds {have}"
                )
            self._stack.load(block, unpack(state, self._device), trainable=False)

    def _unload(self) -> None:
        for block in range(len(self._stack)):
            self._stack.unload(block)
