"""What the doctor sees of a cluster of several machines."""

import json
import subprocess
import sysconfig
import time
from dataclasses import replace
from pathlib import Path

import pytest

from ray_snake.doctor import Finding, _differences, _of_machine, look, this_machine
from ray_snake.errors import RunError
from ray_snake.runtime.on_machines import on_each_machine


def test_every_machine_is_looked_at_and_compared_with_this_one(raylets, tmp_path):
    findings = [*look(None, str(tmp_path / "runs"))]
    (cluster,) = [one for one in findings if one.subject == "cluster"]
    assert cluster.found.endswith("machines: 3")
    machines = [one for one in findings if one.subject.startswith("machine ")]
    assert len(machines) == 3
    assert all("CPUs" in one.found for one in machines)
    assert {one.state for one in machines} == {"works"}


def test_a_machine_that_fails_or_does_not_answer_is_said_by_name(raylets):
    def fails():
        raise ValueError("no such library")

    def sleeps():
        time.sleep(600)

    for function, words in ((fails, "no such library"), (sleeps, "did not end within 2 s")):
        answers = on_each_machine(function, seconds=2.0 if function is sleeps else 60.0)
        assert len(answers) == 3
        for name, answer in answers:
            assert name
            assert isinstance(answer, RunError)
            assert words in str(answer)


def test_another_process_looks_at_every_machine_while_this_one_has_them(raylets, tmp_path):
    command = [Path(sysconfig.get_path("scripts")) / "ray-snake", "doctor", "--json"]
    assert len(on_each_machine(this_machine)) == 3
    done = subprocess.run(
        [*command, "--address", raylets.address, "--storage", tmp_path / "runs"],
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert done.returncode == 0, done.stderr
    findings = json.loads(done.stdout)["findings"]
    machines = [one for one in findings if one["subject"].startswith("machine ")]
    assert [one["state"] for one in machines] == ["works"] * 3


@pytest.fixture(scope="module")
def here():
    return this_machine()


def test_other_versions_of_what_must_be_the_same_are_broken_of_others_a_note(here):
    there = replace(here, versions={**here.versions, "ray": "1.0", "torch": "1.1"})
    assert [*_differences("machine a", there, here)] == [
        Finding(
            subject="machine a, ray",
            state="broken",
            found=f"1.0, and {here.versions['ray']} here",
            remedy="install the same on all machines",
        ),
        Finding(
            subject="machine a, torch",
            state="note",
            found=f"1.1, and {here.versions['torch']} here: the same visit may come to other bits",
            remedy="install the same on all machines",
        ),
    ]
    assert [*_differences("machine a", here, here)] == []


def test_a_driver_without_a_gpu_for_torch_is_broken_and_little_shared_memory_a_note(here):
    odd = replace(here, gpus=(), has_driver=True, shared_bytes=64 * 2**20)
    states = {one.subject: one.state for one in _of_machine("this machine", odd)}
    assert states == {
        "this machine": "works",
        "this machine, GPUs": "broken",
        "this machine, /dev/shm": "note",
    }
    gpu = replace(here, gpus=("NVIDIA H100",), has_driver=True)
    assert "NVIDIA H100" in {one.found for one in _of_machine("this machine", gpu)}
