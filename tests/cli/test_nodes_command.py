"""Who takes part in a run, from another shell; and what the run is asked there."""

import json
import threading
import time

import pytest
from workplaces import TIMEOUT_SECONDS

from ray_snake.config import SnakeConfig
from ray_snake.runtime.journal import Journal
from ray_snake.runtime.records import JoinRecord, LeaveRecord, StartRecord, VisitRecord
from ray_snake.runtime.requests import AddRequest, Answer, Mailbox, RemoveRequest
from ray_snake.runtime.run_folder import RunFolder
from ray_snake.storage import Storage

NAMES = ("north", "south")


def visit(number, node, name):
    return VisitRecord(
        visit=number,
        trip=1,
        node=node,
        node_name=name,
        span=(0, 2),
        trained=(0, 1),
        learning_rate=0.1,
        accepted=True,
        samples=8,
        steps=1,
        loss=1.0,
        first_loss=1.0,
        accuracy=None,
        bytes_pulled=0,
        bytes_returned=0,
        pull_seconds=0.0,
        train_seconds=0.0,
        seconds=1.0,
        finished_at=1.0,
    )


@pytest.fixture
def going_on(workplace):
    """The folder of a run of two trips in which node 0 left and a node 2 joined after visit 1."""

    def make(names=NAMES, **settings):
        storage = Storage(str(workplace.runs / "run"))
        config = SnakeConfig.from_tree({"snake": {"trips": 2}, **settings})
        RunFolder.create(storage, config, names, custom_model=False)
        journal = Journal(storage)
        journal.append(StartRecord(blocks=(), rows=(8,) * len(names), finished_at=0.5))
        if names == NAMES:
            moment = {"visit": 1, "trip": 1, "finished_at": 2.0}
            shard = {"sample_shape": (2,), "integer_inputs": False, "classes": 2}
            journal.append(
                visit(1, 0, "north"),
                LeaveRecord(node=0, rows=8, request="a", **moment),
                JoinRecord(node=2, name="west", uri="w", rows=9, request="b", **shard, **moment),
            )
        return storage

    return make


def refusal(workplace, *arguments):
    before = sorted(workplace.runs.rglob("*"))
    ended = workplace.call_forked("nodes", *arguments)
    assert ended.returncode == 2, ended.stderr
    assert ended.stdout == ""
    (line,) = ended.stderr.splitlines()
    assert line.startswith("ray-snake: ")
    assert sorted(workplace.runs.rglob("*")) == before
    return line


def test_the_nodes_of_a_run_that_has_ended(trained):
    workplace, _ = trained
    listed = workplace.call_forked("nodes", "list", "runs/digits", "--json")
    assert listed.returncode == 0
    (line,) = listed.stdout.splitlines()
    rows = json.loads(line)["nodes"]
    assert [one["name"] for one in rows] == ["digits/train[0]", "digits/train[1]"]
    assert [one["state"] for one in rows] == ["member", "member"]
    assert [one["visits"] for one in rows] == [2, 2]
    assert sum(one["rows"] for one in rows) == 1437
    assert "digits/train[1]" in listed.stderr


def test_a_table_says_who_came_and_went_and_who_has_asked_to(workplace, going_on):
    storage = going_on()
    mailbox = Mailbox(storage)
    mailbox.post(AddRequest(uri="/data/east.arrow"))
    mailbox.post(RemoveRequest(node=1, name="south"))
    listed = workplace.call_forked("nodes", "list", "runs/run")
    assert listed.returncode == 0
    lines = [line.split() for line in listed.stdout.splitlines() if line.split()]
    assert ["0", "north", "left", "8", "1", "0", "1"] in lines
    assert ["1", "south", "asked", "to", "leave", "8", "0", "0"] in lines
    assert ["2", "west", "member", "9", "0", "1"] in lines
    assert ["east", "asked", "to", "join"] in lines


def test_status_counts_the_members(workplace, going_on):
    going_on()
    found = json.loads(workplace.call_forked("status", "runs/run", "--json").stdout)
    # One done, one left of trip 1, and trip 2 of south and west.
    assert (found["visits"], found["all_visits"]) == (1, 4)
    assert [one["left"] for one in found["nodes"]] == [True, False, False]


