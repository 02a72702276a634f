"""A cluster without processes, for stepping the driver: handles whose faults tests choose.

A fake block is a hash over all that a real visit's result depends on. So equal sums at the end mean
that every visit saw the same blocks, seed and learning rate, whatever went wrong on the way.
"""

import asyncio
import enum
import hashlib
import math
from collections import defaultdict
from dataclasses import dataclass, field, replace

from ray_snake.config import SnakeConfig, TrainingConfig
from ray_snake.data import ShardSource
from ray_snake.errors import DataError, VisitFailedError
from ray_snake.runtime.crew import Crew
from ray_snake.runtime.driver import Driver
from ray_snake.runtime.handles import BlocksLostError, ProcessLostError, StartedNode
from ray_snake.runtime.messages import BlockTable, EvaluationReport, NodeSpec, VisitReport
from ray_snake.runtime.placement import group_nodes
from ray_snake.runtime.records import BlockRecord
from ray_snake.runtime.registrar import Registrar
from ray_snake.runtime.requests import Mailbox
from ray_snake.runtime.roster import Roster

BLOCK_BYTES = 10
DELTA_BYTES = 3
SENT_BYTES = 7
RECEIVED_BYTES = 5
DEADLINE_SECONDS = 60.0

GOOD_REPORT = VisitReport(
    samples=8,
    steps=2,
    loss=0.5,
    first_loss=1.0,
    accuracy=0.5,
    update_norm=None,
    finite=True,
    parcel_bytes=(),
    pull_seconds=0.0,
    train_seconds=0.0,
)


class Fault(enum.Enum):
    """What goes wrong when a process is asked for something."""

    DIES = enum.auto()
    HANGS = enum.auto()
    LACKS_BLOCKS = enum.auto()
    DIVERGES = enum.auto()
    RAISES = enum.auto()
    DAWDLES = enum.auto()


@dataclass(frozen=True)
class FakeBlock:
    """A block version; driver and ledger only pass it on.

    `of` is the whole block that this one is the difference from: only who has that can use it.
    """

    block: int
    version: int
    content: str
    of: "FakeBlock | None" = None
    served: bool = field(default=False, compare=False)

    def whole(self):
        return replace(self, of=None)


def digest(*parts):
    return hashlib.sha256(repr(parts).encode()).hexdigest()


@dataclass
class FakeCluster:
    """What the fakes share: the faults to come, and a log of what was asked.

    Attributes:
        faults: The next faults of a call, by (method, number): of a visit, a node to launch, or
            how often an engine method was called, from 1.
        stored: Block versions on the fake storage.
        visits: Each (task, refs) that a node was sent; refs by block.
        fetched: Each (node, visits sent so far, refs) that a node was told to fetch.
        machines: The machine of each node that is not alone on one.
        nodes: Each node as it was started last.
        released: Each (node, block, version).
        launched: Each group, in order.
        killed: Likewise.
        calls: Engine calls by method.
        store_gate: Storing waits until it is set.
        readings: What the meter reads next, by machine; nothing once they are used up.
        draining: Groups whose machine is about to go, until they are launched again.
        at_hand: Contents, by number, of bases that every node has from elsewhere.
        delays: How often an engine method gives way to other tasks before it begins.
    """

    faults: dict[tuple[str, int], list[Fault]] = field(default_factory=dict)
    stored: dict[tuple[int, int], FakeBlock] = field(default_factory=dict)
    visits: list = field(default_factory=list)
    fetched: list = field(default_factory=list)
    machines: dict[int, str] = field(default_factory=dict)
    nodes: dict = field(default_factory=dict)
    released: list = field(default_factory=list)
    launched: list = field(default_factory=list)
    killed: list = field(default_factory=list)
    calls: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    store_gate: asyncio.Event | None = None
    readings: list = field(default_factory=list)
    draining: set = field(default_factory=set)
    at_hand: dict[int, str] = field(default_factory=dict)
    delays: dict[str, int] = field(default_factory=dict)
    joined: dict[int, NodeSpec] = field(default_factory=dict)

    async def examine(self, source, entry):
        """Find eight rows in every shard but those called `empty`; none answers of one `away`.

        One that is called `small` streams.
        """
        if source.name == "away":
            raise BlocksLostError("the cluster does not answer")
        if source.name == "empty":
            raise DataError(source.name, "has no rows", "leave that node out")
        training = TrainingConfig(residency="stream") if source.name == "small" else None
        return NodeSpec(
            source=source,
            sample_shape=(2,),
            integer_inputs=False,
            samples=8,
            classes=2,
            training=training,
        )

    async def take_fault(self, method, number):
        """Do the next fault of this call, if one is left; return it if it is the caller's to do."""
        faults = self.faults.get((method, number))
        if not faults:
            return None
        fault = faults.pop(0)
        match fault:
            case Fault.DIES:
                raise ProcessLostError(f"{method} {number} died")
            case Fault.LACKS_BLOCKS:
                raise BlocksLostError(f"{method} {number} could not get a block")
            case Fault.RAISES:
                raise VisitFailedError(f"{method} {number} failed", "correct the model")
            case Fault.HANGS:
                await asyncio.Event().wait()
        return fault


