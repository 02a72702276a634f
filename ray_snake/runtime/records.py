"""The journal's records: what is written down of a run, and how each line is read."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from ray_snake.config import TrainingConfig
from ray_snake.planning.cost import BlockCost
from ray_snake.planning.outlook import Outcome
from ray_snake.planning.span import Span, Visit

DRIVER = "driver"
"""What a transfer calls the driver's side."""


class Record(BaseModel):
    """A line of the journal."""

    model_config = ConfigDict(frozen=True, extra="ignore", ser_json_inf_nan="constants")


class BlockRecord(Record):
    """A block version that a visit produced.

    Attributes:
        block: The block's number.
        version: The visit that produced it; 0 for the initial weights.
        bytes: Size of its arrays.
        checksum: XXH3-128 of its arrays, hexadecimal.
    """

    block: int
    version: int
    bytes: int
    checksum: str


class StartRecord(Record):
    """A run's first record: the initial weights are stored.

    Attributes:
        blocks: Version 0 of every block, in block order.
        costs: What each block costs, measured where the run was started; empty unless it adapts.
        rows: Rows of each node's shard, by number.
        finished_at: Unix time at which they were stored.
    """

    kind: Literal["start"] = "start"
    blocks: tuple[BlockRecord, ...]
    costs: tuple[BlockCost, ...] = ()
    rows: tuple[int, ...] = ()
    finished_at: float


class Transfer(Record):
    """A block that went from one machine to another, or what a visit's batches exchanged.

    Attributes:
        source: The node that made it, or `driver`: the driver's side.
        target: The node that pulled it, or `driver`.
        bytes: Bytes of its arrays as they travelled.
        objects: In how many objects they went.
    """

    source: str
    target: str
    bytes: int
    objects: int = 1


class VisitRecord(Record):
    """One decided visit. Losses are means over samples; bytes count arrays; times are seconds.

    Attributes:
        visit: The visit's number, from 1.
        trip: The trip it belongs to, from 1.
        node: The node's number, from 0.
        node_name: The node's name, as the user knows it.
        machine: The machine it was on; nodes with the same one share an object store.
        span: First block and the block after the last.
        trained: All blocks it trained, the ends included.
        learning_rate: The visit's learning rate.
        accepted: Whether its result became part of the model.
        reason: Why it was refused; empty for an accepted visit.
        samples: Samples seen by the optimizer.
        steps: Optimizer steps.
        loss: Mean training loss over the last epoch (the whole loss, all terms).
        first_loss: The same over the first epoch.
        accuracy: Training accuracy over the last epoch; none where labels are not classes.
        update_norm: L2 norm of the change to the trained weights; none for a visit that was
            refused before anyone had to measure it.
        bytes_pulled: Bytes of the block versions that the node lacked, as they travel; to a node
            that is alone on its machine.
        bytes_returned: Bytes of the block versions that it returned, as they travel.
        exchanged_bytes: With a cut, what the node and the server exchanged: every batch's
            activations, labels and gradients, and the node's label counts.
        transfers: What went between machines for it: to the node, and from it to the driver's side.
        pull_seconds: Getting those blocks and loading them into the network.
        train_seconds: From the first batch, of the prefix or else of training, to the last step.
        seconds: From sending the visit to its decision, as the driver sees it.
        finished_at: Unix time of the decision.
        blocks: The block versions produced; empty for a refused visit. The last record of visits
            that were averaged has the averages, and so has a run's last that ends in a mean.
        averaged: Whether its result was averaged with others.
        ends_round: Whether it is the last one of those.
        place: Number of the span among the snake's; none for a visit to none of them.
        planned_steps: The steps it was to make, where the driver chose them; else none.
        why: What made the driver leave the fixed order; empty where it did not.
        late: Whether it was stopped at its deadline.
        predicted_seconds: What `seconds` was predicted to be when the node was sent the visit;
            none if nothing was.
        predicted_bytes: The node's own peak memory, likewise.
        fetch_seconds: The part of `seconds` until the node had what is fetched ahead of visits.
        pull_bytes: Bytes that it waited for in `pull_seconds`; others had been fetched ahead.
        free_bytes: Free memory of its machine at its end; none if unknown.
        staleness: How many results came in between its start and its decision.
        versions: With several heads, the version of each block that it started from.
    """

    kind: Literal["visit"] = "visit"
    visit: int
    trip: int
    node: int
    node_name: str
    machine: str = ""
    span: tuple[int, int]
    trained: tuple[int, ...]
    learning_rate: float
    accepted: bool
    reason: str = ""
    samples: int
    steps: int
    loss: float
    first_loss: float
    accuracy: float | None
    update_norm: float | None = None
    bytes_pulled: int
    bytes_returned: int
    exchanged_bytes: int = 0
    transfers: tuple[Transfer, ...] = ()
    pull_seconds: float
    train_seconds: float
    seconds: float
    finished_at: float
    blocks: tuple[BlockRecord, ...] = ()
    averaged: bool = False
    ends_round: bool = False
    place: int | None = None
    planned_steps: int | None = None
    why: str = ""
    late: bool = False
    predicted_seconds: float | None = None
    predicted_bytes: int | None = None
    fetch_seconds: float = 0.0
    pull_bytes: int = 0
    free_bytes: int | None = None
    staleness: int = 0
    versions: tuple[int, ...] = ()

    @property
    def planned(self) -> Visit:
        """The visit as it was handed out."""
        return Visit(
            number=self.visit,
            trip=self.trip,
            node=self.node,
            span=Span(*self.span),
            trained=self.trained,
            averaged=self.averaged,
            place=self.place,
            steps=self.planned_steps,
            why=self.why,
        )

    @property
    def outcome(self) -> Outcome:
        """What it took, for predictions of others."""
        return Outcome(
            visit=self.planned,
            steps=self.steps,
            train_seconds=self.train_seconds,
            seconds=self.seconds,
            pull_bytes=self.pull_bytes,
            pull_seconds=self.pull_seconds,
            fetch_seconds=self.fetch_seconds,
            free_bytes=self.free_bytes,
            late=self.late,
        )

    @property
    def prediction_error(self) -> float | None:
        """How far `seconds` was from its prediction, as a share; none if nothing was predicted."""
        if self.predicted_seconds is None or self.late or not self.seconds:
            return None
        return abs(self.predicted_seconds - self.seconds) / self.seconds

    @property
    def bytes_moved(self) -> int:
        """What moved for it, as if every node were alone on its machine, each block once.

        What the node pulled, what it returned to be averaged (else it counts where the next node
        pulls it), and what it exchanged with a server.
        """
        returned = self.bytes_returned if self.averaged else 0
        return self.bytes_pulled + returned + self.exchanged_bytes


