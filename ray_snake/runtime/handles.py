"""What the driver needs of the processes it directs. Ray gives one form of it, tests another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from ray_snake.runtime.messages import (
    Delivery,
    EvaluationReport,
    NodeSpec,
    VisitReport,
    VisitTask,
)
from ray_snake.runtime.records import BlockRecord

Ref = Any
"""A block version somewhere: an `ObjectRef`, or whatever a test passes on in its place."""


class ProcessLostError(Exception):
    """A process died, stopped answering, or took too long; the text says which and why.

    Args:
        reason: The text.
        machine_went: Whether it died with a machine that was taken away.
    """

    def __init__(self, reason: str, *, machine_went: bool = False) -> None:
        super().__init__(reason)
        self.machine_went = machine_went


class BlocksLostError(Exception):
    """The only copy of a block version died with its machine; storage has the last accepted."""


class NodeHandle(Protocol):
    """One node."""

    @property
    def machine(self) -> str:
        """The machine it is on: nodes with the same one share an object store."""

    @property
    def bases(self) -> Mapping[int, str]:
        """Checksums, by number, of the bases that it has from the model's own files."""

    async def visit(
        self, task: VisitTask, deliveries: Sequence[Delivery]
    ) -> tuple[VisitReport, Mapping[int, Ref]]:
        """Train; return the report and the refs of the trained blocks as they travel.

        Of a visit with a cut, the node has the server train the blocks from there on; their refs,
        at the driver's side, come back with the node's.

        Args:
            task: What to do.
            deliveries: The block versions that the node lacks; differences of trained blocks only.

        Raises:
            ProcessLostError: If the node died on the way.
            BlocksLostError: If a block could not be pulled any more, or the server died with what
                it had trained.
            SnakeError: If the visit can't be done at all.
        """

    async def fetch(self, deliveries: Sequence[Delivery]) -> list[Ref]:
        """Have block versions pulled ahead of a visit; return when they are there.

        The node holds those that came whole. Of differences it makes whole versions, and returns
        their refs in the order given: objects in the store of its machine, for all nodes there.

        Raises:
            ProcessLostError: If the node died on the way.
            BlocksLostError: If a block could not be pulled any more.
        """

    async def progress(self) -> tuple[int, int, float] | None:
        """Return (step, steps, running mean loss) of the visit under way, or none if unknown."""

    def stop(self) -> None:
        """Ask the visit under way to end before its next step; don't wait."""

    def finish(self) -> None:
        """Ask the visit under way to end with the steps that it made so far; don't wait."""

    def release(self, block: int, version: int) -> None:
        """Tell the node to let go of a superseded version; don't wait."""


@dataclass(frozen=True, kw_only=True)
class StartedNode:
    """A node that has opened its shard."""

    handle: NodeHandle
    samples: int


class NodeLauncher(Protocol):
    """Starts and ends the processes that host nodes."""

    async def launch(self, group: tuple[int, ...]) -> dict[int, StartedNode]:
        """Start one process for these nodes and return them once all have opened their shards.

        Raises:
            ProcessLostError: If the process died on the way.
            SnakeError: If it can't be started, or a shard can't be used.
        """

    def kill(self, group: tuple[int, ...]) -> None:
        """End the process of these nodes, if there is one."""

    def join(self, node: int, spec: NodeSpec) -> None:
        """Take note of a node of a process of its own, which is to be launched."""

    def leave(self, node: int) -> None:
        """Take note that a node is to be launched no more, nor any process for it alone."""

    async def to_move(self) -> list[tuple[int, ...]]:
        """Return the nodes of each process whose machine is about to go, if others have room."""


class Meter(Protocol):
    """Counts what really moves between machines."""

    async def received(self) -> Mapping[str, int]:
        """Return bytes that each machine has received from others so far, as last reported.

        Machines go by their names in the journal. {} where there is nothing to count.
        """


class EngineHandle(Protocol):
    """The process engine. Each method raises ProcessLostError if its process died."""

    @property
    def machine(self) -> str:
        """The machine it is on: the driver's."""

    async def start(self) -> None:
        """Start the process, anew if it had died."""

    async def initial(self) -> list[Ref]:
        """Return version 0 of every block."""

    async def restore(self, blocks: Sequence[BlockRecord]) -> list[Ref]:
        """Return stored block versions; all other stored versions of these blocks are deleted."""

    async def serve(self, refs: Sequence[Ref], bases: Sequence[Ref]) -> tuple[list[Ref], list[Ref]]:
        """Pull trained blocks and check them.

        Args:
            refs: The blocks as they travel.
            bases: The whole versions that they are the difference from; empty for whole ones.

        Returns:
            Refs from which nodes pull the same objects here, and refs of the blocks whole.

        Raises:
            VisitFailedError: If a block has other shapes than the network's.
            BlocksLostError: If a block could not be pulled any more.
        """

    async def decode(self, refs: Sequence[Ref], bases: Sequence[Ref]) -> list[Ref]:
        """Pull differences from these bases; return refs of the blocks whole.

        Raises:
            BlocksLostError: If a block could not be pulled any more.
        """

    async def average(
        self, version: int, parts: Mapping[int, Sequence[tuple[Ref, float]]]
    ) -> list[Ref]:
        """Return weighted means of blocks, in the order of `parts`.

        Args:
            version: What the averages' version is to be.
            parts: By block, what to average, with weights.
        """

    async def store(self, refs: Sequence[Ref]) -> tuple[BlockRecord, ...]:
        """Write block versions to storage; return when they are there."""

    async def update_norm(self, refs: Sequence[Ref], superseded: Sequence[Ref]) -> float:
        """Return the L2 norm of the change from the superseded versions' weights to these.

        Raises:
            BlocksLostError: If a block could not be pulled any more.
        """

    async def discard(self, blocks: Sequence[tuple[int, int]]) -> None:
        """Delete superseded (block, version) pairs from storage."""

    async def evaluate(self, refs: Sequence[Ref]) -> EvaluationReport:
        """Judge the model that consists of these blocks."""

    async def weights_sha256(self, refs: Sequence[Ref]) -> str:
        """Return SHA-256 over all blocks (hexadecimal)."""
