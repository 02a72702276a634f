"""Splitting one data set over nodes: pure functions of the labels, the scheme and its seed.

Every scheme deals each row to exactly one node. Where there are at least as many rows as nodes,
no node stays empty: after dealing, each empty node in turn takes the highest-numbered row of the
node that then has the most rows (the lowest-numbered such node on a tie).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ray_snake.config import PartitionConfig
from ray_snake.errors import DataError
from ray_snake.seeds import derive_seed

Rows = NDArray[np.int64]


def split(labels: NDArray[Any], config: PartitionConfig) -> list[Rows]:
    """Deal the rows of a data set to nodes.

    The schemes:

    - `iid`: a random deal of equal sizes (they differ by one row at most).
    - `dirichlet`: label skew. Each class is divided over the nodes by shares drawn from
      Dirichlet(alpha); small alpha puts most of a class on few nodes. This is the division by
      class of Yurochkin et al. (2019, arXiv:1905.12022); Hsu et al. (2019, arXiv:1909.06335), who
      introduced the Dirichlet for this, draw the class mix of each node instead.
    - `shards`: the rows sorted by label are cut into `nodes * shards_per_node` pieces, and each
      node gets `shards_per_node` of them at random (McMahan et al., 2017, arXiv:1602.05629).
    - `quantity`: size skew. Node sizes are drawn from Dirichlet(alpha), rows are dealt at random
      (Li et al., 2022, arXiv:2102.02079).

    Args:
        labels: One label for each row, shape (rows,); integers for `dirichlet`.
        config: The scheme and its settings.

    Returns:
        For each node its row numbers, sorted, int64.

    Raises:
        DataError: If there are fewer rows than nodes, `dirichlet` or `shards` get labels that are
            not one number each, or `dirichlet` ones that are not integers.
    """
    labels = np.asarray(labels)
    rows = len(labels)
    if rows < config.nodes:
        raise DataError(
            "data.partition.nodes",
            f"{config.nodes} nodes can't share {rows} rows",
            "use fewer nodes or more data",
        )
    if config.scheme in ("dirichlet", "shards") and labels.ndim != 1:
        raise DataError(
            "data.partition.scheme",
            f"{config.scheme!r} goes by label, but a label has the shape {labels.shape[1:]}",
            "use iid or quantity, or name a column of numbers as the label",
        )
    seed = derive_seed(config.seed, "partition", config.scheme)
    generator = np.random.Generator(np.random.PCG64(seed))
    if config.scheme == "iid":
        parts = np.array_split(generator.permutation(rows), config.nodes)
    elif config.scheme == "dirichlet":
        parts = _by_class_shares(labels, config, generator)
    elif config.scheme == "shards":
        parts = _by_label_pieces(labels, config, generator)
    else:
        shares = _shares(config, generator)
        parts = _cut(generator.permutation(rows), shares)
    return _fill_empty([np.sort(part).astype(np.int64) for part in parts])


def label_table(
    labels: NDArray[Any], parts: Sequence[Rows], class_names: Sequence[str] | None = None
) -> pa.Table:
    """Count the labels of each node.

    Args:
        labels: One label for each row, shape (rows,).
        parts: The row numbers of each node.
        class_names: Names of labels 0, 1, and so on, as column names; default: the labels.

    Returns:
        A table with a row for each node and the int64 columns `node`, `rows` and, for integer
        labels, one for each label.
    """
    labels = np.asarray(labels)
    columns: dict[str, Any] = {
        "node": np.arange(len(parts), dtype=np.int64),
        "rows": np.array([len(part) for part in parts], dtype=np.int64),
    }
    if labels.ndim == 1 and np.issubdtype(labels.dtype, np.integer):
        present, codes = np.unique(labels, return_inverse=True)
        counts = np.stack([np.bincount(codes[part], minlength=len(present)) for part in parts])
        for code, label in enumerate(present.tolist()):
            named = class_names is not None and 0 <= label < len(class_names)
            name = class_names[label] if named and class_names is not None else str(label)
            columns[name] = counts[:, code].astype(np.int64)
    return pa.table(columns)


def _shares(config: PartitionConfig, generator: np.random.Generator) -> NDArray[np.float64]:
    """Return the nodes' shares of a whole, shape (nodes,), drawn from Dirichlet(alpha)."""
    shares = generator.dirichlet(np.full(config.nodes, config.alpha))
    if not np.isfinite(shares).all():
        # Where the draws under- or overflow, the limit of the distribution is one winner for
        # small alpha, and equal shares for large alpha.
        if config.alpha > 1:
            return np.full(config.nodes, 1 / config.nodes)
        shares = np.zeros(config.nodes)
        shares[generator.integers(config.nodes)] = 1.0
    return shares


def _cut(rows: Rows, shares: NDArray[np.float64]) -> list[Rows]:
    ends = np.floor(np.cumsum(shares)[:-1] * len(rows) + 1e-9).astype(np.int64)
    return np.split(rows, np.minimum(ends, len(rows)))


def _by_class_shares(
    labels: NDArray[Any], config: PartitionConfig, generator: np.random.Generator
) -> list[Rows]:
    if not np.issubdtype(labels.dtype, np.integer):
        raise DataError(
            "data.partition.scheme",
            f"'dirichlet' divides classes, but the labels are {labels.dtype}",
            "use iid, shards or quantity, or integer labels",
        )
    parts: list[list[Rows]] = [[] for _ in range(config.nodes)]
    for label in np.unique(labels):
        rows = generator.permutation(np.flatnonzero(labels == label))
        for part, piece in zip(parts, _cut(rows, _shares(config, generator)), strict=True):
            part.append(piece)
    return [np.concatenate(part) for part in parts]


def _by_label_pieces(
    labels: NDArray[Any], config: PartitionConfig, generator: np.random.Generator
) -> list[Rows]:
    # Rows of one label come in random order, so that pieces don't follow the order of the file.
    mixed = generator.permutation(len(labels))
    by_label = mixed[np.argsort(labels[mixed], kind="stable")]
    pieces = np.array_split(by_label, config.nodes * config.shards_per_node)
    dealt = generator.permutation(len(pieces)).reshape(config.nodes, config.shards_per_node)
    return [np.concatenate([pieces[number] for number in hand]) for hand in dealt]


def _fill_empty(parts: list[Rows]) -> list[Rows]:
    sizes = np.array([len(part) for part in parts])
    for node in np.flatnonzero(sizes == 0):
        giver = int(np.argmax(sizes))
        parts[node] = parts[giver][-1:].copy()
        parts[giver] = parts[giver][:-1]
        sizes[node] += 1
        sizes[giver] -= 1
    return parts
