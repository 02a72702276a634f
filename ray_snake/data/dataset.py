"""A node's shard, opened: rows by number, as arrays that a network takes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ray_snake.config import PartitionConfig
from ray_snake.data.partition import Rows, split
from ray_snake.data.shards import (
    BUILTIN,
    IGNORED,
    label_values,
    make_table,
    metadata_of,
    read_table,
    tensor_views,
)
from ray_snake.errors import DataError
from ray_snake.location import without_secrets

CHECK_ROWS = 4096


@dataclass(frozen=True, kw_only=True)
class ShardSource:
    """What a node needs to open its shard.

    Attributes:
        uri: The file: a path, a URI or `builtin://digits/train`; none for data in memory.
        table: Data in memory; none for a file.
        partition: How the file is split over the nodes, if they all open the same one.
        index: The node's number, which is its part's number within the partition.
        input: Name of the input column.
        label: Name of the label column.
        mean: Per-channel mean to take off; none: what the schema's metadata says, else 0.
        std: Per-channel standard deviation to divide by, likewise; else 1.
        title: What the node is called; none: after the file.

    Raises:
        DataError: If it has both a file and a table or neither, or the index is not a part's.
    """

    uri: str | None = None
    table: pa.Table | None = None
    partition: PartitionConfig | None = None
    index: int = 0
    input: str = "input"
    label: str = "label"
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    title: str | None = None

    def __post_init__(self) -> None:
        if (self.uri is None) == (self.table is None):
            raise DataError("data", "needs a file or a table", "give exactly one of the two")
        if self.partition is not None and not 0 <= self.index < self.partition.nodes:
            raise DataError(
                "data.partition.nodes",
                f"{self.partition.nodes} parts, so there is no part {self.index}",
                "raise it to the number of nodes",
            )

    @classmethod
    def of(
        cls,
        data: object,
        *,
        partition: PartitionConfig | None = None,
        index: int = 0,
        input: str = "input",
        label: str = "label",
        mean: tuple[float, ...] | None = None,
        std: tuple[float, ...] | None = None,
    ) -> ShardSource:
        """Return the source for what a user of the Python interface gives.

        Args:
            data: A path or URI, an Arrow table, or a pair (inputs, labels) of arrays, which get
                the names of the columns.
            partition: See the attributes.
            index: Likewise.
            input: Likewise.
            label: Likewise.
            mean: Likewise.
            std: Likewise.

        Raises:
            DataError: If the data is none of these.
        """
        uri: str | None = None
        table: pa.Table | None = None
        if isinstance(data, str | os.PathLike):
            uri = os.fspath(data)
        elif isinstance(data, pa.Table):
            table = data
        elif isinstance(data, tuple | list) and len(data) == 2:
            table = make_table(data[0], data[1], input_name=input, label_name=label)
        else:
            raise DataError(
                f"nodes[{index}]",
                f"is a {type(data).__name__}",
                "give a path, a pyarrow.Table or a pair (inputs, labels)",
            )
        return cls(
            uri=uri,
            table=table,
            partition=partition,
            index=index,
            input=input,
            label=label,
            mean=mean,
            std=std,
        )

    @property
    def name(self) -> str:
        """A short name for people, such as `node_003` or `digits/train[3]`."""
        if self.title is not None:
            return self.title
        if self.uri is None:
            return f"memory[{self.index}]"
        if self.uri.startswith(BUILTIN):
            stem = self.uri[len(BUILTIN) :]
        else:
            path = self.uri.partition("?")[0] if "://" in self.uri else self.uri
            stem = PurePosixPath(path).stem
        return stem if self.partition is None else f"{stem}[{self.index}]"

    @property
    def subject(self) -> str:
        """What an error calls it: the file, without credentials, or the name of data in memory."""
        return self.name if self.uri is None else without_secrets(self.uri)


class NodeDataset:
    """The rows of one shard; made by `open`.

    An Arrow IPC file stays on disk: it is memory-mapped, and only the rows of a batch are copied.

    Attributes:
        sample_shape: Shape of one input; its first axis are the channels.
        input_dtype: Type of the inputs that `batch` gives: float32, or int64 for whole numbers
            wider than 8 bits, such as token ids.
        has_class_labels: Whether labels are integers, one for each row.
        has_token_labels: Whether they are integers, several for each row, of rows of whole numbers.
        label_dtype: Type of the labels that `batch` gives: int64 or float32.
        label_shape: Shape of one label.
    """

    def __init__(self, table: pa.Table, source: ShardSource) -> None:
        self._subject = source.subject
        self._input_name = source.input
        self._label_name = source.label
        column = self._column(table, source.input, "data.input")
        views = tensor_views(column, self._subject, source.input, "data.input")
        if views is None:
            raise DataError(
                self._subject,
                f"input column {source.input!r} is {column.type}, whose values have no fixed shape",
                "store inputs as fixed_shape_tensor or FixedSizeList, or name another data.input",
            )
        self._inputs = views
        self._starts = np.cumsum([0, *(len(view) for view in views)])
        labels = label_values(
            self._column(table, source.label, "data.label"), self._subject, source.label
        )
        self._count = len(labels)
        self._rows: Rows | None = None
        if source.partition is not None:
            if len(labels) < source.partition.nodes:
                # `split` refuses this too, but can't name the file.
                raise DataError(
                    self._subject,
                    f"has {len(labels)} rows for {source.partition.nodes} nodes",
                    "lower data.partition.nodes",
                )
            self._rows = split(labels, source.partition)[source.index]
            self._count = len(self._rows)
        self.label_shape: tuple[int, ...] = labels.shape[1:]
        self.sample_shape: tuple[int, ...] = views[0].shape[1:]
        stored = views[0].dtype
        self._is_scaled = stored == np.uint8
        self.input_dtype: np.dtype[Any] = np.dtype(
            np.int64 if np.issubdtype(stored, np.integer) and not self._is_scaled else np.float32
        )
        whole = bool(np.issubdtype(labels.dtype, np.integer))
        self.has_class_labels = whole and labels.ndim == 1
        self.has_token_labels = whole and labels.ndim > 1 and self.input_dtype == np.int64
        # Several whole numbers for a picture are neither classes nor tokens, but targets.
        named = self.has_class_labels or self.has_token_labels
        self.label_dtype: np.dtype[Any] = np.dtype(np.int64 if named else np.float32)
        # Labels of token sequences are as large as the inputs: they stay where they are.
        if not self.has_token_labels:
            labels = labels if self._rows is None else labels[self._rows]
            labels = labels.astype(self.label_dtype, copy=False)
        self._labels: NDArray[Any] = labels
        facts = metadata_of(table.schema)
        self._mean = self._channels(source.mean, facts.get("mean"), "mean", 0.0)
        self._std = self._channels(source.std, facts.get("std"), "std", 1.0)

    @classmethod
    def open(cls, source: ShardSource) -> NodeDataset:
        """Open a shard, memory-mapped where it is a local Arrow IPC file.

        Raises:
            DataError: If the file is missing or unreadable, a column is missing, has nulls or no
                fixed shape, or `mean` or `std` don't fit.
        """
        if source.table is not None:
            return cls(source.table, source)
        assert source.uri is not None
        # One column may be both, of a network that is to give back what it gets.
        return cls(read_table(source.uri, sorted({source.input, source.label})), source)

    def __len__(self) -> int:
        return self._count

    def batch(self, rows: Rows) -> tuple[NDArray[Any], NDArray[Any]]:
        """Return some rows, in the order given.

        Args:
            rows: Row numbers of this shard, shape (n,), int64.

        Returns:
            The inputs, shape (n, *sample_shape), as `input_dtype`; 8-bit ones are scaled to
            [0, 1], and floats have the mean taken off and are divided by the standard deviation
            of their channel. And the labels: int64, shape (n,), or of token sequences (n, ...),
            or float32 targets, shape (n,) or (n, ...). Both are copies.

        Raises:
            IndexError: If a row number is not in this shard.
        """
        rows = np.asarray(rows, dtype=np.int64)
        if len(rows) and not (rows.min() >= 0 and rows.max() < len(self)):
            raise IndexError(f"{self._subject} has rows 0 to {len(self) - 1}")
        inputs = self._stored(rows)
        if self.input_dtype == np.int64:
            return inputs.astype(np.int64, copy=False), self._targets(rows)
        features = inputs.astype(np.float32, copy=False)
        if self._is_scaled:
            features /= np.float32(255)
        if self._mean is not None:
            features -= self._mean
        if self._std is not None:
            features /= self._std
        return features, self._targets(rows)

    def label_counts(self, classes: int) -> NDArray[np.int64]:
        """Count the rows of each class, shape (classes,), int64.

        Raises:
            DataError: If the labels are not classes 0 to classes - 1.
        """
        self._check_labels(classes)
        return np.bincount(self._labels, minlength=classes).astype(np.int64)

    def largest_input(self) -> int:
        """Return the largest of inputs that are whole numbers, 0 of others.

        Raises:
            DataError: If one of them is negative.
        """
        largest = 0
        for start, rows in self._pieces() if self.input_dtype == np.int64 else ():
            values = self._stored(rows)
            if values.size and values.min() < 0:
                row = int(np.argmax((values < 0).reshape(len(values), -1).any(axis=1)))
                raise DataError(
                    self._subject,
                    f"input column {self._input_name!r} holds {values.min()} in row "
                    f"{self._file_row(start + row)}, and tokens count from 0",
                    "correct that row",
                )
            largest = max(largest, int(values.max(initial=0)))
        return largest

    def check(self, classes: int | None) -> None:
        """Look through the whole shard for what would spoil a training.

        Args:
            classes: How many classes, or tokens, the model tells apart; none: labels are not
                looked at as such.

        Raises:
            DataError: If the shard is empty, a label is not one of the classes, or an input or
                target is not finite. It names the file and the first such row of the file.
        """
        if len(self) == 0:
            raise DataError(
                self._subject, "has no rows", "leave this node out or give it some data"
            )
        if self.has_token_labels:
            self._check_tokens(classes)
        elif classes is not None:
            self._check_labels(classes)
        if self._labels.dtype == np.float32:
            self._refuse_non_finite(self._labels, 0, "target", self._label_name)
        if not np.issubdtype(self._inputs[0].dtype, np.floating):
            return
        for start, rows in self._pieces():
            self._refuse_non_finite(self._stored(rows), start, "input", self._input_name)

    def _column(self, table: pa.Table, name: str, key: str) -> pa.ChunkedArray:
        if name not in table.column_names:
            raise DataError(
                self._subject,
                f"has no column {name!r}, only {', '.join(table.column_names) or 'none at all'}",
                f"name one of these as {key}",
            )
        return table.column(name)

    def _channels(
        self, given: tuple[float, ...] | None, stored: object, name: str, neutral: float
    ) -> NDArray[np.float32] | None:
        """Return per-channel values that broadcast over one sample; none where they do nothing."""
        if given is None and stored is None:
            return None
        if self.input_dtype == np.int64:
            if given is None:
                return None
            raise DataError(
                f"data.{name}",
                f"is set, but the inputs of {self._subject} are whole numbers, such as token ids",
                "leave it out",
            )
        try:
            values = np.asarray(stored if given is None else given, dtype=np.float32)
        except (TypeError, ValueError):
            values = np.full(0, np.nan, dtype=np.float32)
        channels = self.sample_shape[0]
        fits = values.ndim == 1 and len(values) in (1, channels) and np.isfinite(values).all()
        if not fits or (name == "std" and (values <= 0).any()):
            kind = "positive numbers" if name == "std" else "numbers"
            raise DataError(
                f"data.{name}",
                f"{stored if given is None else list(given)} does not fit {self._subject}, "
                f"whose inputs have the shape {self.sample_shape}",
                f"give {' or '.join(sorted({'1', str(channels)}))} {kind}",
            )
        if (values == neutral).all():
            return None
        return values.reshape(len(values), *(1 for _ in self.sample_shape[1:]))

    def _stored(self, rows: Rows) -> NDArray[Any]:
        """Return the inputs of some rows as the file has them."""
        if self._rows is not None:
            rows = self._rows[rows]
        if len(self._inputs) == 1:
            return self._inputs[0][rows]
        found = np.empty((len(rows), *self.sample_shape), dtype=self._inputs[0].dtype)
        chunks = np.searchsorted(self._starts, rows, side="right") - 1
        for chunk in np.unique(chunks):
            here = chunks == chunk
            found[here] = self._inputs[chunk][rows[here] - self._starts[chunk]]
        return found

    def _targets(self, rows: Rows) -> NDArray[Any]:
        if not self.has_token_labels:
            return self._labels[rows]
        stored = self._labels[rows if self._rows is None else self._rows[rows]]
        return stored.astype(np.int64, copy=False)

    def _pieces(self) -> Iterator[tuple[int, Rows]]:
        """Yield all row numbers in pieces, each with its first one."""
        for start in range(0, len(self), CHECK_ROWS):
            yield start, np.arange(start, min(start + CHECK_ROWS, len(self)), dtype=np.int64)

    def _file_row(self, row: int) -> int:
        return row if self._rows is None else int(self._rows[row])

    def _check_tokens(self, tokens: int | None) -> None:
        for start, rows in self._pieces():
            labels = self._targets(rows).reshape(len(rows), -1)
            counts = labels != IGNORED
            wrong = counts & (labels < 0)
            if tokens is not None:
                wrong |= labels >= tokens
            if wrong.any():
                row = int(np.argmax(wrong.any(axis=1)))
                raise DataError(
                    self._subject,
                    f"label {labels[row][wrong[row]][0]} in row {self._file_row(start + row)} is "
                    f"neither one of the model's tokens nor {IGNORED}",
                    "write the data with the model's own tokenizer, or give the model more tokens",
                )
            if not counts.any(axis=1).all():
                row = int(np.argmin(counts.any(axis=1)))
                raise DataError(
                    self._subject,
                    f"row {self._file_row(start + row)} has no token to be predicted",
                    "drop that row",
                )

    def _check_labels(self, classes: int) -> None:
        if not self.has_class_labels:
            kind = f"{self._labels.dtype} of shape {self._labels.shape[1:]}"
            raise DataError(
                self._subject,
                f"label column {self._label_name!r} holds targets ({kind}), not classes",
                "set loss.name to mse, or name a column of integers as data.label",
            )
        wrong = np.flatnonzero((self._labels < 0) | (self._labels >= classes))
        if len(wrong):
            row = int(wrong[0])
            raise DataError(
                self._subject,
                f"label {self._labels[row]} in row {self._file_row(row)} is not one of the "
                f"model's {classes} classes 0 to {classes - 1}",
                "correct the label, or give the model more classes"
                if classes > 1
                else "store numbers to predict as floats, or give the model more classes",
            )

    def _refuse_non_finite(
        self, values: NDArray[Any], first_row: int, what: str, name: str
    ) -> None:
        finite = np.isfinite(values).reshape(len(values), -1).all(axis=1)
        if not finite.all():
            row = self._file_row(first_row + int(np.argmin(finite)))
            raise DataError(
                self._subject,
                f"{what} column {name!r} holds NaN or infinity in row {row}",
                "correct or drop that row",
            )
