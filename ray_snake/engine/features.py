"""What reaches the first trained block of a visit: the outputs of the frozen blocks before it."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ray_snake.config import TrainingConfig
from ray_snake.engine.augment import Augmentation
from ray_snake.engine.cache import RowCache
from ray_snake.engine.head import Head
from ray_snake.engine.objective import Objective
from ray_snake.engine.padding import without_padding
from ray_snake.engine.residency import FrozenBlocks
from ray_snake.engine.samples import Rows, Samples, in_order, load_batch
from ray_snake.engine.stack import BlockStack
from ray_snake.engine.teacher import Kept


class Features:
    """What reaches the first trained block, batch by batch, with targets and what a teacher kept.

    With several passes over the rows ahead, the prefix's outputs and the targets are kept from
    the first one; what the teacher kept is always at hand. There is one entry for each row as it is
    in each draw of the augmentation; large sets of them lie in files. Where frozen blocks come and
    go, the prefix's outputs are always kept: each block computes for all rows before the next one
    is brought in.

    Args:
        stack: The network, its frozen blocks in the care of `frozen`.
        samples: The rows.
        first: Number of the first trained block.
        training: Sizes of batches and of the cache.
        objective: Says whether there is a teacher, and what it keeps.
        augmentation: How rows are changed.
        passes: Over the rows, in the visit.
        frozen: Brings in blocks.
        head: Has the teacher keep what it keeps of wide scores.
        device: Where to compute.
    """

    def __init__(
        self,
        stack: BlockStack,
        samples: Samples,
        *,
        first: int,
        training: TrainingConfig,
        objective: Objective,
        augmentation: Augmentation,
        passes: int,
        frozen: FrozenBlocks,
        head: Head,
        device: torch.device,
    ) -> None:
        self.first = first
        self._stack = stack
        self._samples = samples
        self._augmentation = augmentation
        self._device = device
        self._cache: RowCache | None = None
        self._objective = objective
        self._kept: tuple[RowCache, ...] = ()
        self._frozen = frozen
        self._head = head
        self._entries = len(samples) * augmentation.draws
        self._cache_bytes = training.cache_bytes
        self._targets = RowCache(len(samples), limit_bytes=training.cache_bytes)
        # What goes through the network at once in training does so here.
        size = training.micro_batch if isinstance(training.micro_batch, int) else None
        self._batch_size = min(size or training.batch_size, training.batch_size)
        again = passes > augmentation.draws
        keeps = first > 0 and (objective.needs_teacher or again or frozen.streams)
        if frozen.streams and (keeps or objective.needs_teacher):
            self._block_by_block()
        elif keeps or objective.needs_teacher:
            self._batch_by_batch(keeps=keeps)

    def batch(self, rows: Rows, epoch: int) -> tuple[Tensor, Tensor, Kept | None]:
        """Return (features, targets, what the teacher kept or none) of the rows in an epoch."""
        draw = epoch % self._augmentation.draws
        entries = draw * len(self._samples) + rows
        kept = tuple(one.gather(entries, self._device) for one in self._kept) or None
        if self._cache is not None:
            targets = self._targets.gather(rows, self._device)
            features = self._cache.gather(entries, self._device)
            return without_padding(self._stack, features), targets, kept
        inputs, targets = self._load(rows, draw)
        inputs = without_padding(self._stack, inputs)
        with torch.no_grad():
            features = self._stack(inputs, 0, self.first)
        return features, targets, kept

    def close(self) -> None:
        """Let go of what is kept in memory or in a file."""
        for cache in (self._cache, self._targets, *self._kept):
            if cache is not None:
                cache.close()

    def _load(self, rows: Rows, draw: int) -> tuple[Tensor, Tensor]:
        inputs, targets = load_batch(self._samples, rows, self._device)
        return self._augmentation(inputs, rows, draw), targets

    @torch.no_grad()
    def _batch_by_batch(self, *, keeps: bool) -> None:
        """Run every batch through the prefix, and on through the network for the teacher."""
        self._stack.eval()
        last = self._stack.scoring
        if keeps:
            self._cache = self._new_cache()
        for inputs in self._loaded(keeps_targets=keeps):
            features = self._stack(inputs, 0, self.first)
            if self._cache is not None:
                self._cache.append(features)
            if self._objective.needs_teacher:
                self._keep(self._head.keep(self._stack(features, self.first, last)))

    @torch.no_grad()
    def _block_by_block(self) -> None:
        """Run all rows through a block before the next: each is brought in once.

        Two sets of outputs exist at a time: a stage's inputs, and what it makes of them; and with
        a teacher the prefix's outputs beside.
        """
        self._stack.eval()
        last = self._stack.scoring
        inputs: RowCache | None = None
        spare: RowCache | None = None
        for stage in range(last + 1 if self._objective.needs_teacher else self.first):
            if stage == self.first:
                self._cache = inputs
            made = spare or self._new_cache()
            with self._frozen.present(self._stack.block_of(stage)):
                whole = self._loaded(keeps_targets=True) if inputs is None else self._parts(inputs)
                for x in whole:
                    if stage == last:
                        self._keep(self._head.keep(x))
                    else:
                        made.append(self._stack(x, stage, stage + 1))
            spare = inputs if inputs is not self._cache else None
            if spare is not None:
                spare.restart()
            inputs = made
        if self._cache is None and self.first > 0:
            self._cache = inputs

    def _loaded(self, *, keeps_targets: bool) -> Iterator[Tensor]:
        """Yield the inputs of all entries in batches; maybe keep the targets."""
        for draw in range(self._augmentation.draws):
            for rows in in_order(len(self._samples), self._batch_size):
                inputs, targets = self._load(rows, draw)
                if keeps_targets and draw == 0:
                    self._targets.append(targets)
                yield inputs

    def _parts(self, outputs: RowCache) -> Iterator[Tensor]:
        """Yield the same batches of what a block made of them."""
        count = len(self._samples)
        for draw in range(self._augmentation.draws):
            for rows in in_order(count, self._batch_size):
                start, stop = (draw * count + int(one) for one in (rows[0], rows[-1] + 1))
                yield outputs.part(start, stop, self._device)

    def _new_cache(self) -> RowCache:
        return RowCache(self._entries, limit_bytes=self._cache_bytes)

    def _keep(self, parts: Kept) -> None:
        """Add what the teacher keeps of the next rows."""
        self._kept = self._kept or tuple(self._new_cache() for _ in parts)
        for cache, part in zip(self._kept, parts, strict=True):
            cache.append(part)
