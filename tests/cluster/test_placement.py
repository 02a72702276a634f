"""Where a run's processes are, and that it makes no difference to the weights."""

from dataclasses import replace

import pytest
import ray
from scenarios import (
    NODES,
    TRIPS,
    VISITS,
    actors,
    fit,
    until,
    with_sections,
)

from ray_snake.config import NodesConfig
from ray_snake.data import ShardSource
from ray_snake.errors import ResourceError
from ray_snake.runtime.cluster import check_resources, with_gpu_shares
from ray_snake.runtime.meter import machine_name
from ray_snake.runtime.on_machines import on_cluster
from ray_snake.runtime.placement import group_nodes


def test_nodes_are_on_several_machines_and_the_driver_on_this_one(watched_reference):
    result, seen = watched_reference
    assert len(seen["machines"]) == NODES
    # No machine has two while another has none.
    assert len(set(seen["machines"])) == NODES
    assert seen["driver"] == ray.get_runtime_context().get_node_id()
    # Each visit follows one on another node, so blocks went between these machines' stores.
    assert result.summary["bytes_moved"] > 0
    assert result.summary["visits"] == VISITS


def test_nodes_that_share_a_process_give_the_same_weights(storage, reference):
    config = with_sections(nodes={"nodes_per_actor": NODES})
    before = len(actors("SnakeNode"))
    result = fit(config, storage.uri)
    assert len(actors("SnakeNode")) == before + 1
    assert result.summary["weights_sha256"] == reference.summary["weights_sha256"]
    assert result.summary["bytes_moved"] == reference.summary["bytes_moved"]


@pytest.mark.parametrize("order", ["diagonal", "random"])
def test_every_order_runs_and_trains_every_span_on_every_node(storage, reference, order):
    config = with_sections(snake={"order": order}, nodes={"nodes_per_actor": NODES})
    result = fit(config, storage.uri)
    visits = result.history.to_pylist()
    assert len(visits) == VISITS
    for node in range(NODES):
        spans = [one["span_start"] for one in visits if one["node"] == node]
        assert len(spans) == TRIPS
        counts = [spans.count(start) for start in (0, 2, 4)]
        assert max(counts) - min(counts) <= 1
    assert result.summary["weights_sha256"] != reference.summary["weights_sha256"]


@pytest.mark.parametrize(
    ("nodes", "key", "value"),
    [
        ({"labels": {"site": "mars"}}, "nodes.labels", "mars"),
        ({"labels": {"site": "!in(a,b)", "ray.io/node-id": "x"}}, "nodes.labels", "!in(a,b)"),
        ({"cpus": 2.5}, "nodes.cpus", "2.5"),
        ({"cpus": 2.0, "labels": {"site": "in(a,b)"}}, "nodes.cpus", "2"),
        ({"gpus": 0.5}, "nodes.gpus", "0.5"),
        ({"memory_bytes": 2**50}, "nodes.memory_bytes", "1.1259e+15"),
        ({"resources": {"scanner": 1.0}}, "nodes.resources", "scanner"),
        (
            {"each": [{"match": "*2]", "labels": {"site": "mars"}}]},
            "nodes.each[0].labels",
            "mars",
        ),
        ({"each": [{"match": "digits/train[1]", "cpus": 9.0}]}, "nodes.each[0].cpus", "9"),
        (
            {
                "cpus": 1.5,
                "labels": {"site": "in(a,b)"},
                "each": [{"match": "digits/train[2]", "cpus": 1.75}],
            },
            "nodes.cpus",
            "3 node actors ask for 4.75 in all",
        ),
    ],
)
def test_what_the_cluster_lacks_is_refused_before_any_actor_starts(
    raylets, storage, nodes, key, value
):
    def known():
        return [len(actors(kind)) for kind in ("SnakeNode", "SnakeEngine", "SnakeDriver")]

    before = known()
    with pytest.raises(ResourceError) as caught:
        fit(with_sections(nodes=nodes), storage.uri)
    assert caught.value.subject == key
    assert value in str(caught.value)
    assert known() == before
    assert storage.folders() == []


