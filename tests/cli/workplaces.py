"""A folder in which the command is called, and settings to call it with."""

import multiprocessing
import os
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

COMMAND = Path(sysconfig.get_path("scripts")) / "ray-snake"
TIMEOUT_SECONDS = 120

MODEL = """
[model]
options = { width = 8 }
"""
DIGITS = """
[data]
source = "builtin://digits/train"
partition = { nodes = 2 }
[evaluation]
data = "builtin://digits/test"
"""
SHORT = """
[nodes]
nodes_per_actor = 2
[snake]
trips = 2
[training]
steps = 4
"""

# Importing torch takes most of a call that ends at once, so such calls are forked from one process
# that has it imported and has done nothing else.
_FORKSERVER = multiprocessing.get_context("forkserver")
_FORKSERVER.set_forkserver_preload(
    ["ray_snake.trainer", "ray_snake.runtime.preflight", "ray_snake.models.registry"]
)


@dataclass(frozen=True)
class Workplace:
    """A folder in which the command is called, with a home and a place for Ray of its own."""

    folder: Path

    @property
    def runs(self):
        return self.folder / "runs"

    @property
    def home(self):
        return self.folder / "home"

    def write(self, text, name="digits.toml"):
        (self.folder / name).write_text(text)
        return name

    def environment(self, **changes):
        self.home.mkdir(exist_ok=True)
        inherited = {
            name: value
            for name, value in os.environ.items()
            if name not in ("RAY_ADDRESS", "RAY_AUTH_TOKEN_PATH")
        }
        return {**inherited, "HOME": str(self.home), **changes}

    def call(self, *arguments):
        """Run the installed `ray-snake` to its end."""
        return subprocess.run(
            [COMMAND, *arguments],
            cwd=self.folder,
            env=self.environment(),
            capture_output=True,
            text=True,
            timeout=TIMEOUT_SECONDS,
            check=False,
        )

    def call_forked(self, *arguments, **environment):
        """Run `ray-snake` to its end in a process that has torch imported already."""
        texts = [self.folder / "stdout", self.folder / "stderr"]
        process = _FORKSERVER.Process(
            target=_main, args=(arguments, self.folder, self.environment(**environment), *texts)
        )
        process.start()
        process.join(TIMEOUT_SECONDS)
        assert process.exitcode is not None, f"{arguments} did not end"
        out, err = (text.read_text() for text in texts)
        return subprocess.CompletedProcess(arguments, process.exitcode, out, err)


def _main(arguments, folder, environment, out, err):
    for descriptor, path in ((1, out), (2, err)):
        with path.open("wb") as file:
            os.dup2(file.fileno(), descriptor)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    sys.argv = ["ray-snake", *arguments]
    from ray_snake.cli.main import main

    main()
