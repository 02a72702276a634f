"""What each block of a network costs, measured on one row; and how fast this machine is."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from ray_snake.config import LossConfig, TrainingConfig
from ray_snake.engine.device import computing
from ray_snake.engine.fit import made_up, zeros_like
from ray_snake.engine.lean import lean_run
from ray_snake.engine.optimizer import make_optimizer
from ray_snake.engine.recompute import CONVOLUTIONS
from ray_snake.engine.stack import BlockStack
from ray_snake.planning.cost import BlockCost
from ray_snake.planning.memory import rows_at_once

REPEATS = 3
"""How often each block is timed, after once to warm up."""


def profile_blocks(
    skeleton: BlockStack, sample_shape: tuple[int, ...], *, integer_inputs: bool, batch: int
) -> tuple[list[BlockCost], float]:
    """Run a network of zeros, block by block; nothing is trained.

    Of blocks that say with an equal attribute `alike` that they compute alike, and have weights and
    inputs of the same shapes, one is measured.

    Args:
        skeleton: A stack on the meta device.
        sample_shape: Shape of one input.
        integer_inputs: Whether inputs are int64 rather than float32.
        batch: Rows to run at once, for the speed.

    Returns:
        Each block's cost for one sample, and this machine's floating-point operations per second
        on this network with torch's current number of threads.
    """
    dtype = torch.int64 if integer_inputs else torch.float32
    x = torch.zeros((batch, *sample_shape), dtype=dtype)
    costs: list[BlockCost] = []
    known: dict[Hashable, tuple[BlockCost, Tensor]] = {}
    seconds = 0.0
    flops = 0.0
    skeleton.eval()
    last = len(skeleton) - 1
    for index, name in enumerate(skeleton.names):
        kind = _kind(skeleton, index, x)
        if kind in known:
            cost, x = known[kind]
            costs.append(replace(cost, name=name))
            continue
        with made_up(skeleton, index) as block:
            with _convolutions(block) as convolutions:
                block(x)
            started = time.perf_counter()
            with torch.no_grad():
                block(x)
            seconds += time.perf_counter() - started
            needed = nn.ModuleList(
                [block, *(skeleton.blocks[one] for one in skeleton.reads[index])]
            )
            saved = _SavedBytes([*needed.parameters()])
            skeleton.require_gradients(index, True)
            counter = FlopCounterMode(display=False)
            with counter, saved_tensors_hooks(saved.pack, _unpack):
                y = block(x if integer_inputs and index == 0 else x.detach().requires_grad_())
            frozen_bytes, lean_bytes, lean_flops, lead_bytes = 0, 0, 0.0, 0
            if index == last < skeleton.scoring:
                lead_saved = _SavedBytes([*needed.parameters()])
                with saved_tensors_hooks(lead_saved.pack, _unpack):
                    skeleton.stages[last](x.detach().requires_grad_())
                lead_bytes = lead_saved.total
            if y.is_floating_point() and x.is_floating_point():
                block.requires_grad_(False)
                frozen_saved = _SavedBytes([*needed.parameters(), *needed.buffers()])
                with saved_tensors_hooks(frozen_saved.pack, _unpack):
                    block(x.detach().requires_grad_())
                frozen_bytes = frozen_saved.total
                lean_saved = _SavedBytes([*needed.parameters(), *needed.buffers()])
                lean_bytes, lean_flops = _profile_lean(
                    block, x, lean_saved, counter.get_total_flops()
                )
        weights, base = skeleton.part(index).values(), skeleton.base(index).values()
        largest = max(weights, key=_bytes, default=None)
        widest = max((*weights, *base), key=_bytes, default=None)
        flops += counter.get_total_flops()
        costs.append(
            BlockCost(
                name=name,
                weight_bytes=sum(map(_bytes, weights)),
                base_bytes=sum(map(_bytes, base)),
                trained_share=_share(weights, base),
                value_bytes=4 if widest is None else widest.element_size(),
                largest_bytes=0 if largest is None else _bytes(largest),
                reads=tuple(sorted(skeleton.reads[index])),
                position_scores=skeleton.position_scores if index == last else 0,
                forward_flops=counter.get_total_flops() / batch,
                saved_bytes=saved.total // batch,
                input_bytes=x.numel() * x.element_size() // batch,
                output_bytes=y.numel() * y.element_size() // batch,
                lead_bytes=lead_bytes // batch,
                frozen_bytes=frozen_bytes // batch,
                lean_bytes=lean_bytes // batch,
                lean_flops=lean_flops / batch,
                convolved_bytes=convolutions.output_bytes // batch,
                convolution_bytes=convolutions.weight_bytes,
            )
        )
        x = y.detach()
        known[kind] = (costs[-1], x)
    return costs, flops / max(seconds, 1e-9)


def _share(weights: Collection[Tensor], base: Collection[Tensor]) -> float:
    """Return the share of a block's numbers that train."""
    trained, frozen = (sum(one.numel() for one in part) for part in (weights, base))
    return trained / (trained + frozen) if frozen else 1.0


