"""Where and how a run goes: nodes, transport, codec, acceptance, failures, storage."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from ray_snake.settings_tree import (
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Section,
    Texts,
)


class NodePlacement(Section):
    """What some nodes ask for in place of what all do."""

    match: str | Texts = Field(
        description="Names of the nodes it is for, or paths or URIs of their shards, with the "
        "wildcards `*`, `?` and `[...]`; or a list of such. Of several entries that match a node, "
        "the later holds."
    )
    cpus: NonNegativeFloat | None = Field(default=None, description="See nodes.cpus.")
    gpus: NonNegativeFloat | None = Field(default=None, description="See nodes.gpus.")
    memory_bytes: NonNegativeInt | None = Field(default=None, description="See nodes.memory_bytes.")
    labels: dict[str, str] | None = Field(default=None, description="See nodes.labels.")
    resources: dict[str, NonNegativeFloat] | None = Field(
        default=None, description="See nodes.resources."
    )

    @property
    def patterns(self) -> tuple[str, ...]:
        """The names in `match`."""
        return (self.match,) if isinstance(self.match, str) else self.match


class NodesConfig(Section):
    """What every node actor asks of the cluster, and how it is started."""

    cpus: NonNegativeFloat = Field(
        default=0.0,
        description="CPUs a node reserves. 0 by default: a node computes only during its visit.",
    )
    gpus: NonNegativeFloat | Literal["auto"] = Field(
        default="auto",
        description="GPU share a node reserves; the share is enforced at the allocator. `auto` "
        "divides the cluster's GPUs evenly over the actors.",
    )
    memory_bytes: NonNegativeInt = Field(
        default=0,
        description="Heap memory a node reserves. What a visit takes of it is predicted, and a run "
        "whose visits don't fit is refused; see `training.micro_batch`. 0: no limit.",
    )
    labels: dict[str, str] = Field(
        default_factory=dict,
        description="Ray label selector of the machines that may host the nodes, such as "
        '`{ site = "in(a,b)" }`.',
    )
    resources: dict[str, NonNegativeFloat] = Field(
        default_factory=dict, description="Custom Ray resources that a node reserves."
    )
    each: Annotated[tuple[NodePlacement, ...], Field(strict=False)] = Field(
        default=(),
        description="What some nodes ask for in place of that: `[[nodes.each]]` starts a table "
        "with `match` (names of nodes, such as `north_*`) and any of cpus, gpus, memory_bytes, "
        "labels, resources.",
    )
    threads: PositiveInt = Field(
        default=1, description="torch threads per node process; part of what makes runs repeatable."
    )
    nodes_per_actor: PositiveInt = Field(
        default=1, description="How many nodes share one actor process (with one shard each)."
    )
    start_timeout_seconds: PositiveFloat = Field(
        default=120.0, description="How long a node may take to start before the run says why."
    )
    may_scale: bool = Field(
        default=False,
        description="The cluster can grow: don't refuse a request it can't satisfy yet.",
    )

    @property
    def on_gpus(self) -> bool:
        """Whether nodes surely compute on GPUs; with `auto` the cluster decides."""
        return self.gpus not in ("auto", 0)


class TransportConfig(Section):
    """How trained blocks get from node to node."""

    mode: Literal["p2p", "client_server"] = Field(
        default="p2p",
        description="`p2p`: straight from the machine that trained them. `client_server`: through "
        "the driver's side, which pulls, checks and serves them; nodes never reach each other.",
    )


class CodecConfig(Section):
    """In what form trained blocks travel."""

    name: Literal["none", "bf16", "int8", "int4", "topk"] = Field(
        default="none",
        description="`none`: whole, as they are. Else the difference from a version that all nodes "
        "have, with 2 bytes a weight (`bf16`), 1 (`int8`), a half (`int4`), or the largest alone "
        "(`topk`). A run's weights are those that travelled.",
    )
    top_k: Annotated[float, Field(gt=0, le=1)] = Field(
        default=0.02, description="Share of a tensor's weights that `topk` sends."
    )
    anchor_trips: PositiveInt = Field(
        default=4,
        description="A block that is trained in every trip gets a new version to differ from "
        "after so many trips; others get one each time that the snake comes back to them.",
    )


class AcceptanceConfig(Section):
    """When the driver refuses a visit's result. A result that is not finite is always refused."""

    max_update_norm: PositiveFloat | None = Field(
        default=None, description="Largest L2 norm of the change to the trained weights."
    )
    max_loss_ratio: PositiveFloat | None = Field(
        default=None,
        description="Largest ratio of the last to the first epoch's training loss, which takes "
        "visits of two `training.epochs` or more. With `training.steps` that is a matter of a "
        "node's rows: where they make one epoch at most, the ratio is 1.",
    )
    max_refused: NonNegativeInt = Field(
        default=3, description="Refused visits in a row before the run fails."
    )


class FailureConfig(Section):
    """How often what died is started again, and how long anything may take."""

    node_restarts: NonNegativeInt = Field(
        default=3, description="How often one node may be started again in a run."
    )
    recoveries: NonNegativeInt = Field(
        default=3,
        description="How often the run may go back to its journal after the driver, the process "
        "engine or the only copy of a block was lost.",
    )
    visit_timeout_seconds: PositiveFloat = Field(
        default=3600.0,
        description="A visit that takes longer counts as a failed node. What the driver's side "
        "stores or judges has as long, and an hour at least.",
    )


class StorageConfig(Section):
    """Where runs are kept."""

    uri: str = Field(
        default="runs",
        description="Folder of runs: a local path, `s3://bucket/prefix` or `gs://bucket/prefix`.",
    )
    timeout_seconds: PositiveFloat = Field(
        default=60.0, description="How long one storage operation may take."
    )
