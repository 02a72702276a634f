"""A shard is opened without pandas, which pyarrow imports for conversions of its own."""

import subprocess
import sys

import numpy as np
import pyarrow as pa

from ray_snake.data.shards import label_values, tensor_views

OPENED = """
import sys
from ray_snake.data import NodeDataset, ShardSource, write_shard
from ray_snake.data.shards import read_table

shard = NodeDataset.open(ShardSource.of("builtin://digits/train"))
shard.check(10)
write_shard("digits.arrow", read_table("builtin://digits/train").slice(3, 40))
assert len(NodeDataset.open(ShardSource.of("digits.arrow"))) == 40
print(*sorted({"pandas", "torch"} & set(sys.modules)))
"""


def test_opening_and_checking_a_shard_imports_no_pandas(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", OPENED], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == ""


def test_views_of_slices_and_chunks_are_those_of_pyarrow():
    draw = np.random.Generator(np.random.PCG64(1))
    for kind in (pa.int8(), pa.int64(), pa.float16(), pa.float32(), pa.float64()):
        numbers = pa.array((9 * draw.normal(size=24)).astype(kind.to_pandas_dtype()))
        for column in (
            pa.chunked_array([numbers]),
            pa.chunked_array([numbers.slice(5, 7), numbers.slice(0, 0), numbers.slice(1, 3)]),
            pa.chunked_array([], kind),
        ):
            found = label_values(column, "shard", "label")
            np.testing.assert_array_equal(found, column.to_numpy())
            assert found.dtype == kind.to_pandas_dtype()
        rows = pa.FixedSizeListArray.from_arrays(numbers, 6)
        tensors = pa.ExtensionArray.from_storage(pa.fixed_shape_tensor(kind, (2, 3)), rows)
        (view,) = tensor_views(pa.chunked_array([tensors.slice(1, 2)]), "shard", "input", "key")
        np.testing.assert_array_equal(view, tensors.to_numpy_ndarray()[1:3])
        assert not view.flags.writeable


def test_true_and_false_are_labels_one_and_zero():
    column = pa.chunked_array([pa.array([True, False, True]).slice(1)])
    assert label_values(column, "shard", "label").tolist() == [0, 1]