class EvaluationRecord(Record):
    """The model after a visit, judged on held-out rows at the driver's side.

    Attributes:
        visit: The last visit whose result the model contains; 0 for the initial weights.
        trip: That visit's trip.
        samples: Rows judged.
        loss: Mean task loss over them; of a language model, over all tokens that count.
        accuracy: Share of rows whose class is right, or of tokens, in [0, 1]; none without
            classes.
        perplexity: Of a language model, the exponential of its loss; none of others.
        seconds: Time it took.
        finished_at: Unix time of its end.
    """

    kind: Literal["evaluation"] = "evaluation"
    visit: int
    trip: int
    samples: int
    loss: float
    accuracy: float | None
    perplexity: float | None = None
    seconds: float
    finished_at: float


class TrafficRecord(Record):
    """What machines had received from others, as their object managers count it.

    Attributes:
        visit: The last decided visit.
        driver_machine: The driver's machine.
        received: Bytes by machine since its raylet started; other jobs' count too.
        first: Whether a run started or went on here: differences are taken from here on.
        finished_at: Unix time of the reading.
    """

    kind: Literal["traffic"] = "traffic"
    visit: int
    driver_machine: str
    received: dict[str, int]
    first: bool
    finished_at: float


class JoinRecord(Record):
    """A node that takes part from the next trip on.

    Attributes:
        visit: The last decided visit.
        trip: The last trip that had begun.
        node: Its number: that of the nodes before it.
        name: Its name.
        uri: Its shard.
        rows: Rows of the shard.
        sample_shape: Shape of one input.
        integer_inputs: Whether inputs are whole numbers.
        classes: How many classes the network tells apart; none without class labels.
        training: How it trains, where that is not as the settings say.
        limit: Bytes of memory that it has, 0 without a limit; none: as `nodes.memory_bytes` says.
        request: The request that it was added by.
        finished_at: Unix time at which it joined.
    """

    kind: Literal["join"] = "join"
    visit: int
    trip: int
    node: int
    name: str
    uri: str
    rows: int
    sample_shape: tuple[int, ...]
    integer_inputs: bool
    classes: int | None
    training: TrainingConfig | None = None
    limit: int | None = None
    request: str
    finished_at: float


class LeaveRecord(Record):
    """A node that takes part no more: what the trip still had for it is dropped.

    Attributes:
        visit: The last decided visit.
        trip: The last trip that had begun.
        node: Its number.
        rows: Rows of its shard.
        request: The request that it was removed by.
        finished_at: Unix time at which it left.
    """

    kind: Literal["leave"] = "leave"
    visit: int
    trip: int
    node: int
    rows: int
    request: str
    finished_at: float


JournalRecord = (
    StartRecord | VisitRecord | EvaluationRecord | TrafficRecord | JoinRecord | LeaveRecord
)
ANY_RECORD: TypeAdapter[JournalRecord] = TypeAdapter(
    Annotated[JournalRecord, Field(discriminator="kind")]
)
