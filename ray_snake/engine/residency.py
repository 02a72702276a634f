"""Where the weights of frozen blocks are during a visit, and in which dtype they compute.

`resident`: all of them are there from the first step to the last one. `stream`: each is brought in
when it computes and let go of right after, forward, and once more in the backward pass, in which
it runs again (Chen et al., arXiv 1604.06174). So is the base of a trained block, where that runs
again too: adapters then train in layers that are never all there. On the CPU bringing in is free
where weights compute in the dtype in which they arrived: they stay read-only views of a store.
Otherwise a cast copy exists of the block at work alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from types import TracebackType

import torch
from torch import Tensor, nn

from ray_snake.config import TrainingConfig
from ray_snake.engine.device_feed import DeviceFeed
from ray_snake.engine.recompute import keeping_input, run_again
from ray_snake.engine.stack import BlockRun, BlockStack
from ray_snake.engine.suffix import span_runs, suffix_runs, where_gradients_flow
from ray_snake.planning.memory import span_of, suffix_of

DTYPES: dict[str, torch.dtype | None] = {
    "model": None,
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
}


def brings_in(training: TrainingConfig) -> bool:
    """Return whether a visit brings frozen blocks to its device itself, in whole or one by one."""
    return training.residency == "stream" or DTYPES[training.frozen_dtype] is not None


def place(
    stack: BlockStack,
    trained: Collection[int],
    *,
    training: TrainingConfig,
    device: torch.device,
) -> None:
    """Put a network that is in the CPU's memory where a visit wants it, all of it frozen.

    Args:
        stack: The network, loaded.
        trained: Numbers of the blocks that the visit trains.
        training: Its settings.
        device: Where it computes.
    """
    stack.move_constants(device)
    for block in range(len(stack)):
        frozen = stack.base(block) if block in trained else stack.tensors(block)
        waiting = frozen.keys() if brings_in(training) else ()
        tensors = {
            name: one.detach() if name in waiting else one.detach().to(device)
            for name, one in stack.tensors(block).items()
        }
        stack.load(block, tensors, trainable=False)


class FrozenBlocks:
    """The frozen blocks of a stack, for as long as the context: it sets how the stack runs.

    Frozen blocks take and give the dtype that `training.frozen_dtype` names, and so do trained
    blocks with a base, which is held in it too; others take and give that of their weights. The
    network's outputs are float32 where one is named. Gradients flow through the casts. On leaving,
    what is frozen has the tensors again that it arrived with.

    Args:
        stack: The network, loaded. Where `brings_in` says so, its frozen blocks may lie in the
            CPU's memory, whatever the device.
        trained: Numbers of the blocks that train; all others are frozen.
        training: Residency, dtype, and what blocks keep for the backward pass.
        device: Where to compute.

    Attributes:
        streams: Whether blocks come and go.
    """

    def __init__(
        self,
        stack: BlockStack,
        trained: Collection[int],
        *,
        training: TrainingConfig,
        device: torch.device,
    ) -> None:
        self.streams = training.residency == "stream"
        self._stack = stack
        self._trained = frozenset(trained)
        self._suffix = suffix_of(training)
        self._dtype = DTYPES[training.frozen_dtype]
        self._device = device
        self._brings_in = brings_in(training)
        self._arrived: dict[int, Mapping[str, Tensor]] = {
            index: stack.tensors(index) for index in range(len(stack)) if index not in self._trained
        }
        self._bases: dict[int, Mapping[str, Tensor]] = {
            index: base for index in self._trained if (base := stack.base(index))
        }
        self._again = span_runs(stack, self._trained, span_of(training), self.present)
        # What comes and goes of each block.
        self._coming: dict[int, Mapping[str, Tensor]] = {}
        if self.streams:
            bases = {block: self._bases[block] for block in self._again if block in self._bases}
            self._coming = self._arrived | bases
        self._present: Counter[int] = Counter()
        self._feed: DeviceFeed | None = None

    def __enter__(self) -> FrozenBlocks:
        for block, base in self._bases.items() if self._brings_in else ():
            if block not in self._coming:
                self._stack.load_base(block, self._converted(base))
        if self.streams:
            if self._device.type == "cuda":
                self._feed = DeviceFeed(self._coming, self._device)
            for block in self._coming:
                self._let_go(block)
        elif self._brings_in:
            for block, tensors in self._arrived.items():
                self._stack.load(block, self._converted(tensors), trainable=False)
        self._stack.runs = self._runs()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.runs = {}
        self._feed = None
        if self._brings_in:
            for block, tensors in self._arrived.items():
                self._stack.load(block, tensors, trainable=False)
            for block, base in self._bases.items():
                self._stack.load_base(block, base)

    @contextmanager
    def present(self, block: int) -> Iterator[None]:
        """Have a block, and those that it reads, in memory for as long as the context."""
        with ExitStack() as held:
            for one in (*sorted(self._stack.reads[block]), block):
                if one in self._coming:
                    held.enter_context(self._one_present(one))
            yield

    @contextmanager
    def head(self) -> Iterator[BlockRun]:
        """Return what runs the last stage once or often, there for as long as the context.

        It keeps what torch keeps, whatever the settings say of frozen blocks.
        """
        last = self._stack.scoring
        stage = self._stack.stages[last]
        with self.present(self._stack.block_of(last)):
            yield stage if self._dtype is None else self._typed(last, stage)

    @contextmanager
    def _one_present(self, block: int) -> Iterator[None]:
        if not self._present[block]:
            self._bring_in(block)
        self._present[block] += 1
        try:
            yield
        finally:
            self._present[block] -= 1
            if not self._present[block]:
                self._let_go(block)

    def _bring_in(self, block: int) -> None:
        arrived = self._coming[block] if self._feed is None else self._feed.fetch(block)
        if block in self._trained:
            self._stack.load_base(block, self._converted(arrived))
        else:
            self._stack.load(block, self._converted(arrived), trainable=False)

    def _let_go(self, block: int) -> None:
        if block in self._trained:
            self._stack.unload_base(block)
        else:
            self._stack.unload(block)

    def _converted(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return tensors as they compute; those that need no change are not copied."""
        return {
            name: one.to(self._device, self._dtype if one.is_floating_point() else None)
            for name, one in tensors.items()
        }

    def _runs(self) -> dict[int, BlockRun]:
        stack = self._stack
        runs = dict(self._again)
        if not self.streams:
            runs |= suffix_runs(stack, self._trained, self._suffix)
        if not self.streams and self._dtype is None:
            return runs
        for index, stage in enumerate(stack.stages):
            block = stack.block_of(index)
            run = runs.get(index, stage)
            comes = not self._coming.keys().isdisjoint({block, *stack.reads[block]})
            if comes and index not in self._again:
                run = self._streamed(block, stage)
            runs[index] = run if self._dtype is None else self._typed(index, run)
        return runs

    def _streamed(self, block: int, stage: nn.Module) -> BlockRun:
        """Return what runs a stage while its block, and what that reads, is brought in."""

        def work(x: Tensor) -> Tensor:
            with self.present(block):
                y: Tensor = stage(x)
                return y

        if block in self._trained:
            return work
        again = partial(run_again, keeping_input(stage, work))
        return where_gradients_flow(again, otherwise=work)

    def _typed(self, index: int, run: BlockRun) -> BlockRun:
        """Return what runs a stage on inputs cast to the dtype that it computes in."""
        block = self._stack.block_of(index)
        weights = self._stack.tensors(block).values()
        own = next((one.dtype for one in weights if one.is_floating_point()), None)
        trains = block in self._trained
        keeps_own = trains and block not in self._bases
        dtype = own if keeps_own or own is None else self._dtype
        is_last = index == self._stack.scoring

        def typed(x: Tensor) -> Tensor:
            # Under autocast trained layers choose for themselves.
            chooses = trains and torch.is_autocast_enabled(x.device.type)
            if dtype is not None and x.is_floating_point() and not chooses:
                x = x.to(dtype)
            y = run(x)
            return y.float() if is_last else y

        return typed