def _kind(skeleton: BlockStack, block: int, x: Tensor) -> Hashable:
    """Return what is the same of blocks that cost the same for an input."""
    alike = getattr(skeleton.blocks[block], "alike", None)
    if alike is None:
        return block
    weights = [(one.shape, one.dtype) for one in skeleton.tensors(block).values()]
    return (alike, *weights, x.shape, x.dtype)


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _profile_lean(
    block: nn.Module, x: Tensor, saved: _SavedBytes, forward_flops: float
) -> tuple[int, float]:
    """Return the bytes that a block keeps that runs lean, and what it does again, in operations."""
    block.requires_grad_(False)
    counter = FlopCounterMode(display=False)
    with counter:
        with saved_tensors_hooks(saved.pack, _unpack):
            y = lean_run(block)(x.detach().requires_grad_())
        if y.requires_grad:
            torch.autograd.backward(y, torch.ones_like(y))
    # Forward and backward pass; the gradient of the input takes as much as the output.
    return saved.total, max(0.0, counter.get_total_flops() - 2 * forward_flops)


def time_blocks(
    skeleton: BlockStack,
    costs: Sequence[BlockCost],
    sample_shape: tuple[int, ...],
    *,
    integer_inputs: bool,
    training: TrainingConfig,
    loss: LossConfig,
    threads: int,
) -> tuple[BlockCost, ...]:
    """Measure how long each block takes on this machine: forward, backward, and to be changed.

    Of blocks that are alike one is measured: see `profile_blocks`.

    Args:
        skeleton: A stack on the meta device.
        costs: What is known of its blocks: `profile_blocks`.
        sample_shape: Shape of one input.
        integer_inputs: Whether inputs are int64 rather than float32.
        training: Size of a batch or of its parts, precision and optimizer.
        loss: Whether something is distilled.
        threads: How many threads torch may use, as on a node.

    Returns:
        The costs with seconds for one sample, or step: the least of `REPEATS` batches each.
    """
    known: dict[Hashable, tuple[float, float, float, Tensor, float]] = {}
    dtype = torch.int64 if integer_inputs else torch.float32
    rows, _ = rows_at_once(training, training.batch_size)
    parts = math.ceil(training.batch_size / rows)
    x = torch.zeros((rows, *sample_shape), dtype=dtype)
    as_trained = partial(computing, training.precision, x.device)
    timed = []
    skeleton.eval()
    former = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for index, cost in enumerate(costs):
            kind = _kind(skeleton, index, x)
            if kind not in known:
                with made_up(skeleton, index, _drawn) as block, as_trained():
                    trainable = skeleton.trainable(index).values()
                    known[kind] = (
                        *_time_block(block, x, trainable),
                        _time_update(trainable, training),
                    )
            forward, frozen, trained, x, update = known[kind]
            judging = 0.0
            if index == len(costs) - 1:
                with as_trained():
                    judging = _time_loss(x, loss)
            timed.append(
                replace(
                    cost,
                    forward_seconds=forward / rows,
                    backward_seconds=frozen / rows,
                    training_seconds=trained / rows,
                    update_seconds=update,
                    loss_seconds=judging * parts,
                )
            )
    finally:
        torch.set_num_threads(former)
    return tuple(timed)


