"""Folders of pretrained models: `config.json`, safetensors files, and a tokenizer beside them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ray_snake.errors import ModelError
from ray_snake.hub import CONFIG, TOKENIZER

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
FILE_BYTES = 5_000_000_000
"""Size up to which weights are written to one file, as transformers has it."""

# What transformers writes beside the weights, and a model that was trained further still needs.
COMPANIONS = ("generation_config.json", *TOKENIZER)
FILES = (CONFIG, "model*.safetensors*", *COMPANIONS)
"""Patterns of all that is read of a model, or handed on."""

# How names of weights ended before 2019; files with them are still in use.
_FORMER_ENDINGS = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}


class Checkpoint:
    """The weights in a folder, read tensor by tensor.

    They are memory-mapped: what is read is file pages until something writes to it, not memory of
    the process.

    Args:
        folder: With `model.safetensors`, or several files and their index.

    Raises:
        ModelError: If there are none, or they can't be read.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        try:
            if (folder / INDEX).is_file():
                index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
                self._files: dict[str, str] = dict(index["weight_map"])
            elif (folder / WEIGHTS).is_file():
                with safe_open(folder / WEIGHTS, framework="pt") as file:
                    self._files = dict.fromkeys(file.keys(), WEIGHTS)
            else:
                raise ModelError(
                    str(folder),
                    f"holds no {WEIGHTS}",
                    "give a folder that save_pretrained wrote; pickled weights are never loaded",
                )
        except (OSError, ValueError, KeyError, SafetensorError) as error:
            raise ModelError(
                str(folder), f"its weights can't be read ({error})", "copy the folder again"
            ) from None

    @property
    def subject(self) -> str:
        """What an error calls it."""
        return str(self._folder)

    def find(self, name: str, prefix: str) -> str | None:
        """Return the name under which a weight is stored; none if it is not.

        Args:
            name: As the model with its head has it.
            prefix: Of the model without its head, which files of that model leave out.
        """
        names = [name, name.removeprefix(f"{prefix}.")]
        for ending, former in _FORMER_ENDINGS.items():
            names += [one.removesuffix(ending) + former for one in names if one.endswith(ending)]
        return next((one for one in names if one in self._files), None)

    def read(self, names: Iterable[str]) -> dict[str, Tensor]:
        """Return stored tensors by name.

        Raises:
            ModelError: If a file is damaged or missing.
        """
        by_file: dict[str, list[str]] = {}
        for name in names:
            by_file.setdefault(self._files[name], []).append(name)
        found: dict[str, Tensor] = {}
        for file_name, held in by_file.items():
            try:
                with safe_open(self._folder / file_name, framework="pt") as file:
                    found.update((name, file.get_tensor(name)) for name in held)
            except (OSError, SafetensorError) as error:
                raise ModelError(
                    str(self._folder / file_name), f"can't be read ({error})", "copy it again"
                ) from None
        return found


def write_folder(
    folder: Path,
    config: Any,  # noqa: ANN401 - a configuration of transformers
    blocks: Iterable[Mapping[str, Tensor]],
    source: Path | None,
) -> None:
    """Write a folder that `from_pretrained` loads.

    Args:
        folder: To be made, or empty.
        config: The model's configuration.
        blocks: The weights of each block under their names in the whole model.
        source: The folder that the model came from, for its tokenizer; none: there is none.
    """
    folder.mkdir(exist_ok=True)
    config.save_pretrained(folder)
    if source is not None:
        for name in COMPANIONS:
            if (source / name).is_file():
                shutil.copyfile(source / name, folder / name)
    parts: list[dict[str, Tensor]] = [{}]
    total = size = 0
    for block in blocks:
        for name, tensor in block.items():
            if size + tensor.nbytes > FILE_BYTES and parts[-1]:
                parts.append({})
                size = 0
            parts[-1][name] = tensor
            size += tensor.nbytes
            total += tensor.nbytes
    files: dict[str, str] = {}
    for number, part in enumerate(parts, start=1):
        name = WEIGHTS if len(parts) == 1 else f"model-{number:05d}-of-{len(parts):05d}.safetensors"
        save_file({key: one.contiguous() for key, one in part.items()}, folder / name, _FORMAT)
        files.update(dict.fromkeys(part, name))
    if len(parts) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": files}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


_FORMAT = {"format": "pt"}
