"""The files that hold data: Arrow IPC or Parquet, with the facts about the data in their schema.

A shard is written as an uncompressed Arrow IPC file, so that a node can memory-map it. Inputs are
a column of fixed-shape tensors. Labels are a number in each row, or, of token sequences, the tokens
that follow each position, with `IGNORED` where none is to be predicted. The schema's metadata
holds, under the key `ray_snake`, a JSON object with some of: `mean` and `std` (per channel, after
scaling 8-bit inputs to [0, 1]), `classes` (their names or their number), `tokenizer`, `vocabulary`
(its number of tokens) and `padding` (the token of padding), `source` and `licence`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.ipc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ray_snake.config import PartitionConfig
from ray_snake.data.partition import label_table, split
from ray_snake.errors import DataError, StorageError
from ray_snake.location import without_secrets
from ray_snake.storage import Storage, open_file, split_uri

METADATA_KEY = b"ray_snake"
IGNORED = -100
"""Label of a position that does not count: what torch's cross-entropy leaves out by default."""
BUILTIN = "builtin://"
LABELS_FILE = "labels.csv"
SETTINGS_FILE = "partition.json"
# A shard can be many gigabytes, and a network slow.
WRITE_SECONDS = 1800.0

_BUILTIN_FILES = {
    "digits/train": "digits_train.parquet",
    "digits/test": "digits_test.parquet",
    "sonnets/train": "sonnets_train.parquet",
    "sonnets/test": "sonnets_test.parquet",
}
_ARROW_MAGIC = b"ARROW1"
_PARQUET_MAGIC = b"PAR1"


def make_table(
    inputs: object,
    labels: object,
    metadata: Mapping[str, Any] | None = None,
    *,
    input_name: str = "input",
    label_name: str = "label",
) -> pa.Table:
    """Make a table of fixed-shape inputs and labels.

    Args:
        inputs: Shape (rows, ...), anything numpy can convert, such as a torch tensor on the CPU.
        labels: Shape (rows,) or (rows, ...), likewise.
        metadata: Facts for the schema; see this module.
        input_name: Name of the input column.
        label_name: Name of the label column.

    Returns:
        A table of two columns in one chunk; numeric arrays are not copied where avoidable.

    Raises:
        DataError: If the arrays are not numeric or don't have the same number of rows.
    """
    features = _as_array(inputs, input_name)
    targets = _as_array(labels, label_name)
    if features.ndim < 2:
        raise DataError(
            input_name,
            f"inputs have the shape {features.shape}, so a row is a single number",
            "give an array of shape (rows, features), for example inputs.reshape(-1, 1)",
        )
    if targets.ndim == 0 or len(features) != len(targets):
        raise DataError(
            label_name,
            f"{len(features)} inputs but labels of shape {targets.shape}",
            "give one label for each input",
        )
    column = pa.array(targets) if targets.ndim == 1 else _tensor_column(targets)
    table = pa.table({input_name: _tensor_column(features), label_name: column})
    return table.replace_schema_metadata(_encoded(metadata or {}))


def metadata_of(schema: pa.Schema) -> dict[str, Any]:
    """Return the facts in a schema's metadata; empty where there are none that can be read."""
    try:
        facts = json.loads((schema.metadata or {}).get(METADATA_KEY, b"{}"))
    except ValueError:
        return {}
    return facts if isinstance(facts, dict) else {}


def class_names(schema: pa.Schema) -> list[str] | None:
    """Return the names of classes 0, 1, and so on, where the schema's metadata has them."""
    classes = metadata_of(schema).get("classes")
    return [str(name) for name in classes] if isinstance(classes, list) else None


