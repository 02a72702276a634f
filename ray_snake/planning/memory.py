"""The peak memory of a visit, predicted from what each block keeps and how large its weights are.

A visit's peak is that of its moments: the passes of the prefix and the teacher, the loss, each
block's turn in the backward pass, and the optimizer's step. At each moment it is added up what is
there: pure arithmetic over measurements of single blocks.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal

from ray_snake.config import LossConfig, TrainingConfig
from ray_snake.planning.blocks import BlockCost
from ray_snake.planning.span import Visit

LOSS_COPIES = 3
"""Sets of outputs at once with cross-entropy: log-probabilities, their gradient, the outputs'."""
TEACHER_COPIES = {"logits": 7, "top_k": 5, "last_hidden": 3}
"""The same where a teacher is compared with, by what is compared."""
FLOAT_BYTES = 4
SCORES_AT_ONCE = 2**20
"""A language model's scores are made so many at once at least: 4 MiB of float32."""
GRADIENT_ROWS = 1024
"""Rows of a weight whose gradients are made at once, where they add up piece by piece."""
_VALUE_BYTES = {"float32": 4, "bfloat16": 2}


def frozen_factor(block: BlockCost, training: TrainingConfig) -> float:
    """Return the bytes of a frozen block's values over those of the model's, as measured."""
    if training.frozen_dtype == "model":
        return 1.0
    return _VALUE_BYTES[training.frozen_dtype] / block.value_bytes


def optimizer_sets(training: TrainingConfig) -> int:
    """Return how many numbers an optimizer keeps of each weight.

    SGD keeps its momentum, AdamW two averages.
    """
    if training.optimizer == "adamw":
        return 2
    return 1 if training.momentum > 0 else 0


def carried_sets(training: TrainingConfig) -> int:
    """Return how many of these travel with each trained weight of a version."""
    return optimizer_sets(training) if training.optimizer_state == "carry" else 0


