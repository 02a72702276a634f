"""Process 1 of a virtual machine: everything that runs in the machine ends with it.

Run as a file, without the site packages, inside fresh namespaces. It ends when its standard input
is closed, so when whoever holds the other end of that pipe closes it or dies, however it dies; the
kernel then kills every process of the PID namespace and gives its interfaces back.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import sys

_MS_BIND = 4096


def _mount(source: str, target: str, kind: str, flags: int, options: str) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    texts = [text.encode() for text in (source, target, kind)]
    if libc.mount(*texts, ctypes.c_ulong(flags), options.encode()):
        raise OSError(ctypes.get_errno(), f"can't mount {target}")


def main() -> None:
    """Set the machine up, say so with one line, then wait for the end."""
    # With SIGCHLD ignored the kernel itself buries the orphans that process 1 inherits.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    name, hosts, resolver = sys.argv[1:]
    socket.sethostname(name)
    # An object store lives in /dev/shm: each machine has its own, of half the memory at most.
    _mount("tmpfs", "/dev/shm", "tmpfs", 0, "mode=1777")
    # The host's name servers can't be reached from here, and each question would take seconds.
    _mount(hosts, "/etc/hosts", "", _MS_BIND, "")
    _mount(resolver, "/etc/resolv.conf", "", _MS_BIND, "")
    os.write(1, b"up\n")
    while os.read(0, 4096):
        pass


if __name__ == "__main__":
    main()
