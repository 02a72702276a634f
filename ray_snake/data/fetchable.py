"""What a data set to fetch is, and the files that it is made of."""

from __future__ import annotations

import contextlib
import gzip
import tarfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import pyarrow as pa

from ray_snake.archive import Archive
from ray_snake.errors import DataError


class Files:
    """The files that a data set is made of: in a tar archive, a folder, or one file by itself.

    Args:
        path: Where they are, also an attribute.

    Raises:
        DataError: If there is nothing there, or it can't be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if path.is_dir():
            self._names = {file.name: str(file) for file in sorted(path.rglob("*"))}
            return
        if not path.is_file():
            raise DataError(str(path), "no such file or folder", "check the path")
        self._names = {path.name: str(path)}
        if not self._is_archive:
            return
        with self._archive() as archive:
            self._names = {PurePosixPath(name).name: name for name in archive.getnames()}

    def __contains__(self, name: str) -> bool:
        return name in self._names or f"{name}.gz" in self._names

    def ending(self, ending: str, *, outside: str) -> list[str]:
        """Return the names, sorted, that end so, but for those of files in the folder `outside`."""
        return sorted(
            name
            for name, member in self._names.items()
            if name.endswith(ending) and outside not in PurePosixPath(member).parts
        )

    def read(self, name: str) -> bytes:
        """Return a file's content by its name without folders; `name.gz` is unpacked.

        Raises:
            DataError: If it is not there or damaged.
        """
        packed = name not in self._names
        member = self._names.get(f"{name}.gz" if packed else name)
        if member is None:
            raise DataError(
                str(self.path), f"holds no {name}", "give the data set's archive or its folder"
            )
        with self._whole():
            content = self._content(member)
            return gzip.decompress(content) if packed else content

    @property
    def _is_archive(self) -> bool:
        return self.path.is_file() and tarfile.is_tarfile(self.path)

    @contextlib.contextmanager
    def _whole(self) -> Iterator[None]:
        try:
            yield
        except (OSError, EOFError, KeyError, tarfile.TarError, zlib.error) as error:
            raise DataError(
                str(self.path), f"can't be read whole ({error})", "fetch or copy it again"
            ) from None

    @contextlib.contextmanager
    def _archive(self) -> Iterator[tarfile.TarFile]:
        with self._whole(), tarfile.open(self.path) as archive:
            yield archive

    def _content(self, member: str) -> bytes:
        if not self._is_archive:
            return Path(member).read_bytes()
        with self._archive() as archive:
            file = archive.extractfile(member)
            if file is None:
                raise KeyError(f"{member} is no file")
            return file.read()


class DataSet(ABC):
    """A data set that can be fetched.

    Attributes:
        name: Its name on the command line.
        archive: Where it comes from.
        official: What `--from` also takes, for people.
    """

    name: str
    archive: Archive
    official: str

    @abstractmethod
    def tables(self, files: Files) -> dict[str, pa.Table]:
        """Return the tables `train` and `test`.

        Raises:
            DataError: If the files are not those of the data set.
        """
