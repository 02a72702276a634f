"""What is compared: each variant is a strategy with its own settings; all else is the same."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from comparison.data import PARTITIONS

PLAIN = {"logit_adjustment": 0.0, "distillation": 0.0}
ADJUSTED = {"logit_adjustment": 1.0, "distillation": 0.0}
SHARED = {"shares_activations": True}
KEPT = {"logit_adjustment": 1.0, "distillation": 0.1}
# He et al. (2016), arXiv:1512.03385, for CIFAR-10.
AUGMENTED = {"flip": True, "crop": 4}
FOUR_PASSES = {"epochs": 4}
_BATCH = {"model": {"options": {"norm": "batch"}}}
# The first is the default: FixBN (Zhong et al. 2023, arXiv:2303.06530), BatchNorm whose statistics
# stay as they are after a third of the trips.
NORMS: Mapping[str, Mapping[str, Any]] = {
    "fixbn": {**_BATCH, "training": {"fix_norms_after_trips": "auto"}},
    "batch": {**_BATCH, "training": {"fix_norms_after_trips": "none"}},
    "group": {"model": {"options": {"norm": "group"}}},
    "none": {"model": {"options": {"norm": "none"}}},
}
DEFAULT_NORM = "fixbn"
BOTH_NORMS = (DEFAULT_NORM, "group")
HEADLINE = ("alpha0.1",)


@dataclass(frozen=True, kw_only=True)
class Variant:
    """A row of the table.

    Attributes:
        name: What the table calls it.
        settings: Sections of settings that differ from the comparison's common ones.
        pooled: Whether all rows lie on one node.
        alone: Whether each node trains by itself, and the mean over nodes is reported.
        ablates: The name of the default that it changes; empty for a rival.
        like: The variant whose learning rate it takes; empty: one of its own, or the snake's.
        partitions: What it is trained on unless something else is asked for.
        norms: With which norms likewise.
    """

    name: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    pooled: bool = False
    alone: bool = False
    ablates: str = ""
    like: str = ""
    partitions: tuple[str, ...] = tuple(PARTITIONS)
    norms: tuple[str, ...] = (DEFAULT_NORM,)

    @property
    def tuned_as(self) -> str:
        """The variant whose learning rate it takes."""
        return self.like or ("snake" if self.ablates else self.name)


def _rival(
    name: str,
    strategy: str,
    *,
    like: str = "",
    pooled: bool = False,
    **sections: Any,  # noqa: ANN401 - settings of any type
) -> Variant:
    """Return a rival on the most skewed partition alone, with logit adjustment unless told."""
    settings = {"strategy": strategy, "loss": ADJUSTED, **sections}
    return Variant(name=name, settings=settings, like=like, pooled=pooled, partitions=HEADLINE)


RIVALS = (
    Variant(
        name="centralised",
        settings={"strategy": "centralised", "loss": PLAIN},
        pooled=True,
        # It knows no nodes.
        partitions=HEADLINE,
        norms=(*BOTH_NORMS, "batch"),
    ),
    Variant(name="local", settings={"strategy": "local", "loss": PLAIN}, alone=True),
    Variant(name="fedavg", settings={"strategy": "fedavg", "loss": PLAIN}, norms=BOTH_NORMS),
    Variant(name="fedavg+la", settings={"strategy": "fedavg", "loss": ADJUSTED}, norms=BOTH_NORMS),
    Variant(
        name="fedprox+la", settings={"strategy": "fedprox", "loss": {**ADJUSTED, "proximal": 0.01}}
    ),
    Variant(name="cyclic", settings={"strategy": "cyclic", "loss": PLAIN}),
    Variant(name="cyclic+la+kd", settings={"strategy": "cyclic", "loss": KEPT}, norms=BOTH_NORMS),
    Variant(
        name="fedpart+la",
        settings={"strategy": "fedpart", "loss": ADJUSTED, "baseline": {"full_rounds": 2}},
    ),
    Variant(name="fedcybgd+la", settings={"strategy": "fedcybgd", "loss": ADJUSTED}),
    Variant(name="split+la", settings={"strategy": "split", "loss": ADJUSTED, "baseline": SHARED}),
    Variant(
        name="splitfed+la", settings={"strategy": "splitfed", "loss": ADJUSTED, "baseline": SHARED}
    ),
    # Beside `snake-equal-bytes-flip-crop`. The whole model goes from node to node as often as
    # FedAvg's bytes pay for.
    _rival(
        "cyclic-equal-bytes+la+kd+flip-crop",
        "cyclic",
        loss=KEPT,
        augmentation=AUGMENTED,
        snake={"trips": 27},
    ),
    _rival("centralised+flip-crop", "centralised", pooled=True, loss=PLAIN, augmentation=AUGMENTED),
    _rival("fedavg+flip-crop", "fedavg", loss=PLAIN, augmentation=AUGMENTED),
    # With about the snake's bytes, each with a schedule of its own.
    _rival("cyclic-6-trips+la+kd", "cyclic", like="cyclic+la+kd", loss=KEPT, snake={"trips": 6}),
    _rival("fedavg-3-rounds+la", "fedavg", like="fedavg+la", snake={"trips": 3}),
    # With the snake's samples too; with FedAvg's bytes and four times the samples, as
    # `snake-equal-bytes` has; and what those samples give where all of them are on one machine.
    _rival(
        "fedavg-3-rounds-4-epochs+la",
        "fedavg",
        like="fedavg+la",
        snake={"trips": 3},
        training=FOUR_PASSES,
    ),
    _rival("fedavg-4-epochs+la", "fedavg", like="fedavg+la", training=FOUR_PASSES),
    _rival(
        "fedavg-4-epochs+la+flip-crop",
        "fedavg",
        like="fedavg+la",
        training=FOUR_PASSES,
        augmentation=AUGMENTED,
    ),
    _rival(
        "centralised-48-trips+flip-crop",
        "centralised",
        like="centralised",
        pooled=True,
        loss=PLAIN,
        augmentation=AUGMENTED,
        snake={"trips": 48},
    ),
    # Closer to their authors' code: FedPart's rate stays, FedCyBGD's classifier always trains.
    _rival(
        "fedpart-constant+la",
        "fedpart",
        like="fedpart+la",
        baseline={"full_rounds": 2},
        training={"schedule": "constant"},
    ),
    _rival(
        "fedpart-22-rounds+la",
        "fedpart",
        like="fedpart+la",
        baseline={"full_rounds": 2, "block_rounds": 2},
        snake={"trips": 22},
        training={"schedule": "constant"},
    ),
    _rival("fedcybgd-last-block+la", "fedcybgd", like="fedcybgd+la", baseline={"train_last": True}),
)

# Spans of about equal memory. The first two blocks only train in the warm-up: most of what a visit
# to them takes is what their large pictures leave for the backward pass.
SNAKE = {
    "spans": [[2, 3], [4, 5], [6], [7, 8]],
    "warmup_trips": 2,
    "warmup_rate": 0.5,
    "trips_per_span": 2,
}
# Likewise at full width, where weights outweigh pictures, and what is frozen comes and goes.
FULL_WIDTH = {**SNAKE, "spans": [[2], [3], [4, 5], [6, 7, 8]]}
STREAMED = {"residency": "stream", "frozen_dtype": "bfloat16"}
# As many trips as FedAvg's bytes pay for.
LONG = {**SNAKE, "trips": 48, "warmup_trips": 8}
WITHOUT_WARM_UP = {
    "spans": [[0, 1], [2, 3], [4, 5], [6], [7, 8]],
    "warmup_trips": 0,
}


def snake(
    name: str = "snake",
    ablates: str = "",
    **sections: Any,  # noqa: ANN401 - settings of any type
) -> Variant:
    """Return the default snake with some sections' settings changed."""
    settings: dict[str, Any] = {"strategy": "snake", "snake": SNAKE, "loss": KEPT, **sections}
    settings["training"] = {"suffix": "recompute", **sections.get("training", {})}
    if not ablates:
        return Variant(name=name, settings=settings, norms=tuple(NORMS))
    return Variant(name=name, settings=settings, ablates=ablates, partitions=HEADLINE)