def read_table(uri: str | os.PathLike[str], columns: Sequence[str] | None = None) -> pa.Table:
    """Open an Arrow IPC or Parquet file; the content tells which.

    A local Arrow IPC file is memory-mapped: nothing is copied until rows are used.

    Args:
        uri: A local path, a URI that `ray_snake.storage` knows, or `builtin://digits/train`.
        columns: Columns that are needed; all are read if the file lacks one of them.

    Raises:
        DataError: If the file is missing, unreadable or of another format.
    """
    text = os.fspath(uri)
    shown = without_secrets(text)
    try:
        path = _builtin_path(text) if text.startswith(BUILTIN) else text
        local = None if "://" in path else Path(path).expanduser()
        if local is not None and local.is_dir():
            raise DataError(text, "is a folder", "give the path of one file in it")
        if local is not None and local.is_file() and local.stat().st_size == 0:
            raise DataError(text, "is an empty file", "write the file again")
        return _read(open_file(path), shown, columns)
    except StorageError as error:
        raise DataError(
            error.subject, error.problem, "check the path, or fetch or partition the data first"
        ) from None
    except (OSError, pa.ArrowException) as error:
        raise DataError(shown, f"can't be read ({error})", "write the file again") from None


def check_shard(uri: str | os.PathLike[str]) -> None:
    """See that a shard can be written, before the work is done whose result it is to hold.

    Args:
        uri: The file: a local path or a URI.

    Raises:
        StorageError: If it can't.
    """
    folder, name = split_uri(uri)
    storage = Storage(folder)
    storage.check_writable()
    if storage.is_local and Path(storage.uri, name).is_dir():
        raise StorageError(f"{storage.uri}/{name}", "is a folder", "name a file in it")


def write_shard(uri: str | os.PathLike[str], table: pa.Table) -> None:
    """Write a table as an uncompressed Arrow IPC file, whole or not at all.

    Args:
        uri: The file: a local path or a URI.
        table: The rows, with their metadata.

    Raises:
        StorageError: If it can't be written.
    """
    folder, name = split_uri(uri)
    Storage(folder, timeout_seconds=WRITE_SECONDS).write(name, memoryview(ipc_bytes(table)))


def ipc_bytes(table: pa.Table) -> pa.Buffer:
    """Return a table as the content of an uncompressed Arrow IPC file."""
    sink = pa.BufferOutputStream()
    with pyarrow.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue()


def partition_file(
    source: str, config: PartitionConfig, out: str, *, label: str = "label"
) -> pa.Table:
    """Split a file into one shard for each node.

    Writes `node_000.arrow` and so on, the counts of labels as `labels.csv`, and the settings as
    `partition.json`, which comes last and so says that the others are complete.

    Args:
        source: An Arrow IPC or Parquet file, or a folder with a `train.arrow`.
        config: How to split.
        out: The folder to write; it may hold an earlier partition, which is replaced.
        label: Name of the label column.

    Returns:
        The counts of labels; see `ray_snake.data.partition.label_table`.

    Raises:
        DataError: If the source can't be used, or `out` holds other files.
        StorageError: If `out` can't be written.
    """
    if not source.startswith(BUILTIN) and "://" not in source and Path(source).is_dir():
        source = str(Path(source) / "train.arrow")
    table = read_table(source)
    if label not in table.column_names:
        raise DataError(
            without_secrets(source),
            f"has no label column {label!r}, only {', '.join(table.column_names)}",
            "name one of these with --label",
        )
    folder = Storage(out, timeout_seconds=WRITE_SECONDS)
    folder.check_writable()
    if not source.startswith(BUILTIN) and split_uri(source)[0] == folder.uri:
        raise DataError(out, "is the folder of the file to split", "give --out another folder")
    earlier = _earlier_partition(folder)
    labels = label_values(table.column(label), without_secrets(source), label, key="--label")
    try:
        parts = split(labels, config)
    except DataError as error:
        option = error.subject.replace("data.partition.", "--")
        raise DataError(option, error.problem, error.remedy) from None
    counts = label_table(labels, parts, class_names(table.schema))
    for name in earlier:
        folder.delete(name)
    digits = max(3, len(str(config.nodes - 1)))
    for node, rows in enumerate(parts):
        shard = table.take(pa.array(rows)).combine_chunks()
        folder.write(f"node_{node:0{digits}d}.arrow", memoryview(ipc_bytes(shard)))
    text = pa.BufferOutputStream()
    pyarrow.csv.write_csv(counts, text)
    folder.write(LABELS_FILE, memoryview(text.getvalue()))
    settings = {
        "source": without_secrets(source),
        "label": label,
        "rows": table.num_rows,
        "partition": config.model_dump(mode="json"),
    }
    folder.write(SETTINGS_FILE, (json.dumps(settings, indent=2) + "\n").encode())
    return counts


