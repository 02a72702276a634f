"""Rows of tokens keep what is known of the texts that they begin in."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_snake.config import PartitionConfig
from ray_snake.data import NodeDataset, ShardSource, partition_file, read_table
from ray_snake.data.text import ByteTokenizer, packed, tokenize_file, tokenize_table
from ray_snake.errors import DataError

BYTES = ByteTokenizer()
TABLE = pa.table(
    {
        "text": ["aaaaaaa", "bb", "", "cccccc"],
        "work": [7, 3, 5, 4],
        "title": ["A", "B", "none", "C"],
        "label": [0, 1, 0, 1],
    }
)


@given(st.lists(st.text(max_size=12), max_size=6), st.integers(2, 9))
def test_a_packed_row_begins_in_the_text_that_is_said(texts, length):
    inputs, _, numbers = packed(texts, BYTES, length)
    stream = [(one, at) for at, text in enumerate(texts) for one in [*text.encode(), 256]]
    starts = range(0, length * len(inputs), length)
    assert [(row[0], at) for row, at in zip(inputs, numbers, strict=True)] == [
        stream[start] for start in starts
    ]


def test_packed_rows_keep_the_columns_of_those_texts():
    made = tokenize_table(TABLE, BYTES, length=4, keep=["work", "title"])
    assert made.column_names == ["input", "label", "work", "title"]
    assert made["work"].to_pylist() == [7, 7, 3, 4, 4]
    assert made["title"].to_pylist() == ["A", "A", "B", "C", "C"]


def test_padded_rows_keep_the_columns_of_their_texts():
    followed = tokenize_table(TABLE, BYTES, length=4, layout="padded", keep=["work"])
    assert followed["work"].to_pylist() == [7, 3, 4]
    classes = tokenize_table(
        TABLE, BYTES, length=4, layout="padded", label="label", keep=["work", "work"]
    )
    assert classes["work"].to_pylist() == [7, 3, 5, 4]


def test_nodes_get_works_of_their_own(tmp_path):
    """Tokens of eight works are dealt by work, and the shards open as ever."""
    works = pa.table({"text": [letter * 40 for letter in "abcdefgh"], "work": range(8)})
    pq.write_table(works, tmp_path / "works.parquet")
    tokens = str(tmp_path / "tokens" / "train.arrow")
    tokenize_file(str(tmp_path / "works.parquet"), tokens, BYTES, length=10, keep=["work"])
    config = PartitionConfig(scheme="shards", nodes=4, shards_per_node=2, seed=1)
    partition_file(str(tmp_path / "tokens"), config, str(tmp_path / "nodes"), label="work")

    found = [read_table(tmp_path / "nodes" / f"node_00{node}.arrow") for node in range(4)]
    assert sorted(work for table in found for work in table["work"].to_pylist()) == sorted(
        read_table(tokens)["work"].to_pylist()
    )
    assert all(len(set(table["work"].to_pylist())) <= 4 for table in found)
    node = NodeDataset.open(ShardSource(uri=str(tmp_path / "nodes" / "node_000.arrow")))
    assert node.has_token_labels


@pytest.mark.parametrize(
    ("keep", "problem"),
    [("author", "has no column 'author', only text, work"), ("label", "can't be kept beside")],
)
def test_a_column_that_can_not_be_kept_is_refused(keep, problem):
    with pytest.raises(DataError, match=problem):
        tokenize_table(TABLE, BYTES, length=4, keep=[keep])
