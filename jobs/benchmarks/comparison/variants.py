"""What is compared: each variant is a strategy with its own settings; all else is the same."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

PLAIN = {"logit_adjustment": 0.0, "distillation": 0.0}
ADJUSTED = {"logit_adjustment": 1.0, "distillation": 0.0}
SHARED = {"shares_activations": True}
KEPT = {"logit_adjustment": 1.0, "distillation": 0.1}


@dataclass(frozen=True, kw_only=True)
class Variant:
    """A row of the table.

    Attributes:
        name: What the table calls it.
        settings: Sections of settings that differ from the comparison's common ones.
        pooled: Whether all rows lie on one node.
        alone: Whether each node trains by itself, and the mean over nodes is reported.
        ablates: The name of the default that it changes; empty for a rival.
    """

    name: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    pooled: bool = False
    alone: bool = False
    ablates: str = ""

    @property
    def tuned_as(self) -> str:
        """The variant whose learning rate it takes."""
        return "snake" if self.ablates else self.name


def snake(name: str = "snake", ablates: str = "", **sections: Any) -> Variant:  # noqa: ANN401
    """Return the default snake with some settings changed."""
    return Variant(name=name, settings={"strategy": "snake", **sections}, ablates=ablates)


RIVALS = (
    Variant(name="centralised", settings={"strategy": "centralised", "loss": PLAIN}, pooled=True),
    Variant(name="local", settings={"strategy": "local", "loss": PLAIN}, alone=True),
    Variant(name="fedavg", settings={"strategy": "fedavg", "loss": PLAIN}),
    Variant(name="fedavg+la", settings={"strategy": "fedavg", "loss": ADJUSTED}),
    Variant(
        name="fedprox+la", settings={"strategy": "fedprox", "loss": {**ADJUSTED, "proximal": 0.01}}
    ),
    Variant(name="cyclic", settings={"strategy": "cyclic", "loss": PLAIN}),
    Variant(name="cyclic+la+kd", settings={"strategy": "cyclic", "loss": KEPT}),
    Variant(
        name="fedpart+la",
        settings={"strategy": "fedpart", "loss": ADJUSTED, "baseline": {"full_rounds": 2}},
    ),
    Variant(name="fedcybgd+la", settings={"strategy": "fedcybgd", "loss": ADJUSTED}),
    Variant(name="split+la", settings={"strategy": "split", "loss": ADJUSTED, "baseline": SHARED}),
    Variant(
        name="splitfed+la", settings={"strategy": "splitfed", "loss": ADJUSTED, "baseline": SHARED}
    ),
)

WITHOUT_WARM_UP = {
    "warmup_trips": 0,
    "train_first": True,
    "spans": [[1, 2, 3], [4, 5], [6], [7], [8]],
}

SNAKES = (
    snake(),
    snake("snake-no-warm-up", ablates="warm-up", snake=WITHOUT_WARM_UP),
)

VARIANTS = {one.name: one for one in (*RIVALS, *SNAKES)}
