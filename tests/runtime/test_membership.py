"""Nodes join, leave and move while a run goes on; a resumed run has the same members and bits."""

import asyncio

import pytest
from fakes import FakeCluster, Fault, make_config, make_driver, run, until

from ray_snake.runtime import driver as driver_module
from ray_snake.runtime.events import (
    NodeJoined,
    NodeLeft,
    NodeLost,
    NodeMoved,
    VisitDecided,
    VisitStarted,
)
from ray_snake.runtime.journal import Journal
from ray_snake.runtime.records import EvaluationRecord, JoinRecord, LeaveRecord
from ray_snake.runtime.requests import AddRequest, Mailbox, RemoveRequest
from ray_snake.runtime.states import Failed, Finished
from ray_snake.storage import Storage

TRIPS = 4


@pytest.fixture(autouse=True)
def quick_looks(monkeypatch):
    """Let the driver look for requests every millisecond."""
    monkeypatch.setattr(driver_module, "LOOK_SECONDS", 0.001)


def config_of(**sections):
    return make_config(**{**sections, "snake": {"trips": TRIPS, **sections.get("snake", {})}})


def add(shard, **values):
    return AddRequest(uri=f"/shards/{shard}.arrow", **values)


def remove(node):
    return RemoveRequest(node=node, name=f"clinic-{node}")


class Scene:
    """A run in which requests are made during visits that end once the driver has prepared them.

    Visits with requests, be it none, wait for what `ready` says besides.
    """

    def __init__(
        self, storage, requests, *, config=None, cluster=None, emit=None, ready=None, **options
    ):
        self.cluster = FakeCluster() if cluster is None else cluster
        self.storage = storage
        self.mailbox = Mailbox(storage)
        self.requests = requests
        self.keys = {}
        self.events = []
        self._tell = emit or (lambda event: None)
        self._is_ready = ready or (lambda: True)
        for visit in requests:
            self.cluster.faults.setdefault(("visit", visit), []).insert(0, Fault.DAWDLES)
        self.driver = make_driver(
            self.cluster, config or config_of(), storage, emit=self._on_event, **options
        )
        self.registrar = self.driver._registrar

    def _on_event(self, event):
        self.events.append(event)
        self._tell(event)
        if isinstance(event, VisitStarted) and event.visit.number in self.requests:
            number = event.visit.number
            wanted = self.requests[number]
            if number not in self.keys:
                self.keys[number] = [self.mailbox.post(one) for one in wanted]

    def _is_seen_to(self, key):
        return key in self.registrar.prepared or self.storage.exists(f"answers/{key}.json")

    async def _end_visits(self):
        for number in self.requests:
            await until(lambda number=number: number in self.keys)
            await until(lambda number=number: all(map(self._is_seen_to, self.keys[number])))
            await until(self._is_ready)
            await until(lambda number=number: self._is_ended(number))

    def _is_ended(self, number):
        if number in [event.record.visit for event in self.told(VisitDecided)]:
            return True
        # Again and again: its node may just be on its way to it.
        for task, _ in self.cluster.visits:
            if task.visit.number == number:
                self.cluster.nodes[task.visit.node].finish()
        return False

    def play(self):
        """Run to the end; return the last state."""

        async def both():
            ending = asyncio.create_task(self._end_visits())
            state = await self.driver.run()
            ending.cancel()
            await asyncio.gather(ending, return_exceptions=True)
            return state

        return run(both())

    def answer(self, visit, index=0):
        return self.mailbox.take_answer(self.keys[visit][index])

    def nodes(self):
        return [record.node for record in Journal(self.storage).visits]

    def told(self, kind):
        return [event for event in self.events if isinstance(event, kind)]


