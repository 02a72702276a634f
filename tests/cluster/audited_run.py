"""A run on marked rows, and the search for them in whatever is not their node's own process."""

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path

import marked_shards
import memory_search
import numpy as np
import ray
from scenarios import descendants

from ray_snake import SnakeConfig, SnakeTrainer

STEPS = 3
SETTINGS = {
    "seed": 7,
    # The program that trains, the driver and the process engine are on another machine.
    "nodes": {"labels": {"site": "in(a,b)"}},
    # In the second trip each visit keeps the first block's outputs.
    "snake": {"trips": 2, "span_width": 1},
    "training": {"batch_size": 16, "steps": STEPS},
}


def network(meter=None, *, smuggles=False):
    """Return a model function; the outputs of its first block are recognised.

    Args:
        meter: A folder: what Ray takes out of a worker process is noted there, by process.
        smuggles: Whether the first block keeps a row in a buffer, and prints a value of it.
    """
    meter = None if meter is None else str(meter)

    def build():
        import torch
        from torch import nn

        class Doubling(nn.Module):
            def __init__(self):
                super().__init__()
                self.linear = nn.Linear(16, 2048)
                if smuggles:
                    self.register_buffer("seen", torch.zeros(16))

            def forward(self, x):
                x = x.float()
                if smuggles and self.training:
                    self.seen = (2 * x[0]).detach()
                    print("a row:", x[0])  # noqa: T201 - what a model may do
                return torch.cat([x, 2 * x, torch.tanh(self.linear(x * 1e-5))], 1)

        class Learned(nn.Module):
            def __init__(self):
                super().__init__()
                self.linear = nn.Linear(2048, 16)

            def forward(self, x):
                return self.linear(x[:, 32:])

        if meter is not None:
            note_what_leaves()
        return [Doubling(), Learned(), nn.Linear(16, 4096)]

    def note_what_leaves():
        import json
        import os
        from pathlib import Path

        import ray
        from ray._private.serialization import SerializationContext

        worker = ray._private.worker
        if worker.global_worker.mode != worker.WORKER_MODE:
            return
        if hasattr(SerializationContext, "is_noted"):
            return
        serialize = SerializationContext.serialize

        def noted(context, value):
            serialized = serialize(context, value)
            with Path(f"{meter}/{os.getpid()}").open("a") as file:
                file.write(json.dumps([type(value).__name__, serialized.total_bytes]) + "\n")
            return serialized

        SerializationContext.serialize = noted
        SerializationContext.is_noted = True

    return build


def task_loss(*, holds=None, at=0, raises=False):
    """Return a loss for classes and for other targets, by their dtype.

    Args:
        holds: A folder: each process waits there in its `at`-th training step, from 1.
        at: See above.
        raises: Whether it fails, with targets in what follows its first line and in the error.
    """
    holds = None if holds is None else str(holds)
    calls = 0

    def loss(outputs, targets):
        import torch

        nonlocal calls
        if torch.is_grad_enabled():
            calls += 1
            if raises:
                error = ValueError(f"these are no targets:\n{targets}")
                error.targets = targets.numpy()
                raise error
            if holds is not None and calls == at:
                wait()
        if targets.is_floating_point():
            return torch.nn.functional.mse_loss(outputs[:, : targets.shape[1]], targets)
        return torch.nn.functional.cross_entropy(outputs, targets)

    def wait():
        import os
        import time
        from pathlib import Path

        held = Path(f"{holds}/{os.getpid()}")
        held.touch()
        while held.exists():
            time.sleep(0.005)

    return loss


class AuditedRun:
    """A run on marked rows.

    Args:
        folder: For all its files.
        seed: Of the rows: what other tests leave in memory and logs are others.
        shards: Which of the marked shards; a node for each.
    """

    def __init__(self, folder, seed, shards=marked_shards.SHARDS):
        self.seed = seed
        self.names = shards
        self.runs, self.told = folder / "runs", folder / "told"
        self.meter, self.holds = folder / "meter", folder / "holds"
        data = folder / "data"
        for one in (self.told, self.meter, self.holds, data):
            one.mkdir()
        # This process never has the rows, so that it can be searched as well.
        subprocess.run([sys.executable, marked_shards.__file__, data, str(seed)], check=True)
        self._sources = [data / f"{name}.arrow" for name in shards]

    def fit(self, model, loss, on_event=lambda event: None, **settings):
        """Train; what the program is told on the way is written to files, to be searched."""
        held_out = (np.zeros((8, marked_shards.WIDTH), "float32"), np.arange(8))
        trainer = SnakeTrainer(
            model,
            self._sources,
            SnakeConfig.from_tree({**SETTINGS, **settings}),
            loss=loss,
            evaluation=held_out,
            storage=self.runs,
            name="run",
            on_event=lambda event: (self.tell(repr(event)), on_event(event)),
        )
        with (
            (self.told / "output").open("w") as output,
            contextlib.redirect_stdout(output),
            contextlib.redirect_stderr(output),
        ):
            return trainer.fit()

    def tell(self, text):
        with (self.told / "events").open("a") as file:
            file.write(text + "\n")

    def search(self, pids):
        """Return what these processes hold, by process."""
        found = memory_search.search(self.seed, pids)
        unread = [pid for pid in pids if not found.searched[pid] and Path(f"/proc/{pid}").exists()]
        assert not unread, f"nothing of these processes could be searched: {unread}"
        return found.processes

    def search_everyone(self):
        """Return what this process, and every one of the cluster, holds, and their names."""
        names = everyone()
        return self.search(names), names

    def search_files(self):
        """Return what the run, and what Ray, has written, by path."""
        session = ray._private.worker.global_worker.node.get_session_dir_path()
        return memory_search.search(self.seed, folders=[self.runs, self.told, session]).files

    def left(self, pid):
        """Return (type, bytes) of all that Ray took out of a process."""
        return [json.loads(line) for line in (self.meter / str(pid)).read_text().splitlines()]


def everyone():
    """Return the programs of this process, and of all of the cluster, by process."""
    found = {}
    for pid in descendants(os.getpid()):
        with contextlib.suppress(OSError):
            program, *arguments = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
            found[pid] = " ".join([Path(program).name, *arguments])[:60].strip()
    return found
