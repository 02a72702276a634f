"""Nodes join and leave by command, and leave machines that are drained, while a run goes on."""

import contextlib
import json
import shutil
import subprocess
import sysconfig
import threading
from pathlib import Path

import pytest
import ray
from scenarios import (
    DEADLINE_SECONDS,
    Gate,
    actors,
    fit,
    kill,
    libraries,
    on_visit,
    pid_of,
    until,
    with_sections,
)

from ray_snake.data import read_table, write_shard
from ray_snake.runtime.events import NodeJoined, NodeLeft, NodeLost, NodeMoved, RunStarted
from ray_snake.runtime.journal import Journal
from ray_snake.runtime.meter import machine_name
from ray_snake.runtime.records import JoinRecord, LeaveRecord
from ray_snake.storage import Storage

PROGRAMS = Path(sysconfig.get_path("scripts"))
LATE = "late.arrow"
LIMIT_BYTES = 2_400_000
# Three processes one after another that import torch, on a machine that may have much else to do.
PATIENCE_SECONDS = 300.0
WAIT = ("--wait", str(PATIENCE_SECONDS))


def both(first, second):
    """Return a loss that either gate can hold."""

    def loss(outputs, targets):
        first(outputs, targets)
        return second(outputs, targets)

    return loss


def start(*arguments):
    return subprocess.Popen(
        [PROGRAMS / "ray-snake", "nodes", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def end(process):
    out, err = process.communicate(timeout=DEADLINE_SECONDS)
    return process.returncode, out, err


@contextlib.contextmanager
def meanwhile(act, *gates):
    """Do something beside the block; fail if that failed, and then hold nothing up."""
    failures = []

    def guarded():
        try:
            act()
        except BaseException as error:
            failures.append(error)
            for one in gates:
                one.open()

    thread = threading.Thread(target=guarded)
    thread.start()
    yield
    thread.join()
    assert not failures, failures


def is_open_somewhere(shard):
    """Return whether a living node has a shard mapped into its memory."""
    living = [one["Pid"] for one in actors("SnakeNode") if one["State"] == "ALIVE"]
    for pid in living:
        with contextlib.suppress(OSError):
            if str(shard) in libraries(pid):
                return True
    return False


def copy_of(folder, target):
    """Copy a run's folder as it is; files that go meanwhile belong to no current version."""

    def copied():
        shutil.rmtree(target, ignore_errors=True)
        with contextlib.suppress(shutil.Error):
            shutil.copytree(folder, target)
            return True
        return False

    until(copied, "the run's folder is copied")


@pytest.mark.timeout(900)
def test_nodes_come_and_go_by_command_and_a_run_that_goes_on_has_the_same_bits(
    raylets, storage, tmp_path, gate
):
    shard, bad = tmp_path / LATE, tmp_path / "bad.arrow"
    write_shard(shard, read_table("builtin://digits/train").slice(0, 200))
    bad.write_bytes(b"")
    run = Path(storage.uri) / "run"
    later = Gate(tmp_path / "later")
    snapshot = tmp_path / "snapshot"
    answers, events = {}, []

    def script():
        gate.pid()
        # Asked for while visit 4 is held; taken up one after another.
        commands = {
            "bad": start("add", str(run), str(bad), *WAIT),
            "remove": start("remove", str(run), "digits/train[1]", "--json", *WAIT),
        }
        until(lambda: commands["bad"].poll() is not None, "a refusal", PATIENCE_SECONDS)
        commands["add"] = start("add", str(run), str(shard), "--name", "late", "--json", *WAIT)
        until(lambda: is_open_somewhere(shard), "the node that joins is up", PATIENCE_SECONDS)
        gate.open()
        answers.update({name: end(process) for name, process in commands.items()})
        later.pid()
        until(lambda: len(Journal(Storage(str(run))).changes) == 2, "both are journalled")
        copy_of(run, snapshot / "run")
        answers["list"] = end(start("list", str(run), "--json"))
        later.open()

    loss = both(gate.loss(2), later.loss(5))
    config = with_sections(nodes={"memory_bytes": LIMIT_BYTES}, training={"micro_batch": "auto"})
    with meanwhile(script, gate, later):
        result = fit(config, storage.uri, loss=loss, on_event=events.append)

    assert answers["bad"][0] == 2
    (line,) = answers["bad"][2].splitlines()
    assert "bad.arrow" in line
    assert "is an empty file" in line
    assert answers["remove"][0] == answers["add"][0] == 0
    left, joined = (json.loads(answers[name][1]) for name in ("remove", "add"))
    assert (left["state"], left["node"]) == ("left", 1)
    assert (joined["state"], joined["node"], joined["name"]) == ("joined", 3, "late")
    listed = {one["name"]: one for one in json.loads(answers["list"][1])["nodes"]}
    assert listed["late"]["rows"] == 200
    assert listed["late"]["joined"] == joined["visit"]
    assert listed["digits/train[1]"]["state"] == "left"

    told = [event.node for event in events if isinstance(event, (NodeJoined, NodeLeft))]
    assert sorted(told) == [1, 3]
    visits = result.history.to_pylist()
    changes = Journal(Storage(str(run))).changes
    (leave,) = [one for one in changes if isinstance(one, LeaveRecord)]
    (join,) = [one for one in changes if isinstance(one, JoinRecord)]
    assert (join.limit, join.training.span) == (LIMIT_BYTES, "recompute")
    assert not [one for one in visits if one["node"] == 1 and one["visit"] > leave.visit]
    assert {one["trip"] for one in visits if one["node"] == 3} == set(range(join.trip + 1, 9))
    assert result.summary["nodes"]["late"]["visits"] == 8 - join.trip
    # Each trip is judged at its end, however many took part.
    ends = {one["trip"]: one["visit"] for one in visits}
    judged = [one["visit"] for one in visits if one["test_loss"] is not None]
    assert judged == list(ends.values())

    # What storage had when `later` held a visit goes on to the same weights, also when the driver
    # is killed on the way.
    third = Gate(tmp_path / "third")

    def strike():
        third.pid()
        kill(pid_of("SnakeDriver"))
        third.open()

    again = []
    with meanwhile(strike, third):
        resumed = fit(
            config,
            str(snapshot),
            loss=third.loss(1),
            resume=True,
            on_event=again.append,
        )
    starts = [event for event in again if isinstance(event, RunStarted)]
    assert [event.left for event in starts] == [(1,), (1,)]
    assert starts[0].nodes[3] == "late"
    assert resumed.summary["weights_sha256"] == result.summary["weights_sha256"]
    assert resumed.history["node"].to_pylist() == result.history["node"].to_pylist()


def drain(address, machine):
    done = subprocess.run(
        [
            *(PROGRAMS / "ray", "drain-node", "--address", address, "--node-id", machine),
            *("--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "spot"),
            *("--deadline-remaining-seconds", "600"),
        ],
        capture_output=True,
        text=True,
        timeout=DEADLINE_SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_nodes_leave_a_machine_that_is_drained_for_one_that_came_meanwhile(
    raylets, storage, gate, reference
):
    config = with_sections(
        nodes={"labels": {"site": "in(a,b)"}}, failures={"node_restarts": 0, "recoveries": 0}
    )
    events, machines, gone = [], {}, []

    def act():
        pid = gate.pid()
        nodes = [one for one in actors("SnakeNode") if one["State"] == "ALIVE"]
        (held,) = [one["Address"]["NodeID"] for one in nodes if one["Pid"] == pid]
        (going,) = {one["Address"]["NodeID"] for one in nodes} - {held}
        (site,) = [one["Labels"]["site"] for one in ray.nodes() if one["NodeID"] == going]
        raylet = raylets.add_site(site)
        machines.update(going=machine_name(going), new=machine_name(raylet.node_id))
        gone.append(going)
        drain(raylets.address, going)

    react = on_visit(4, act)

    def on_event(event):
        events.append(event)
        react(event)
        if isinstance(event, NodeMoved):
            gate.open()

    try:
        result = fit(config, storage.uri, loss=gate.loss(2), on_event=on_event)
    finally:
        # Three machines as before: the new one stays in place of the one that went.
        for raylet in [one for one in raylets.worker_nodes if one.node_id in gone]:
            raylets.remove_node(raylet, allow_graceful=False)
    moved = {event.node for event in events if isinstance(event, NodeMoved)}
    assert moved
    assert not [event for event in events if isinstance(event, NodeLost)]
    after = [one for one in result.history.to_pylist() if one["visit"] > 4]
    assert machines["going"] not in {one["machine"] for one in after}
    assert machines["new"] in {one["machine"] for one in after if one["node"] in moved}
    assert result.summary["weights_sha256"] == reference.summary["weights_sha256"]


@pytest.mark.parametrize("labels", [{"site": "a"}])
def test_a_node_stays_where_no_other_machine_has_its_labels(raylets, labels):
    from ray_snake.config import NodesConfig
    from ray_snake.runtime.cluster import draining, has_room
    from ray_snake.runtime.placement import Request

    assert draining() == set()
    request = Request(labels=tuple(labels.items()))
    assert has_room(request, NodesConfig())
    raylet = raylets.add_node(num_cpus=1, labels={"site": "mars"})
    try:
        only = Request(labels=(("site", "mars"),))
        assert has_room(only, NodesConfig())
        assert not has_room(Request(labels=(("site", "mars"),), cpus=2.0), NodesConfig())
        drain(raylets.address, raylet.node_id)
        until(lambda: raylet.node_id in draining() or not is_alive(raylet.node_id), "Ray drains it")
        assert not has_room(only, NodesConfig())
        assert has_room(only, NodesConfig(may_scale=True))
    finally:
        raylets.remove_node(raylet, allow_graceful=False)


def is_alive(machine):
    return any(one["NodeID"] == machine and one["Alive"] for one in ray.nodes())
