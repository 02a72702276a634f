import asyncio

import pytest
from fakes import FakeLauncher, FakeNode, Fault, run, until

from ray_snake.data import ShardSource
from ray_snake.errors import DataError, NodeFailedError
from ray_snake.runtime.events import NodeLost, NodeMoved, NodeReady
from ray_snake.runtime.handles import StartedNode
from ray_snake.runtime.messages import NodeSpec
from ray_snake.runtime.roster import Roster

NAMES = ("north", "east", "south", "west", "middle")


class GatedLauncher:
    """Starts a process when the test lets it; knows which are starting."""

    def __init__(self, cluster):
        self._cluster = cluster
        self._gates = {}
        self.begun = []
        self.starting = set()
        self.killed = []
        self.left = []
        self.going = []

    async def launch(self, group):
        self.begun.append(group)
        self.starting.add(group)
        try:
            await self._gates.setdefault(group, asyncio.Event()).wait()
        finally:
            self.starting.discard(group)
        if group == (3,):
            raise DataError("west.arrow", "has no rows", "leave it out")
        return {n: StartedNode(handle=FakeNode(self._cluster, n), samples=n) for n in group}

    def let(self, group):
        self._gates.setdefault(group, asyncio.Event()).set()

    def kill(self, group):
        self.killed.append(group)

    def join(self, node, spec):
        pass

    def leave(self, node):
        self.left.append(node)

    async def to_move(self):
        return self.going


def groups_of(nodes, size):
    return [tuple(range(one, min(one + size, nodes))) for one in range(0, nodes, size)]


def make(launcher, groups, *, window=2, timeout=20.0, restarts=3, emit=lambda event: None):
    return Roster(
        names=NAMES,
        groups=groups,
        launcher=launcher,
        window=window,
        start_timeout=timeout,
        restarts=restarts,
        emit=emit,
    )


def test_the_first_starts_alone_and_the_others_a_few_at_a_time_in_order(cluster):
    launcher = GatedLauncher(cluster)

    async def scenario():
        roster = make(launcher, groups_of(5, 1))
        roster.begin([4, 2, 0, 1])
        await until(lambda: launcher.starting)
        for _ in range(20):
            await asyncio.sleep(0)
        alone = set(launcher.starting)
        launcher.let((4,))
        await until(lambda: len(launcher.starting) == 2)
        for _ in range(20):
            await asyncio.sleep(0)
        window = set(launcher.starting)
        launcher.let((0,))
        await until(lambda: (1,) in launcher.starting)
        await roster.close()
        return alone, window

    alone, window = run(scenario())
    assert alone == {(4,)}
    assert window == {(2,), (0,)}
    assert launcher.begun == [(4,), (2,), (0,), (1,)]


def test_a_node_can_be_used_before_the_others_are_up(cluster):
    launcher = GatedLauncher(cluster)

    async def scenario():
        roster = make(launcher, groups_of(2, 1))
        roster.begin([1, 0])
        launcher.let((1,))
        handle = await roster.node(1)
        up = [roster.if_up(node) for node in range(2)]
        await roster.close()
        return handle, up

    handle, up = run(scenario())
    assert up == [None, handle]


def test_a_node_that_nobody_began_starts_when_it_is_asked_for(cluster):
    """A strategy of a user's own may leave it out of the first trips."""

    async def scenario():
        launcher = GatedLauncher(cluster)
        launcher.let((0,))
        launcher.let((1,))
        roster = make(launcher, groups_of(2, 1))
        roster.begin([0])
        handle = await roster.node(1)
        up = roster.if_up(1)
        await roster.close()
        return handle, up

    handle, up = run(scenario())
    assert up is handle


def test_nodes_of_one_process_start_once(cluster):
    events = []

    async def scenario():
        roster = make(FakeLauncher(cluster), groups_of(3, 2), emit=events.append)
        roster.begin([0, 1, 2])
        first, second = await roster.node(0), await roster.node(1)
        await roster.node(2)
        await roster.close()
        return first, second

    first, second = run(scenario())
    assert first is not second
    assert cluster.launched == [(0, 1), (2,)]
    ready = [(one.node, one.name, one.samples) for one in events if isinstance(one, NodeReady)]
    assert ready == [(0, "north", 8), (1, "east", 8), (2, "south", 8)]


def test_a_start_that_takes_too_long_names_the_node_and_the_setting(cluster):
    cluster.faults["launch", 1] = [Fault.HANGS]

    async def scenario():
        roster = make(FakeLauncher(cluster), groups_of(2, 1), timeout=0.05)
        roster.begin([1, 0])
        with pytest.raises(NodeFailedError) as caught:
            await roster.node(1)
        await roster.close()
        return str(caught.value)

    message = run(scenario())
    assert "node east did not start within 0.05 s" in message
    assert "nodes.start_timeout_seconds" in message
    assert (1,) in cluster.killed


def test_a_process_that_dies_while_it_starts_is_started_again(cluster):
    cluster.faults["launch", 0] = [Fault.DIES, Fault.DIES]
    events = []

    async def scenario():
        roster = make(FakeLauncher(cluster), [(0,)], restarts=2, emit=events.append)
        roster.begin([0])
        await roster.node(0)
        await roster.close()

    run(scenario())
    assert cluster.launched == [(0,)] * 3
    assert [type(event) for event in events] == [NodeLost, NodeLost, NodeReady]


