"""Virtual machines out of namespaces, and the network between them.

A virtual machine is one process with a network, host name, mount and PID namespace of its own. No
namespace has a name or a file: each lives as long as its process, and that one ends with whoever
made it, so nothing can be left behind.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

from cluster.testbed.host import NAMESPACES
from cluster.testbed.profile import bits_per_second
from ray_snake.errors import RunError

# Private addresses (RFC 1918) seldom used elsewhere. Only the namespaces ever see them, so that
# any number of test beds have the same ones.
NETWORK = "10.213.0"
PREFIX_BITS = 24
MOST_MACHINES = 254
END_SECONDS = 20.0
_HERE = Path(__file__).parent
_PYTHON = (sys.executable, "-I", "-S")


class Namespaces:
    """The namespaces of one virtual machine, or of the switch, and the process that holds them.

    Args:
        name: Its host name.
        names: Folder with the `hosts` and `resolv.conf` that it has in its `/etc`.

    Raises:
        RunError: If the kernel refuses.
    """

    def __init__(self, name: str, names: Path) -> None:
        self.name = name
        # Its own session: a terminal's Ctrl-C is for the command, not for the machine under it.
        self._holder = subprocess.Popen(
            [
                *("unshare", *NAMESPACES, *_PYTHON, str(_HERE / "init.py")),
                *(name, str(names / "hosts"), str(names / "resolv.conf")),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        assert self._holder.stdout is not None
        if self._holder.stdout.readline() != b"up\n":
            self.close()
            raise RunError(f"{name} did not start", "see the lines above")

    @property
    def holder(self) -> int:
        """Process id of the process whose `/proc/PID/ns` has the namespaces."""
        return self._holder.pid

    @property
    def network(self) -> str:
        """Path of the network namespace, as `nsenter --net=` takes it."""
        return f"/proc/{self.holder}/ns/net"

    def configure(self, tool: str, *lines: str) -> None:
        """Run lines of `ip` or `tc` on the network namespace.

        Raises:
            RunError: If one of them is refused.
        """
        done = subprocess.run(
            ["nsenter", f"--net={self.network}", tool, "-batch", "-"],
            input="\n".join(lines) + "\n",
            capture_output=True,
            text=True,
            timeout=60,
        )
        if done.returncode != 0:
            raise RunError(
                f"{self.name}: {tool} said {done.stderr!r}", "check the kernel's modules"
            )

    def start(
        self,
        command: Sequence[str],
        *,
        environment: Mapping[str, str],
        folder: str | Path,
        output: int | IO[str] | None = None,
    ) -> subprocess.Popen[str]:
        """Start a command inside, in a session of its own; return its stand-in outside.

        Args:
            command: The command and its arguments.
            environment: All of its environment.
            folder: Where it runs.
            output: As `subprocess.Popen` takes `stdout`; none: the caller's. With
                `subprocess.PIPE`, standard error has a pipe too; else with a file, the same file.
        """
        errors = subprocess.STDOUT if output not in (None, subprocess.PIPE) else output
        return subprocess.Popen(
            [*_PYTHON, str(_HERE / "enter.py"), str(self.holder), str(folder), *command],
            env=dict(environment),
            stdout=output,
            stderr=errors,
            text=True,
            start_new_session=True,
        )

    def interface_bytes(self, interface: str = "eth0") -> tuple[int, int]:
        """Return the bytes that an interface has (received, sent) since it was made."""
        for line in Path(f"/proc/{self.holder}/net/dev").read_text(encoding="ascii").splitlines():
            name, _, counters = line.partition(":")
            if name.strip() == interface:
                fields = counters.split()
                return int(fields[0]), int(fields[8])
        raise RunError(f"{self.name} has no interface {interface}", "start the test bed again")

    def kill_processes(self) -> None:
        """End every process inside but keep the namespaces."""
        # There, -1 is everything but process 1 and the caller; nothing left is no mistake.
        self.start(
            ["sh", "-c", "kill -KILL -1 || true"],
            environment=os.environ,
            folder="/",
            output=subprocess.DEVNULL,
        ).wait(END_SECONDS)

    def close(self) -> None:
        """End every process inside, and with them the namespaces; waits until that is so."""
        for pipe in (self._holder.stdin, self._holder.stdout):
            if pipe is not None:
                pipe.close()
        try:
            self._holder.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            self._holder.kill()
            self._holder.wait(END_SECONDS)


def address_of(index: int) -> str:
    """Return the address of the virtual machine with this index."""
    return f"{NETWORK}.{index + 1}"


def write_names(folder: Path, names: Sequence[str]) -> None:
    """Write the `hosts` and `resolv.conf` of machines with these names, in order of index."""
    lines = [f"{address_of(index)} {name}" for index, name in enumerate(names)]
    lines += ["127.0.0.1 localhost", "::1 localhost"]
    (folder / "hosts").write_text("\n".join(lines) + "\n", encoding="ascii")
    # Nobody answers there, and the machine's own kernel says so at once.
    (folder / "resolv.conf").write_text("nameserver 127.0.0.1\n", encoding="ascii")


def wire(switch: Namespaces, machines: Sequence[Namespaces], links: Sequence[str | None]) -> None:
    """Join each machine to the switch by a veth pair, limited at both ends to its link's rate."""
    switch.configure("ip", "link add bridge0 type bridge", "link set bridge0 up")
    for index, (machine, link) in enumerate(zip(machines, links, strict=True)):
        port = f"port{index}"
        switch.configure(
            "ip",
            f"link add {port} type veth peer name eth0 netns {machine.holder}",
            f"link set {port} master bridge0",
            f"link set {port} up",
        )
        machine.configure(
            "ip",
            "link set lo up",
            f"address add {address_of(index)}/{PREFIX_BITS} broadcast + dev eth0",
            "link set eth0 up",
            # It leads nowhere, but by it a process finds the address that it has.
            "route add default dev eth0",
        )
        if link is not None:
            switch.configure("tc", _limit(port, link))
            machine.configure("tc", _limit("eth0", link))


def _limit(interface: str, link: str) -> str:
    # A bucket of 10 ms lets a timer of 250 Hz keep the rate; below two packets nothing would pass.
    burst_bytes = max(bits_per_second(link) // 8 // 100, 4096)
    return f"qdisc add dev {interface} root tbf rate {link} burst {burst_bytes} latency 100ms"
