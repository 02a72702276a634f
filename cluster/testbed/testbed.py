"""`Testbed`: virtual machines, the network between them and a Ray cluster across them."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from cluster.testbed.folder import BedFolder, remove_stale
from cluster.testbed.host import check_host
from cluster.testbed.namespaces import MOST_MACHINES, Namespaces, address_of, wire, write_names
from cluster.testbed.profile import MachineSpec
from cluster.testbed.raylets import (
    HEAD_PORT,
    machine_folder,
    ray_environment,
    start_raylets,
    write_token,
)
from ray_snake.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Machine:
    """A virtual machine that is up.

    Attributes:
        name: Its host name and its raylet's name.
        address: Its address, known only inside the test bed.
        namespace: Path of its network namespace, as `nsenter --net=` takes it.
        rate: Rate of its link in each direction, such as `20mbit`; none: unlimited.
    """

    name: str
    address: str
    namespace: str
    rate: str | None


class Testbed:
    """A Ray cluster on a network of its own, up for the length of a `with` block.

    Everything ends with the block, or with the process that entered it, however that ends. The
    network leads nowhere else: commands inside see neither the host's interfaces nor the internet.

    Args:
        links: Rate of each machine's link in each direction, such as `20mbit`; none: unlimited.
        machines: In place of `links`: all that can be set of each machine. The first is the head.
        dashboard: Start Ray's dashboard and its jobs API on the head, at port 8265.

    Raises:
        ConfigError: If there is no machine or there are too many.
    """

    # Not a test class, though pytest would think so by its name.
    __test__ = False

    def __init__(
        self,
        links: Sequence[str | None] = (),
        *,
        machines: Sequence[MachineSpec] = (),
        dashboard: bool = False,
    ) -> None:
        self._specs = [*machines] or [MachineSpec(link=link) for link in links]
        if not 1 <= len(self._specs) <= MOST_MACHINES:
            raise ConfigError(
                "machines", f"there are {len(self._specs)}", f"give 1 to {MOST_MACHINES}"
            )
        self._dashboard = dashboard
        self._namespaces: list[Namespaces] = []
        self._ending = contextlib.ExitStack()
        self._folder = Path()
        self._token = Path()

    def __enter__(self) -> Testbed:
        """Build the network and start the cluster.

        Raises:
            ResourceError: If this machine can't hold a test bed; nothing was changed.
            RunError: If the network or a raylet didn't come up; nothing is left of it.
        """
        check_host()
        remove_stale()
        with contextlib.ExitStack() as building:
            folder = BedFolder()
            building.callback(folder.close)
            self._folder = folder.path
            self._token = write_token(folder.path)
            names = [f"machine-{index}" for index in range(len(self._specs))]
            write_names(self._folder, names)
            switch = self._open("switch", building)
            self._namespaces = [self._open(name, building) for name in names]
            wire(switch, self._namespaces, [spec.link for spec in self._specs])
            start_raylets(
                self._namespaces,
                self._specs,
                token=self._token,
                folder=self._folder,
                dashboard=self._dashboard,
            )
            self._ending = building.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Take everything down; when it returns, no process and no namespace is left."""
        self._namespaces = []
        self._ending.close()

    @property
    def address(self) -> str:
        """Address of the cluster, as `--address` takes it."""
        return f"{address_of(0)}:{HEAD_PORT}"

    @property
    def folder(self) -> Path:
        """The test bed's own folder; machine N's Ray session with its logs is in `N/ray`."""
        return self._folder

    @property
    def machines(self) -> tuple[Machine, ...]:
        """The machines that are up; the first is the head."""
        return tuple(
            Machine(
                name=inside.name,
                address=address_of(index),
                namespace=inside.network,
                rate=spec.link,
            )
            for index, (inside, spec) in enumerate(zip(self._namespaces, self._specs, strict=False))
        )

    def start(
        self,
        argv: Sequence[str],
        machine: int = 0,
        *,
        environment: Mapping[str, str] | None = None,
        folder: str | Path | None = None,
        capture: bool = False,
    ) -> subprocess.Popen[str]:
        """Start a command inside a machine, joined to the cluster by `RAY_ADDRESS`.

        Args:
            argv: The command and its arguments.
            machine: Index of the machine.
            environment: Variables on top of this process's and the test bed's.
            folder: Where it runs; none: the current folder.
            capture: Give its output and errors on pipes instead of passing them on.

        Returns:
            Its stand-in: signals sent to it reach the command, killing it kills the command, and
            its exit status is the command's, or 128 + N after signal N.
        """
        own = machine_folder(self._folder, machine)
        return self._namespaces[machine].start(
            argv,
            environment=ray_environment(self._token, own)
            | {"RAY_ADDRESS": self.address}
            | dict(environment or {}),
            folder=Path.cwd() if folder is None else folder,
            output=subprocess.PIPE if capture else None,
        )

    def run(
        self,
        argv: Sequence[str],
        machine: int = 0,
        *,
        environment: Mapping[str, str] | None = None,
        folder: str | Path | None = None,
        capture: bool = False,
        timeout: float | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command inside a machine and wait for it; arguments as for `start`.

        Args:
            argv: The command and its arguments.
            machine: Index of the machine.
            environment: Variables on top of this process's and the test bed's.
            folder: Where it runs; none: the current folder.
            capture: Return its output and errors instead of passing them on.
            timeout: Seconds after which it is killed.

        Raises:
            subprocess.TimeoutExpired: If it took longer than `timeout`.
        """
        process = self.start(argv, machine, environment=environment, folder=folder, capture=capture)
        try:
            output, errors = process.communicate(timeout=timeout)
        finally:
            process.kill()
            process.wait()
        return subprocess.CompletedProcess([*argv], process.returncode, output, errors)

    def interface_bytes(self) -> dict[str, tuple[int, int]]:
        """Return each machine's bytes (received, sent) on its interface since the start."""
        return {inside.name: inside.interface_bytes() for inside in self._namespaces}

    def _open(self, name: str, building: contextlib.ExitStack) -> Namespaces:
        opened = Namespaces(name, self._folder)
        building.callback(opened.close)
        return opened
