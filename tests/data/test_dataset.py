import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import ray_snake
from ray_snake.config import PartitionConfig
from ray_snake.data import NodeDataset, ShardSource, make_table, split, write_shard
from ray_snake.errors import DataError


def opened(data, **rest):
    return NodeDataset.open(ShardSource.of(data, **rest))


def numbers(rows):
    return np.array(rows, dtype=np.int64)


@pytest.fixture(params=["arrow", "arrow in pieces", "parquet", "memory"])
def shard(request, tmp_path, picture_table):
    """The same rows, however they are stored."""
    if request.param == "memory":
        return picture_table
    path = tmp_path / "shard_7.data"
    if request.param == "parquet":
        pq.write_table(picture_table, path)
    elif request.param == "arrow":
        write_shard(path, picture_table)
    else:
        pieces = [picture_table.slice(start, 7) for start in range(0, 60, 7)]
        write_shard(path, pa.concat_tables(pieces))
    return path


def test_8_bit_inputs_are_scaled_and_normalised_as_the_file_says(shard, pictures):
    inputs, labels = pictures
    rows = numbers([59, 0, 13, 13, 6, 7])
    dataset = opened(shard)
    features, found = dataset.batch(rows)

    mean = np.array([0.5, 0.4, 0.3]).reshape(3, 1, 1)
    std = np.array([0.25, 0.2, 0.1]).reshape(3, 1, 1)
    np.testing.assert_allclose(features, (inputs[rows] / 255 - mean) / std, atol=1e-5)
    assert features.dtype == dataset.input_dtype == np.float32
    assert found.tolist() == labels[rows].tolist()
    assert found.dtype == np.int64
    assert len(dataset) == 60
    assert dataset.sample_shape == (3, 4, 5)
    assert dataset.has_class_labels
    dataset.check(3)


def test_settings_take_the_place_of_the_file_s_normalisation(shard, pictures):
    dataset = opened(shard, mean=(0.0,), std=(0.5,))

    features, _ = dataset.batch(numbers([4]))
    np.testing.assert_allclose(features[0], pictures[0][4] / 255 / 0.5, atol=1e-6)


def test_a_batch_is_a_private_writable_copy(shard):
    dataset = opened(shard)
    first = dataset.batch(numbers([1, 2]))
    for array in first:
        array += 1
    second = dataset.batch(numbers([1, 2]))

    assert (first[0] == second[0] + 1).all()
    assert (first[1] == second[1] + 1).all()
    assert torch.from_numpy(second[0]).shape == (2, 3, 4, 5)


def test_row_numbers_outside_the_shard_are_refused(shard):
    for row in (-1, 60):
        with pytest.raises(IndexError):
            opened(shard).batch(numbers([row]))


def test_parts_of_one_file_are_the_parts_of_the_split(shard, pictures):
    config = PartitionConfig(scheme="dirichlet", nodes=4, alpha=0.3, seed=9)
    inputs, labels = pictures
    for index, rows in enumerate(split(labels, config)):
        dataset = opened(shard, partition=config, index=index, mean=(0.0,), std=(1.0,))
        features, found = dataset.batch(np.arange(len(rows)))

        assert len(dataset) == len(rows)
        np.testing.assert_allclose(features, inputs[rows] / 255, atol=1e-6)
        assert found.tolist() == labels[rows].tolist()
        assert dataset.label_counts(3).tolist() == np.bincount(labels[rows], minlength=3).tolist()


def test_label_counts_have_an_entry_for_each_class(picture_table):
    assert opened(picture_table).label_counts(5).tolist() == [20, 20, 20, 0, 0]


def test_a_local_shard_is_not_copied_into_memory(tmp_path):
    path = tmp_path / "large.arrow"
    write_shard(path, make_table(np.zeros((64, 2**20), dtype=np.uint8), np.zeros(64, dtype=int)))
    program = (
        "import numpy, pyarrow\n"
        "from ray_snake.data import NodeDataset, ShardSource\n"
        "def private(): return int(next(line for line in open('/proc/self/status')"
        " if line.startswith('RssAnon')).split()[1]) / 1024\n"
        "before = private()\n"
        f"dataset = NodeDataset.open(ShardSource(uri={str(path)!r}))\n"
        "dataset.batch(numpy.arange(2))\n"
        "print(pyarrow.total_allocated_bytes() / 2**20, private() - before)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60
    )

    arrow_mebibytes, private_mebibytes = map(float, done.stdout.split())
    assert arrow_mebibytes < 1
    assert private_mebibytes < 32


def test_whole_number_inputs_stay_whole():
    tokens = np.arange(12, dtype=np.int32).reshape(4, 3) * 1000
    dataset = opened((tokens, [0, 1, 0, 1]))
    inputs, _ = dataset.batch(numbers([3, 0]))

    assert inputs.dtype == dataset.input_dtype == np.int64
    assert inputs.tolist() == [[9000, 10000, 11000], [0, 1000, 2000]]
    with pytest.raises(DataError, match=r"data\.mean.*token ids"):
        opened((tokens, [0, 1, 0, 1]), mean=(1.0,))


