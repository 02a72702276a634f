"""How large the comparison is."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Scale:
    """The size of every cell.

    Attributes:
        width: Of the VGG-11: a factor of its channels.
        nodes: Number of nodes.
        rows: Training rows over all nodes.
        held_out: Rows to tune on, of no node where enough are left.
        watched: Test rows judged during a run.
        trips: Trips, or rounds, or passes of one node over its rows.
        tuning_trips: The same while learning rates are compared.
        batch_size: Rows per optimizer step.
        precision: Number format of a visit's computing.
        gpus: GPU share of each node.
        rates: Learning rates to choose from.
    """

    width: float
    nodes: int = 8
    rows: int
    held_out: int
    watched: int
    trips: int
    tuning_trips: int
    batch_size: int = 32
    precision: str = "fp32"
    gpus: float = 0.0
    rates: tuple[float, ...] = (0.003, 0.01, 0.03)


SCALES = {
    "tiny": Scale(
        width=0.125,
        nodes=3,
        rows=240,
        held_out=60,
        watched=60,
        trips=3,
        tuning_trips=1,
        precision="bf16",
    ),
    "small": Scale(
        width=0.25, rows=20_000, held_out=2_000, watched=2_000, trips=12, tuning_trips=3
    ),
    "paper": Scale(
        width=1.0,
        rows=45_000,
        held_out=5_000,
        watched=10_000,
        trips=12,
        tuning_trips=3,
        batch_size=128,
        precision="bf16",
        gpus=0.1,
    ),
}
