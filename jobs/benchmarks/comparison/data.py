"""The comparison's data: some of CIFAR-10's pictures dealt to nodes, others held out to tune on."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from ray_snake.config import PartitionConfig
from ray_snake.data.shards import partition_file, read_table, write_shard

ROWS_SEED = 1
PARTITIONS = {
    "iid": {"scheme": "iid"},
    "alpha0.5": {"scheme": "dirichlet", "alpha": 0.5},
    "alpha0.1": {"scheme": "dirichlet", "alpha": 0.1},
}


@dataclass(frozen=True, kw_only=True)
class Pictures:
    """Files of one partition.

    Attributes:
        shards: One file per node.
        pooled: All of their rows in one file.
        test: Test rows for the final accuracy.
        watched: Some of these, judged again and again during a run.
        held_out: Training rows of no node, to tune on.
    """

    shards: tuple[Path, ...]
    pooled: Path
    test: Path
    watched: Path
    held_out: Path


def prepare(
    source: Path,
    folder: Path,
    *,
    partition: str,
    nodes: int,
    rows: int,
    held_out: int,
    watched: int,
) -> Pictures:
    """Return the files of a partition; make those that are missing.

    Args:
        source: Folder with `train.arrow` and `test.arrow`.
        folder: Where to put files.
        partition: A name in `PARTITIONS`.
        nodes: Number of nodes.
        rows: Training rows over all nodes.
        held_out: Training rows to hold out, of those that are left.
        watched: Test rows to judge during a run.
    """
    pooled, validation = folder / f"train-{rows}.arrow", folder / f"held-out-{held_out}.arrow"
    some = folder / f"watched-{watched}.arrow"
    if not some.exists():
        folder.mkdir(parents=True, exist_ok=True)
        train: pa.Table = read_table(str(source / "train.arrow"))
        order = np.random.default_rng(ROWS_SEED).permutation(len(train))
        _write(train, order[:rows], pooled)
        _write(train, order[max(rows, len(train) - held_out) :][:held_out], validation)
        test: pa.Table = read_table(str(source / "test.arrow"))
        _write(test, np.random.default_rng(ROWS_SEED).permutation(len(test))[:watched], some)
    shards = folder / f"{partition}-{nodes}"
    if not (shards / "partition.json").exists():
        split = PartitionConfig.model_validate(
            {**PARTITIONS[partition], "nodes": nodes, "seed": ROWS_SEED}
        )
        partition_file(str(pooled), split, str(shards))
    return Pictures(
        shards=tuple(sorted(shards.glob("node_*.arrow"))),
        pooled=pooled,
        test=source / "test.arrow",
        watched=some,
        held_out=validation,
    )


def describe(pictures: Pictures) -> str:
    """Return the number of rows of each node, as JSON."""
    return json.dumps([len(read_table(str(one), ["label"])) for one in pictures.shards])


def _write(table: pa.Table, rows: np.ndarray, path: Path) -> None:
    write_shard(str(path), table.take(pa.array(np.sort(rows))))
