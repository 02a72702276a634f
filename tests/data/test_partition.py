import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ray_snake.config import PartitionConfig
from ray_snake.data.partition import label_table, split
from ray_snake.errors import DataError

SCHEMES = ["iid", "dirichlet", "shards", "quantity"]


@st.composite
def problems(draw):
    nodes = draw(st.integers(1, 12))
    rows = draw(st.integers(nodes, 200))
    classes = draw(st.integers(1, 12))
    labels = np.array(draw(st.lists(st.integers(0, classes - 1), min_size=rows, max_size=rows)))
    config = PartitionConfig(
        scheme=draw(st.sampled_from(SCHEMES)),
        nodes=nodes,
        alpha=draw(st.one_of(st.floats(1e-3, 1e3), st.sampled_from([5e-324, 1e-300, 1e308]))),
        shards_per_node=draw(st.integers(1, 5)),
        seed=draw(st.integers(0, 2**40)),
    )
    return labels, config


@given(problems())
@settings(max_examples=150, deadline=None)
def test_every_row_is_dealt_once_and_no_node_is_empty(problem):
    labels, config = problem
    parts = split(labels, config)

    assert len(parts) == config.nodes
    assert all(len(part) > 0 for part in parts)
    assert all((np.diff(part) > 0).all() for part in parts)
    assert all(part.dtype == np.int64 for part in parts)
    assert np.sort(np.concatenate(parts)).tolist() == list(range(len(labels)))


@given(problems())
@settings(max_examples=50, deadline=None)
def test_same_settings_same_split(problem):
    labels, config = problem
    first, second = split(labels, config), split(labels.copy(), config)

    assert [part.tolist() for part in first] == [part.tolist() for part in second]


@pytest.mark.parametrize("scheme", SCHEMES)
def test_another_seed_gives_another_split(scheme):
    labels = np.arange(500) % 10
    splits = [
        split(labels, PartitionConfig(scheme=scheme, nodes=5, seed=seed))[0].tolist()
        for seed in (1, 2)
    ]

    assert splits[0] != splits[1]


def test_a_split_stays_what_it_was():
    """Shards on disk and runs resumed later rely on the same split in every version."""
    config = PartitionConfig(scheme="dirichlet", nodes=3, alpha=0.5, seed=11)

    assert [part.tolist() for part in split(np.arange(12) % 2, config)] == [
        [9],
        [0, 1, 3, 6, 7, 11],
        [2, 4, 5, 8, 10],
    ]


def test_iid_sizes_are_equal_and_labels_mixed():
    parts = split(np.arange(1003) % 10, PartitionConfig(scheme="iid", nodes=10, seed=0))

    assert all(len(np.unique(part % 10)) == 10 for part in parts)
    assert {len(part) for part in parts} == {100, 101}


def skew(labels, parts):
    """Mean share of a node's most frequent label."""
    return np.mean([np.bincount(labels[part]).max() / len(part) for part in parts])


def test_smaller_alpha_skews_labels_more():
    labels = np.arange(4000) % 10
    skews = [
        skew(labels, split(labels, PartitionConfig(scheme="dirichlet", nodes=8, alpha=a, seed=3)))
        for a in (0.05, 0.5, 100.0)
    ]

    assert skews[0] > 0.5 > skews[1] > skews[2]
    assert skews[2] < 0.15


def test_shards_give_a_node_few_labels():
    labels = np.random.Generator(np.random.PCG64(0)).permutation(np.arange(2000) % 10)
    config = PartitionConfig(scheme="shards", nodes=10, shards_per_node=2, seed=5)
    parts = split(labels, config)

    assert all(len(part) == 200 for part in parts)
    assert all(len(np.unique(labels[part])) <= 2 for part in parts)


def test_quantity_skews_sizes_but_not_labels():
    labels = np.arange(20000) % 4
    parts = split(labels, PartitionConfig(scheme="quantity", nodes=5, alpha=0.5, seed=2))
    sizes = [len(part) for part in parts]

    assert max(sizes) > 2 * min(sizes)
    largest = parts[int(np.argmax(sizes))]
    assert np.abs(np.bincount(labels[largest]) / len(largest) - 0.25).max() < 0.03


def test_fewer_rows_than_nodes_is_refused():
    with pytest.raises(DataError, match="9 nodes can't share 8 rows"):
        split(np.zeros(8, dtype=np.int64), PartitionConfig(nodes=9))


def test_dirichlet_needs_classes():
    config = PartitionConfig(scheme="dirichlet", nodes=2)
    with pytest.raises(DataError, match="labels are float32"):
        split(np.zeros(8, dtype=np.float32), config)


@pytest.mark.parametrize("scheme", ["iid", "shards", "quantity"])
def test_float_targets_can_be_split_otherwise(scheme):
    targets = np.linspace(0, 1, 40, dtype=np.float32)
    parts = split(targets, PartitionConfig(scheme=scheme, nodes=4))

    assert sum(map(len, parts)) == 40


def test_label_table_counts_each_label_of_each_node():
    labels = np.array([0, 0, 2, 2, 2, 0])
    parts = [np.array([0, 2]), np.array([1, 3, 4, 5])]

    assert label_table(labels, parts, ["cat", "dog", "eel"]).to_pydict() == {
        "node": [0, 1],
        "rows": [2, 4],
        "cat": [1, 2],
        "eel": [1, 2],
    }
    assert label_table(labels, parts).column_names == ["node", "rows", "0", "2"]


def test_label_table_of_float_targets_has_sizes_alone():
    table = label_table(np.zeros(3, dtype=np.float32), [np.array([0]), np.array([1, 2])])

    assert table.to_pydict() == {"node": [0, 1], "rows": [1, 2]}