def test_float_inputs_are_normalised_without_scaling():
    dataset = opened((np.array([[2.0, 4.0], [6.0, 8.0]]), [0, 1]), mean=(1.0, 2.0), std=(2.0,))

    assert dataset.batch(numbers([0, 1]))[0].tolist() == [[0.5, 1.0], [2.5, 3.0]]


def test_float_targets_and_fixed_shape_targets():
    scalar = opened((np.ones((3, 2)), np.array([0.5, 1.5, 2.5])))
    wide = opened((np.ones((3, 2)), np.arange(6.0).reshape(3, 2)))

    assert scalar.batch(numbers([2]))[1].tolist() == [2.5]
    assert scalar.batch(numbers([2]))[1].dtype == np.float32
    assert wide.batch(numbers([2, 0]))[1].tolist() == [[4.0, 5.0], [0.0, 1.0]]
    assert not scalar.has_class_labels
    assert not wide.has_class_labels
    scalar.check(None)
    with pytest.raises(DataError, match=r"holds targets \(float32"):
        scalar.check(3)


def test_torch_tensors_and_fixed_size_lists_are_taken():
    pair = (torch.arange(6.0).reshape(3, 2), torch.tensor([1, 0, 1]))
    lists = pa.table(
        {"x": pa.array([[0.0, 1.0], [2.0, 3.0]], pa.list_(pa.float32(), 2)), "y": [1, 0]}
    )

    assert opened(pair).batch(numbers([1]))[0].tolist() == [[2.0, 3.0]]
    assert opened(lists, input="x", label="y").batch(numbers([1]))[0].tolist() == [[2.0, 3.0]]


def test_the_digits_ship_with_the_package():
    train, test = opened("builtin://digits/train"), opened("builtin://digits/test")
    train.check(10)
    test.check(10)
    features, _ = train.batch(np.arange(len(train)))

    assert (len(train), len(test)) == (1437, 360)
    assert train.sample_shape == (1, 8, 8)
    assert abs(features.mean()) < 1e-3
    assert abs(features.std() - 1) < 1e-3
    assert train.label_counts(10).min() >= 139


def test_a_source_survives_pickling(picture_table):
    for source in (
        ShardSource(uri="x.arrow", index=2, partition=PartitionConfig(nodes=3)),
        ShardSource.of(picture_table, mean=(0.1,)),
    ):
        assert pickle.loads(pickle.dumps(source)) == source  # noqa: S301 - our own bytes


@pytest.mark.parametrize(
    ("source", "name"),
    [
        (ShardSource(uri="/data/node_003.arrow"), "node_003"),
        (ShardSource(uri="s3://bucket/a/node_003.arrow?scheme=http"), "node_003"),
        (ShardSource(uri="builtin://digits/test"), "digits/test"),
        (
            ShardSource(uri="builtin://digits/train", partition=PartitionConfig(), index=3),
            "digits/train[3]",
        ),
        (ShardSource(table=pa.table({}), index=5), "memory[5]"),
    ],
)
def test_names_are_short(source, name):
    assert source.name == name


def test_a_source_is_one_thing_and_its_part_exists():
    with pytest.raises(DataError, match="exactly one"):
        ShardSource()
    with pytest.raises(DataError, match="no part 8"):
        ShardSource(uri="x", partition=PartitionConfig(nodes=8), index=8)
    with pytest.raises(DataError, match=r"nodes\[4\]: is a int"):
        ShardSource.of(3, index=4)


def table(**columns):
    good = {"input": pa.array([[1.0], [2.0]], pa.list_(pa.float32(), 1)), "label": pa.array([0, 1])}
    return pa.table({name: value for name, value in (good | columns).items() if value is not None})


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (table(input=None), r"no column 'input', only label; name one of these as data\.input"),
        (table(label=None), r"no column 'label', only input; name one of these as data\.label"),
        (table(label=pa.array([0, 2])), "label 2 in row 1 is not one of the model's 2 classes"),
        (table(label=pa.array([-1, 0])), "label -1 in row 0"),
        (table(label=pa.array([0, None])), "'label' has no value in row 1"),
        (table(label=pa.array(["a", "b"])), "'label' is string"),
        (table(label=pa.array([0.0, float("nan")])), "'label' holds NaN or infinity in row 1"),
        (table(input=pa.array(["a", "b"])), "'input' is string, whose values have no fixed shape"),
        (table(input=pa.array([[1.0], [2.0, 3.0]])), "no fixed shape"),
        (
            table(input=pa.array([[1.0], [float("inf")]], pa.list_(pa.float32(), 1))),
            "'input' holds NaN or infinity in row 1",
        ),
        (
            table(input=pa.array([[1.0], [None]], pa.list_(pa.float32(), 1))),
            "'input' has no value in row 1",
        ),
        (
            table(input=pa.array([None, [1.0]], pa.list_(pa.float32(), 1))),
            "'input' has no value in row 0",
        ),
        (
            table(input=pa.array([["a"], ["b"]], pa.list_(pa.string(), 1))),
            "holds string, which are not numbers",
        ),
        (table().slice(0, 0), "has no rows"),
    ],
)
def test_a_shard_that_would_spoil_a_training_is_refused(tmp_path, content, problem):
    path = tmp_path / "shard.parquet"
    pq.write_table(content, path)
    has_targets = "label" in content.column_names and pa.types.is_floating(content["label"].type)
    with pytest.raises(DataError, match=problem) as caught:
        opened(path).check(None if has_targets else 2)

    assert caught.value.subject == str(path)
    assert "\n" not in str(caught.value)