def test_a_node_that_joins_is_up_before_it_takes_part_in_the_next_trip(storage):
    scene = Scene(storage, {2: [add("north")]})
    state = scene.play()
    assert isinstance(state, Finished)
    assert scene.nodes() == [0, 1, 2, 3, 2, 1, 0, 0, 1, 2, 3, 3, 2, 1, 0]
    (record,) = Journal(storage).changes
    assert (record.visit, record.trip, record.node, record.name) == (2, 1, 3, "north")
    assert (record.uri, record.rows) == ("/shards/north.arrow", 8)
    answer = scene.answer(2)
    assert (answer.subject, answer.node, answer.name, answer.visit) == ("", 3, "north", 2)
    assert storage.list("requests") == []
    assert scene.told(NodeJoined) == [NodeJoined(node=3, name="north", samples=8, visits=15)]
    assert scene.cluster.launched.count((3,)) == 1


def test_a_node_that_leaves_finishes_its_visit_and_its_process_ends(storage):
    ended = []

    def on_event(event):
        if isinstance(event, NodeLeft):
            ended.append(list(scene.cluster.killed))

    scene = Scene(storage, {2: [remove(1)]}, emit=on_event)
    assert isinstance(scene.play(), Finished)
    assert scene.nodes() == [0, 1, 2, 2, 0, 0, 2, 2, 0]
    (record,) = Journal(storage).changes
    assert isinstance(record, LeaveRecord)
    assert (record.visit, record.trip, record.node) == (2, 1, 1)
    assert ended == [[(1,)]]
    assert scene.answer(2).node == 1
    assert scene.told(NodeLeft)[0].visits == 9


def test_a_node_that_leaves_before_its_visit_is_dropped_from_the_trip(storage):
    scene = Scene(storage, {1: [remove(2)]})
    assert isinstance(scene.play(), Finished)
    assert scene.nodes() == [0, 1, 1, 0, 0, 1, 1, 0]


def test_a_process_ends_once_all_nodes_in_it_have_left(storage):
    config = config_of(nodes={"nodes_per_actor": 2})
    scene = Scene(storage, {1: [remove(1)], 4: [remove(0)]}, config=config)
    killed = []
    scene._tell = lambda event: (
        isinstance(event, NodeLeft) and killed.append(list(scene.cluster.killed))
    )
    assert isinstance(scene.play(), Finished)
    assert killed == [[], [(0, 1)]]


def test_several_requests_are_carried_out_in_the_order_in_which_they_were_made(storage):
    scene = Scene(storage, {1: [add("north"), remove(0), add("east")]})
    assert isinstance(scene.play(), Finished)
    changes = Journal(storage).changes
    assert [type(one) for one in changes] == [JoinRecord, LeaveRecord, JoinRecord]
    assert [one.node for one in changes] == [3, 0, 4]
    assert [scene.answer(1, index).node for index in range(3)] == [3, 0, 4]


@pytest.mark.parametrize("codec", ["none", "int8"])
@pytest.mark.parametrize("fault", [Fault.LACKS_BLOCKS, Fault.RAISES])
@pytest.mark.parametrize("at", [1, 3, 4, 6, 9])
def test_a_run_that_goes_on_has_the_same_members_plan_and_bits(tmp_path, codec, fault, at):
    requests = {2: [add("north")], 5: [remove(1), add("east")]}
    config = config_of(codec={"name": codec})
    whole = Scene(Storage(str(tmp_path / "whole")), requests, config=config)
    expected = whole.play().weights_sha256
    storage = Storage(str(tmp_path / "broken"))
    first = Scene(storage, requests, config=config)
    first.cluster.faults["visit", at] = [fault]
    state = first.play()
    if fault is Fault.RAISES:
        assert isinstance(state, Failed)
        left = {visit: wanted for visit, wanted in requests.items() if visit > at}
        again = FakeCluster(stored=first.cluster.stored)
        state = Scene(storage, left, config=config, cluster=again).play()
    assert state.weights_sha256 == expected
    assert [(one.visit, one.node) for one in Journal(storage).changes] == [
        (one.visit, one.node) for one in Journal(whole.storage).changes
    ]
    assert [one.node for one in Journal(storage).visits] == whole.nodes()


