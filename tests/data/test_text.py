"""Text as rows of tokens: nothing lost, labels one ahead, padding that does not count."""

import json

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_snake.config import PartitionConfig
from ray_snake.data import NodeDataset, ShardSource, make_table, partition_file, read_table
from ray_snake.data.shards import IGNORED, metadata_of
from ray_snake.data.text import (
    ByteTokenizer,
    load_tokenizer,
    packed,
    padded,
    padded_language,
    tokenize_file,
    tokenize_table,
)
from ray_snake.errors import DataError, StorageError

BYTES = ByteTokenizer()
TEXTS = ["to be", "or not", "", "né"]


@pytest.fixture
def table():
    facts = {b"ray_snake": json.dumps({"classes": ["no", "yes"], "source": "here"}).encode()}
    return pa.table({"text": TEXTS, "label": [1, 0, 1, 0]}, metadata=facts)


def decoded(tokens):
    return bytes(int(one) for one in tokens if one < 256).decode()


def opened(table, **more):
    return NodeDataset.open(ShardSource(table=table, **more))


@given(st.lists(st.text(max_size=12), max_size=5), st.integers(2, 9))
def test_packed_rows_are_the_texts_one_behind_the_other(texts, length):
    inputs, labels, _ = packed(texts, BYTES, length)
    stream = [one for text in texts for one in [*text.encode(), 256]]
    expected = len(stream) - 1 if len(stream) > 1 else 0
    counts = labels != IGNORED
    assert inputs.shape == labels.shape == (-(-expected // length), length)
    assert inputs[counts].tolist() == stream[:-1][:expected]
    assert labels[counts].tolist() == stream[1:]
    assert (inputs[~counts] == BYTES.padding).all()
    assert counts.any(axis=1).all()


@given(st.lists(st.text(max_size=12), max_size=5), st.integers(2, 9))
def test_padded_rows_are_each_text_with_what_follows(texts, length):
    inputs, labels, _ = padded_language(texts, BYTES, length)
    wholes = [[*text.encode(), 256] for text in texts if text]
    assert len(inputs) == len(labels) == len(wholes)
    for row, targets, whole in zip(inputs, labels, wholes, strict=True):
        count = min(length, len(whole) - 1)
        assert row.tolist() == whole[:count] + [257] * (length - count)
        assert targets.tolist() == whole[1 : count + 1] + [IGNORED] * (length - count)


def test_texts_of_classes_keep_their_end_however_long():
    inputs = padded(["abc", "abcdefgh", ""], BYTES, 5)
    assert inputs.dtype == np.int32
    assert inputs.tolist() == [
        [97, 98, 99, 256, 257],
        [97, 98, 99, 100, 256],
        [256, 257, 257, 257, 257],
    ]


def test_a_table_of_a_language_model_opens_as_a_shard(table):
    made = tokenize_table(table, BYTES, length=6)
    facts = metadata_of(made.schema)
    assert facts == {"source": "here", "tokenizer": "bytes", "vocabulary": 258, "padding": 257}
    shard = opened(made)
    assert (shard.sample_shape, shard.label_shape) == ((6,), (6,))
    assert shard.has_token_labels
    assert not shard.has_class_labels
    inputs, labels = shard.batch(np.array([1, 0]))
    assert inputs.dtype == labels.dtype == np.int64
    assert decoded(inputs[1]) == "to be"
    assert inputs[1].tolist() == [*b"to be", 256]
    assert labels[1].tolist() == [*b"o be", 256, ord("o")]
    shard.check(258)
    assert shard.largest_input() == 257


def test_a_table_of_classes_keeps_them(table):
    made = tokenize_table(table, BYTES, length=6, layout="padded", label="label")
    assert metadata_of(made.schema)["classes"] == ["no", "yes"]
    shard = opened(made)
    assert shard.has_class_labels
    inputs, labels = shard.batch(np.arange(4))
    assert labels.tolist() == [1, 0, 1, 0]
    assert [decoded(row) for row in inputs] == ["to be", "or no", "", "né"]


def test_a_text_file_is_one_text(tmp_path):
    (tmp_path / "a.txt").write_text("first line\n\nsecond", encoding="utf-8")
    tokenize_file(str(tmp_path / "a.txt"), str(tmp_path / "a.arrow"), BYTES, length=8)
    inputs, labels = opened(read_table(tmp_path / "a.arrow")).batch(np.arange(3))
    counts = labels != IGNORED
    assert decoded(inputs[counts]) == "first line\n\nsecond"
    assert labels[counts][-1] == BYTES.end


class Untouched(ByteTokenizer):
    def plain(self, text):
        raise AssertionError("text was tokenized")


def test_where_tokens_can_not_be_written_is_refused_before_the_work(tmp_path, table):
    source = _written(tmp_path, table)
    with pytest.raises(StorageError, match="is a folder; name a file in it"):
        tokenize_file(source, str(tmp_path), Untouched(), length=8)
    with pytest.raises(StorageError, match=r"text\.parquet is not a folder"):
        tokenize_file(source, f"{source}/tokens.arrow", Untouched(), length=8)


@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_rows_longer_than_any_context_are_refused(table, layout):
    with pytest.raises(DataError, match="length: 99999999999 tokens are more than a row may have"):
        tokenize_table(table, BYTES, length=99_999_999_999, layout=layout)


def test_a_shard_of_tokens_stays_on_disk_and_is_dealt_to_nodes(tmp_path, table):
    made = tokenize_table(table, BYTES, length=3)
    path = tmp_path / "train.arrow"
    tokenize_file(_written(tmp_path, table), str(path), BYTES, length=3)
    partition = PartitionConfig(scheme="iid", nodes=2, seed=3)
    nodes = [
        NodeDataset.open(ShardSource(uri=str(path), partition=partition, index=index))
        for index in range(2)
    ]
    rows = np.concatenate([np.hstack(node.batch(np.arange(len(node)))) for node in nodes])
    whole = np.hstack(opened(made).batch(np.arange(made.num_rows)))
    assert sorted(rows.tolist()) == sorted(whole.tolist())

    counts = partition_file(str(path), partition, str(tmp_path / "nodes"))
    assert counts.column("rows").to_pylist() == [len(node) for node in nodes]
    for index, node in enumerate(nodes):
        written = NodeDataset.open(
            ShardSource(uri=str(tmp_path / "nodes" / f"node_{index:03d}.arrow"))
        )
        every = np.arange(len(node))
        assert all(
            np.array_equal(one, other)
            for one, other in zip(written.batch(every), node.batch(every), strict=True)
        )


def _written(folder, table):
    import pyarrow.parquet as pq

    pq.write_table(table, folder / "text.parquet")
    return str(folder / "text.parquet")


def test_the_sonnets_that_ship_are_text_and_apart():
    texts = {}
    for part in ("train", "test"):
        shard = NodeDataset.open(ShardSource(uri=f"builtin://sonnets/{part}"))
        shard.check(258)
        inputs, labels = shard.batch(np.arange(len(shard)))
        assert inputs.shape[1] == 64
        text = inputs[:, 1:] < BYTES.padding
        assert np.array_equal(inputs[:, 1:][text], labels[:, :-1][text])
        texts[part] = bytes(np.where(inputs < 256, inputs, 10).astype(np.uint8)).decode()
    assert "Shall I compare thee to a summer's day?" in texts["train"]
    lines = {line for line in texts["test"].split("\n") if len(line) > 20}
    assert len(lines) > 150
    assert len(lines & set(texts["train"].split("\n"))) < 5


def test_a_tokenizer_of_transformers_marks_ends_as_its_model_expects(tmp_path):
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    words = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "to", "be", "or", "not"]
    inner = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    inner.pre_tokenizer = Whitespace()
    inner.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]"
    ).save_pretrained(tmp_path)
    tokenizer = load_tokenizer(str(tmp_path))
    assert (tokenizer.vocabulary, tokenizer.padding, tokenizer.end) == (8, 0, 2)
    assert padded(["to be or not to be", "be"], tokenizer, 5).tolist() == [
        [1, 4, 5, 6, 2],
        [1, 5, 2, 0, 0],
    ]
    inputs, labels, _ = packed(["to be", "or not"], tokenizer, 5)
    assert inputs.tolist() == [[4, 5, 2, 6, 7]]
    assert labels.tolist() == [[5, 2, 6, 7, 2]]
    inputs, labels, _ = padded_language(["to be", "not"], tokenizer, 4)
    assert inputs.tolist() == [[1, 4, 5, 0], [1, 7, 0, 0]]
    assert labels.tolist() == [[4, 5, 2, IGNORED], [7, 2, IGNORED, IGNORED]]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"text": "words"}, r"here: has no column 'words', only text, label; name one of these"),
        ({"label": "stars", "layout": "padded"}, r"here: has no column 'stars'"),
        ({"label": "label"}, r"label label: belongs to one text, and packed rows hold parts"),
        ({"text": "label"}, r"here: column 'label' is int64, not text"),
        ({"length": 1}, r"length: 1 leaves nothing to predict"),
    ],
)
def test_what_is_no_text_is_refused(options, says, table):
    with pytest.raises(DataError, match=says):
        tokenize_table(table, BYTES, **{"length": 4, "subject": "here", **options})


