"""What the driver tells whoever watches a run, in order. All events are plain and picklable."""

from __future__ import annotations

from dataclasses import dataclass

from ray_snake.planning.span import Visit
from ray_snake.runtime.records import EvaluationRecord, VisitRecord


@dataclass(frozen=True, kw_only=True)
class Preparing:
    """What is going on before the driver is up, in words such as `starting Ray`."""

    what: str


@dataclass(frozen=True, kw_only=True)
class RunStarted:
    """The driver knows the whole plan.

    Attributes:
        nodes: The nodes' names, in node order, of those that left too.
        block_names: The blocks' names, in block order.
        block_bytes: Bytes of each block's weights and buffers, then of the blocks' bases.
        trips: Trips in the whole run.
        visits: Visits in the whole run, as long as nobody joins or leaves.
        done: Visits that the journal already held (a resumed run).
        left: Numbers of the nodes that left before.
    """

    nodes: tuple[str, ...]
    block_names: tuple[str, ...]
    block_bytes: tuple[int, ...]
    trips: int
    visits: int
    done: int
    left: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class NodeReady:
    """A node has opened its shard and can train. `samples` are its rows."""

    node: int
    name: str
    samples: int
    seconds: float


@dataclass(frozen=True, kw_only=True)
class NodeLost:
    """A node's process died or stopped answering; it is started again, its visit done again."""

    node: int
    name: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class NodeJoined:
    """A node takes part from the next trip on.

    Attributes:
        node: Its number: that of the nodes before it.
        name: Its name.
        samples: Its rows.
        visits: Visits in the whole run, from now on.
    """

    node: int
    name: str
    samples: int
    visits: int


@dataclass(frozen=True, kw_only=True)
class NodeLeft:
    """A node takes part no more. `visits` are those in the whole run, from now on."""

    node: int
    name: str
    visits: int


@dataclass(frozen=True, kw_only=True)
class NodeMoved:
    """A node is started again elsewhere, as its machine is about to go."""

    node: int
    name: str


@dataclass(frozen=True, kw_only=True)
class Recovering:
    """Something that the run can't do without was lost; it goes back to its journal."""

    reason: str


@dataclass(frozen=True, kw_only=True)
class VisitStarted:
    """A node was sent a visit."""

    visit: Visit


@dataclass(frozen=True, kw_only=True)
class VisitProgress:
    """How far the visit under way is: `step` of `steps` optimizer steps, running mean `loss`."""

    visit: int
    step: int
    steps: int
    loss: float


@dataclass(frozen=True, kw_only=True)
class VisitLate:
    """A visit has passed its deadline, after so many seconds, and is asked to end."""

    visit: Visit
    seconds: float


@dataclass(frozen=True, kw_only=True)
class VisitDecided:
    """A visit was accepted or refused, and the journal has it."""

    record: VisitRecord


@dataclass(frozen=True, kw_only=True)
class Evaluated:
    """An evaluation ended, and the journal has it."""

    record: EvaluationRecord


@dataclass(frozen=True, kw_only=True)
class RunEnded:
    """All visits are decided and stored.

    Attributes:
        weights_sha256: SHA-256 of the final weights, hexadecimal.
    """

    weights_sha256: str


Event = (
    Preparing
    | RunStarted
    | NodeReady
    | NodeLost
    | NodeJoined
    | NodeLeft
    | NodeMoved
    | Recovering
    | VisitStarted
    | VisitProgress
    | VisitLate
    | VisitDecided
    | Evaluated
    | RunEnded
)