class FakeNode:
    """A node that checks what a real one needs: exactly the versions that its task names.

    Of a visit with a cut it has the front; the back comes with the task, as the server gets it.
    """

    def __init__(self, cluster, number):
        self._cluster = cluster
        self._number = number
        self.machine = cluster.machines.get(number, f"machine-{number}")
        self.bases = dict(cluster.at_hand)
        self._held = {(one, 0): FakeBlock(one, 0, content) for one, content in self.bases.items()}
        self.received = []
        self.stopped = False
        self._told_to_finish = asyncio.Event()
        cluster.nodes[number] = self

    async def visit(self, task, deliveries):
        refs = {one.block: one.ref for one in deliveries}
        self._cluster.visits.append((task, refs))
        self._told_to_finish.clear()
        fault = await self._cluster.take_fault("visit", task.visit.number)
        if fault is Fault.DAWDLES:
            await self._told_to_finish.wait()
        assert task.visit.node == self._number
        inputs = {one.block: self._take(one) for one in deliveries}
        assert all(task.visit.on_node(block) for block in inputs)
        assert all(not task.visit.on_node(one.block) for one in task.back)
        inputs |= {one.block: one.ref for one in task.back}
        trained = task.visit.trained
        for block, version in enumerate(task.versions):
            if (block, version) in self._held:
                inputs[block] = self._held[block, version]
            assert inputs[block].version == version
        bases = {} if task.anchors is None else {b: self._held[b, task.anchors[b]] for b in trained}
        content = digest(
            [inputs[block].content for block in sorted(inputs)],
            [bases[block].content for block in bases],
            task.seed,
            task.learning_rate,
            self._number,
        )
        for block in trained:
            if task.anchors is None or task.anchors[block] != task.versions[block]:
                self._held.pop((block, task.versions[block]), None)
        size = BLOCK_BYTES if task.anchors is None else DELTA_BYTES
        own = [block for block in trained if task.visit.on_node(block)]
        report = replace(GOOD_REPORT, parcel_bytes=(size,) * len(own))
        if task.visit.cut is not None:
            report = replace(report, sent_bytes=SENT_BYTES, received_bytes=RECEIVED_BYTES)
        if fault is Fault.DIVERGES:
            report = replace(report, finite=False, update_norm=math.inf)
        version = task.visit.number
        return report, {b: FakeBlock(b, version, digest(content, b), bases.get(b)) for b in trained}

    async def fetch(self, deliveries):
        refs = {one.block: one.ref for one in deliveries}
        self._cluster.fetched.append((self._number, len(self._cluster.visits), refs))
        await self._cluster.take_fault("fetch", self._number)
        taken = [self._take(one) for one in deliveries]
        return [made for made, one in zip(taken, deliveries, strict=True) if one.base is not None]

    def _take(self, delivery):
        """Hold what came whole, or decode what did not, if its base is there."""
        block = delivery.ref
        self.received.append(delivery.block)
        assert (block.block, block.version) == (delivery.block, delivery.version)
        if delivery.base is None:
            assert block.of is None
            self._held[block.block, block.version] = block
            return block
        assert block.of == self._held[block.block, delivery.base]
        return block.whole()

    async def progress(self):
        return (1, 2, 0.75)

    def stop(self):
        self.stopped = True

    def finish(self):
        self._told_to_finish.set()

    def release(self, block, version):
        self._cluster.released.append((self._number, block, version))
        self._held.pop((block, version), None)


class FakeLauncher:
    def __init__(self, cluster):
        self._cluster = cluster
        self._left = set()

    async def launch(self, group):
        self._cluster.launched.append(group)
        await self._cluster.take_fault("launch", group[0])
        self._cluster.draining.discard(group)
        return {
            node: StartedNode(handle=FakeNode(self._cluster, node), samples=8)
            for node in group
            if node not in self._left
        }

    def kill(self, group):
        self._cluster.killed.append(group)

    def join(self, node, spec):
        self._cluster.joined[node] = spec
        self._left.discard(node)

    def leave(self, node):
        self._left.add(node)

    async def to_move(self):
        return [group for group in self._cluster.draining if group in self._cluster.launched]