def test_rows_in_errors_are_rows_of_the_file(picture_table):
    labels = np.arange(60) % 3
    labels[41] = 7
    content = picture_table.set_column(1, "label", pa.array(labels))
    config = PartitionConfig(nodes=3, seed=1)
    index = next(i for i, rows in enumerate(split(labels, config)) if 41 in rows)
    with pytest.raises(DataError, match="label 7 in row 41"):
        opened(content, partition=config, index=index).check(3)


def test_more_nodes_than_rows_names_the_file(tmp_path, picture_table):
    write_shard(tmp_path / "few.arrow", picture_table.slice(0, 3))
    with pytest.raises(DataError, match=r"few\.arrow: has 3 rows for 4 nodes"):
        opened(tmp_path / "few.arrow", partition=PartitionConfig(nodes=4))


@pytest.mark.parametrize("values", [(0.1, 0.2), (float("nan"),), ()])
def test_normalisation_that_does_not_fit_is_refused(picture_table, values):
    with pytest.raises(DataError, match=r"data\.mean: .* give 1 or 3 numbers"):
        opened(picture_table, mean=values)
    with pytest.raises(DataError, match=r"data\.std: .* give 1 or 3 positive numbers"):
        opened(picture_table, std=(0.0, 1.0, 1.0))


def test_files_that_can_not_be_opened_are_named(tmp_path):
    (tmp_path / "text.arrow").write_text("not a table")
    (tmp_path / "empty.arrow").write_bytes(b"")
    (tmp_path / "cut.arrow").write_bytes(b"ARROW1\0\0 and then nothing")
    (tmp_path / "cut.parquet").write_bytes(b"PAR1 and then nothing")
    for name, problem in {
        "text.arrow": "neither an Arrow IPC file nor Parquet",
        "empty.arrow": "is an empty file",
        "cut.arrow": "can't be read",
        "cut.parquet": "can't be read",
        "missing.arrow": "no such file",
        "": "is a folder",
    }.items():
        with pytest.raises(DataError, match=problem) as caught:
            opened(tmp_path / name)
        assert str(tmp_path) in str(caught.value)
    with pytest.raises(DataError, match="known: builtin://digits/train"):
        opened("builtin://cifar")


def test_the_data_package_needs_neither_torch_nor_ray():
    package = Path(ray_snake.__file__).parent
    program = (
        "import sys, types\n"
        "sys.modules['torch'] = sys.modules['ray'] = None  # an import of them fails\n"
        "bare = types.ModuleType('ray_snake')\n"
        f"bare.__path__ = [{str(package)!r}]\n"
        "sys.modules['ray_snake'] = bare\n"
        "import ray_snake.data.catalogue, ray_snake.data.dataset\n"
        "print('imported')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=60
    )

    assert done.stdout.strip() == "imported", done.stderr


@pytest.mark.parametrize("ending", ["arrow", "parquet"])
def test_one_column_may_be_input_and_target(tmp_path, ending):
    inputs = np.arange(6, dtype=np.float32).reshape(3, 2)
    path = tmp_path / f"rows.{ending}"
    table = make_table(inputs, np.arange(3))
    if ending == "arrow":
        write_shard(path, table)
    else:
        pq.write_table(table, path)
    rows, targets = NodeDataset.open(ShardSource(uri=str(path), label="input")).batch(np.arange(3))
    assert np.array_equal(rows, inputs)
    assert np.array_equal(targets, inputs)


def test_labels_alone_are_no_input(tmp_path):
    path = tmp_path / "rows.arrow"
    write_shard(path, make_table(np.zeros((3, 2), dtype=np.float32), np.arange(3)))
    with pytest.raises(DataError, match=r"input column 'label' is int64"):
        NodeDataset.open(ShardSource(uri=str(path), input="label"))


def test_where_there_is_one_channel_one_number_is_asked_for():
    one = make_table(np.zeros((3, 1, 2, 2), dtype=np.float32), np.arange(3))
    with pytest.raises(DataError, match=r"data\.mean: .*; give 1 numbers"):
        NodeDataset.open(ShardSource(table=one, mean=(0.5, 0.5)))