SNAKES = (
    snake(),
    # Three of the eight can train the whole model, the others only ever train spans.
    snake("snake-few-warm-up", "warm-up", snake={**SNAKE, "warmup_nodes": [0, 1, 2]}),
    snake("snake-no-warm-up", "warm-up", snake=WITHOUT_WARM_UP),
    snake("snake-one-trip", "trips per span", snake={**SNAKE, "trips_per_span": 1}),
    snake("snake-equal-bytes", "trips", snake=LONG),
    snake("snake-first-block", "ends", snake={**SNAKE, "train_first": True}),
    snake("snake-no-last-block", "ends", snake={**SNAKE, "train_last": False}),
    snake("snake-full-width", "spans", snake=FULL_WIDTH, training=STREAMED),
    snake("snake-diagonal", "order", snake={**SNAKE, "trips_per_span": 1, "order": "diagonal"}),
    snake("snake-random", "order", snake={**SNAKE, "trips_per_span": 1, "order": "random"}),
    snake("snake-no-la", "logit adjustment", loss={**KEPT, "logit_adjustment": 0.0}),
    snake("snake-no-kd", "distillation", loss=ADJUSTED),
    snake("snake-kd-0.3", "distillation", loss={**KEPT, "distillation": 0.3}),
    snake("snake-proximal", "proximal", loss={**KEPT, "proximal": 0.01}),
    snake("snake-carry", "optimizer state", training={"optimizer_state": "carry"}),
    snake("snake-equal-bytes-flip-crop", "augmentation", snake=LONG, augmentation=AUGMENTED),
)

VARIANTS = {one.name: one for one in (*RIVALS, *SNAKES)}