class FakeMeter:
    """Counts what the cluster's nodes were sent, where a test lets it."""

    def __init__(self, cluster):
        self._cluster = cluster

    async def received(self):
        if self._cluster.readings:
            return self._cluster.readings.pop(0)
        return {}


class FakeEngine:
    def __init__(self, cluster, blocks):
        self.machine = "driver's machine"
        self._cluster = cluster
        self._blocks = blocks

    async def _called(self, method):
        self._cluster.calls[method] += 1
        for _ in range(self._cluster.delays.get(method, 0)):
            await asyncio.sleep(0)
        await self._cluster.take_fault(method, self._cluster.calls[method])

    async def start(self):
        await self._called("start")

    async def initial(self):
        await self._called("initial")
        return [FakeBlock(block, 0, digest("initial", block)) for block in range(self._blocks)]

    async def restore(self, blocks):
        await self._called("restore")
        found = [self._cluster.stored[one.block, one.version] for one in blocks]
        assert [one.content for one in found] == [one.checksum for one in blocks]
        self._cluster.stored = {(one.block, one.version): one for one in found}
        return found

    async def serve(self, refs, bases):
        await self._called("serve")
        served = [replace(one, served=True) for one in refs]
        return served, (self._decoded(served, bases) if bases else served)

    async def decode(self, refs, bases):
        await self._called("decode")
        return self._decoded(refs, bases)

    @staticmethod
    def _decoded(refs, bases):
        assert [one.of for one in refs] == list(bases)
        return [one.whole() for one in refs]

    async def average(self, version, parts):
        await self._called("average")
        return [
            FakeBlock(
                block, version, digest("mean", [(one.content, weight) for one, weight in of_block])
            )
            for block, of_block in parts.items()
        ]

    async def store(self, refs):
        if self._cluster.store_gate is not None:
            await self._cluster.store_gate.wait()
        await self._called("store")
        assert all(one.of is None for one in refs)
        self._cluster.stored.update({(one.block, one.version): one for one in refs})
        return tuple(
            BlockRecord(
                block=one.block, version=one.version, bytes=BLOCK_BYTES, checksum=one.content
            )
            for one in refs
        )

    async def update_norm(self, refs, superseded):
        await self._called("update_norm")
        assert [one.block for one in refs] == [one.block for one in superseded]
        return float(
            sum(new.version - old.version for new, old in zip(refs, superseded, strict=True))
        )

    async def discard(self, blocks):
        await self._called("discard")
        for key in blocks:
            self._cluster.stored.pop(key, None)

    async def evaluate(self, refs):
        await self._called("evaluate")
        return EvaluationReport(samples=4, loss=0.25, accuracy=0.5, seconds=0.0)

    async def weights_sha256(self, refs):
        await self._called("weights_sha256")
        return digest([one.content for one in refs])


def make_driver(
    cluster, config, storage, *, nodes=3, blocks=4, evaluates=False, emit=None, costs=(), bases=0
):
    """Return a driver of fakes with these numbers of nodes, blocks and bases, and with costs."""
    names = [f"clinic-{node}" for node in range(nodes)]
    emit = emit or (lambda event: None)
    shards = [ShardSource(uri=name) for name in names]
    crew = Crew(names=names, rows=[8] * nodes)
    roster = Roster(
        names=names,
        groups=[group.nodes for group in group_nodes(config.nodes, shards)],
        launcher=FakeLauncher(cluster),
        window=2,
        start_timeout=config.nodes.start_timeout_seconds,
        restarts=config.failures.node_restarts,
        emit=emit,
    )
    registrar = Registrar(
        mailbox=Mailbox(storage),
        crew=crew,
        roster=roster,
        config=config,
        examine=cluster.examine,
        emit=emit,
    )
    return Driver(
        config=config,
        crew=crew,
        blocks=BlockTable(
            names=tuple(f"block{block}" for block in range(blocks)),
            bytes=(BLOCK_BYTES,) * (blocks + bases),
            costs=costs,
        ),
        storage=storage,
        engine=FakeEngine(cluster, blocks + bases),
        roster=roster,
        registrar=registrar,
        meter=FakeMeter(cluster),
        evaluates=evaluates,
        emit=emit,
    )


def make_config(**sections):
    """Return settings for three trips; each keyword is a section's values."""
    return SnakeConfig.from_tree(
        {"seed": 3, **sections, "snake": {"trips": 3, **sections.get("snake", {})}}
    )


def run(awaitable):
    """Run to the end, or fail where it would hang."""

    async def bounded():
        return await asyncio.wait_for(awaitable, DEADLINE_SECONDS)

    return asyncio.run(bounded())


async def until(condition):
    """Give way to other tasks until a condition holds."""

    async def poll():
        while not condition():
            await asyncio.sleep(0.001)

    await asyncio.wait_for(poll(), DEADLINE_SECONDS)
