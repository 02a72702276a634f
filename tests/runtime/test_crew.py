"""Who is mustered when a run starts or goes on."""

from fakes import make_config

from ray_snake.data import ShardSource
from ray_snake.runtime.crew import Muster
from ray_snake.runtime.messages import NodeSpec
from ray_snake.runtime.placement import group_nodes
from ray_snake.runtime.records import JoinRecord, LeaveRecord

SOURCES = [ShardSource(uri=f"/shards/{name}.arrow") for name in ("north", "east", "south")]


def spec(source, samples):
    return NodeSpec(
        source=source, sample_shape=(2,), integer_inputs=False, samples=samples, classes=2
    )


def join(node, name):
    return JoinRecord(
        visit=1,
        trip=1,
        node=node,
        name=name,
        uri=f"/shards/{name}.arrow",
        rows=20,
        sample_shape=(2,),
        integer_inputs=False,
        classes=2,
        request=name,
        finished_at=1.0,
    )


def leave(node):
    return LeaveRecord(visit=1, trip=1, node=node, rows=30, request=str(node), finished_at=1.0)


def muster(records=(), size=2):
    config = make_config(nodes={"nodes_per_actor": size})
    groups = group_nodes(config.nodes, SOURCES)
    return groups, Muster(config, SOURCES, groups, records)


def test_a_new_run_has_the_nodes_that_it_was_given():
    groups, found = muster()
    assert found.sources == SOURCES
    assert found.groups == groups
    assert found.first_groups(groups) == groups
    specs = [spec(source, 8) for source in SOURCES]
    assert found.first_specs(specs) == specs


def test_nothing_is_asked_of_nodes_that_left():
    _, found = muster([join(3, "west"), leave(1), join(4, "up"), leave(3)])
    assert [source.name for source in found.sources] == ["north", "south", "up"]
    assert [group.nodes for group in found.groups] == [(0,), (1,), (2,)]
    first = found.first_specs([spec(source, 8) for source in found.sources])
    assert [one.name for one in first] == ["north", "east", "south"]
    assert [one.samples for one in first] == [8, 30, 8]
    assert [group.nodes for group in found.first_groups(found.groups)] == [(0, 1), (2,)]


def test_a_process_whose_nodes_have_all_left_asks_for_nothing():
    _, found = muster([leave(0), leave(1)])
    assert [group.nodes for group in found.groups] == [(0,)]
    gone, there = found.first_groups(found.groups)
    assert (gone.nodes, there.nodes) == ((0, 1), (2,))
    assert gone.request.gpus == 0.0


def test_whoever_joined_is_not_measured_for_those_who_were_there():
    _, found = muster([join(3, "west"), leave(1)])
    checked = [spec(source, 8) for source in found.sources]
    assert [one.name for one in found.remaining(checked)] == ["north", "south"]
    _, found = muster([join(3, "west"), leave(0), leave(1), leave(2)])
    checked = [spec(source, 8) for source in found.sources]
    assert found.remaining(checked) == checked
