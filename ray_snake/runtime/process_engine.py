"""The process engine: tensor work at the driver's side. First weights, checks, storage, judging."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

import torch

from ray_snake.data import NodeDataset, ShardSource
from ray_snake.engine.change import update_norm
from ray_snake.engine.evaluate import evaluate
from ray_snake.engine.objective import TaskLoss
from ray_snake.errors import VisitFailedError
from ray_snake.layers.codec import decode
from ray_snake.layers.files import BlockFiles
from ray_snake.layers.state import BlockDelta, LayerState, weights_sha256
from ray_snake.layers.tensors import pack, unpack, weighted_mean
from ray_snake.runtime.messages import EvaluationReport
from ray_snake.runtime.recipe import Recipe
from ray_snake.runtime.records import BlockRecord
from ray_snake.storage import Storage


class ProcessEngine:
    """Everything that needs the weights and isn't training.

    Args:
        recipe: The run's settings and functions.
        storage: The run's folder.
        evaluation: Held-out rows; none: `evaluate` is not called.
        device: Where to judge.
    """

    def __init__(
        self,
        recipe: Recipe,
        storage: Storage,
        evaluation: ShardSource | None,
        device: torch.device,
    ) -> None:
        self._recipe = recipe
        self._device = device
        self._files = BlockFiles(storage)
        self._stack = recipe.skeleton()
        self._stack.move_constants(device)
        self._weight_names = [
            list(self._stack.trainable(block)) for block in range(len(self._stack))
        ]
        self._task: TaskLoss = recipe.objective().task
        self._evaluation = None if evaluation is None else NodeDataset.open(evaluation)

    @property
    def parts(self) -> int:
        """Number of the network's parts: blocks, and bases."""
        return len(self._stack.owners)

    def initial(self) -> list[LayerState]:
        """Return version 0 of every part, as the run's seed makes it."""
        return list(self.initial_blocks())

    def initial_blocks(self) -> Iterator[LayerState]:
        """Yield version 0 of every part; of pretrained models no more than one is in memory."""
        for part, tensors in enumerate(self._recipe.initial_blocks()):
            yield pack(part, 0, tensors)

    def restore(self, blocks: Sequence[BlockRecord]) -> list[LayerState]:
        """Return stored block versions, checked against their checksums.

        All other stored versions of these blocks are deleted.

        Raises:
            CheckpointError: If one is missing or damaged.
        """
        states = [self._files.read(one.block, one.version, one.checksum) for one in blocks]
        for block in {one.block for one in blocks}:
            self._files.keep_only(block, {one.version for one in blocks if one.block == block})
        return states

    def decode(self, deltas: Sequence[BlockDelta], bases: Sequence[LayerState]) -> list[LayerState]:
        """Return the versions that differences stand for.

        Args:
            deltas: The differences.
            bases: The version that each is the difference from.
        """
        codec = self._recipe.config.codec
        return [
            pack(delta.block, delta.version, decode(delta, unpack(base), codec))
            for delta, base in zip(deltas, bases, strict=True)
        ]

    def average(
        self, version: int, states: Sequence[LayerState], weights: Sequence[float]
    ) -> LayerState:
        """Return the `weighted_mean` of one block's versions, as a new version.

        Raises:
            VisitFailedError: If a version has other shapes than the network's, or isn't finite.
        """
        self.check(states)
        return pack(states[0].block, version, weighted_mean(map(unpack, states), weights))

    def store(self, states: Sequence[LayerState]) -> tuple[BlockRecord, ...]:
        """Check block versions against the network and write them to storage.

        Raises:
            VisitFailedError: If a block has other shapes than the network's.
            StorageError: If the storage refuses a file.
        """
        self.check(states)
        records = []
        for state in states:
            self._files.write(state)
            records.append(
                BlockRecord(
                    block=state.block,
                    version=state.version,
                    bytes=state.nbytes,
                    checksum=state.checksum(),
                )
            )
        return tuple(records)

    def update_norm(self, states: Sequence[LayerState], superseded: Sequence[LayerState]) -> float:
        """Return the L2 norm of the change from the superseded versions' weights to these.

        Args:
            states: The blocks that a visit returned; buffers, such as a norm's statistics, don't
                count.
            superseded: The versions it started from, of the same blocks in the same order.
        """
        return update_norm(self._weights(states), self._weights(superseded))

    def _weights(self, states: Sequence[LayerState]) -> list[torch.Tensor]:
        # By name: what comes from storage has its arrays in another order than what a node returns.
        return [
            tensors[name]
            for state in states
            for tensors in [unpack(state)]
            for name in self._weight_names[state.block]
        ]

    def discard(self, blocks: Sequence[tuple[int, int]]) -> None:
        """Delete superseded (block, version) pairs from storage."""
        for block, version in blocks:
            self._files.delete(block, version)

    def evaluate(self, states: Sequence[LayerState]) -> EvaluationReport:
        """Judge the model that consists of these blocks, and bases."""
        if self._evaluation is None:
            raise RuntimeError("there are no held-out rows to evaluate on")
        config = self._recipe.config
        started = time.perf_counter()
        for state in states:
            self._stack.load_part(state.block, unpack(state, self._device))
        try:
            result = evaluate(
                self._stack,
                self._evaluation,
                task=self._task,
                batch_size=config.evaluation.batch_size,
                precision=config.evaluation.precision or config.training.precision,
                device=self._device,
            )
        finally:
            for block in range(len(self._stack)):
                self._stack.unload(block)
        return EvaluationReport(
            samples=result.samples,
            loss=result.loss,
            accuracy=result.accuracy,
            seconds=time.perf_counter() - started,
            perplexity=result.perplexity,
        )

    def weights_sha256(self, states: Sequence[LayerState]) -> str:
        """Return SHA-256 over all blocks (hexadecimal)."""
        return weights_sha256(states)

    def check(self, states: Sequence[LayerState]) -> None:
        """Check block versions against the network.

        Raises:
            VisitFailedError: If a block has other shapes than the network's, or isn't finite.
        """
        for state in states:
            expected = {n: tuple(t.shape) for n, t in self._stack.part(state.block).items()}
            actual = {name: tuple(one.shape) for name, one in unpack(state).items()}
            if actual != expected:
                raise VisitFailedError(
                    f"block {state.block} came back from visit {state.version} with arrays "
                    f"{actual} in place of {expected}",
                    "a model function must return the same network each time it is called",
                )
            if not state.is_finite():
                raise VisitFailedError(
                    f"block {state.block} of visit {state.version} is not finite where it arrived",
                    "look for a fault of that node's memory or network",
                )