@pytest.mark.parametrize("texts", [[], ["", ""]])
def test_a_column_without_text_is_refused(texts):
    table = pa.table({"text": pa.array(texts, pa.string())})
    with pytest.raises(DataError, match="holds no text"):
        tokenize_table(table, BYTES, length=4, layout="padded")


@pytest.mark.parametrize("out", ["book.txt", "../{folder}/book.txt"])
def test_the_text_is_not_replaced_by_its_tokens(tmp_path, monkeypatch, out):
    (tmp_path / "book.txt").write_text("to be or not to be")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="is the file of text itself; write the tokens to another"):
        tokenize_file("book.txt", out.format(folder=tmp_path.name), BYTES, length=4)
    assert (tmp_path / "book.txt").read_text() == "to be or not to be"


def test_a_tokenizer_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(DataError, match="can't be loaded"):
        load_tokenizer(str(tmp_path))


def tokens_table(inputs, labels):
    return make_table(np.array(inputs, dtype=np.int32), np.array(labels, dtype=np.int32))


@pytest.mark.parametrize(
    ("inputs", "labels", "says"),
    [
        ([[1, 2], [3, 4]], [[2, 3], [4, 9]], r"label 9 in row 1 is neither one of the model's tok"),
        ([[1, 2], [3, 4]], [[2, -1], [4, 5]], r"label -1 in row 0 is neither .* nor -100"),
        ([[1, 2], [3, 4]], [[2, 3], [IGNORED] * 2], r"row 1 has no token to be predicted"),
    ],
)
def test_labels_that_are_no_tokens_are_refused(inputs, labels, says):
    with pytest.raises(DataError, match=says):
        opened(tokens_table(inputs, labels)).check(9)


def test_tokens_below_zero_are_refused():
    shard = opened(tokens_table([[1, 2], [3, -4]], [[2, 3], [4, 5]]))
    with pytest.raises(DataError, match="holds -4 in row 1, and tokens count from 0"):
        shard.largest_input()
