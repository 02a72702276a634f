import json
import os
import socket
import subprocess
import sys
import tempfile

import pytest

EMBEDDED = """
import json, os
from pathlib import Path
from ray_snake.runtime.connection import connected

def commands():
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                yield (entry / "cmdline").read_bytes().decode(errors="replace")
            except (FileNotFoundError, ProcessLookupError):
                pass

before = dict(os.environ)
with connected("local"):
    started = [command for command in commands() if os.environ["RAY_TMPDIR"] in command]
changed = sorted(name for name, text in os.environ.items() if before.get(name) != text)
print(json.dumps({"started": started, "changed": changed}))
"""
FORKED = """
import json, os, select, signal, sys
from pathlib import Path
import ray
from ray_snake.runtime.connection import connected

class Worker:
    def begun(self):
        return os.getpid(), os.getppid(), "torch" in sys.modules

def parent_of(number):
    return int(Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[1])

def ask():
    worker = ray.remote(num_cpus=0)(Worker).remote()
    number, parent, warm = ray.get(worker.begun.remote(), timeout=120)
    command = Path(f"/proc/{parent}/cmdline").read_bytes().decode().split(chr(0))
    workers[number] = worker, os.pidfd_open(number)
    return {"number": number, "parent": parent, "torch": warm,
            "ours": parent_of(parent) == os.getpid(),
            "of": "raylet" if "raylet" in command[0] else command[2]}

workers = {}
with connected("local"):
    first, second = ask(), ask()
    os.kill(first["number"], signal.SIGKILL)
    try:
        ray.get(workers[first["number"]][0].begun.remote(), timeout=120)
    except ray.exceptions.ActorDiedError:
        first["noticed"] = True
    os.kill(first["parent"], signal.SIGKILL)
    third = ask()
    # Those that Ray has begun already may still be forked ones.
    while "raylet" not in third["of"]:
        third = ask()
left = [one for one, (_, file) in workers.items() if not select.select([file], [], [], 60)[0]]
print(json.dumps([first, second, third, left]))
"""


def outside_a_cluster(program):
    """What a program prints last, in an interpreter that knows of no cluster."""
    # Not pytest's own temporary folder: a socket's path has to be short.
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "HOME": folder, "RAY_TMPDIR": folder}
        for name in ("RAY_ADDRESS", "RAY_AUTH_TOKEN_PATH"):
            environment.pop(name, None)
        done = subprocess.run(
            [sys.executable, "-c", program],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
    return json.loads(done.stdout.splitlines()[-1])


def test_an_embedded_cluster_starts_only_what_a_run_uses():
    seen = outside_a_cluster(EMBEDDED)
    assert any("raylet" in command for command in seen["started"])
    for service in ("log_monitor.py", "monitor.py", "dashboard.py"):
        assert not [command for command in seen["started"] if service in command]
    # What was set for Ray's processes is not left to whatever the program starts next.
    assert not [name for name in seen["changed"] if name.startswith("RAY_raylet")]
    assert "RAY_event_stats" not in seen["changed"]
    assert "RAY_SNAKE_WARM_PROCESS" not in seen["changed"]


def test_workers_of_an_embedded_cluster_are_forked_or_else_begin_as_ray_has_it():
    first, second, third, left = outside_a_cluster(FORKED)
    for one in (first, second):
        assert one["torch"]
        assert one["ours"]
        assert "warm.serve" in one["of"]
    assert first["parent"] == second["parent"]
    # Ray sees the end of a forked worker, and ends it with the cluster, as one that it began.
    assert first["noticed"]
    assert not left
    # The warm process was killed: nothing hangs, and workers import for themselves.
    assert third["of"] == "raylet"
    assert not third["torch"]


REFUSED = """
import sys
from ray_snake.errors import ResourceError
from ray_snake.runtime.connection import connected

try:
    with connected(sys.argv[1]):
        pass
except ResourceError as error:
    print(error)
"""


def refused(address):
    """Join the cluster at an address, in another process: one that has joined stays with it."""
    return subprocess.run(
        [sys.executable, "-c", REFUSED, address],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )


@pytest.mark.parametrize("address", ["127.0.0.1:{}", "ray://127.0.0.1:{}"])
def test_an_address_where_nobody_listens_is_refused_at_once(address):
    with socket.socket() as closed:
        # Taken, so that nobody else listens there.
        closed.bind(("127.0.0.1", 0))
        done = refused(address.format(closed.getsockname()[1]))
    assert "no Ray cluster answers there" in done.stdout
    assert done.stderr == ""


@pytest.mark.parametrize("address", ["head..x:6379", "ray://a..b:10001", f"{'a' * 64}:6379"])
def test_a_host_that_can_not_be_one_is_refused_at_once(address):
    done = refused(address)
    assert "no Ray cluster answers there" in done.stdout
    assert done.stderr == ""


def test_an_address_of_a_dashboard_is_refused_with_what_a_heads_looks_like():
    done = refused("http://127.0.0.1:8265")
    assert done.stdout == (
        "--address http://127.0.0.1:8265: is the address of a dashboard, not of a Ray head; give "
        "HOST:PORT, which `ray start --head` shows, or ray://HOST:10001\n"
    )
    assert done.stderr == ""


def test_an_address_that_ray_does_not_take_is_refused_with_whole_words_of_rays():
    (line,) = refused(f"nonsense{' sense' * 60}").stdout.splitlines()
    assert "Invalid address format: nonsense sense" in line
    assert " sense ...); give the address of a running head" in line


def test_a_port_that_is_none_is_refused_though_somebody_listens_at_its_last_16_bits():
    with socket.create_server(("127.0.0.1", 0)) as listening:
        done = refused(f"127.0.0.1:{listening.getsockname()[1] + 2**16}")
    assert "no port above 65535" in done.stdout
    assert done.stderr == ""
