"""A Ray head of its own, started by hand with a token, and commands that talk to it."""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import psutil

SCRIPTS = Path(sysconfig.get_path("scripts"))
JOBS = Path(__file__).parents[2] / "jobs"
DEADLINE_SECONDS = 120.0
TOKEN = "a-token-of-the-tests-that-is-long-enough"

CONFIG = """
[model]
options = { width = 8 }
[data]
source = "builtin://digits/train"
partition = { nodes = 2 }
[evaluation]
data = "builtin://digits/test"
[nodes]
nodes_per_actor = 2
[snake]
trips = 2
[training]
steps = 4
"""


def until(condition, what):
    """Return what `condition` gives once it is true; fail after a deadline."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not (found := condition()):
        assert time.monotonic() < deadline, f"waited in vain until {what}"
        time.sleep(0.05)
    return found


def free_ports(number):
    """Return ports that nothing listens on, outside those that Ray's workers take."""
    with contextlib.ExitStack() as held:
        found = []
        for candidate in range(21000, 29000):
            if len(found) == number:
                return found
            one = held.enter_context(socket.socket())
            with contextlib.suppress(OSError):
                one.bind(("127.0.0.1", candidate))
                found.append(candidate)
    raise AssertionError("no ports are free")


@dataclass
class Head:
    """A head that is up.

    Attributes:
        address: Of its dashboard.
        ray_address: Of the head itself.
        environment: What commands need to be let in.
    """

    address: str
    ray_address: str
    environment: dict

    def call(self, *arguments, folder, **changes):
        """Run `ray-snake` in a folder; return how it ended."""
        return self.run([SCRIPTS / "ray-snake", *arguments], folder, **changes)

    def run(self, command, folder, **changes):
        return subprocess.run(
            command,
            cwd=folder,
            env={**self.environment, **changes},
            capture_output=True,
            text=True,
            timeout=DEADLINE_SECONDS,
        )

    def submit(self, *arguments, folder, **changes):
        return self.call(
            *("submit", "digits.toml", "--address", self.address),
            *arguments,
            folder=folder,
            **changes,
        )

    def libraries(self, title):
        """Return what processes of the head with this title have mapped into their memory."""
        found = []
        for one in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                own = one.environ().get("HOME") == self.environment["HOME"]
                if own and " ".join(one.cmdline()).startswith(title):
                    found += [file.path for file in one.memory_maps()]
        assert found, f"there is no {title}"
        return " ".join(found)

    def status(self, run, folder):
        done = self.call("status", run, "--address", self.address, "--json", folder=folder)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)


@contextlib.contextmanager
def started_head():
    """Start a head, give it, and end what was started."""
    # Short: Ray's sockets lie below, and their paths may not be long.
    home = Path(tempfile.mkdtemp(prefix="rs-"))
    port, dashboard, agent, client = free_ports(4)
    outside = {key: text for key, text in os.environ.items() if not key.startswith("RAY_")}
    environment = {
        **outside,
        "HOME": str(home),
        "PATH": f"{SCRIPTS}{os.pathsep}{os.environ['PATH']}",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": TOKEN,
        "RAY_USAGE_STATS_ENABLED": "0",
        "OMP_NUM_THREADS": "1",
        # A job that is stopped gets that long to end by itself.
        "RAY_JOB_STOP_WAIT_TIME_S": "30",
    }
    command = [
        *(SCRIPTS / "ray", "start", "--head", "--block", "--node-ip-address=127.0.0.1"),
        *(f"--port={port}", f"--dashboard-port={dashboard}", "--dashboard-host=127.0.0.1"),
        *(f"--dashboard-agent-listen-port={agent}", f"--ray-client-server-port={client}"),
        *(f"--temp-dir={home}", "--num-cpus=4", "--disable-usage-stats"),
    ]
    log = (home / "head.log").open("w")
    process = subprocess.Popen(
        command, env=environment, stdout=log, stderr=log, start_new_session=True
    )
    head = Head(f"http://127.0.0.1:{dashboard}", f"127.0.0.1:{port}", environment)
    try:
        until(lambda: _is_up(head, home, process), "the head is up")
        yield head
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        log.close()
        shutil.rmtree(home, ignore_errors=True)


def _is_up(head, home, process):
    assert process.poll() is None, (home / "head.log").read_text()
    program = (
        "from ray_snake.runtime.jobs import Jobs; import sys; Jobs(sys.argv[1])._client.list_jobs()"
    )
    return head.run([sys.executable, "-c", program, head.address], home).returncode == 0
