"""What a test bed needs of the machine it runs on, checked before anything is changed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

from ray_snake.errors import ResourceError

_TOOLS = {
    "ip": "iproute2",
    "tc": "iproute2",
    "unshare": "util-linux",
    "nsenter": "util-linux",
}
NAMESPACES = ("--net", "--uts", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc")
# All that a link is made of, inside namespaces that end with this line.
_REHEARSAL = """
set -e
mount -t tmpfs tmpfs /dev/shm
ip link add bridge0 type bridge
ip link add port0 type veth peer name eth0
ip link set port0 master bridge0
tc qdisc add dev port0 root tbf rate 1mbit burst 16kb latency 100ms
"""


def check_host() -> None:
    """Check that this machine can hold a test bed; changes nothing.

    Raises:
        ResourceError: Naming the first thing that is missing and how to get it.
    """
    if not sys.platform.startswith("linux"):
        raise ResourceError("test bed", f"needs Linux, not {sys.platform}", "use a Linux machine")
    for tool, package in _TOOLS.items():
        if shutil.which(tool) is None:
            raise ResourceError(
                "test bed",
                f"needs '{tool}', which isn't on PATH",
                f"install {package} (apt-get install {package})",
            )
    if os.geteuid() != 0:
        raise ResourceError(
            "test bed",
            f"needs root to make namespaces, and this is user {os.geteuid()}",
            "run it with sudo",
        )
    tried = subprocess.run(
        ["unshare", *NAMESPACES, "sh", "-c", _REHEARSAL],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=60,
    )
    if tried.returncode != 0:
        said = " ".join(tried.stderr.split())[-200:] or f"exit status {tried.returncode}"
        raise ResourceError(
            "test bed",
            f"this kernel or container allows no namespaces with limited links ({said})",
            "use a virtual machine, or a container with --privileged",
        )
