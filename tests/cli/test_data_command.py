"""`ray-snake data` refuses in one line what it is given wrong, in the words of its own options."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ray_snake.data import make_table, write_shard

TOKENIZE = ("data", "tokenize", "book.txt", "--tokenizer", "bytes", "--length", "8")
PARTITION = ("data", "partition", "rows.arrow", "--seed", "1", "--out", "nodes")


@pytest.fixture
def rows(workplace):
    """A workplace with a book, and 40 rows of pictures."""
    workplace.write("to be or not to be", "book.txt")
    pq.write_table(pa.table({"text": ["a", "b"], "author": ["x", "y"]}), workplace.folder / "t.pq")
    inputs = np.zeros((40, 1, 8, 8), dtype=np.uint8)
    write_shard(workplace.folder / "rows.arrow", make_table(inputs, np.arange(40) % 10))
    return workplace


def refusal(workplace, *arguments):
    """Return what the command refuses its arguments with."""
    ended = workplace.call_forked(*arguments)
    assert ended.returncode == 2, ended.stderr
    assert ended.stdout == ""
    (line,) = ended.stderr.splitlines()
    return line


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((*TOKENIZE, "--out", "home"), "/home: is a folder; name a file in it"),
        ((*TOKENIZE, "--length", "99999999999", "--out", "o"), "not in the range 2<=x<=1048576"),
    ],
)
def test_tokens_that_can_not_be_made_or_written(rows, arguments, words):
    assert words in refusal(rows, *arguments)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--nodes", "41", "--scheme", "iid"), ": --nodes: 41 nodes can't share 40 rows"),
        (
            ("--nodes", "2", "--scheme", "dirichlet", "--label", "input"),
            ": --scheme: 'dirichlet' goes by label, but a label has the shape (1, 8, 8); ",
        ),
        (
            ("--nodes", "2", "--scheme", "shards", "--label", "input"),
            ": --scheme: 'shards' goes by label, but a label has the shape (1, 8, 8); ",
        ),
    ],
)
def test_a_split_that_can_not_be_made(rows, options, words):
    assert words in refusal(rows, *PARTITION, *options)


def test_a_label_that_is_none_is_another_for_the_option(rows):
    options = ("--nodes", "2", "--scheme", "iid", "--seed", "1", "--out", "nodes")
    line = refusal(rows, "data", "partition", "t.pq", *options, "--label", "author")
    assert "name another column as --label, or convert it" in line
    tokens = ("--tokenizer", "bytes", "--length", "8", "--layout", "padded", "--out", "o.arrow")
    line = refusal(rows, "data", "tokenize", "t.pq", *tokens, "--label", "author")
    assert "name another column as the label, or convert it" in line
