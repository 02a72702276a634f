"""Files and folders of this machine that are there whole, or not at all."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def written_aside(target: Path) -> Iterator[Path]:
    """Give a path beside a target to write to; what is there at the block's end takes its name.

    If the block raises, the target stays as it was, and nothing is left beside it.

    Args:
        target: A file, which is replaced if it is there; or a folder, new or empty.
    """
    unfinished = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        yield unfinished
        if unfinished.is_dir() and target.is_dir():
            target.rmdir()
        unfinished.replace(target)
    finally:
        if unfinished.is_dir():
            shutil.rmtree(unfinished, ignore_errors=True)
        else:
            unfinished.unlink(missing_ok=True)
