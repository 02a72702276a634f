import json

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from ray_snake.cli.data import data
from ray_snake.config import PartitionConfig
from ray_snake.data import (
    NodeDataset,
    ShardSource,
    label_table,
    make_table,
    read_table,
    split,
    write_shard,
)
from ray_snake.errors import ConfigError, DataError


def run(*arguments):
    """Run `ray-snake data` as main does, letting its errors through."""
    return CliRunner().invoke(
        data, [str(one) for one in arguments], catch_exceptions=False, standalone_mode=False
    )


@pytest.fixture
def folder(tmp_path, picture_table):
    """What a fetch leaves behind."""
    write_shard(tmp_path / "set" / "train.arrow", picture_table)
    return tmp_path / "set"


ARGUMENTS = ("--nodes", 4, "--scheme", "dirichlet", "--alpha", 0.3, "--seed", 5)
CONFIG = PartitionConfig(scheme="dirichlet", nodes=4, alpha=0.3, seed=5)


def test_partition_writes_the_rows_of_each_node_with_the_metadata(folder, tmp_path, pictures):
    run("partition", folder, *ARGUMENTS, "--out", tmp_path / "out")
    inputs, labels = pictures
    whole = read_table(folder / "train.arrow")

    for node, rows in enumerate(split(labels, CONFIG)):
        shard = read_table(tmp_path / "out" / f"node_{node:03d}.arrow")
        assert shard["label"].to_pylist() == labels[rows].tolist()
        assert (shard["input"].combine_chunks().to_numpy_ndarray() == inputs[rows]).all()
        assert shard.schema.equals(whole.schema, check_metadata=True)


def test_a_shard_file_and_a_part_of_the_source_are_the_same_data(folder, tmp_path):
    run("partition", folder, *ARGUMENTS, "--out", tmp_path / "out")
    uri = str(folder / "train.arrow")
    for node in range(4):
        part = NodeDataset.open(ShardSource(uri=uri, partition=CONFIG, index=node))
        file = NodeDataset.open(ShardSource(uri=str(tmp_path / "out" / f"node_{node:03d}.arrow")))
        rows = np.arange(len(part))
        for mine, other in zip(part.batch(rows), file.batch(rows), strict=True):
            assert (mine == other).all()


def test_partition_saves_and_shows_the_counts_and_the_settings(folder, tmp_path, pictures):
    shown = run("partition", folder, *ARGUMENTS, "--out", tmp_path / "out")
    labels = pictures[1]
    expected = label_table(labels, split(labels, CONFIG))

    assert pyarrow.csv.read_csv(tmp_path / "out" / "labels.csv").equals(expected)
    settings = json.loads((tmp_path / "out" / "partition.json").read_text())
    assert PartitionConfig.model_validate_json(json.dumps(settings["partition"])) == CONFIG
    assert settings["rows"] == 60
    lines = [line.split() for line in shown.stderr.splitlines()]
    for row in expected.to_pylist():
        assert [str(value) for value in row.values()] in lines
    assert shown.stdout == ""


def test_an_earlier_partition_is_replaced_but_nothing_else_is(folder, tmp_path):
    out = tmp_path / "out"
    run("partition", folder, "--nodes", 6, "--scheme", "iid", "--seed", 0, "--out", out)
    run("partition", folder, "--nodes", 2, "--scheme", "iid", "--seed", 0, "--out", out)
    assert sorted(file.name for file in out.glob("node_*")) == [
        "node_000.arrow",
        "node_001.arrow",
    ]

    (out / "thesis.tex").write_text("years of work")
    before = {file: file.read_bytes() for file in out.iterdir()}
    with pytest.raises(DataError, match=r"already holds 'thesis\.tex'"):
        run("partition", folder, "--nodes", 3, "--scheme", "iid", "--seed", 0, "--out", out)
    assert {file: file.read_bytes() for file in out.iterdir()} == before
    with pytest.raises(DataError, match="is the folder of the file to split"):
        run("partition", out / "node_000.arrow", *ARGUMENTS, "--out", out)


def test_a_refused_partition_leaves_the_earlier_one(folder, tmp_path):
    out = tmp_path / "out"
    run("partition", folder, *ARGUMENTS, "--out", out)
    before = {file: file.read_bytes() for file in out.iterdir()}
    with pytest.raises(DataError, match="61 nodes can't share 60 rows"):
        run("partition", folder, "--nodes", 61, "--scheme", "iid", "--seed", 0, "--out", out)

    assert {file: file.read_bytes() for file in out.iterdir()} == before


def test_text_in_parquet_with_another_label_column_can_be_split(tmp_path):
    source = pa.table({"text": [f"row {row}" for row in range(10)], "sign": [0, 1] * 5})
    pq.write_table(source, tmp_path / "reviews.parquet")
    file, out = tmp_path / "reviews.parquet", tmp_path / "out"
    run(
        *("partition", file, "--nodes", 2, "--scheme", "shards", "--shards-per-node", 1),
        *("--seed", 0, "--label", "sign", "--out", out),
    )

    shards = [read_table(out / f"node_00{node}.arrow").to_pydict() for node in range(2)]
    assert sorted(shards[0]["text"] + shards[1]["text"]) == sorted(source["text"].to_pylist())
    assert sorted(sorted(set(shard["sign"])) for shard in shards) == [[0], [1]]


def test_bad_requests_are_refused_before_anything_is_written(folder, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(DataError, match="no label column 'sign', only input, label"):
        run("partition", folder, *ARGUMENTS, "--out", out, "--label", "sign")
    with pytest.raises(ConfigError, match=r"--alpha: .*greater than 0"):
        run(
            *("partition", folder, "--nodes", 2, "--scheme", "quantity", "--alpha", 0),
            *("--seed", 0, "--out", out),
        )
    with pytest.raises(DataError, match=r"train\.arrow.*no such file"):
        run("partition", tmp_path, *ARGUMENTS, "--out", out)
    assert not out.exists()


def test_fetch_reads_a_local_copy_and_reports_on_stderr(tmp_path):
    (tmp_path / "movieReviewSnippets_GroundTruth.txt").write_text(
        "".join(f"{row}\t{(-1) ** row}.5\tsentence {row}\n" for row in range(2100))
    )
    source = tmp_path / "movieReviewSnippets_GroundTruth.txt"
    shown = run("fetch", "reviews", "--out", tmp_path / "out", "--from", source)

    assert read_table(tmp_path / "out" / "train.arrow").num_rows == 100
    assert read_table(tmp_path / "out" / "test.arrow").num_rows == 2000
    assert "wrote 100 rows" in shown.stderr.replace("\n", " ")
    assert shown.stdout == ""


@pytest.mark.parametrize(
    ("inputs", "labels", "problem"),
    [
        (np.ones(3), [0, 1, 2], r"reshape\(-1, 1\)"),
        (np.ones((3, 2)), [0, 1], "3 inputs but labels of shape"),
        ([["a"], ["b"]], [0, 1], "not numbers"),
        (np.ones((2, 2)), ["cat", "dog"], "label: holds .*not numbers"),
        ([[1, 2], [3]], [0, 1], "can't be made a numpy array"),
    ],
)
def test_arrays_that_make_no_table_are_refused(inputs, labels, problem):
    with pytest.raises(DataError, match=problem):
        make_table(inputs, labels)


def test_an_axis_of_length_one_keeps_its_place():
    column = make_table(np.zeros((5, 4, 4), dtype=np.uint8)[:, None], np.zeros(5))["input"]

    assert column.type.shape == [1, 4, 4]
    assert column.chunk(0).to_numpy_ndarray().shape == (5, 1, 4, 4)
