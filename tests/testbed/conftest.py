"""A test bed for all tests that only look.

Where the kernel or the privileges allow none, `test_host.py` is left: it asserts the refusal.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from cluster.testbed import Testbed
from cluster.testbed.host import check_host
from ray_snake.errors import ResourceError

ROOT = Path(__file__).parents[2]

try:
    check_host()
    collect_ignore: list[str] = []
except ResourceError:
    collect_ignore = ["test_network.py", "test_same_run.py", "test_take_down.py"]


class CommandLine:
    """`python -m cluster.testbed`, from the root of the repository."""

    @staticmethod
    def start(*arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "cluster.testbed", *arguments],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    @staticmethod
    def run(
        *arguments: str, env: dict[str, str] | None = None, user: int | None = None
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "cluster.testbed", *arguments],
            cwd=ROOT,
            env=env,
            user=user,
            capture_output=True,
            text=True,
            timeout=120,
        )


@pytest.fixture(scope="session")
def command_line() -> CommandLine:
    return CommandLine()


@pytest.fixture(scope="session")
def links() -> Sequence[str]:
    return ("100mbit", "20mbit", "5mbit")


@pytest.fixture(scope="session")
def bed(links: Sequence[str]) -> Iterator[Testbed]:
    with Testbed(links=links) as bed:
        yield bed