def label_values(
    column: pa.ChunkedArray, subject: str, name: str, *, key: str = "data.label"
) -> NDArray[Any]:
    """Return a column of scalar labels or fixed-shape targets as one numpy array.

    Args:
        column: The column.
        subject: The file, for errors.
        name: The column's name, for errors.
        key: What names the column, for errors.

    Returns:
        Shape (rows,) or (rows, ...), in the column's own type; booleans as uint8.

    Raises:
        DataError: If labels are missing (null) or not numbers.
    """
    arrays = tensor_views(column, subject, name, key)
    if arrays is not None:
        return np.concatenate(arrays) if len(arrays) != 1 else arrays[0]
    kind = column.type
    if not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)):
        raise DataError(
            subject,
            f"label column {name!r} is {kind}, but labels are integers and targets are floats",
            f"name another column as {key}, or convert it",
        )
    _refuse_nulls(column, subject, name)
    if pa.types.is_boolean(kind):
        column = column.cast(pa.uint8())
    values = [_view(chunk) for chunk in column.chunks or [pa.nulls(0, column.type)]]
    return values[0] if len(values) == 1 else np.concatenate(values)


def tensor_views(
    column: pa.ChunkedArray, subject: str, name: str, key: str
) -> list[NDArray[Any]] | None:
    """Return views, without a copy, of a column of fixed-shape tensors, chunk by chunk.

    Args:
        column: A column of type `fixed_shape_tensor` or `FixedSizeList`.
        subject: The file, for errors.
        name: The column's name, for errors.
        key: What names the column, for errors.

    Returns:
        Arrays of shape (rows of the chunk, ...), at least one; none if the column is of another
        type.

    Raises:
        DataError: If the column has nulls or elements that are not numbers.
    """
    kind = column.type
    is_tensor = isinstance(kind, pa.FixedShapeTensorType)
    if not is_tensor and not pa.types.is_fixed_size_list(kind):
        return None
    if not (pa.types.is_integer(kind.value_type) or pa.types.is_floating(kind.value_type)):
        raise DataError(
            subject,
            f"column {name!r} holds {kind.value_type}, which are not numbers",
            f"name another column as {key}, or convert it",
        )
    _refuse_nulls(column, subject, name)
    views: list[NDArray[Any]] = []
    shape = _logical_shape(kind) if is_tensor else (kind.list_size,)
    is_permuted = is_tensor and kind.permutation is not None
    for chunk in column.chunks:
        storage = chunk.storage if is_tensor else chunk
        flat = storage.flatten()
        if flat.null_count:
            row = int(np.flatnonzero(flat.is_null())[0]) // storage.type.list_size
            _raise_null(subject, name, sum(map(len, views)) + row)
        if is_permuted and len(chunk):
            views.append(chunk.to_numpy_ndarray())
        else:
            views.append(_view(flat).reshape(len(chunk), *shape))
    return views or [np.empty((0, *shape), kind.value_type.to_pandas_dtype())]


def _logical_shape(kind: pa.FixedShapeTensorType) -> tuple[int, ...]:
    if kind.permutation is None:
        return tuple(kind.shape)
    return tuple(kind.shape[axis] for axis in kind.permutation)


def _view(numbers: pa.Array) -> NDArray[Any]:
    """Return a view of an array of numbers without nulls.

    pyarrow's own `to_numpy` imports pandas where that is installed: 35 MiB in each process.
    """
    kind = np.dtype(numbers.type.to_pandas_dtype())
    memory = numbers.buffers()[1]
    if memory is None or not len(numbers):
        return np.empty(0, kind)
    view = np.frombuffer(memory, kind, len(numbers), numbers.offset * kind.itemsize)
    view.flags.writeable = False
    return view


