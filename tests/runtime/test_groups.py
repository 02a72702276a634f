"""Which nodes share a process, and what each process asks for."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_snake.config import NodesConfig, PartitionConfig
from ray_snake.data import ShardSource
from ray_snake.errors import ConfigError
from ray_snake.runtime.placement import Request, group_nodes, setting_of

SOURCES = (
    ShardSource(uri="/data/a/north_0.arrow"),
    ShardSource(uri="/data/b/north_1.arrow"),
    ShardSource(uri="s3://bucket/c/south_0.arrow"),
    ShardSource(uri="builtin://digits/train", partition=PartitionConfig(nodes=4), index=3),
)


def grouped(sources=SOURCES, **settings):
    return group_nodes(NodesConfig(**settings), sources)


def nodes_of(groups):
    return [group.nodes for group in groups]


@pytest.mark.parametrize(
    ("nodes", "size", "expected"),
    [
        (5, 2, [(0, 1), (2, 3), (4,)]),
        (3, 1, [(0,), (1,), (2,)]),
        (2, 8, [(0, 1)]),
    ],
)
def test_groups_are_consecutive_nodes_and_the_last_may_be_smaller(nodes, size, expected):
    sources = [ShardSource(uri=f"clinic-{number}") for number in range(nodes)]
    assert nodes_of(grouped(sources, nodes_per_actor=size)) == expected


def test_all_ask_for_the_same_by_default():
    groups = grouped(cpus=1.0, gpus=0.5, memory_bytes=10, labels={"site": "a"}, resources={"x": 2})
    assert {group.request for group in groups} == {
        Request(
            cpus=1.0,
            gpus=0.5,
            memory_bytes=10,
            labels=(("site", "a"),),
            resources=(("x", 2.0),),
        )
    }
    assert groups[0].request.amounts == {"CPU": 1.0, "GPU": 0.5, "memory": 10.0, "x": 2.0}


def test_an_entry_changes_what_it_names_for_the_nodes_it_matches():
    north, _, south, other = (
        group.request
        for group in grouped(
            cpus=1.0,
            labels={"zone": "z"},
            each=[{"match": "north_*", "labels": {"site": "n"}}, {"match": "south_?", "cpus": 4.0}],
        )
    )
    assert (north.cpus, north.labels) == (1.0, (("site", "n"),))
    assert (south.cpus, south.labels) == (4.0, (("zone", "z"),))
    assert (other.cpus, other.labels) == (1.0, (("zone", "z"),))


def test_of_two_entries_that_match_the_later_holds():
    each = [{"match": "*", "cpus": 2.0, "gpus": 1.0}, {"match": ["south_0", "north_1"], "cpus": 3}]
    groups = grouped(each=each)
    assert [group.request.cpus for group in groups] == [2.0, 3.0, 3.0, 2.0]
    assert {group.request.gpus for group in groups} == {1.0}
    nodes = NodesConfig(each=each)
    assert setting_of(nodes, SOURCES[2], "cpus") == "nodes.each[1].cpus"
    assert setting_of(nodes, SOURCES[2], "gpus") == "nodes.each[0].gpus"
    assert setting_of(nodes, SOURCES[2], "labels") == "nodes.labels"


def test_a_name_with_brackets_is_its_own_pattern():
    groups = grouped(each=[{"match": "digits/train[3]", "cpus": 2.0}])
    assert [group.request.cpus for group in groups] == [0.0, 0.0, 0.0, 2.0]


def test_a_shards_path_or_uri_is_matched_too():
    groups = grouped(
        each=[{"match": ["/data/b/*", "s3://bucket/c/*"], "cpus": 2.0}, {"match": "/data/a/*"}]
    )
    assert [group.request.cpus for group in groups] == [0.0, 2.0, 2.0, 0.0]


def test_nodes_that_ask_for_different_things_share_no_process():
    groups = grouped(nodes_per_actor=4, each=[{"match": "north_*", "labels": {"site": "n"}}])
    assert nodes_of(groups) == [(0, 1), (2, 3)]


def test_a_pattern_that_matches_no_node_is_refused():
    with pytest.raises(ConfigError, match="matches none") as caught:
        grouped(each=[{"match": "north_*", "cpus": 1}, {"match": ["north_0", "west_*"]}])
    assert caught.value.subject == "nodes.each[1].match"
    assert "west_*" in str(caught.value)
    assert "north_0" in caught.value.remedy


@given(
    sites=st.lists(st.sampled_from("abc"), min_size=1, max_size=12),
    size=st.integers(min_value=1, max_value=5),
)
def test_every_node_is_in_one_process_with_its_own_request(sites, size):
    sources = [ShardSource(uri=f"{site}{number}") for number, site in enumerate(sites)]
    each = [{"match": f"{site}*", "labels": {"site": site}} for site in sorted(set(sites))]
    groups = grouped(sources, nodes_per_actor=size, each=each)
    assert [node for group in groups for node in group.nodes] == list(range(len(sites)))
    for group in groups:
        assert 1 <= len(group.nodes) <= size
        assert {sites[node] for node in group.nodes} == {dict(group.request.labels)["site"]}
