"""Blocks on storage: one safetensors file per block version. No pickle is ever loaded."""

from __future__ import annotations

from collections.abc import Collection

from safetensors import SafetensorError
from safetensors.torch import load, save

from ray_snake.errors import CheckpointError, StorageError
from ray_snake.layers.state import LayerState
from ray_snake.layers.tensors import pack, unpack
from ray_snake.storage import Storage


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
        self._storage.write(_path(state.block, state.version), encode(state))

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
                f"{name} of {self._storage.uri} can't be read ({error})",
                "restore that file from a copy, or start the run anew",
            ) from None
        if checksum is not None and state.checksum() != checksum:
            raise CheckpointError(
                f"{name} of {self._storage.uri} does not have its journal's checksum {checksum}",
                "restore that file from a copy, or start the run anew",
            )
        return state

    def keep_only(self, block: int, versions: Collection[int]) -> None:
        """Delete all stored versions of a block but these."""
        folder = _folder(block)
        for name in self._storage.list(folder):
            if name.endswith(".safetensors") and int(name.split(".")[0]) not in versions:
                self._storage.delete(f"{folder}/{name}")

    def delete(self, block: int, version: int) -> None:
        """Delete one stored version."""
        self._storage.delete(_path(block, version))


def encode(state: LayerState) -> bytes:
    """Return a block version in safetensors format."""
    tensors = {name: tensor.contiguous() for name, tensor in unpack(state).items()}
    return save(tensors, {"block": str(state.block), "version": str(state.version)})


def decode(content: bytes, *, block: int, version: int) -> LayerState:
    """Return the block version that `encode` made."""
    return pack(block, version, load(content))


def _folder(block: int) -> str:
    return f"blocks/{block:04d}"


def _path(block: int, version: int) -> str:
    return f"{_folder(block)}/{version:08d}.safetensors"