def _refuse_nulls(column: pa.ChunkedArray, subject: str, name: str) -> None:
    if column.null_count == 0:
        return
    start = 0
    for chunk in column.chunks:
        if chunk.null_count:
            missing = chunk.is_null().to_numpy(zero_copy_only=False)
            _raise_null(subject, name, start + int(np.flatnonzero(missing)[0]))
        start += len(chunk)


def _raise_null(subject: str, name: str, row: int) -> None:
    raise DataError(
        subject, f"column {name!r} has no value in row {row}", "fill or drop rows with nulls"
    )


def _as_array(values: object, name: str) -> NDArray[Any]:
    try:
        array = np.asarray(values)
    except Exception as error:
        raise DataError(
            name, f"can't be made a numpy array ({error})", "give an array or a CPU tensor"
        ) from None
    if array.dtype == bool:
        array = array.astype(np.uint8 if array.ndim == 1 else np.float32)
    if not (np.issubdtype(array.dtype, np.integer) or np.issubdtype(array.dtype, np.floating)):
        raise DataError(name, f"holds {array.dtype}, not numbers", "give an array of numbers")
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def _tensor_column(array: NDArray[Any]) -> pa.Array:
    # Not from_numpy_ndarray: it takes an axis of length 1 for a permuted one.
    values = pa.array(np.ascontiguousarray(array).reshape(-1))
    shape = array.shape[1:]
    rows = pa.FixedSizeListArray.from_arrays(values, int(np.prod(shape)))
    return pa.ExtensionArray.from_storage(pa.fixed_shape_tensor(values.type, shape), rows)


def _encoded(metadata: Mapping[str, Any]) -> dict[bytes, bytes]:
    return {METADATA_KEY: json.dumps(metadata, sort_keys=True).encode()} if metadata else {}


def _builtin_path(uri: str) -> str:
    name = uri[len(BUILTIN) :]
    if name not in _BUILTIN_FILES:
        known = ", ".join(BUILTIN + one for one in _BUILTIN_FILES)
        raise DataError(uri, "is not in the package", f"known: {known}")
    return str(Path(__file__).parent / "builtin" / _BUILTIN_FILES[name])


def _read(file: pa.NativeFile, subject: str, columns: Sequence[str] | None) -> pa.Table:
    magic = file.read(len(_ARROW_MAGIC))
    file.seek(0)
    if magic == _ARROW_MAGIC:
        table = pyarrow.ipc.open_file(file).read_all()
        return table.select(columns) if _all_in(columns, table.column_names) else table
    if magic.startswith(_PARQUET_MAGIC):
        parquet = pq.ParquetFile(file)
        known = _all_in(columns, parquet.schema_arrow.names)
        return parquet.read(columns=columns if known else None)
    raise DataError(
        subject,
        "is neither an Arrow IPC file nor Parquet",
        "write it with pyarrow.ipc.new_file or ray_snake.data.write_shard",
    )


def _all_in(columns: Sequence[str] | None, names: Sequence[str]) -> bool:
    return columns is not None and set(columns) <= set(names)


def _earlier_partition(folder: Storage) -> list[str]:
    """Return the files of an earlier partition in the folder, or refuse what else it holds."""
    names = folder.list()
    known = [
        name
        for name in names
        if name in (LABELS_FILE, SETTINGS_FILE)
        or (name.startswith("node_") and name.endswith(".arrow"))
    ]
    others = sorted({*names, *folder.folders()} - set(known))
    if others:
        raise DataError(
            folder.shown_uri,
            f"already holds {others[0]!r}, which is not part of a partition",
            "give --out an empty or new folder",
        )
    # The settings go first: what is left without them is not taken for a complete partition.
    return sorted(known, key=lambda name: name != SETTINGS_FILE)
