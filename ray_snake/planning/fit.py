"""How a node trains so that its visits fit: rows at once, and where frozen blocks are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ray_snake.config import SnakeConfig, TrainingConfig
from ray_snake.planning.blocks import BlockCost
from ray_snake.planning.cost import VisitModel, total_steps
from ray_snake.planning.span import Visit

FEW_ROWS = 8
"""With fewer at once a step takes markedly longer than in one piece."""


@dataclass(frozen=True, kw_only=True)
class Fit:
    """How a node does its visits.

    Attributes:
        training: Its settings.
        visit: The visit that takes the most memory.
        private_bytes: What that takes.
        lacking_bytes: By how much that is more than the node has; 0 if it fits.
    """

    training: TrainingConfig
    visit: Visit
    private_bytes: int
    lacking_bytes: int


def ways_to_train(training: TrainingConfig, rows: int) -> Iterator[TrainingConfig]:
    """Yield the settings that a node may train with, in the order in which they are tried.

    With `micro_batch = "auto"` first fewer and fewer rows at once, which takes next to no time
    until they are few; then, with `suffix = "auto"`, a lean suffix, which takes up to one more
    forward pass of the frozen blocks behind the span; then, with `span = "auto"`, one of the
    trained blocks; with that as few rows as must be; then frozen blocks that come and go, which
    take a whole one; at last with their outputs in files alone. What is not `auto` stays as it is.

    Args:
        training: The run's settings.
        rows: Of the node's shard.
    """
    kept = _kept(training)
    if training.micro_batch != "auto":
        for suffix, span in kept:
            yield training.model_copy(update={"suffix": suffix, "span": span})
        return
    sizes = [min(training.batch_size, rows)]
    while sizes[-1] > 1:
        sizes.append(-(-sizes[-1] // 2))
    ways = [(training.residency, *one, training.cache_bytes) for one in kept]
    ways += [("stream", *kept[-1], one) for one in (training.cache_bytes, 0)]
    for residency, suffix, span, cache_bytes in dict.fromkeys(ways):
        for size in sizes:
            if size < min(FEW_ROWS, sizes[0]) and (suffix, span) != kept[-1]:
                continue
            yield training.model_copy(
                update={
                    "residency": residency,
                    "suffix": suffix,
                    "span": span,
                    "micro_batch": size,
                    "cache_bytes": cache_bytes,
                }
            )


def _kept(training: TrainingConfig) -> list[tuple[str, str]]:
    """Return what frozen blocks behind the span may keep, and trained ones: less and less."""
    # A suffix that streams runs again whatever the setting says.
    is_open = training.suffix == "auto" and training.residency == "resident"
    suffixes = ["eager", "lean"] if is_open else [training.suffix]
    spans = ["eager", "recompute"] if training.span == "auto" else [training.span]
    return [(suffix, spans[0]) for suffix in suffixes] + [(suffixes[-1], one) for one in spans[1:]]


def fit_visits(
    visits: Sequence[Visit],
    blocks: Sequence[BlockCost],
    *,
    rows: int,
    limit: int | None,
    config: SnakeConfig,
    any_will_do: bool = False,
) -> Fit:
    """Return the first way to train in which a node's visits fit its memory.

    Args:
        visits: One of each kind that it may be given.
        blocks: What each block of the network costs.
        rows: Of its shard.
        limit: Bytes that it has; none: no limit.
        config: The run's settings.
        any_will_do: Whether it is enough that one of the visits fits.

    Returns:
        If there is no such way, that in which the least is lacking.
    """
    best: Fit | None = None
    choose = min if any_will_do else max
    for training in ways_to_train(config.training, rows):
        peaks = []
        for visit in visits:
            model = VisitModel(
                visit,
                blocks,
                training=training,
                loss=config.loss,
                augmentation=config.augmentation,
            )
            steps = visit.steps or total_steps(rows, training)
            peaks.append((model.predict(rows=rows, steps=steps).private_bytes, visit))
        peak, visit = choose(peaks, key=lambda one: one[0])
        lacking = 0 if limit is None else max(0, peak - limit)
        if best is None or lacking < best.lacking_bytes:
            best = Fit(training=training, visit=visit, private_bytes=peak, lacking_bytes=lacking)
        if not lacking:
            break
    if best is None:
        raise ValueError("there are no visits to fit")
    return best
