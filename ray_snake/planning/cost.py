"""What a visit costs, predicted from what each block costs. Pure arithmetic over measurements."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from ray_snake.config import AugmentationConfig, LossConfig, TrainingConfig
from ray_snake.planning.blocks import BlockCost as BlockCost
from ray_snake.planning.memory import MemoryModel, rows_at_once, way_of, wide_positions
from ray_snake.planning.span import Visit


@dataclass(frozen=True, kw_only=True)
class VisitCost:
    """A visit's predicted cost.

    Attributes:
        samples: Samples that the optimizer sees.
        flops: Floating-point operations, prefix and teacher included, and a server's.
        private_bytes: Peak memory of the visit that is the node's own: trained weights with
            gradients and optimizer state, activations of what goes through the network at once,
            copies of frozen weights in another precision, prefix cache.
        shared_bytes: Frozen weights: views of the machine's object store, or of a model's files.
        device_bytes: Peak of a GPU's memory, if the node computes on one: there nothing is a view.
        seconds: Computing time where the blocks were measured; 0 if they were not.
    """

    samples: int
    flops: float
    private_bytes: int
    shared_bytes: int
    device_bytes: int
    seconds: float

    def peak_bytes(self, *, on_gpu: bool) -> int:
        """Return the peak of the memory that a node computes in."""
        return self.device_bytes if on_gpu else self.private_bytes


def batches_per_epoch(rows: int, batch_size: int) -> int:
    """Return the batches of one pass over a shard; a last one of a single row is left out."""
    whole, rest = divmod(rows, batch_size)
    return whole + (1 if rest > 1 or (rest == 1 and whole == 0) else 0)


def total_steps(rows: int, training: TrainingConfig) -> int:
    """Return the optimizer steps of a visit to a shard of `rows` rows."""
    return training.steps or training.epochs * batches_per_epoch(rows, training.batch_size)


class VisitModel:
    """Predicts visits that train the same blocks, whatever their nodes' rows.

    A backward pass costs a frozen block one more forward pass (the gradient of its input) and a
    trained one two (of its weights too), but for the share of them that is its base. Each step has
    its loss and its update beside, which small networks notice. Its memory: `planning.memory`.

    Args:
        visit: A visit to the blocks.
        blocks: What each block of the network costs.
        training: How a visit trains.
        loss: What it minimises.
        augmentation: How rows are changed; none: not at all.
    """

    def __init__(
        self,
        visit: Visit,
        blocks: Sequence[BlockCost],
        *,
        training: TrainingConfig,
        loss: LossConfig,
        augmentation: AugmentationConfig | None = None,
    ) -> None:
        self._training = training
        self._teacher = loss.distillation > 0
        self._variants: int | None = 1
        if augmentation is not None and (augmentation.flip or augmentation.crop):
            self._variants = augmentation.variants
        trained = set(visit.trained)
        self._first = first = visit.trained[0]
        # Of a network that is cut the node holds the front alone.
        held = [one for index, one in enumerate(blocks) if visit.on_node(index)]
        at_once, _ = rows_at_once(training, training.batch_size)
        # Wide scores and their gradients are made together.
        wide = len(blocks) - 1 if wide_positions(blocks[-1], at_once) else None
        again = [
            _done_again(one, way_of(index, blocks, trains=index in trained, training=training))
            for index, one in enumerate(held)
            if index >= first and index != wide
        ]
        self._prefix = _Work.of(blocks[:first])
        self._rest = _Work.of(blocks[first:])
        self._again = _Work(
            flops=sum(one.flops for one in again), seconds=sum(one.seconds for one in again)
        )
        self._backward = _Work(
            flops=sum(
                one.forward_flops * (1 + (one.trained_share if index in trained else 0))
                for index, one in enumerate(blocks)
                if index >= first
            ),
            # Nobody needs the gradient of the first trained block's input.
            seconds=sum(
                one.training_seconds if index in trained else one.backward_seconds
                for index, one in enumerate(blocks)
                if index >= first
            )
            - blocks[first].backward_seconds,
        )
        # Of the network's last block whatever trains, and wherever it is.
        self._step_seconds = blocks[-1].loss_seconds + sum(
            blocks[index].update_seconds for index in trained
        )
        weights = sum(blocks[index].weight_bytes for index in trained if visit.on_node(index))
        self._shared_bytes = sum(one.weight_bytes + one.base_bytes for one in held) - weights
        self._memory = MemoryModel(visit, blocks, training=training, loss=loss)

    def predict(self, *, rows: int, steps: int) -> VisitCost:
        """Predict a visit to a shard of `rows` rows in `steps` optimizer steps."""
        samples, kept, cached = self._counts(rows, steps)
        judged = kept if self._teacher else 0
        private = self._memory.peak(rows=rows, steps=steps, kept=kept, cached=cached)
        return VisitCost(
            samples=samples,
            flops=self._prefix.flops * (kept if cached else samples)
            + self._rest.flops * (samples + judged)
            + (self._backward.flops + self._again.flops) * samples,
            private_bytes=private,
            shared_bytes=self._shared_bytes,
            device_bytes=private + self._memory.arrived_bytes,
            seconds=self.seconds(rows=rows, steps=steps),
        )

    def seconds(self, *, rows: int, steps: int) -> float:
        """Predict such a visit's computing time where the blocks were measured."""
        samples, kept, cached = self._counts(rows, steps)
        return (
            self._prefix.seconds * (kept if cached else samples)
            + self._rest.seconds * (samples + (kept if self._teacher else 0))
            + (self._backward.seconds + self._again.seconds) * samples
            + self._step_seconds * steps
        )

    def samples(self, *, rows: int, steps: int) -> int:
        """Return the samples that the optimizer sees in such a visit."""
        training = self._training
        if training.steps is None and steps == total_steps(rows, training):
            return training.epochs * rows
        return steps * min(training.batch_size, rows)

    def _counts(self, rows: int, steps: int) -> tuple[int, int, bool]:
        """Return samples seen, rows kept for all passes, and whether the prefix's outputs are."""
        samples = self.samples(rows=rows, steps=steps)
        passes = math.ceil(samples / rows)
        draws = passes if self._variants is None else min(passes, self._variants)
        # A visit of less than one pass looks at no other rows than those it trains on.
        kept = min(rows, samples) * draws
        streams = self._training.residency == "stream"
        return samples, kept, self._first > 0 and (self._teacher or passes > draws or streams)


