"""Files on a local disk or in an object store, behind one interface whose calls never hang.

All locations go through `pyarrow.fs`: a local path, `file://`, `s3://bucket/prefix` or
`gs://bucket/prefix`. Credentials come from the usual places (environment, profile files, instance
roles), or from the location itself, and never appear in an error.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
from pyarrow import fs

from ray_snake.errors import StorageError
from ray_snake.location import Location, without_secrets

Answer = TypeVar("Answer")
Names = list[str]

# A write check is what a run waits for before it starts; a store that is there answers sooner.
CHECK_SECONDS = 15.0
MESSAGE_CHARACTERS = 300
LIST_TRIES = 100

_TEMPORARY = re.compile(r"^\..+\.[0-9a-f]{16}\.tmp$")


class Storage:
    """A folder on a local disk or in an object store.

    It pickles as its URI, so that actors on other machines open it for themselves. A relative
    local path is made absolute when the object is constructed. Names are relative to the folder,
    with `/` between the parts.

    Args:
        uri: A local path, `file://...`, `s3://bucket/prefix` or `gs://bucket/prefix`. Options
            after a `?` choose another server, as in
            `s3://bucket/prefix?endpoint_override=localhost:9000&scheme=http`.
        timeout_seconds: How long one operation may take.

    Raises:
        StorageError: If the location can't be understood. Every operation raises it too, when
            the location can't be reached, refuses, or doesn't answer in time; the text names the
            URI without credentials.
    """

    def __init__(self, uri: str | os.PathLike[str], *, timeout_seconds: float = 60.0) -> None:
        text = os.fspath(uri)
        self._location = Location.parse(text)
        self._uri = self._location.path if self.is_local else text
        self._timeout_seconds = timeout_seconds
        self._filesystem: fs.FileSystem | None = None
        self._connecting = threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopen, (self._uri, self._timeout_seconds)

    def __repr__(self) -> str:
        return f"Storage({self.shown_uri!r})"

    @property
    def uri(self) -> str:
        """The folder: an absolute path when local, else the URI as given, options included."""
        return self._uri

    @property
    def shown_uri(self) -> str:
        """The URI for people: without options and credentials."""
        return without_secrets(self._uri)

    @property
    def is_local(self) -> bool:
        """Whether the folder is on this machine's disks."""
        return self._location.scheme == "file"

    def child(self, *parts: str) -> Storage:
        """Return a folder inside this one, with the same options.

        Raises:
            StorageError: If a part is empty or leads outside, such as `..`.
        """
        if not parts:
            return self
        inner = "/".join(self._checked(part) for part in parts)
        base, mark, query = (self._uri, "", "") if self.is_local else self._uri.partition("?")
        return Storage(
            f"{base.rstrip('/')}/{inner}{mark}{query}", timeout_seconds=self._timeout_seconds
        )

    def filesystem(self) -> tuple[fs.FileSystem, str]:
        """Return pyarrow's filesystem and the folder's path on it, for other libraries."""
        return self._connected(), self._location.path

    def check_writable(self) -> None:
        """Try to write into the folder, or where it would be made; takes at most 15 seconds.

        On a local disk nothing is left behind and no folder is made. In an object store the probe
        is deleted again; pyarrow then keeps the empty marker of the folder, which no listing of
        files shows.

        Raises:
            StorageError: If the location can't be reached or written.
        """
        limit = min(self._timeout_seconds, CHECK_SECONDS)
        probe = f".probe.{secrets.token_hex(8)}.tmp"
        if self.is_local:
            self._bounded("write to", lambda: self._try_local(probe), limit)
            return

        def write_and_delete() -> None:
            # Its own connection, because the timeouts of a shared one may be much longer.
            filesystem = self._location.connect(limit)
            path = f"{self._location.path}/{probe}"
            with filesystem.open_output_stream(path) as stream:
                stream.write(b"ray_snake")
            filesystem.delete_file(path)

        self._bounded("write to", write_and_delete, limit)

    def exists(self, name: str) -> bool:
        """Return whether there is a file or folder of this name; `""` asks for the folder."""
        path = self._path(name)
        return self._bounded(
            "look into",
            lambda: bool(self._connected().get_file_info(path).type != fs.FileType.NotFound),
        )

    def read(self, name: str) -> bytes:
        """Return a file's whole content.

        Raises:
            StorageError: If it is missing or can't be read.
        """
        path = self._path(name)

        def read() -> bytes:
            with self._connected().open_input_file(path) as file:
                content: bytes = file.read()
            return content

        return self._bounded(f"read {name} from", read)

    def write(self, name: str, *parts: bytes | memoryview) -> None:
        """Write a file of these parts: it is there whole or, also after a kill, as it was before.

        Locally the content goes to a temporary file beside it, to the disk, and then takes the
        name. An object store shows an object only once all of it was put. When a put fails by its
        deadline, the store may still finish it later.

        Raises:
            StorageError: If it can't be written; a local file is then unchanged.
        """
        path = self._path(name)
        if self.is_local:
            abandoned = threading.Event()
            self._bounded(
                f"write {name} to",
                lambda: _replace_file(Path(path), parts, abandoned),
                abandoned=abandoned,
            )
            return

        def put() -> None:
            with self._connected().open_output_stream(path) as stream:
                for part in parts:
                    stream.write(pa.py_buffer(part))

        self._bounded(f"write {name} to", put)

    def list(self, folder: str = "") -> Names:
        """Return the sorted names of the files directly in a folder; none when it is missing."""
        return self._entries(folder, fs.FileType.File)

    def folders(self) -> Names:
        """Return the sorted names of the folders directly in this one; none when missing."""
        return self._entries("", fs.FileType.Directory)

    def delete(self, name: str) -> None:
        """Delete a file; one that is already gone is fine.

        Raises:
            StorageError: If it can't be deleted.
        """
        path = self._path(name)

        def delete() -> None:
            filesystem = self._connected()
            if filesystem.get_file_info(path).type == fs.FileType.NotFound:
                return
            try:
                filesystem.delete_file(path)
            except FileNotFoundError:
                return

        self._bounded(f"delete {name} in", delete)

    def clear_unfinished(self, folder: str) -> None:
        """Delete what killed writes left in a folder on a local disk; nothing may write there now.

        Such files show in no listing. An object store keeps none.

        Raises:
            StorageError: If one can't be deleted.
        """
        path = Path(self._path(folder))

        def clear() -> None:
            for one in path.glob(".*.tmp"):
                if _TEMPORARY.match(one.name):
                    one.unlink(missing_ok=True)

        if self.is_local:
            self._bounded("delete unfinished files in", clear)

    def open(self, name: str) -> pa.NativeFile:
        """Return a file opened for random access; memory-mapped when local.

        Raises:
            StorageError: If it is missing or can't be opened.
        """
        path = self._path(name)
        if self.is_local:
            return self._bounded(f"open {name} in", lambda: pa.memory_map(path, "r"))
        return self._bounded(f"open {name} in", lambda: self._connected().open_input_file(path))

    def _entries(self, folder: str, kind: fs.FileType) -> Names:
        selector = fs.FileSelector(self._path(folder), allow_not_found=True)

        def look() -> Any:  # noqa: ANN401 - pyarrow's list
            # pyarrow lists the folder, and if it is missing asks whether it is: one that was made
            # in between is an error there.
            for _ in range(LIST_TRIES - 1):
                with contextlib.suppress(FileNotFoundError):
                    return self._connected().get_file_info(selector)
            return self._connected().get_file_info(selector)

        infos = self._bounded("list", look)
        return sorted(
            info.base_name
            for info in infos
            if info.type == kind and not _TEMPORARY.match(info.base_name)
        )

    def _path(self, name: str) -> str:
        base = self._location.path
        return f"{base.rstrip('/')}/{self._checked(name)}" if name else base

    def _checked(self, name: str) -> str:
        parts = name.split("/")
        if not all(parts) or {".", ".."} & set(parts) or "\\" in name or "\0" in name:
            raise StorageError(
                self.shown_uri,
                f"{name!r} is not a name inside this folder",
                "use plain names with '/' between them",
            )
        return name

    def _connected(self) -> fs.FileSystem:
        with self._connecting:
            if self._filesystem is None:
                self._filesystem = self._location.connect(self._timeout_seconds)
            return self._filesystem

    def _try_local(self, probe: str) -> None:
        folder = Path(self._location.path)
        while not folder.exists() and folder != folder.parent:
            folder = folder.parent
        if not folder.is_dir():
            raise NotADirectoryError(f"{folder} is not a folder")
        path = folder / probe
        try:
            path.write_bytes(b"ray_snake")
        finally:
            path.unlink(missing_ok=True)

    def _bounded(
        self,
        action: str,
        operation: Callable[[], Answer],
        limit_seconds: float | None = None,
        abandoned: threading.Event | None = None,
    ) -> Answer:
        limit = self._timeout_seconds if limit_seconds is None else limit_seconds
        outcome: list[Answer] = []
        failure: list[Exception] = []

        def work() -> None:
            try:
                outcome.append(operation())
            except Exception as error:
                failure.append(error)

        # A thread of its own, since neither a dead NFS server nor every call of an object store's
        # client can be interrupted; a daemon, so that one that hangs can't hold up the exit.
        worker = threading.Thread(target=work, name=f"storage: {action}", daemon=True)
        worker.start()
        worker.join(limit)
        if outcome:
            return outcome[0]
        if failure:
            raise self._error(action, failure[0]) from None
        if abandoned is not None:
            abandoned.set()
        raise StorageError(
            self.shown_uri,
            f"could not {action} this location within {limit:g} seconds",
            "check the address and the network, or raise storage.timeout_seconds",
        )

    def _error(self, action: str, error: Exception) -> StorageError:
        if isinstance(error, StorageError):
            return error
        if isinstance(error, FileNotFoundError):
            problem, remedy = "no such file or folder", "check the name and the location"
        elif isinstance(error, PermissionError):
            problem, remedy = "permission denied", "check who may write there"
        elif isinstance(error, OSError) and error.strerror and self.is_local:
            problem, remedy = error.strerror, "check the path and the disk"
        else:
            problem = " ".join(str(error).split())[:MESSAGE_CHARACTERS] or type(error).__name__
            remedy = "check the address, the bucket and the credentials"
            if self.is_local:
                remedy = "check the path"
        for secret in self._location.secrets():
            problem = problem.replace(secret, "***")
        return StorageError(self.shown_uri, f"could not {action} this location ({problem})", remedy)