def positions_at_once(*, width: int, scores: int) -> int:
    """Return of how many positions a language model's last block makes the scores at once.

    All sets of them then take about as much as the block's weight in bfloat16: with many more they
    would be the most of a visit's memory, with much fewer reading the weight would be the most of
    its time.

    Args:
        width: Features of a position.
        scores: Of a position.
    """
    return max(width // 8, SCORES_AT_ONCE // scores, 1)


def wide_positions(block: BlockCost, rows: int) -> int:
    """Return of how many positions a block makes scores at once; 0: of all, as of other blocks.

    Args:
        block: A network's last block.
        rows: That go through the network at once.
    """
    if not block.position_scores:
        return 0
    width = _width(block)
    at_once = positions_at_once(width=width, scores=block.position_scores)
    return at_once if rows * _positions(block) > at_once else 0


def _positions(block: BlockCost) -> int:
    """Return the positions of a row, of a block that scores them."""
    return block.output_bytes // (block.value_bytes * block.position_scores)


def _width(block: BlockCost) -> int:
    return block.input_bytes // (block.value_bytes * _positions(block))


def suffix_of(training: TrainingConfig) -> Literal["eager", "recompute", "lean"]:
    """Return how frozen blocks run behind a trained one.

    Those that come and go run again. `auto` that no memory limit has decided is `eager`.
    """
    if training.residency == "stream":
        return "recompute"
    return "eager" if training.suffix == "auto" else training.suffix


def span_of(training: TrainingConfig) -> Literal["eager", "recompute"]:
    """Return how trained blocks run: `auto` that no memory limit has decided is `eager`."""
    return "eager" if training.span == "auto" else training.span


def can_run_again(block: int, *, blocks: int, reads: Collection[int]) -> bool:
    """Return whether `training.span` is about a trained block.

    The last one's turn in the backward pass comes right after its forward pass, so that it would
    save nothing; nor would one that reads another's weights, as a language model's head does.

    Args:
        block: Its number.
        blocks: Of the network.
        reads: Blocks whose weights it computes with too.
    """
    return block < blocks - 1 and not reads


def way_of(
    block: int, blocks: Sequence[BlockCost], *, trains: bool, training: TrainingConfig
) -> Literal["eager", "recompute", "lean"]:
    """Return how a block runs through which gradients pass.

    Args:
        block: Its number.
        blocks: What each block of the network costs.
        trains: Whether it trains.
        training: The settings.
    """
    if not trains:
        return suffix_of(training)
    again = can_run_again(block, blocks=len(blocks), reads=blocks[block].reads)
    return span_of(training) if again else "eager"


def rows_at_once(training: TrainingConfig, rows: int) -> tuple[int, int]:
    """Return the rows that go through the network at once, and in how many parts a batch does.

    Args:
        training: Batch size and size of its parts; `auto` counts as the whole batch.
        rows: Of the shard.
    """
    batch = min(training.batch_size, rows)
    size = training.micro_batch if isinstance(training.micro_batch, int) else batch
    parts = -(-batch // size)
    return -(-batch // parts), parts


@dataclass(frozen=True, kw_only=True)
class _Block:
    """What a block of the visit takes.

    Attributes:
        row_bytes: Kept of a row from its forward to its backward pass.
        scored_row_bytes: Kept of a row while its positions are scored, forward and backward in one,
            whatever the settings.
        lead_row_bytes: Kept of a row by what comes before that.
        brief_row_bytes: Needed of a row beside that, while gradients pass through it.
        forward_row_bytes: Needed of a row while it runs and nothing is kept.
        copy_bytes: Copies of its weights and of those that it reads, while it is at work.
        kept_copy_bytes: Those that are there from its forward to its backward pass.
        gradient_bytes: Gradients of its weights, if it is trained.
        largest_bytes: The largest of these.
        waiting_bytes: Gradients that it makes of weights that it reads: they wait for those that
            their own block makes.
        sum_bytes: What adding up such gradients takes, in the weights' own block.
    """

    row_bytes: float
    scored_row_bytes: float
    lead_row_bytes: float
    brief_row_bytes: float
    forward_row_bytes: float
    copy_bytes: float
    kept_copy_bytes: float
    gradient_bytes: int
    largest_bytes: int
    waiting_bytes: int
    sum_bytes: int


class MemoryModel:
    """Predicts the peak memory of visits that train the same blocks.

    Counted is what the process allocates: of frozen weights only copies in another precision.

    Args:
        visit: A visit to the blocks.
        blocks: What each block of the network costs.
        training: How a visit trains.
        loss: What it minimises.

    Attributes:
        arrived_bytes: What a GPU holds beside that of frozen weights as they arrived: all of them
            where they stay in that precision, or the blocks that are there and on their way.
    """

    def __init__(
        self,
        visit: Visit,
        blocks: Sequence[BlockCost],
        *,
        training: TrainingConfig,
        loss: LossConfig,
    ) -> None:
        self._training = training
        self._streams = training.residency == "stream"
        self._trained = frozenset(visit.trained)
        self._first = visit.trained[0]
        # Of a network that is cut the node holds the front alone, and others take the loss.
        held = [index for index in range(len(blocks)) if visit.on_node(index)]
        self._all = blocks
        self._stay = frozenset(index for index in held if self._stays(index))
        self._blocks = [self._block(index) for index in held]
        self._moments: dict[tuple[int, int], float] = {}
        self._weights = sum(one.gradient_bytes for one in self._blocks)
        self._state = optimizer_sets(training)
        # SGD's step goes a weight at a time and makes one of its size, AdamW's fused one none.
        largest = max(one.largest_bytes for one in self._blocks)
        self._step_bytes = 0 if training.optimizer == "adamw" else largest
        self._resident_copies = sum(map(self._copied, self._stay))
        self.arrived_bytes = self._arrived(held)
        outputs = blocks[-1].output_bytes
        if training.frozen_dtype != "model":
            outputs = outputs * FLOAT_BYTES // blocks[-1].value_bytes
        self._teacher = loss.distillation > 0
        copies = TEACHER_COPIES[loss.teacher] if self._teacher else LOSS_COPIES
        self._loss_row_bytes = 0 if visit.cut is not None else copies * outputs
        self._last = None if visit.cut is not None else blocks[-1]
        trains_last = len(blocks) - 1 in self._trained
        way = way_of(len(blocks) - 1, blocks, trains=trains_last, training=training)
        self._keeps_lead = way == "eager"
        # With `top_k` scores and their classes are kept apart.
        self._teacher_parts = 2 if loss.teacher == "top_k" else 1
        self._teacher_row_bytes = {
            "logits": outputs,
            # A float and a class number each.
            "top_k": min(outputs, 8 * loss.teacher_top_k),
            "last_hidden": blocks[-1].input_bytes,
        }[loss.teacher]
        self._input_bytes = self._activations(self._first - 1, blocks[self._first].input_bytes)
        self._widest_bytes = max(
            (
                self._activations(index - 1, blocks[index].input_bytes)
                for index in held[1:]
                if index <= self._first or self._teacher
            ),
            default=0.0,
        )

    def peak(self, *, rows: int, steps: int, kept: int, cached: bool) -> int:
        """Predict the peak bytes of a visit.

        Args:
            rows: Of the shard.
            steps: Optimizer steps.
            kept: Rows of which something is kept for the whole visit.
            cached: Whether the prefix's outputs are.
        """
        size, parts = rows_at_once(self._training, rows)
        always = self._resident_copies
        if self._teacher:
            always += self._kept(kept)
        cache = self._held(kept * self._input_bytes) if cached else 0.0
        state = self._weights * (1 + self._state)
        before = (state if steps > 1 else 0) + (self._weights if parts > 1 else 0)
        passes = self._passes(size, kept, cache=cache)
        if not (cached or self._teacher):
            # The prefix computes anew in each step.
            passes += before
        # Planning asks for the same ones again and again.
        if (size, parts) not in self._moments:
            self._moments[size, parts] = self._training_moments(size, parts)
        training = before + cache + self._moments[size, parts]
        step = state + self._weights + self._step_bytes + cache
        return round(always + max(passes, training, step))

    def _training_moments(self, size: int, parts: int) -> float:
        """Return the most that a part's forward and backward pass take beside what stays."""
        own = self._blocks[self._first :]
        head = own.pop() if self._pieces(size) else None
        # What reaches the first of them, and the gradients that come to be one by one.
        held = size * self._input_bytes + sum(
            size * one.row_bytes + one.kept_copy_bytes for one in own
        )
        gradients = waiting = 0
        if head is None:
            most = held + size * self._loss_row_bytes
        else:
            if parts == 1:
                gradients = head.gradient_bytes + head.waiting_bytes
            # The last block's input, and the gradient of it.
            ends = 2 * size * self._activations(len(self._blocks) - 2, self._all[-1].input_bytes)
            # What comes before the scores may run again, as other blocks do.
            lead = size * head.lead_row_bytes
            kept = lead if self._keeps_lead else 0.0
            most = held + ends + kept + gradients + self._piece_bytes(head, size)
            most = max(most, held + 2 * ends + lead + gradients)
        for block in reversed(own):
            waiting += block.waiting_bytes
            added = block.largest_bytes if parts > 1 else 0
            if parts == 1:
                gradients += block.gradient_bytes
            if head is None:
                # A part's gradients are there beside the sum of the former ones', a weight at a
                # time.
                added += block.sum_bytes
            elif block.sum_bytes:
                # What the last block made of them is in that sum already.
                added = block.largest_bytes
                gradients -= block.sum_bytes if parts == 1 else 0
            turn = size * block.brief_row_bytes + block.copy_bytes - block.kept_copy_bytes
            most = max(most, held + turn + gradients + waiting + added)
            held -= size * block.row_bytes + block.kept_copy_bytes
        return most

    def _pieces(self, size: int) -> int:
        """Return of how many positions scores are made at once; 0: of all of `size` rows."""
        return 0 if self._last is None else wide_positions(self._last, size)

    def _piece_bytes(self, head: _Block, size: int) -> float:
        """Return what the last block and the loss take of the positions that they take at once."""
        last = self._all[-1]
        rows = self._pieces(size) / _positions(last)
        taken = rows * (head.scored_row_bytes + self._loss_row_bytes) + head.copy_bytes
        summed = head.gradient_bytes + head.waiting_bytes
        if summed:
            # Gradients are made some rows at a time, of weights that are cast once.
            taken += min(summed, GRADIENT_ROWS * _width(last) * FLOAT_BYTES)
            taken += summed / 2 if self._training.precision == "bf16" else 0
        return taken

    def _passes(self, size: int, kept: int, *, cache: float) -> float:
        """Return the most that the passes of prefix and teacher take."""
        stop = len(self._blocks) if self._teacher else self._first
        whole = self._blocks[:stop]
        head = whole.pop() if self._teacher and self._pieces(size) else None
        # Where blocks come and go: what each makes of all rows, and what it makes that of. The
        # first one makes it of the shard.
        kept_set = self._held(kept * self._widest_bytes) if self._streams else 0.0
        most = max(
            (
                size * one.forward_row_bytes + one.copy_bytes + kept_set * (2 if index else 1)
                for index, one in enumerate(whole)
            ),
            default=0.0,
        )
        last = 0.0
        if head is not None:
            # What is kept of the pieces is put together at the end.
            last = size * self._teacher_row_bytes + self._piece_bytes(head, size)
            last = max(last, size * head.lead_row_bytes / 2 + head.copy_bytes)
        elif self._teacher:
            last = size * self._loss_row_bytes
        if self._teacher:
            most = max(most, last + 2 * kept_set)
        return most + (0.0 if self._streams and not self._teacher else cache)

    def _kept(self, rows: int) -> float:
        """Return what a teacher keeps of so many rows in memory."""
        parts = self._teacher_parts
        return parts * self._held(rows * self._teacher_row_bytes / parts)

    def _held(self, size: float) -> float:
        """Return what outputs of a size take in memory: large ones lie in a file."""
        return size if size <= self._training.cache_bytes else 0.0

    def _activations(self, block: int, measured: int) -> float:
        """Return the bytes of what a block puts out, in its precision."""
        if block < 0 or block in self._trained:
            return measured
        return measured * frozen_factor(self._all[block], self._training)

    def _stays(self, index: int) -> bool:
        """Return whether what is frozen of a block is there for the whole visit."""
        trains = index in self._trained
        way = way_of(index, self._all, trains=trains, training=self._training)
        # Of a trained block that is its base.
        return not self._streams or (trains and way == "eager")

    def _arrived(self, held: Sequence[int]) -> int:
        frozen = {index: self._frozen_bytes(index) for index in held}
        keeps_dtype = self._training.frozen_dtype == "model"
        there = sum(frozen[index] for index in self._stay) if keeps_dtype else 0
        coming = [one for index, one in frozen.items() if index not in self._stay]
        # One is on its way, as large as the largest; the one at work may be a cast of its own.
        return there + (2 if keeps_dtype else 1) * max(coming, default=0)

    def _frozen_bytes(self, index: int) -> int:
        """Return the bytes that no visit to these blocks changes of one block."""
        cost = self._all[index]
        return cost.base_bytes + (0 if index in self._trained else cost.weight_bytes)

    def _copied(self, index: int) -> float:
        """Return the bytes of what is frozen of a block in a precision that is not its own."""
        cost = self._all[index]
        factor = frozen_factor(cost, self._training)
        return 0.0 if factor == 1 else factor * self._frozen_bytes(index)

    def _cast_bytes(self, index: int, factor: float) -> float:
        """Return what autocast makes of a block's weights, and keeps where autograd asks for them.

        Args:
            index: The block's number.
            factor: Of its weights' bytes: `frozen_factor`, or 1 where it trains.
        """
        cost = self._all[index]
        if self._training.precision != "bf16" or cost.value_bytes * factor < FLOAT_BYTES:
            return 0.0
        return (cost.weight_bytes + cost.base_bytes) * factor / 2

    def _block(self, index: int) -> _Block:
        cost = self._all[index]
        trains = index in self._trained
        factor = 1.0 if trains else frozen_factor(cost, self._training)
        ends = cost.input_bytes + cost.output_bytes
        # A frozen linear layer keeps nothing, where a trained one keeps its input.
        row_bytes = float(cost.saved_bytes if trains else cost.frozen_bytes or cost.saved_bytes)
        brief = float(ends)
        way = way_of(index, self._all, trains=trains, training=self._training)
        if way == "recompute":
            # What reaches the first trained block is there anyway.
            row_bytes = 0.0 if index == self._first else cost.input_bytes
            brief = cost.saved_bytes + ends
        elif way == "lean":
            row_bytes, brief = cost.lean_bytes, cost.saved_bytes
        largest = (cost.largest_bytes or cost.weight_bytes) if trains else 0
        is_read = any(index in one.reads for one in self._all)
        read = [self._all[one] for one in self._trained.intersection(cost.reads)]
        copies = sum(map(self._copied, {index, *cost.reads} - self._stay))
        # A layer's input and output are there and little else; but a convolution on a CPU makes its
        # output once as it computes it and once in order, and its weight, likewise, has a copy.
        made = max(cost.output_bytes, cost.saved_bytes / 2, 2 * cost.convolved_bytes)
        casts = self._cast_bytes(index, factor)
        # Where all rows go through a block before the next, that is a view of what is kept of them.
        came = 0 if self._streams and index else cost.input_bytes
        return _Block(
            row_bytes=row_bytes * factor,
            scored_row_bytes=(cost.saved_bytes - cost.lead_bytes + cost.input_bytes) * factor,
            lead_row_bytes=cost.lead_bytes * factor,
            brief_row_bytes=brief * factor,
            forward_row_bytes=(came + made) * factor,
            copy_bytes=copies + casts + cost.convolution_bytes * factor,
            kept_copy_bytes=casts + (copies if trains else 0.0) if way == "eager" else 0.0,
            gradient_bytes=cost.weight_bytes if trains else 0,
            largest_bytes=largest,
            waiting_bytes=sum(one.largest_bytes or one.weight_bytes for one in read),
            sum_bytes=largest if is_read else 0,
        )