def _drawn(tensor: Tensor) -> Tensor:
    """Return small random numbers in place of a weight that holds nothing; zeros of integers."""
    if not tensor.is_floating_point():
        return zeros_like(tensor)
    own = torch.Generator().manual_seed(0)
    return torch.randn(tensor.shape, dtype=tensor.dtype, generator=own) * 0.02


def _time_block(
    block: nn.Module, x: Tensor, trainable: Collection[Tensor]
) -> tuple[float, float, float, Tensor]:
    """Return seconds forward, backward with frozen and with trained weights; and the output."""

    def backward() -> float:
        inputs = x.detach().requires_grad_(x.is_floating_point())
        y = block(inputs)
        if not y.requires_grad:
            return 0.0
        gradient = torch.ones_like(y)
        started = time.perf_counter()
        y.backward(gradient)
        return time.perf_counter() - started

    def forward() -> float:
        started = time.perf_counter()
        with torch.no_grad():
            block(x)
        return time.perf_counter() - started

    seconds = _least(forward)
    block.requires_grad_(False)
    frozen = _least(backward)
    for weight in trainable:
        weight.requires_grad_(True)
    trained = _least(backward)
    block.zero_grad(set_to_none=True)
    with torch.no_grad():
        return seconds, frozen, trained, block(x)


def _time_update(trainable: Collection[nn.Parameter], training: TrainingConfig) -> float:
    """Return the seconds of an optimizer step on a block's weights."""
    weights = [*trainable]
    optimizer = make_optimizer(weights, training, learning_rate=1e-6)

    def update() -> float:
        for weight in weights:
            weight.grad = torch.zeros_like(weight)
        started = time.perf_counter()
        if training.clip_norm is not None:
            nn.utils.clip_grad_norm_(weights, training.clip_norm)
        optimizer.step()
        optimizer.zero_grad()
        return time.perf_counter() - started

    return _least(update) if weights else 0.0


def _time_loss(outputs: Tensor, loss: LossConfig) -> float:
    """Return the seconds of a loss: a softmax, and one more where the teacher's is compared."""

    def judge() -> float:
        started = time.perf_counter()
        inputs = outputs.detach().requires_grad_()
        total = inputs.log_softmax(-1).mean()
        if loss.distillation > 0:
            total = total + inputs.log_softmax(-1).mean()
        torch.autograd.backward(total)
        return time.perf_counter() - started

    return _least(judge) if outputs.is_floating_point() else 0.0


def _least(measure: Callable[[], float]) -> float:
    measure()
    return min(measure() for _ in range(REPEATS))


@dataclass
class _Largest:
    """The largest output and the largest weight of some convolutions."""

    output_bytes: int = 0
    weight_bytes: int = 0

    def see(self, layer: nn.Module, inputs: object, output: Tensor) -> None:
        del inputs
        self.output_bytes = max(self.output_bytes, _bytes(output))
        # Of a module it might, to the type checker, be another.
        if isinstance(layer.weight, Tensor):
            self.weight_bytes = max(self.weight_bytes, _bytes(layer.weight))


@contextmanager
def _convolutions(block: nn.Module) -> Iterator[_Largest]:
    """Look at the convolutions of a block that runs meanwhile."""
    largest = _Largest()
    hooks = [
        layer.register_forward_hook(largest.see)
        for layer in block.modules()
        if isinstance(layer, CONVOLUTIONS)
    ]
    try:
        yield largest
    finally:
        for hook in hooks:
            hook.remove()


class _SavedBytes:
    """Counts what autograd keeps, each piece of memory once and the weights not at all."""

    def __init__(self, weights: list[Tensor]) -> None:
        self.total = 0
        self._seen = {weight.untyped_storage().data_ptr() for weight in weights}

    def pack(self, tensor: Tensor) -> Tensor:
        memory = tensor.untyped_storage()
        if memory.data_ptr() not in self._seen:
            self._seen.add(memory.data_ptr())
            self.total += memory.nbytes()
        return tensor


def _unpack(tensor: Tensor) -> Tensor:
    return tensor
