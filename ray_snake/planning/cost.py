"""What a visit costs, predicted from what each block costs. Pure arithmetic over measurements."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

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
    """

    name: str
    weight_bytes: int
    forward_flops: float
    saved_bytes: int
    input_bytes: int
    output_bytes: int


@dataclass(frozen=True, kw_only=True)
class VisitCost:
    """A visit's predicted cost.

    Attributes:
        samples: Samples that the optimizer sees.
        flops: Floating-point operations, prefix and teacher included, and a server's.
        private_bytes: Peak memory of the visit that is the node's own: trained weights with
            gradients and optimizer state, saved activations of a batch, prefix cache.
        shared_bytes: Frozen weights: views of the machine's object store.
    """

    samples: int
    flops: float
    private_bytes: int
    shared_bytes: int


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
    """Predict a visit to a shard of `rows` rows in `steps` optimizer steps.

    A backward pass costs a frozen block one more forward pass (the gradient of its input) and a
    trained one two (of its weights too). Activations count as PyTorch saves them by default; a
    prefix cache beyond `cache_bytes` lies on disk and doesn't count.
    """
    first = min(visit.trained)
    batch = min(training.batch_size, rows)
    samples = min(steps * batch, steps * training.batch_size)
    samples = training.epochs * rows if training.steps is None else samples
    teacher = loss.distillation > 0
    passes = math.ceil(samples / rows)
    draws = 1
    if augmentation is not None and (augmentation.flip or augmentation.crop):
        draws = min(passes, augmentation.variants or passes)
    cached = first > 0 and (teacher or passes > draws)
    kept = rows * draws
    prefix = sum(one.forward_flops for one in blocks[:first])
    rest = sum(one.forward_flops for one in blocks[first:])
    backward = sum(
        one.forward_flops * (2 if index in visit.trained else 1)
        for index, one in enumerate(blocks)
        if index >= first
    )
    flops = samples * (rest + backward)
    flops += prefix * (kept if cached else samples)
    flops += rest * kept if teacher else 0
    # Of a network that is cut the node holds the front alone.
    held = [one for index, one in enumerate(blocks) if visit.on_node(index)]
    trained = sum(blocks[index].weight_bytes for index in visit.trained if visit.on_node(index))
    # SGD keeps one momentum buffer for each weight, AdamW two averages.
    state = 2 if training.optimizer == "adamw" else (1 if training.momentum > 0 else 0)
    private = trained * (2 + state)
    again = {
        index
        for index in range(first, len(held))
        if training.recompute == "frozen" and index not in visit.trained
    }
    flops += samples * sum(blocks[index].forward_flops for index in again)
    private += batch * sum(
        one.input_bytes if index in again else one.saved_bytes
        for index, one in enumerate(held)
        if index >= first
    )
    # Of those that run again the largest one's activations are there while it does.
    private += batch * max((blocks[index].saved_bytes for index in again), default=0)
    cache = kept * blocks[first].input_bytes if cached else 0
    private += cache if cache <= training.cache_bytes else 0
    by_teacher = {
        "logits": blocks[-1].output_bytes,
        # A float and a class number each.
        "top_k": min(blocks[-1].output_bytes, 8 * loss.teacher_top_k),
        "last_hidden": blocks[-1].input_bytes,
    }
    private += kept * by_teacher[loss.teacher] if teacher else 0
    return VisitCost(
        samples=samples,
        flops=flops,
        private_bytes=private,
        shared_bytes=sum(one.weight_bytes for one in held) - trained,
    )