def test_a_node_that_joined_trains_as_it_was_fitted_also_when_the_run_goes_on(storage):
    config = config_of(nodes={"memory_bytes": 5000})
    first = Scene(storage, {2: [add("small"), add("north")]}, config=config)
    first.cluster.faults["visit", 5] = [Fault.RAISES]
    assert isinstance(first.play(), Failed)
    small, north = Journal(storage).changes
    assert (small.training.residency, small.limit) == ("stream", 5000)
    assert north.training is None
    again = FakeCluster(stored=first.cluster.stored)
    assert isinstance(Scene(storage, {}, config=config, cluster=again).play(), Finished)
    assert again.joined[small.node].training == small.training
    assert again.joined[north.node].training is None


def test_a_request_that_was_not_journalled_when_a_run_broke_off_is_taken_up_again(storage):
    first = Scene(storage, {2: [add("north")]})
    first.cluster.faults["visit", 2] = [Fault.RAISES]
    assert isinstance(first.play(), Failed)
    assert Journal(storage).changes == []
    second = Scene(storage, {3: []}, cluster=FakeCluster(stored=first.cluster.stored))
    second.keys[3] = first.keys[2]
    assert isinstance(second.play(), Finished)
    assert [one.name for one in Journal(storage).changes] == ["north"]
    assert 3 in second.nodes()


def test_what_a_run_learned_of_nodes_that_left_is_known_when_it_goes_on(tmp_path):
    from test_late import COSTS

    config = config_of(snake={"adapt": True})
    requests = {2: [add("north")], 5: [remove(1)]}
    storage = Storage(str(tmp_path / "run"))
    first = Scene(storage, requests, config=config, costs=COSTS)
    first.cluster.faults["visit", 8] = [Fault.RAISES]
    assert isinstance(first.play(), Failed)
    second = Scene(
        storage, {}, config=config, costs=COSTS, cluster=FakeCluster(stored=first.cluster.stored)
    )
    assert isinstance(second.play(), Finished)
    assert second.driver._strategy.outlook.members == [0, 2, 3]
    assert second.driver._strategy.outlook.facts.rows == (8, 8, 8, 8)


@pytest.mark.parametrize(
    ("request_made", "texts"),
    [
        (add("empty"), ("empty", "has no rows")),
        (add("clinic-1"), ("clinic-1", "takes part already")),
        (add("north", name="clinic-0"), ("clinic-0", "takes part already")),
        (RemoveRequest(node=7, name="nowhere"), ("nowhere", "takes no part")),
        (add("away"), ("nodes", "BlocksLostError: the cluster does not answer")),
    ],
)
def test_what_can_not_be_is_refused_and_the_run_goes_on(storage, request_made, texts):
    plain = run(make_driver(FakeCluster(), config_of(), Storage(storage.uri + "-plain")).run())
    scene = Scene(storage, {2: [request_made]})
    state = scene.play()
    assert state.weights_sha256 == plain.weights_sha256
    answer = scene.answer(2)
    for text in texts:
        assert text in f"{answer.subject}: {answer.problem}"
    assert Journal(storage).changes == []


def test_requests_are_seen_to_after_one_that_could_not_be(storage):
    scene = Scene(storage, {2: [add("away"), add("north")]})
    assert isinstance(scene.play(), Finished)
    assert scene.answer(2, 1).name == "north"


def test_what_breaks_beside_the_visits_does_not_pass_in_silence(cluster, storage, monkeypatch):
    driver = make_driver(cluster, config_of(), storage)

    async def break_down():
        raise RuntimeError("a fault of the program")

    monkeypatch.setattr(driver._roster, "to_move", break_down)
    with pytest.raises(RuntimeError, match="a fault of the program"):
        run(driver.run())


def test_not_all_nodes_can_leave(storage):
    scene = Scene(storage, {1: [remove(0), remove(1), remove(2)]})
    assert isinstance(scene.play(), Finished)
    assert "last one" in scene.answer(1, 2).problem
    assert set(scene.nodes()[1:]) == {2}


def test_a_node_that_can_not_be_started_is_refused(storage):
    scene = Scene(storage, {2: [add("north")], 3: [add("east")]})
    scene.cluster.faults["launch", 3] = [Fault.RAISES]
    assert isinstance(scene.play(), Finished)
    assert "launch 3 failed" in scene.answer(2).problem
    assert (3,) in scene.cluster.killed
    # The number is free for the next one.
    assert scene.answer(3).node == 3
    assert [one.name for one in Journal(storage).changes] == ["east"]