def test_starts_and_losses_share_one_budget(cluster):
    cluster.faults["launch", 0] = [Fault.DIES]

    async def scenario():
        roster = make(FakeLauncher(cluster), [(0,)], restarts=2)
        roster.begin([0])
        await roster.node(0)
        assert roster.lost(0, "out of memory") == (0,)
        await roster.node(0)
        with pytest.raises(NodeFailedError, match=r"node north .*out of memory"):
            roster.lost(0, "out of memory")
        await roster.close()

    run(scenario())


def test_a_lost_node_comes_back_as_another_process(cluster):
    async def scenario():
        roster = make(FakeLauncher(cluster), [(0, 1), (2,)])
        roster.begin([0, 1, 2])
        before, bystander = await roster.node(0), await roster.node(2)
        assert roster.lost(1, "killed") == (0, 1)
        up_meanwhile = {node for node in range(3) if roster.if_up(node)}
        after = await roster.node(0)
        assert await roster.node(2) is bystander
        await roster.close()
        return before is after, up_meanwhile

    assert run(scenario()) == (False, {2})
    assert cluster.launched == [(0, 1), (2,), (0, 1)]


def test_one_node_that_can_not_start_surfaces_for_all(cluster):
    launcher = GatedLauncher(cluster)

    async def scenario():
        roster = make(launcher, groups_of(4, 1))
        roster.begin([0, 3])
        launcher.let((0,))
        launcher.let((3,))
        await until(lambda: (3,) in launcher.begun and (3,) not in launcher.starting)
        with pytest.raises(DataError, match=r"west\.arrow"):
            roster.raise_failure()
        with pytest.raises(DataError, match=r"west\.arrow"):
            await roster.node(0)
        assert [node for node in range(4) if roster.if_up(node)] == [0]
        await roster.close()

    run(scenario())


def test_close_ends_what_is_up_and_what_is_starting(cluster):
    launcher = GatedLauncher(cluster)

    async def scenario():
        roster = make(launcher, groups_of(3, 1), window=1)
        roster.begin([0, 1, 2])
        launcher.let((0,))
        await roster.node(0)
        await until(lambda: launcher.starting)
        await roster.close()

    run(scenario())
    assert launcher.starting == set()
    assert sorted(launcher.killed) == [(0,), (1,), (2,)]
    assert (2,) not in launcher.begun


def test_beginning_again_leaves_running_nodes_alone(cluster):
    async def scenario():
        roster = make(FakeLauncher(cluster), groups_of(2, 1))
        roster.begin([0])
        handle = await roster.node(0)
        roster.begin([1, 0])
        assert await roster.node(0) is handle
        await roster.node(1)
        await roster.close()

    run(scenario())
    assert cluster.launched == [(0,), (1,)]


SPEC = NodeSpec(
    source=ShardSource(uri="/shards/late.arrow"),
    sample_shape=(2,),
    integer_inputs=False,
    samples=8,
    classes=2,
)


def test_a_recruit_counts_only_once_it_is_up(cluster):
    launcher = GatedLauncher(cluster)
    roster = make(launcher, groups_of(2, 1))

    async def story():
        recruiting = asyncio.create_task(roster.recruit(2, SPEC))
        await until(lambda: launcher.starting == {(2,)})
        assert roster.if_up(2) is None
        launcher.let((2,))
        await recruiting
        roster.admit(2, SPEC)
        assert roster.if_up(2) is not None
        assert launcher.begun == [(2,)]

    run(story())


def test_a_recruit_that_does_not_start_leaves_nothing_behind(cluster):
    launcher = GatedLauncher(cluster)
    roster = make(launcher, groups_of(2, 1), timeout=0.05)

    async def story():
        with pytest.raises(NodeFailedError, match="late did not start"):
            await roster.recruit(2, SPEC)
        roster.raise_failure()
        assert roster.if_up(2) is None
        assert (2,) in launcher.killed
        assert launcher.left == [2]

    run(story())


def test_a_process_is_ended_when_the_last_of_its_nodes_leaves(cluster):
    launcher = GatedLauncher(cluster)
    roster = make(launcher, groups_of(4, 2))

    async def story():
        roster.begin([0, 2])
        launcher.let((0, 1))
        await roster.node(0)
        roster.leave(0)
        assert launcher.killed == []
        roster.leave(1)
        assert launcher.killed == [(0, 1)]
        # Again, as when the journal is read again.
        roster.leave(1)
        assert launcher.killed == [(0, 1)]
        await roster.close()

    run(story())


def test_moving_and_machines_that_went_count_as_no_loss(cluster):
    launcher = GatedLauncher(cluster)
    events = []
    roster = make(launcher, groups_of(2, 2), restarts=0, emit=events.append)

    async def story():
        roster.begin([0])
        launcher.let((0, 1))
        first = await roster.node(0)
        roster.move((0, 1))
        second = await roster.node(0)
        assert roster.lost(1, "its machine went", machine_went=True) == (0, 1)
        third = await roster.node(0)
        assert len({id(one) for one in (first, second, third)}) == 3
        with pytest.raises(NodeFailedError):
            roster.lost(1, "out of memory")

    run(story())
    moved = [event for event in events if isinstance(event, NodeMoved)]
    assert [(event.node, event.name) for event in moved] == [(0, "north"), (1, "east")]


def test_only_processes_that_are_up_are_moved(cluster):
    launcher = GatedLauncher(cluster)
    launcher.going = [(0,), (1,)]
    roster = make(launcher, groups_of(2, 1))

    async def story():
        roster.begin([0, 1])
        launcher.let((0,))
        await roster.node(0)
        assert await roster.to_move() == [(0,)]
        await roster.close()

    run(story())
