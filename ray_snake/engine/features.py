"""What reaches the first trained block of a visit: the outputs of the frozen blocks before it."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ray_snake.config import TrainingConfig
from ray_snake.engine.augment import Augmentation
from ray_snake.engine.cache import PrefixCache
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
    in each draw of the augmentation. Where frozen blocks come and go, the prefix's outputs are
    always kept: each block computes for all rows before the next one is brought in.

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
        self._cache: PrefixCache | None = None
        self._targets: Tensor | None = None
        self._objective = objective
        self._kept: Kept | None = None
        self._frozen = frozen
        self._head = head
        self._entries = len(samples) * augmentation.draws
        self._cache_bytes = training.cache_bytes
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
        kept = None
        if self._kept is not None:
            index = torch.from_numpy(entries).to(self._device)
            kept = tuple(one[index] for one in self._kept)
        if self._cache is not None and self._targets is not None:
            targets = self._targets[torch.from_numpy(rows).to(self._device)]
            features = self._cache.gather(entries, self._device)
            return without_padding(self._stack, features), targets, kept
        inputs, targets = self._load(rows, draw)
        inputs = without_padding(self._stack, inputs)
        with torch.no_grad():
            features = self._stack(inputs, 0, self.first)
        return features, targets, kept

    def close(self) -> None:
        """Let go of what is kept in memory or in a file."""
        if self._cache is not None:
            self._cache.close()

    def _load(self, rows: Rows, draw: int) -> tuple[Tensor, Tensor]:
        inputs, targets = load_batch(self._samples, rows, self._device)
        return self._augmentation(inputs, rows, draw), targets

    @torch.no_grad()
    def _batch_by_batch(self, *, keeps: bool) -> None:
        """Run every batch through the prefix, and on through the network for the teacher."""
        self._stack.eval()
        last = self._stack.scoring
        targets, kept = [], []
        if keeps:
            self._cache = self._new_cache()
        for inputs, batch_targets in self._loaded():
            features = self._stack(inputs, 0, self.first)
            if batch_targets is not None:
                targets.append(batch_targets)
            if self._cache is not None:
                self._cache.append(features)
            if self._objective.needs_teacher:
                kept.append(self._head.keep(self._stack(features, self.first, last)))
        self._keep(targets, kept)

    @torch.no_grad()
    def _block_by_block(self) -> None:
        """Run all rows through a block before the next: each is brought in once.

        Two sets of outputs exist at a time: a stage's inputs, and what it makes of them; and with
        a teacher the prefix's outputs beside.
        """
        self._stack.eval()
        last = self._stack.scoring
        targets, kept = [], []
        inputs: PrefixCache | None = None
        spare: PrefixCache | None = None
        for stage in range(last + 1 if self._objective.needs_teacher else self.first):
            if stage == self.first:
                self._cache = inputs
            made = spare or self._new_cache()
            with self._frozen.present(self._stack.block_of(stage)):
                for x, batch_targets in self._loaded() if inputs is None else self._parts(inputs):
                    if batch_targets is not None:
                        targets.append(batch_targets)
                    if stage == last:
                        kept.append(self._head.keep(x))
                    else:
                        made.append(self._stack(x, stage, stage + 1))
            spare = inputs if inputs is not self._cache else None
            if spare is not None:
                spare.restart()
            inputs = made
        if self._cache is None and self.first > 0:
            self._cache = inputs
        self._keep(targets, kept)

    def _loaded(self) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Yield the inputs of all entries in batches, and the targets of the first draw's."""
        for draw in range(self._augmentation.draws):
            for rows in in_order(len(self._samples), self._batch_size):
                inputs, targets = self._load(rows, draw)
                yield inputs, targets if draw == 0 else None

    def _parts(self, outputs: PrefixCache) -> Iterator[tuple[Tensor, None]]:
        """Yield the same batches of what a block made of them."""
        count = len(self._samples)
        for draw in range(self._augmentation.draws):
            for rows in in_order(count, self._batch_size):
                start, stop = (draw * count + int(one) for one in (rows[0], rows[-1] + 1))
                yield outputs.part(start, stop, self._device), None

    def _new_cache(self) -> PrefixCache:
        return PrefixCache(self._entries, limit_bytes=self._cache_bytes)

    def _keep(self, targets: list[Tensor], kept: list[Kept]) -> None:
        self._targets = torch.cat(targets)
        if kept:
            self._kept = tuple(torch.cat(parts) for parts in zip(*kept, strict=True))
