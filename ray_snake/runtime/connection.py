"""How a run joins its Ray cluster: an embedded one, or one that is there already."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import textwrap
import threading
from collections.abc import Iterator
from typing import Any

import ray

from ray_snake.errors import ResourceError
from ray_snake.runtime.embedded import lean
from ray_snake.runtime.warm import WarmProcess

KNOCK_SECONDS = 5.0
LAST_PORT = 65535
MESSAGE_CHARACTERS = 200


@contextlib.contextmanager
def connected(address: str | None) -> Iterator[None]:
    """Use the Ray cluster at `address`, or the one already joined, or an embedded one.

    An embedded cluster lives on this machine and ends with the block. `RAY_ADDRESS` (set within
    a Ray job) counts as an address.

    Raises:
        ResourceError: If there is no cluster at the address, or it is a dashboard's.
    """
    if ray.is_initialized():
        yield
        return
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    if address.startswith(("http://", "https://")):
        raise ResourceError(
            f"--address {address}",
            "is the address of a dashboard, not of a Ray head",
            "give HOST:PORT, which `ray start --head` shows, or ray://HOST:10001",
        )
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address == "local":
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        quiet["include_dashboard"] = False
    try:
        knock(address)
    except (OSError, UnicodeError) as error:
        # A host with an empty part, or too long a one, can't even be asked for.
        raise _no_cluster(address, error) from None
    on_sigterm = signal.getsignal(signal.SIGTERM)
    warm = WarmProcess()
    try:
        try:
            with lean(warm) if address == "local" else contextlib.nullcontext():
                ray.init(address=address, **quiet)
        except Exception as error:
            # Ray raises anything here, down to a bare Exception when a start takes too long.
            raise _no_cluster(address, error) from None
        if callable(on_sigterm) and threading.current_thread() is threading.main_thread():
            # Ray puts a handler in its place that exits with the signal's number.
            signal.signal(signal.SIGTERM, on_sigterm)
        yield
    finally:
        ray.shutdown()
        warm.end()


def knock(address: str) -> None:
    """See whether anybody listens at `host:port`, with or without `ray://`; no other is looked at.

    Ray tries for minutes, writes that to standard error, and can't be interrupted meanwhile.

    Raises:
        OSError: If nobody does.
    """
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and "/" not in host and port.isdigit():
        if int(port) > LAST_PORT:
            # The C library would take its last 16 bits, where somebody else may listen.
            raise OSError(f"there is no port above {LAST_PORT}")
        socket.create_connection((host.strip("[]"), int(port)), KNOCK_SECONDS).close()


def _no_cluster(address: str, error: Exception) -> ResourceError:
    said = textwrap.shorten(str(error), MESSAGE_CHARACTERS, placeholder=" ...")
    reason = f"{type(error).__name__}: {said}"
    if address == "local":
        return ResourceError(
            "ray",
            f"could not be started on this machine ({reason})",
            "see whether it is overloaded or its disk is full, or give --address of a cluster",
        )
    return ResourceError(
        f"--address {address}",
        f"no Ray cluster answers there ({reason})",
        "give the address of a running head, or none for an embedded one",
    )


def is_embedded(address: str | None) -> bool:
    """Return whether a run at `address` has all its nodes on this machine, in its own cluster."""
    if ray.is_initialized():
        return False
    return (address or os.environ.get("RAY_ADDRESS") or "local") == "local"
