"""What a visit costs, predicted from what each block costs. Pure arithmetic over measurements."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from ray_snake.config import AugmentationConfig, LossConfig, TrainingConfig
from ray_snake.planning.span import Visit


@dataclass(frozen=True, kw_only=True)
class BlockCost:
    """One block, measured for one sample.

    Attributes:
        name: The block's name.
        weight_bytes: Its weights and persistent buffers.
        forward_flops: Floating-point operations of its forward pass.
        saved_bytes: What its forward pass keeps for the backward pass, weights left out.
        input_bytes: Size of its input.
        output_bytes: Size of its output.
        lean_bytes: What it keeps for the gradient of its input when it is frozen and runs lean;
            0 if that was not measured.
        lean_flops: Floating-point operations that it then does again in the backward pass,
            likewise.
        forward_seconds: Time of its forward pass where it was measured; 0 if it was not.
        backward_seconds: Time of its backward pass with frozen weights, likewise.
        training_seconds: Time of its backward pass with trained weights, likewise.
    """

    name: str
    weight_bytes: int
    forward_flops: float
    saved_bytes: int
    input_bytes: int
    output_bytes: int
    lean_bytes: int = 0
    lean_flops: float = 0.0
    forward_seconds: float = 0.0
    backward_seconds: float = 0.0
    training_seconds: float = 0.0


@dataclass(frozen=True, kw_only=True)
class VisitCost:
    """A visit's predicted cost.

    Attributes:
        samples: Samples that the optimizer sees.
        flops: Floating-point operations, prefix and teacher included, and a server's.
        private_bytes: Peak memory of the visit that is the node's own: trained weights with
            gradients and optimizer state, saved activations of a batch, prefix cache.
        shared_bytes: Frozen weights: views of the machine's object store.
        seconds: Computing time where the blocks were measured; 0 if they were not.
    """

    samples: int
    flops: float
    private_bytes: int
    shared_bytes: int
    seconds: float


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
    trained one two (of its weights too). Activations count as PyTorch saves them by default, those
    of frozen blocks as `training.suffix` says; a prefix cache beyond `cache_bytes` lies on disk and
    doesn't count.

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
        kept = [
            _Kept.of(one, "eager" if index in trained else training.suffix)
            for index, one in enumerate(held)
            if index >= first
        ]
        self._prefix = _Work.of(blocks[:first])
        self._rest = _Work.of(blocks[first:])
        self._again = _Work(
            flops=sum(one.again.flops for one in kept),
            seconds=sum(one.again.seconds for one in kept),
        )
        self._backward = _Work(
            flops=sum(
                one.forward_flops * (2 if index in trained else 1)
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
        weights = sum(blocks[index].weight_bytes for index in trained if visit.on_node(index))
        # SGD keeps one momentum buffer for each weight, AdamW two averages.
        state = 2 if training.optimizer == "adamw" else (1 if training.momentum > 0 else 0)
        self._weight_bytes = weights * (2 + state)
        self._shared_bytes = sum(one.weight_bytes for one in held) - weights
        # One block after the other needs what it does not keep; the largest one's counts.
        self._saved_bytes = sum(one.bytes for one in kept) + max(one.brief_bytes for one in kept)
        self._input_bytes = blocks[first].input_bytes
        self._teacher_bytes = {
            "logits": blocks[-1].output_bytes,
            # A float and a class number each.
            "top_k": min(blocks[-1].output_bytes, 8 * loss.teacher_top_k),
            "last_hidden": blocks[-1].input_bytes,
        }[loss.teacher]

    def predict(self, *, rows: int, steps: int) -> VisitCost:
        """Predict a visit to a shard of `rows` rows in `steps` optimizer steps."""
        training = self._training
        batch = min(training.batch_size, rows)
        samples, kept, cached = self._counts(rows, steps)
        judged = kept if self._teacher else 0
        private = self._weight_bytes + batch * self._saved_bytes + judged * self._teacher_bytes
        cache = kept * self._input_bytes if cached else 0
        return VisitCost(
            samples=samples,
            flops=self._prefix.flops * (kept if cached else samples)
            + self._rest.flops * (samples + judged)
            + (self._backward.flops + self._again.flops) * samples,
            private_bytes=private + (cache if cache <= training.cache_bytes else 0),
            shared_bytes=self._shared_bytes,
            seconds=self.seconds(rows=rows, steps=steps),
        )

    def seconds(self, *, rows: int, steps: int) -> float:
        """Predict such a visit's computing time where the blocks were measured."""
        samples, kept, cached = self._counts(rows, steps)
        return (
            self._prefix.seconds * (kept if cached else samples)
            + self._rest.seconds * (samples + (kept if self._teacher else 0))
            + (self._backward.seconds + self._again.seconds) * samples
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
        return samples, kept, self._first > 0 and (self._teacher or passes > draws)


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


@dataclass(frozen=True, kw_only=True)
class _Kept:
    """What a block keeps of one sample for the backward pass, and what it does again there.

    Attributes:
        bytes: What it keeps.
        again: What it does again.
        brief_bytes: What it needs beside that while it runs, or while gradients pass through it.
    """

    bytes: int
    again: _Work
    brief_bytes: int

    @classmethod
    def of(cls, block: BlockCost, suffix: Literal["eager", "recompute", "lean"]) -> _Kept:
        """Return it for a frozen block, by `training.suffix`; for a trained one it is `eager`."""
        if suffix == "recompute":
            return cls(
                bytes=block.input_bytes, again=_Work.of([block]), brief_bytes=block.saved_bytes
            )
        if suffix == "lean":
            share = block.lean_flops / block.forward_flops if block.forward_flops else 0.0
            return cls(
                bytes=block.lean_bytes,
                again=_Work(flops=block.lean_flops, seconds=share * block.forward_seconds),
                brief_bytes=block.saved_bytes,
            )
        return cls(bytes=block.saved_bytes, again=_Work.of([]), brief_bytes=0)
