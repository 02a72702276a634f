"""Real sweeps: trials that are killed, a sweep that is killed, and what is found at the end."""

import json
import os
import signal
import subprocess
import sysconfig
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from tensorboard.backend.event_processing.event_multiplexer import EventMultiplexer

from ray_snake.runtime.journal import read_records
from ray_snake.storage import Storage

COMMAND = Path(sysconfig.get_path("scripts")) / "ray-snake"
DEADLINE_SECONDS = 240.0
TRIALS = 3
TRIPS = 3
CONFIG = f"""
[model]
options = {{ width = 8 }}
[data]
source = "builtin://digits/train"
partition = {{ nodes = 2 }}
[evaluation]
data = "builtin://digits/test"
[nodes]
nodes_per_actor = 2
[snake]
trips = {TRIPS}
[training]
steps = 4
[tune]
samples = 1
scheduler = "fifo"
[tune.space]
"training.learning_rate" = {{ grid = [0.2, 0.05, 0.0001] }}
"""


class Sweep:
    """A sweep's command in a folder, with a home of its own."""

    def __init__(self, folder):
        self.folder = folder
        (folder / "sweep.toml").write_text(CONFIG)
        (folder / "home").mkdir()
        left_out = ("RAY_ADDRESS", "RAY_AUTH_TOKEN_PATH")
        inherited = {key: text for key, text in os.environ.items() if key not in left_out}
        self.environment = {**inherited, "HOME": str(folder / "home")}

    def start(self, *arguments):
        return subprocess.Popen(
            [COMMAND, "tune", "sweep.toml", "--json", *arguments],
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def end(self, process):
        out, err = process.communicate(timeout=DEADLINE_SECONDS)
        assert process.returncode == 0, err
        assert "Traceback" not in err
        return json.loads(out.splitlines()[-1]), err

    def runs(self):
        """Return the visits of each trial's run so far."""
        folder = self.folder / "runs" / "sweep" / "runs"
        names = [one.name for one in folder.iterdir()] if folder.exists() else []
        return {
            name: [one for one in read_records(Storage(str(folder / name))) if one.kind == "visit"]
            for name in names
        }


@pytest.fixture
def sweep(tmp_path):
    return Sweep(tmp_path)


def until(condition, what):
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not (found := condition()):
        assert time.monotonic() < deadline, f"waited in vain until {what}"
        time.sleep(0.05)
    return found


def processes(root):
    """Return (pid, name) of all that a process started, itself too."""
    parents, names = {}, {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                stat = (entry / "stat").read_text()
                words = (entry / "cmdline").read_bytes().decode(errors="replace")
            except OSError:
                continue
            parents[int(entry.name)] = int(stat.rpartition(")")[2].split()[1])
            names[int(entry.name)] = words.replace("\0", " ")
    found = [root]
    for one in found:
        found += [pid for pid, parent in parents.items() if parent == one]
    return [(pid, names.get(pid, "")) for pid in found]


def test_a_sweep_ends_with_ranked_trials_and_the_best_settings_train_to_its_score(sweep):
    answer, said = sweep.end(sweep.start())
    assert (answer["trials"], answer["failed"]) == (TRIALS, 0), said
    assert answer["best"]["trip"] == TRIPS
    assert "3 trials, best first" in said
    found = sweep.folder / "runs" / "sweep"
    table = pq.read_table(found / "trials.parquet")
    accuracies = table["accuracy"].to_pylist()
    assert accuracies == sorted(accuracies, reverse=True)
    assert answer["best"]["accuracy"] == accuracies[0] > accuracies[-1]
    for name in ("parallel.png", "importance.png"):
        assert (found / name).read_bytes().startswith(b"\x89PNG")
    board = EventMultiplexer().AddRunsFromDirectory(str(found)).Reload()
    content = board.PluginRunToTagToContent("hparams")
    assert len(content) == TRIALS
    # The same bits: settings and seed are the trial's.
    done = subprocess.run(
        [COMMAND, "train", found / "best.toml", "--json", "--storage", sweep.folder / "again"],
        cwd=sweep.folder,
        env=sweep.environment,
        capture_output=True,
        text=True,
        timeout=DEADLINE_SECONDS,
    )
    assert done.returncode == 0, done.stderr
    again = json.loads(done.stdout.splitlines()[-1])
    assert again["metrics"]["accuracy"] == answer["best"]["accuracy"]


def test_a_killed_trial_goes_on_from_its_journal(sweep):
    process = sweep.start()
    try:
        until(lambda: any(len(visits) >= 2 for visits in sweep.runs().values()), "a trip is done")
        (victim, *_) = [
            pid for pid, name in processes(process.pid) if name.startswith("ray::ImplicitFunc")
        ]
        os.kill(victim, signal.SIGKILL)
        answer, said = sweep.end(process)
    finally:
        kill_all(process)
    assert (answer["trials"], answer["failed"]) == (TRIALS, 0), said
    assert "it goes on from its journal" in said
    runs = sweep.runs()
    assert len(runs) == TRIALS
    for visits in runs.values():
        assert [one.visit for one in visits] == list(range(1, 2 * TRIPS + 1))


def test_a_killed_sweep_goes_on_and_repeats_no_finished_trial(sweep):
    process = sweep.start("--set", "tune.concurrency=1")
    try:
        until(lambda: [name for name, v in sweep.runs().items() if len(v) >= 2 * TRIPS], "a trial")
        # The second trial is under way.
        until(lambda: len(sweep.runs()) >= 2, "the next trial")
    finally:
        kill_all(process)
    before = {name: [one.finished_at for one in v] for name, v in sweep.runs().items()}
    answer, said = sweep.end(sweep.start("--resume"))
    assert (answer["trials"], answer["failed"]) == (TRIALS, 0), said
    after = sweep.runs()
    assert len(after) == TRIALS
    for name, visits in after.items():
        assert [one.visit for one in visits] == list(range(1, 2 * TRIPS + 1))
        times = before.get(name, [])
        assert [one.finished_at for one in visits][: len(times)] == times


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--resume",), "is not there"),
        (("--set", 'tune.space={"snake.speed"={choice=[1]}}'), "unknown key"),
        (("--set", "evaluation.data=none.arrow"), "none.arrow"),
    ],
)
def test_a_sweep_that_can_not_be_is_refused_in_one_line(sweep, arguments, words):
    process = sweep.start(*arguments)
    _, err = process.communicate(timeout=DEADLINE_SECONDS)
    assert process.returncode == 2, err
    (line,) = err.strip().splitlines()
    assert words in line


def kill_all(process):
    """Kill a command and all that it started."""
    tree = processes(process.pid)
    for pid, _ in tree:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    process.communicate()
