"""Workers forked from a process that has imported what they need; real ones, without a cluster."""

import json
import os
import select
import signal
import socket
import subprocess
import sys

import pytest

from ray_snake.runtime import worker_entry
from ray_snake.runtime.warm import WarmProcess

OURS = ["worker.py", "--node-id=1"]
OF_RAY = ["--language=PYTHON", "--serialized-runtime-env-context={}"]
WORKER = """
import json, os, random, signal, sys
had = sorted({"ray", "torch", "ray_snake.runtime.actors"} & set(sys.modules))
import numpy as np
import torch
torch.set_num_threads(2)
print(json.dumps({
    "main": __name__,
    "had": had,
    "arguments": sys.argv,
    "folder": os.getcwd(),
    "variable": os.environ.get("ONLY_OF_THIS_WORKER"),
    "tunes": os.environ.get("PL_DISABLE_FORK"),
    "threads": os.environ.get("OMP_NUM_THREADS"),
    "parent": os.getppid(),
    "leads_its_group": os.getpgid(0) == os.getpid(),
    "waits_for_children": signal.getsignal(signal.SIGCHLD) == signal.SIG_DFL,
    "drawn": [random.random(), float(np.random.random()), os.urandom(4).hex()],
    "product": float((torch.ones(300, 300) @ torch.ones(300, 300)).sum()),
    "cuda": torch.cuda.is_initialized(),
}))
"""
# What `ray.tune` starts all workers of a trial with.
TUNES = {"PL_DISABLE_FORK": "1"}
ORDINARY = "import json, sys; print(json.dumps({'ordinary': sys.argv[1:]}))"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("warm")
    (folder / "worker.py").write_text(WORKER)
    (folder / "ordinary.py").write_text(ORDINARY)
    return folder


@pytest.fixture(scope="module")
def warm(place):
    process = WarmProcess()
    variables = process.start(str(place / "ordinary.py"))
    yield process, variables
    process.end()


def begin(place, variables, *arguments, **more):
    """What a worker says that Ray would start with these arguments."""
    environment = {**os.environ, **variables, **more}
    environment.pop("OMP_NUM_THREADS", None)
    done = subprocess.run(
        [sys.executable, worker_entry.__file__, *arguments],
        env=environment,
        cwd=place,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(done.stdout)


def test_a_worker_has_what_it_needs_and_is_like_one_that_ray_started(place, warm):
    process, variables = warm
    said = begin(place, variables, *OURS, *OF_RAY, ONLY_OF_THIS_WORKER="yes")
    assert said["had"] == ["ray", "ray_snake.runtime.actors", "torch"]
    assert said["parent"] == process.pid
    assert said["main"] == "__main__"
    assert said["arguments"] == OURS
    assert said["folder"] == str(place)
    assert said["variable"] == "yes"
    assert said["threads"] is None
    assert said["leads_its_group"]
    assert said["waits_for_children"]
    assert said["product"] == 300**3
    assert not said["cuda"]


def test_workers_share_no_random_numbers_and_no_variables(place, warm):
    _, variables = warm
    first = begin(place, variables, *OURS, *OF_RAY, ONLY_OF_THIS_WORKER="yes")
    second = begin(place, variables, *OURS, *OF_RAY)
    assert second["variable"] is None
    assert not set(first["drawn"]) & set(second["drawn"])


@pytest.mark.parametrize(
    "arguments",
    [
        [*OURS, "--language=JAVA"],
        ["-s", *OURS, *OF_RAY],
        [*OURS, "--language=PYTHON", worker_entry.CONTEXT + '={"env_vars": {"A": "1"}}'],
        [*OURS, "--language=PYTHON", worker_entry.CONTEXT + '={"py_executable": "python9"}'],
        [*OURS, "--language=PYTHON", worker_entry.CONTEXT + '={"command_prefix": ["nice"]}'],
    ],
)
def test_a_worker_of_another_kind_begins_as_ray_has_it(place, warm, arguments):
    _, variables = warm
    assert begin(place, variables, *arguments) == {"ordinary": arguments}


def test_a_worker_of_the_same_interpreter_is_forked(place, warm):
    _, variables = warm
    context = json.dumps({"py_executable": sys.executable, "env_vars": {}, "command_prefix": []})
    asked = f"{worker_entry.CONTEXT}={context}"
    assert begin(place, variables, *OURS, "--language=PYTHON", asked)["arguments"] == OURS


def test_a_worker_of_a_trial_is_forked_with_the_variable_that_tune_sets_for_others(place, warm):
    _, variables = warm
    context = json.dumps({"env_vars": TUNES, "py_executable": sys.executable})
    asked = f"{worker_entry.CONTEXT}={context}"
    said = begin(place, variables, *OURS, "--language=PYTHON", asked)
    assert said["arguments"] == OURS
    assert said["tunes"] == TUNES["PL_DISABLE_FORK"]


def test_an_unreadable_request_does_not_stop_the_next_worker(place, warm):
    _, variables = warm
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect("\0" + variables[worker_entry.ADDRESS])
        connection.sendall(b"0{nothing that makes sense")
    assert begin(place, variables, *OURS, *OF_RAY)["arguments"] == OURS


def test_without_the_warm_process_workers_begin_as_ray_has_it(place):
    process = WarmProcess()
    variables = process.start(str(place / "ordinary.py"))
    process.end()
    assert begin(place, variables, *OURS, *OF_RAY) == {"ordinary": [*OURS, *OF_RAY]}


def test_the_warm_process_ends_with_the_command_that_started_it(place):
    code = (
        "import os, signal\n"
        "from ray_snake.runtime.warm import WarmProcess\n"
        "warm = WarmProcess()\n"
        "warm.start('ordinary.py')\n"
        "print(warm.pid, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert done.returncode == -signal.SIGKILL
    assert ended(int(done.stdout))


def ended(pid):
    """Wait for the end of a process that is no child of this one."""
    try:
        file = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    ready, _, _ = select.select([file], [], [], 60)
    os.close(file)
    return bool(ready)
