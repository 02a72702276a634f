"""Calls in a forked process. Its own interpreter forks, for pytest's has threads."""

import json
import os
import subprocess
import sys

import pytest

PROGRAM = """
import json, os, signal, sys, time
from ray_snake.errors import DataError
from ray_snake.runtime.apart import Apart, can_fork

class Odd(Exception):
    def __reduce__(self):
        raise RuntimeError("can't be pickled")

class Target:
    def __init__(self):
        self.seen = []
        self.add = lambda number: self.seen.append(number) or sum(self.seen)

    def imports(self):
        import sqlite3
        return "sqlite3" in sys.modules

    def refuses(self):
        raise DataError("shard", "is empty", "fill it")

    def breaks(self):
        raise Odd("too odd")

    def dies(self):
        os.kill(os.getpid(), signal.SIGKILL)

    def leaves(self):
        os._exit(3)

    def hangs(self):
        time.sleep(1000)

    def handlers(self):
        return signal.getsignal(signal.SIGINT) is signal.SIG_IGN

assert can_fork()
said = []
with Apart(Target(), what="the helper", seconds=float(sys.argv[1])) as apart:
    for call in json.loads(sys.argv[2]):
        try:
            said.append(apart.call(*call))
        except Exception as error:
            said.append([type(error).__name__, str(error)])
pid = apart.pid
try:
    os.kill(pid, 0)
    gone = False
except ProcessLookupError:
    gone = True
print(json.dumps({"said": said, "gone": gone, "imported": "sqlite3" in sys.modules}))
"""


def calls(*named, seconds=60):
    """Call methods one after another; return what came of each, once the process is gone."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(seconds), json.dumps(named)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    found = json.loads(done.stdout)
    assert found["gone"]
    assert not found["imported"]
    return found["said"], done.stderr


def test_what_the_other_process_imports_stays_there():
    said, _ = calls(["imports"])
    assert said == [True]


def test_an_object_that_can_not_be_pickled_keeps_its_state():
    said, _ = calls(["add", 3], ["add", 4])
    assert said == [3, 7]


def test_a_typed_error_stays_typed_and_the_process_goes_on():
    said, _ = calls(["refuses"], ["add", 1])
    assert said == [["DataError", "shard: is empty; fill it"], 1]


def test_another_error_is_one_line_and_its_traceback_is_shown():
    said, shown = calls(["breaks"])
    assert said == [["RunError", "Odd: too odd; look into it, then try again"]]
    assert "in breaks" in shown


@pytest.mark.parametrize(
    ("method", "words"), [("dies", "was ended by SIGKILL"), ("leaves", "ended with status 3")]
)
def test_a_process_that_ends_is_an_error_that_says_how(method, words):
    said, _ = calls([method])
    kind, line = said[0]
    assert kind == "ResourceError"
    assert line.startswith(f"the helper: {words}; ")


def test_a_process_that_hangs_is_ended_with_an_error():
    said, _ = calls(["hangs"], seconds=0.2)
    assert said[0][0] == "ResourceError"
    assert "the helper: did not answer within 0.2 s" in said[0][1]


def test_an_interrupt_is_for_the_caller_alone():
    said, _ = calls(["handlers"])
    assert said == [True]