@pytest.mark.parametrize(
    ("arguments", "texts"),
    [
        (("list", "runs/nowhere"), ("runs/nowhere", "holds no run")),
        (("add", "runs/nowhere", "x.arrow"), ("runs/nowhere", "holds no run")),
        (("add", "runs/run", "x.arrow", "--name", "south"), ("--name south", "already")),
        (("add", "runs/run"), ("SHARD_URI",)),
        (("add", "runs/run", "x.arrow", "--wait", "-1"), ("--wait", "-1")),
        (("remove", "runs/run", "north"), ("node north", "no part", "1 (south), 2 (west)")),
        (("remove", "runs/run", "7"), ("node 7", "no part", "2 (west)")),
        (("rename", "runs/run", "7"), ("rename",)),
    ],
)
def test_bad_input_is_refused_in_a_line(workplace, going_on, arguments, texts):
    going_on()
    line = refusal(workplace, *arguments)
    for text in texts:
        assert text in line


def test_a_run_that_has_ended_takes_no_more_nodes(trained):
    workplace, _ = trained
    line = refusal(workplace, "add", "runs/digits", "x.arrow")
    assert "runs/digits" in line
    assert "has ended" in line


def test_the_last_node_can_not_be_removed(workplace, going_on):
    going_on(names=("only",))
    assert "last one" in refusal(workplace, "remove", "runs/run", "only")


def test_a_strategy_that_keeps_to_its_nodes_says_so(workplace, going_on):
    going_on(strategy="fedcybgd")
    line = refusal(workplace, "remove", "runs/run", "south")
    assert "'fedcybgd'" in line
    assert "segment" in line


@pytest.mark.parametrize("asked", [("add", "x.arrow"), ("remove", "south")])
def test_a_run_whose_last_visits_are_its_mean_says_that_nodes_stay(workplace, going_on, asked):
    going_on(snake={"trips": 2, "mean_visits": 2})
    verb, what = asked
    line = refusal(workplace, verb, "runs/run", what)
    assert line.startswith("ray-snake: snake.mean_visits: no node can join or leave on the way")


def test_a_askedstays_where_nobody_answers(workplace, going_on):
    storage = going_on()
    asked = workplace.call_forked(
        "nodes", "add", "runs/run", "east.arrow", "--name", "east", "--wait", "0", "--json"
    )
    assert asked.returncode == 0
    assert json.loads(asked.stdout)["state"] == "asked"
    assert "has not answered" in asked.stderr
    (request,) = Mailbox(storage).waiting().values()
    assert request == AddRequest(uri=str(workplace.folder / "east.arrow"), name="east")


def ask(workplace, storage, answer, *arguments):
    """Call the command, answer its request; return the request and how it ended."""
    ended = []
    caller = threading.Thread(
        target=lambda: ended.append(workplace.call_forked("nodes", *arguments, "--wait", "90"))
    )
    caller.start()
    mailbox = Mailbox(storage)
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while not (waiting := mailbox.waiting()) and caller.is_alive():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    ((key, request),) = waiting.items()
    mailbox.answer(key, answer)
    caller.join(TIMEOUT_SECONDS)
    assert storage.list("requests") == storage.list("answers") == []
    return request, ended[0]


def test_what_the_run_refuses_is_said_in_a_line(workplace, going_on):
    answer = Answer(subject="east.arrow", problem="has no rows", remedy="leave it out")
    _, ended = ask(workplace, going_on(), answer, "add", "runs/run", "east.arrow")
    assert ended.returncode == 2
    assert ended.stderr == "ray-snake: east.arrow: has no rows; leave it out\n"


def test_a_node_is_removed_by_its_name_or_number(workplace, going_on):
    storage = going_on()
    answer = Answer(node=2, name="west", visit=3)
    request, ended = ask(workplace, storage, answer, "remove", "runs/run", "west")
    assert request == RemoveRequest(node=2, name="west")
    assert ended.returncode == 0
    assert ended.stdout == "west: left as node 2 after visit 3\n"
    request, ended = ask(workplace, storage, answer, "remove", "runs/run", "2", "--json")
    assert request == RemoveRequest(node=2, name="west")
    assert json.loads(ended.stdout)["visit"] == 3
