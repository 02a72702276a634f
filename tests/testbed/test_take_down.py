"""A test bed takes itself down, whatever happened to whom."""

from __future__ import annotations

import signal
import tempfile
import time
from pathlib import Path

import pytest

from cluster.testbed import Testbed

DEADLINE_SECONDS = 60.0


def folder_of(process) -> Path:
    """Wait for the folder of a test bed that another process builds."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        for folder in Path(tempfile.gettempdir()).glob(f"snakebed-{process.pid}-*"):
            return folder
        time.sleep(0.02)
    raise AssertionError(process.communicate())


def processes_of(folder: Path, but: int = 0) -> list[int]:
    """Return the processes of a test bed: its folder is in their command or environment."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            told = (process / "cmdline").read_bytes() + (process / "environ").read_bytes()
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue
        if str(folder).encode() in told and int(process.name) != but:
            found.append(int(process.name))
    return found


def wait_until(what) -> bool:
    """Return whether it came true before the deadline."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while time.monotonic() < deadline:
        if what():
            return True
        time.sleep(0.05)
    return False


def assert_only_the_folder_is_left_until_cleaned(folder: Path, command_line) -> None:
    assert wait_until(lambda: not processes_of(folder))
    assert folder.is_dir()
    done = command_line.run("clean")
    assert f"removed {folder}\n" in done.stdout
    assert not folder.exists()


def test_killed_while_running_nothing_lives_on(command_line):
    process = command_line.start("run", "--link", "none", "--", "sh", "-c", "echo up; sleep 600")
    assert process.stdout.readline() == "up\n", process.communicate()
    folder = folder_of(process)
    assert len(processes_of(folder, process.pid)) > 3
    process.kill()
    process.wait()
    assert_only_the_folder_is_left_until_cleaned(folder, command_line)


@pytest.mark.parametrize("processes", [1, 3, 5])
def test_killed_while_building_nothing_lives_on(command_line, processes):
    process = command_line.start("run", "--link", "5mbit", "--link", "none", "--", "true")
    folder = folder_of(process)
    assert wait_until(lambda: len(processes_of(folder, process.pid)) >= processes)
    process.kill()
    process.wait()
    assert_only_the_folder_is_left_until_cleaned(folder, command_line)


def test_sigterm_reaches_the_command_and_its_status_counts(command_line):
    script = "trap 'exit 3' TERM; echo up; while true; do sleep 0.1; done"
    process = command_line.start("run", "--link", "none", "--", "sh", "-c", script)
    assert process.stdout.readline() == "up\n", process.communicate()
    folder = folder_of(process)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=DEADLINE_SECONDS)
    assert process.returncode == 3
    assert "machine-0 (unlimited): received" in errors
    assert not folder.exists()
    assert not processes_of(folder)


def test_sigint_while_building_ends_it(command_line):
    process = command_line.start("run", "--link", "none", "--", "true")
    folder = folder_of(process)
    assert wait_until(lambda: processes_of(folder, process.pid))
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=DEADLINE_SECONDS)
    assert process.returncode == 130
    assert not folder.exists()
    assert not processes_of(folder)


def test_a_raylet_that_does_not_start_leaves_nothing(monkeypatch):
    monkeypatch.setattr("cluster.testbed.raylets._command", lambda *_, **__: ["false"])
    bed = Testbed(links=[None])
    with pytest.raises(Exception, match="machine-0 didn't start in 3 attempts"):
        bed.__enter__()
    assert not bed.folder.exists()
    assert not processes_of(bed.folder)