def open_file(uri: str | os.PathLike[str]) -> pa.NativeFile:
    """Open one file for random access from any location that `Storage` knows.

    Args:
        uri: The file: a local path or a URI.

    Returns:
        A seekable pyarrow file; memory-mapped when local.

    Raises:
        StorageError: If it is missing or can't be opened.
    """
    folder, name = split_uri(uri)
    return Storage(folder).open(name)


def split_uri(uri: str | os.PathLike[str]) -> tuple[str, str]:
    """Return a file's folder (with the URI's options) and its name.

    Raises:
        StorageError: If the location names no file, such as a bare bucket.
    """
    text = os.fspath(uri)
    location = Location.parse(text)
    if location.scheme == "file":
        path = Path(location.path)
        return str(path.parent), path.name
    base, mark, query = text.partition("?")
    folder, _, name = base.rstrip("/").rpartition("/")
    if "/" not in location.path:
        raise StorageError(without_secrets(text), "names no file", "add the file's name")
    return f"{folder}{mark}{query}", name


def _reopen(uri: str, timeout_seconds: float) -> Storage:
    return Storage(uri, timeout_seconds=timeout_seconds)


def _replace_file(
    path: Path, parts: Sequence[bytes | memoryview], abandoned: threading.Event
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    try:
        with temporary.open("xb") as file:
            file.writelines(parts)
            file.flush()
            os.fsync(file.fileno())
        if abandoned.is_set():
            return
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    # Until the folder itself is on disk, a power cut could still bring the old name back.
    if os.name == "posix":
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
