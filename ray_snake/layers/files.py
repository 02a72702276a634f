"""Blocks on storage: one safetensors file per block version. No pickle is ever loaded."""

from __future__ import annotations

import json
from collections.abc import Collection

import numpy as np
from safetensors import SafetensorError
from safetensors.torch import load

from ray_snake.errors import CheckpointError, StorageError
from ray_snake.layers.state import LayerState
from ray_snake.layers.tensors import pack
from ray_snake.storage import Storage

# What safetensors calls the dtypes that torch and numpy share, and bfloat16.
_DTYPES = {
    "bool": "BOOL",
    "uint8": "U8",
    "int8": "I8",
    "int16": "I16",
    "int32": "I32",
    "int64": "I64",
    "float16": "F16",
    "bfloat16": "BF16",
    "float32": "F32",
    "float64": "F64",
}


class BlockFiles:
    """The block versions of one run.

    Args:
        storage: The run's folder.
    """

    def __init__(self, storage: Storage) -> None:
        self._storage = storage

    def write(self, state: LayerState) -> None:
        """Store a block version; whole, or not at all.

        Raises:
            StorageError: If the storage refuses it.
        """
        self._storage.write(_path(state.block, state.version), *encode(state))

    def read(self, block: int, version: int, checksum: str | None = None) -> LayerState:
        """Return a stored block version, checked against its checksum if one is given.

        Raises:
            CheckpointError: If the file is missing or damaged.
        """
        name = _path(block, version)
        try:
            state = decode(self._storage.read(name), block=block, version=version)
        except (StorageError, SafetensorError) as error:
            raise CheckpointError(
                f"{name} of {self._storage.shown_uri} can't be read ({error})",
                "restore that file from a copy, or start the run anew",
            ) from None
        if checksum is not None and state.checksum() != checksum:
            raise CheckpointError(
                f"{name} of {self._storage.shown_uri} does not have its journal's checksum "
                f"{checksum}",
                "restore that file from a copy, or start the run anew",
            )
        return state

    def keep_only(self, block: int, versions: Collection[int]) -> None:
        """Delete all stored versions of a block but these, and what killed writes left of any."""
        folder = _folder(block)
        self._storage.clear_unfinished(folder)
        for name in self._storage.list(folder):
            if name.endswith(".safetensors") and int(name.split(".")[0]) not in versions:
                self._storage.delete(f"{folder}/{name}")

    def delete(self, block: int, version: int) -> None:
        """Delete one stored version."""
        self._storage.delete(_path(block, version))


def encode(state: LayerState) -> list[bytes | memoryview]:
    """Return a block version in safetensors format, as parts that follow each other.

    All but the first are views of the arrays: the library's own `save` would hold two more copies
    of a block, at the one process that holds none otherwise.
    """
    # Widest first, as the library has it: every array is then aligned to its own width.
    names = sorted(state.arrays, key=lambda name: (-state.arrays[name].itemsize, name))
    header: dict[str, object] = {
        "__metadata__": {"block": str(state.block), "version": str(state.version)}
    }
    end = 0
    for name in names:
        array = state.arrays[name]
        start, end = end, end + array.nbytes
        header[name] = {
            "dtype": _DTYPES[state.dtypes[name]],
            "shape": list(array.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    views = [np.ascontiguousarray(state.arrays[name]).reshape(-1).view(np.uint8) for name in names]
    return [len(text).to_bytes(8, "little") + text, *(view.data for view in views)]


def decode(content: bytes, *, block: int, version: int) -> LayerState:
    """Return the block version that `encode` made."""
    return pack(block, version, load(content))


def _folder(block: int) -> str:
    return f"blocks/{block:04d}"


def _path(block: int, version: int) -> str:
    return f"{_folder(block)}/{version:08d}.safetensors"