@pytest.mark.parametrize(
    ("key", "strategy", "sections"),
    [
        ("evaluation.gpus", "snake", {"evaluation": {"gpus": 0.5}}),
        ("evaluation.gpus", "snake", {"evaluation": {"gpus": 0.5}, "nodes": {"may_scale": True}}),
        (
            "baseline.server_gpus",
            "split",
            {
                "baseline": {"server_gpus": 0.5, "shares_activations": True},
                "loss": {"distillation": 0.0},
            },
        ),
    ],
)
def test_gpus_that_the_drivers_machine_has_not_are_refused(
    raylets, storage, key, strategy, sections
):
    config = with_sections(**sections).model_copy(update={"strategy": strategy})
    with pytest.raises(ResourceError, match=r"0\.5.* GPU: 0;") as caught:
        fit(config, storage.uri)
    assert caught.value.subject == key
    assert storage.folders() == []


def test_what_no_single_machine_has_together_is_refused(raylets):
    sources = [ShardSource(uri="a")]
    groups = group_nodes(NodesConfig(cpus=1.0, resources={"scanner": 1.0}), sources)
    machine = raylets.add_node(num_cpus=0, resources={"scanner": 3.0})
    try:
        with pytest.raises(ResourceError, match=r"1 node actors with CPU 1 and scanner 1 each"):
            check_resources(NodesConfig(), groups, sources, {})
    finally:
        raylets.remove_node(machine)


def test_nodes_share_the_gpus_that_the_drivers_side_leaves(raylets):
    sources = [ShardSource(uri=name) for name in "abc"]
    groups = group_nodes(NodesConfig(), sources)
    machine = raylets.add_node(num_gpus=2)
    try:
        # A share is of a single GPU, so that two of three nodes share one.
        for own in ({}, {"evaluation.gpus": 0.5}):
            shared = with_gpu_shares(groups, own)
            assert [one.request.gpus for one in shared] == [0.5] * 3
        check_resources(NodesConfig(), shared, sources, {})
        more = [replace(one, request=replace(one.request, gpus=0.66)) for one in shared]
        with pytest.raises(ResourceError, match=r"3 node actors with 0\.66 each don't fit"):
            check_resources(NodesConfig(), more, sources, {})
    finally:
        raylets.remove_node(machine)


def test_each_node_is_where_its_labels_say(raylets, storage, reference):
    machines = {
        (one["Labels"] or {}).get("site", "head"): machine_name(one["NodeID"])
        for one in ray.nodes()
        if one["Alive"]
    }
    sites = {0: "b", 1: "head", 2: "a"}
    each = [
        {"match": "digits/train[0]", "labels": {"site": "b"}},
        {"match": "digits/train[1]", "labels": {"site": "!in(a,b)"}, "cpus": 1.0},
        {"match": "digits/train[2]", "labels": {"site": "a"}},
    ]
    # As if they could share a process; but they ask for different things.
    config = with_sections(nodes={"each": each, "nodes_per_actor": NODES})
    result = fit(config, storage.uri)
    found = {(one["node"], one["machine"]) for one in result.history.to_pylist()}
    assert found == {(node, machines[site]) for node, site in sites.items()}
    assert result.summary["weights_sha256"] == reference.summary["weights_sha256"]


def test_shards_are_looked_at_where_their_nodes_may_live(raylets):

    def number_and_machine(number):
        # Within the test: workers can't import its module.
        return number, ray.get_runtime_context().get_node_id()

    nodes = NodesConfig(
        each=[
            {"match": "north_*", "labels": {"site": "a"}},
            {"match": "south_*", "labels": {"site": "b"}},
        ]
    )
    names = ["north_0", "south_0", "north_1", "south_1", "north_2"]
    sources = [ShardSource(uri=name) for name in names]
    run = on_cluster(nodes, group_nodes(nodes, sources))
    labels = {one["NodeID"]: one["Labels"] for one in ray.nodes()}
    found = run(number_and_machine, [(number,) for number in range(len(names))])
    assert [number for number, _ in found] == list(range(len(names)))
    assert [labels[machine]["site"] for _, machine in found] == ["a", "b", "a", "b", "a"]


def test_a_run_leaves_no_actor_behind(reference):
    until(
        lambda: all(
            one["State"] == "DEAD"
            for kind in ("SnakeNode", "SnakeEngine", "SnakeDriver")
            for one in actors(kind)
        ),
        "all actors of finished runs are dead",
    )
