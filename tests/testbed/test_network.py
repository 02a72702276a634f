"""The machines are apart, their links are as slow as asked for, and bytes go straight."""

from __future__ import annotations

import json
import sys

import pytest

from cluster.testbed.profile import bits_per_second

OBJECT_BYTES = 2_000_000
MOVE = f"""
import json, time
import numpy as np, ray

ray.init(logging_level="ERROR", log_to_driver=False)

@ray.remote(num_cpus=0)
class Machine:
    def make(self):
        return np.random.default_rng(0).integers(0, 255, {OBJECT_BYTES}, dtype=np.uint8)

    def take(self, refs):
        start = time.monotonic()
        size = ray.get(refs[0]).nbytes
        return size, time.monotonic() - start

def on(address):
    return Machine.options(resources={{f"node:{{address}}": 0.01}}).remote()

maker, taker = on("10.213.0.2"), on("10.213.0.3")
ref = maker.make.remote()
ray.wait([ref], fetch_local=False)
print(json.dumps(ray.get(taker.take.remote([ref]))))
"""


def test_an_object_goes_straight_between_two_machines_no_faster_than_the_wire(bed, links):
    before = bed.interface_bytes()
    done = bed.run([sys.executable, "-c", MOVE], capture=True, timeout=120)
    after = bed.interface_bytes()
    assert done.returncode == 0, done.stderr
    size, seconds = json.loads(done.stdout)
    assert size == OBJECT_BYTES
    # Physics: only the bucket, 10 ms of the rate, may pass at once.
    assert seconds > OBJECT_BYTES * 8 / bits_per_second(links[2]) - 0.05
    received, sent = (
        {name: after[name][way] - before[name][way] for name in after} for way in (0, 1)
    )
    assert sent["machine-1"] > OBJECT_BYTES
    assert received["machine-2"] > OBJECT_BYTES
    assert received["machine-0"] < OBJECT_BYTES / 2
    assert sent["machine-0"] < OBJECT_BYTES / 2


def test_each_machine_has_its_own_name_address_and_interface(bed):
    assert [one.address for one in bed.machines] == ["10.213.0.1", "10.213.0.2", "10.213.0.3"]
    assert [one.rate for one in bed.machines] == ["100mbit", "20mbit", "5mbit"]
    assert bed.run(["hostname"], machine=2, capture=True).stdout == "machine-2\n"
    shown = bed.run(["ip", "-j", "address", "show", "eth0"], machine=1, capture=True).stdout
    assert json.loads(shown)[0]["addr_info"][0]["local"] == "10.213.0.2"


def test_the_network_leads_nowhere_else(bed):
    links = json.loads(bed.run(["ip", "-j", "link"], capture=True).stdout)
    assert [one["ifname"] for one in links] == ["lo", "eth0"]


def test_a_command_is_joined_to_the_cluster_with_a_token_that_only_it_can_read(bed):
    show = "echo $RAY_ADDRESS $RAY_AUTH_MODE; stat -c %a $RAY_AUTH_TOKEN_PATH"
    done = bed.run(["sh", "-c", show], capture=True)
    assert done.stdout == f"{bed.address} token\n600\n"


@pytest.mark.parametrize(
    ("script", "status"), [("exit 7", 7), ("kill -9 $$", 137), ("kill -TERM $$", 143)]
)
def test_the_exit_status_is_the_commands(bed, script, status):
    assert bed.run(["sh", "-c", script]).returncode == status


def test_a_command_that_does_not_exist_is_status_127(bed):
    done = bed.run(["no-such-command"], capture=True)
    assert (done.returncode, done.stderr) == (127, "no-such-command: No such file or directory\n")


def test_a_command_runs_where_it_was_asked_to_with_what_it_was_given(bed, tmp_path):
    done = bed.run(
        ["sh", "-c", "pwd; echo $MINE"], environment={"MINE": "1"}, folder=tmp_path, capture=True
    )
    assert done.stdout == f"{tmp_path}\n1\n"


def test_killing_the_stand_in_kills_the_command(bed):
    command = bed.start(["sh", "-c", "echo $$; exec sleep 600"], capture=True)
    assert command.stdout is not None
    inside = command.stdout.readline().strip()
    command.kill()
    command.wait(10)
    # The pipe ends when its last writer, the command, does; its number goes when it is buried.
    assert command.stdout.read() == ""
    gone = f"while kill -0 {inside} 2>/dev/null; do sleep 0.1; done"
    assert bed.run(["sh", "-c", gone], timeout=30).returncode == 0


def test_cleaning_leaves_a_live_test_bed_alone(bed, command_line):
    assert command_line.run("clean").returncode == 0
    assert bed.folder.is_dir()
    assert bed.run(["true"]).returncode == 0
