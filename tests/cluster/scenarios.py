"""What tests with real processes share: the run they all do, and how to stop it where they want."""

import contextlib
import os
import signal
import time
from pathlib import Path

import ray

from ray_snake import SnakeConfig, SnakeTrainer
from ray_snake.runtime.events import VisitStarted

DEADLINE_SECONDS = 90.0
NODES = 3
TRIPS = 8
VISITS = NODES * TRIPS
STEPS = 3

# Blocks above 100 kB, so that they lie in object stores: Ray keeps smaller objects with the owner.
SETTINGS = {
    "seed": 5,
    "model": {"options": {"width": 32}},
    "data": {
        "source": "builtin://digits/train",
        "partition": {"scheme": "dirichlet", "alpha": 0.3, "nodes": NODES, "seed": 1},
    },
    "evaluation": {"data": "builtin://digits/test"},
    "snake": {"trips": TRIPS},
    "training": {"batch_size": 16, "steps": STEPS},
}
CONFIG = SnakeConfig.from_tree(SETTINGS)


def toml(tree, section=""):
    """Return a tree of settings as TOML."""
    values = [f"{key} = {literal(one)}" for key, one in tree.items() if key in ("seed",) or section]
    sections = [] if section else [toml(one, key) for key, one in tree.items() if key != "seed"]
    heading = [f"[{section}]"] if section else []
    return "\n".join([*heading, *values, *sections]) + "\n"


def literal(value):
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {literal(one)}" for key, one in value.items()) + " }"
    return f'"{value}"' if isinstance(value, str) else str(value).lower()


def fit(config, storage, **options):
    return SnakeTrainer(config=config, storage=storage, name="run", progress=False, **options).fit()


def with_sections(**sections):
    """Return the common settings with some values changed."""
    merged = {key: {**SETTINGS.get(key, {}), **values} for key, values in sections.items()}
    return SnakeConfig.from_tree({**SETTINGS, **merged})


def until(condition, what, seconds=DEADLINE_SECONDS):
    """Return what `condition` gives once it is true; fail after a deadline."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, f"waited in vain until {what}"
        time.sleep(0.005)
    return found


class Gate:
    """Holds one visit in its middle, in whatever process it runs, until the test opens it."""

    def __init__(self, folder):
        folder.mkdir()
        self.held = folder / "held"
        self.opened = folder / "opened"

    def loss(self, visit_of_node):
        """Return cross-entropy that waits within a node's `visit_of_node`-th visit, from 1.

        Only the first process that gets there waits.
        """
        held, opened = str(self.held), str(self.opened)
        at = (visit_of_node - 1) * STEPS + 2
        calls = 0

        def cross_entropy(outputs, targets):
            import torch

            nonlocal calls
            if torch.is_grad_enabled():
                calls += 1
                if calls == at:
                    wait()
            return torch.nn.functional.cross_entropy(outputs, targets)

        def wait():
            import os
            import time
            from pathlib import Path

            unfinished = Path(f"{held}.{os.getpid()}")
            unfinished.write_text(str(os.getpid()))
            try:
                os.link(unfinished, held)
            except FileExistsError:
                return
            while not Path(opened).exists():
                time.sleep(0.005)

        return cross_entropy

    def pid(self):
        """Wait until a visit is held; return its process."""
        until(self.held.exists, "a visit is held")
        return int(self.held.read_text())

    def open(self):
        self.opened.touch()


def on_visit(number, act):
    """Return a function for `on_event` that acts once, when this visit is under way."""
    done = []

    def on_event(event):
        if isinstance(event, VisitStarted) and event.visit.number == number and not done:
            done.append(event)
            act()

    return on_event


def actors(kind):
    """Return what Ray knows of all actors of a class, dead ones too."""
    found = ray._private.state.actors().values()
    return [one for one in found if one["ActorClassName"] == kind]


def pid_of(kind):
    """Return the process of the one living actor of a class."""
    (found,) = [one["Pid"] for one in actors(kind) if one["State"] == "ALIVE"]
    return found


def libraries(pid):
    """Return what a process has mapped into its memory."""
    return Path(f"/proc/{pid}/maps").read_text()


def kill(pid):
    os.kill(pid, signal.SIGKILL)


def descendants(pid):
    """Return the processes that a process started, directly or not, itself first."""
    children = {}
    for folder in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(folder.name))
    found = [pid]
    for one in found:
        found += children.get(one, [])
    return found


def is_running(pid):
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def kill_tree(process):
    """Kill a process that the test started, and all that it started."""
    process.send_signal(signal.SIGSTOP)
    tree = descendants(process.pid)
    for pid in tree:
        with contextlib.suppress(ProcessLookupError):
            kill(pid)
    process.wait()
    until(lambda: not any(is_running(pid) for pid in tree), "all killed processes are gone")
    return tree
