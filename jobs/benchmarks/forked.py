"""Work in a process that is gone before anything else is measured."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from typing import Any


def forked(function: Callable[..., Any], *arguments: Any) -> Any:  # noqa: ANN401 - what it returns
    """Return what a function returns in a process of its own, which has imported what this one has.

    This one computes nothing before: threads don't survive a fork.
    """
    with multiprocessing.get_context("fork").Pool(1) as pool:
        return pool.apply(function, arguments)
