"""What works of this installation, its cluster and its storage, and what to do about the rest."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import psutil

from ray_snake import __version__
from ray_snake.errors import InputError, RunError, SnakeError, StorageError
from ray_snake.storage import Storage
from ray_snake.telemetry.format import format_bytes

SAME = ("python", "ray-snake", "ray")
"""Where machines differ in these, nothing works."""
ALIKE = ("torch", "numpy", "pyarrow")
"""Where they differ in these, the same visit may come to other bits."""
EXTRAS = {
    "hf": ("transformers", "peft", "gguf"),
    "plots": ("matplotlib",),
    "tune": ("optuna", "tensorboardX"),
}
"""Modules by the extra that brings them."""
SHARED_MEMORY = Path("/dev/shm")
LEAST_SHARED_BYTES = 2**30
DRIVERS = (Path("/proc/driver/nvidia/version"), Path("/dev/nvidia0"))


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        subject: What.
        state: `works`; `note`: it works, and may not do what is expected; `broken`.
        found: What there is.
        remedy: What to do; empty where it works.
    """

    subject: str
    state: Literal["works", "note", "broken"] = "works"
    found: str
    remedy: str = ""


@dataclass(frozen=True, kw_only=True)
class Machine:
    """A machine as a process on it sees it.

    Attributes:
        versions: Of `SAME` and `ALIKE`.
        cpus: Its CPUs.
        free_bytes: Free memory.
        shared_bytes: Size of its shared memory, which Ray keeps objects in; none: it has none.
        gpus: Names of the GPUs that torch sees.
        has_driver: Whether there is a driver for some.
    """

    versions: dict[str, str]
    cpus: int
    free_bytes: int
    shared_bytes: int | None
    gpus: tuple[str, ...] = ()
    has_driver: bool = False


def this_machine() -> Machine:
    """Return what there is where it is called."""
    import torch

    shared = psutil.disk_usage(str(SHARED_MEMORY)).total if SHARED_MEMORY.is_dir() else None
    return Machine(
        versions={
            "python": ".".join(platform.python_version_tuple()[:2]),
            "ray-snake": __version__,
            **{name: importlib.metadata.version(name) for name in ("ray", *ALIKE)},
        },
        cpus=os.cpu_count() or 1,
        free_bytes=int(psutil.virtual_memory().available),
        shared_bytes=shared,
        gpus=tuple(torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())),
        has_driver=any(one.exists() for one in DRIVERS),
    )


def look(address: str | None, storage: str) -> Iterator[Finding]:
    """Look at everything, one thing after another; what is broken keeps nothing from being seen.

    Args:
        address: Of a Ray cluster; none: that of `RAY_ADDRESS`, or one that a run starts itself.
        storage: Folder of runs: a path or URI.
    """
    here = this_machine()
    shown = ", ".join(f"{name} {version}" for name, version in here.versions.items())
    yield Finding(subject="versions", found=shown)
    yield from map(_extra, EXTRAS)
    yield from _of_machine("this machine", here)
    yield _of_storage(storage)
    yield from _of_cluster(address, here)


def _extra(name: str) -> Finding:
    missing = [one for one in EXTRAS[name] if importlib.util.find_spec(one) is None]
    subject = f"extra {name}"
    if not missing:
        return Finding(subject=subject, found="installed")
    return Finding(
        subject=subject,
        state="note",
        found=f"lacks {', '.join(missing)}",
        remedy=f"if you need it, pip install 'ray-snake[{name}]'",
    )


def _of_machine(subject: str, machine: Machine) -> Iterator[Finding]:
    yield Finding(
        subject=subject,
        found=f"{machine.cpus} CPUs, {format_bytes(machine.free_bytes)} of memory free",
    )
    if machine.gpus:
        yield Finding(subject=f"{subject}, GPUs", found=", ".join(machine.gpus))
    elif machine.has_driver:
        yield Finding(
            subject=f"{subject}, GPUs",
            state="broken",
            found=f"there is a driver, and torch {machine.versions['torch']} sees no GPU",
            remedy="install a build of torch for CUDA that the driver knows",
        )
    shared = machine.shared_bytes
    if shared is not None and shared < LEAST_SHARED_BYTES:
        yield Finding(
            subject=f"{subject}, /dev/shm",
            state="note",
            found=f"has {format_bytes(shared)}: Ray keeps objects in files, which is slow",
            remedy="give a container more, such as docker run --shm-size=4g",
        )


def _of_storage(uri: str) -> Finding:
    try:
        storage = Storage(uri)
        storage.check_writable()
    except StorageError as error:
        return _broken("storage", error)
    return Finding(subject="storage", found=f"{storage.shown_uri} can be written from here")


def _of_cluster(address: str | None, here: Machine) -> Iterator[Finding]:
    if address is not None and address.startswith(("http://", "https://")):
        yield _token()
        yield _of_dashboard(address)
        return
    # Ray takes a second to import.
    from ray_snake.runtime.connection import connected, is_embedded
    from ray_snake.runtime.on_machines import on_each_machine

    if is_embedded(address):
        subject, found = "Ray", "starts on this machine and works"
    else:
        subject, found = "cluster", f"{address or os.environ.get('RAY_ADDRESS')} answers"
        yield _token()
    try:
        with connected(address):
            answers = on_each_machine(this_machine)
    except SnakeError as error:
        yield _broken(subject, error)
        return
    yield Finding(subject=subject, found=f"{found}, machines: {len(answers)}")
    for name, answer in answers:
        if isinstance(answer, RunError):
            yield _broken(f"machine {name}", answer)
        elif subject == "cluster":
            yield from _of_machine(f"machine {name}", answer)
            yield from _differences(f"machine {name}", answer, here)


def _of_dashboard(address: str) -> Finding:
    from ray_snake.runtime.jobs import Jobs

    try:
        Jobs(address)
    except SnakeError as error:
        return _broken("dashboard", error)
    found = f"{address} takes jobs; its machines are looked at from one of them, without --address"
    return Finding(subject="dashboard", found=found)


def _token() -> Finding:
    mode = os.environ.get("RAY_AUTH_MODE")
    if mode == "token":
        return Finding(subject="token", found="is sent (RAY_AUTH_MODE=token)")
    return Finding(
        subject="token",
        state="note",
        found="none is sent, so only a cluster that lets everybody in answers",
        remedy="if it has one, export RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN or "
        "RAY_AUTH_TOKEN_PATH",
    )


def _differences(subject: str, there: Machine, here: Machine) -> Iterator[Finding]:
    for name, version in there.versions.items():
        if version == here.versions[name]:
            continue
        matters = name in SAME
        yield Finding(
            subject=f"{subject}, {name}",
            state="broken" if matters else "note",
            found=f"{version}, and {here.versions[name]} here"
            + ("" if matters else ": the same visit may come to other bits"),
            remedy="install the same on all machines",
        )


def _broken(subject: str, error: SnakeError) -> Finding:
    if isinstance(error, InputError):
        found, remedy = f"{error.subject}: {error.problem}", error.remedy
    elif isinstance(error, RunError):
        found, remedy = error.problem, error.remedy
    else:
        found, remedy = str(error), ""
    return Finding(subject=subject, state="broken", found=found, remedy=remedy)