def predict_visit(
    visit: Visit,
    blocks: Sequence[BlockCost],
    *,
    rows: int,
    steps: int,
    training: TrainingConfig,
    loss: LossConfig,
    augmentation: AugmentationConfig | None = None,
) -> VisitCost:
    """Predict a visit to a shard of `rows` rows in `steps` optimizer steps; see `VisitModel`."""
    model = VisitModel(visit, blocks, training=training, loss=loss, augmentation=augmentation)
    return model.predict(rows=rows, steps=steps)


@dataclass(frozen=True, kw_only=True)
class _Work:
    """Operations and measured seconds for one sample."""

    flops: float
    seconds: float

    @classmethod
    def of(cls, blocks: Sequence[BlockCost]) -> _Work:
        """Return those of some blocks' forward passes."""
        return cls(
            flops=sum(one.forward_flops for one in blocks),
            seconds=sum(one.forward_seconds for one in blocks),
        )


def _done_again(block: BlockCost, way: Literal["eager", "recompute", "lean"]) -> _Work:
    """Return what a block does again in the backward pass, by how it runs."""
    if way == "recompute":
        return _Work.of([block])
    if way == "lean":
        share = block.lean_flops / block.forward_flops if block.forward_flops else 0.0
        return _Work(flops=block.lean_flops, seconds=share * block.forward_seconds)
    return _Work.of([])