def test_a_strategy_that_keeps_to_its_nodes_refuses(storage):
    scene = Scene(storage, {1: [add("north")]}, config=config_of(strategy="fedcybgd"))
    assert isinstance(scene.play(), Finished)
    assert "no node can join or leave" in scene.answer(1).problem


def test_what_is_asked_of_a_run_at_its_end_is_refused(storage):
    scene = Scene(storage, {TRIPS * 3: [add("north")]})

    def on_event(event):
        if type(event).__name__ == "RunEnded":
            assert storage.list("requests") == []

    scene._tell = on_event
    assert isinstance(scene.play(), Finished)
    assert "has ended" in scene.answer(TRIPS * 3).problem
    assert Journal(storage).changes == []


def test_rounds_are_averaged_over_those_who_took_part(storage):
    scene = Scene(storage, {2: [add("north"), remove(1)]}, config=config_of(strategy="fedavg"))
    assert isinstance(scene.play(), Finished)
    # Both wait for the end of the round.
    assert scene.nodes() == [0, 1, 2, 3, 2, 0, 0, 2, 3, 3, 2, 0]
    assert {one.visit for one in Journal(storage).changes} == {3}
    rounds = [one.visit for one in Journal(storage).visits if one.ends_round]
    assert rounds == [3, 6, 9, 12]


def test_a_model_is_judged_when_a_trip_ends_however_many_took_part(storage):
    scene = Scene(storage, {1: [add("north")], 5: [remove(0)]}, evaluates=True)
    assert isinstance(scene.play(), Finished)
    # Trip 2 goes 3, 2, 1, 0, and ends when node 0 leaves before visit 7.
    assert scene.nodes()[:6] == [0, 1, 2, 3, 2, 1]
    judged = [one.visit for one in Journal(storage) if isinstance(one, EvaluationRecord)]
    assert judged == [3, 6, 9, 12]


def test_a_trip_that_ends_with_a_departure_is_judged_too(storage):
    scene = Scene(storage, {2: [remove(2)]}, evaluates=True)
    assert isinstance(scene.play(), Finished)
    judged = [one.visit for one in Journal(storage) if isinstance(one, EvaluationRecord)]
    assert judged == [2, 4, 6, 8]


def test_with_several_heads_a_node_leaves_after_its_own_visit(storage):
    config = config_of(snake={"heads": 2, "train_last": False})
    scene = Scene(storage, {2: [remove(1), add("north")]}, config=config)
    assert isinstance(scene.play(), Finished)
    nodes = scene.nodes()
    assert nodes.count(1) == 1
    (leave,) = [one for one in Journal(storage).changes if isinstance(one, LeaveRecord)]
    assert leave.visit == [one.visit for one in Journal(storage).visits].index(2) + 1
    again = make_driver(FakeCluster(stored=scene.cluster.stored), config, storage)
    assert isinstance(run(again.run()), Finished)


def test_nodes_leave_a_machine_that_is_about_to_go_and_that_counts_as_no_loss(storage):
    during = []

    def on_event(event):
        if isinstance(event, VisitStarted) and event.visit.number == 4:
            scene.cluster.draining |= {(0,), (1,), (2,)}
        if isinstance(event, NodeMoved):
            during.append((event.node, scene.told(VisitStarted)[-1].visit.number))

    config = config_of(failures={"node_restarts": 0})
    plain = run(make_driver(FakeCluster(), config, Storage(storage.uri + "-plain")).run())
    scene = Scene(storage, {4: []}, config=config, emit=on_event, ready=lambda: len(during) == 2)
    state = scene.play()
    assert state.weights_sha256 == plain.weights_sha256
    # Visit 4 is node 2's: that one moves when it is over, if at all, and the others at once.
    assert sorted(during[:2]) == [(0, 4), (1, 4)]
    assert all(node == 2 and visit > 4 for node, visit in during[2:])
    assert scene.told(NodeLost) == []
    assert [scene.cluster.launched.count((node,)) for node in (0, 1)] == [2, 2]
