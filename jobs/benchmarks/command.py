"""A benchmark's command line."""

from __future__ import annotations

import os
import signal
import sys
from threading import Thread
from types import FrameType

import click
import torch
from forked import forked

from ray_snake.errors import SnakeError


class Benchmark(click.Command):
    """Shows the project's errors as one line, and exits with their status.

    Told to terminate, it ends what it has begun first: clusters, control groups, other processes.
    """

    def invoke(self, ctx: click.Context) -> object:
        """Run the command; see `click.Command`."""
        signal.signal(signal.SIGTERM, _leave)
        try:
            return super().invoke(ctx)
        except SnakeError as error:
            shown = click.ClickException(str(error))
            shown.exit_code = error.exit_status
            raise shown from None


def _leave(signum: int, frame: FrameType | None) -> None:
    sys.exit(128 + signum)


def end_with_parent() -> None:
    """Terminate this process when the one whose pipe is its standard input ends, in whatever way.

    Where that is no pipe of a parent's, this is not for it: a terminal's input may end at any time.
    """

    def wait() -> None:
        while os.read(sys.stdin.fileno(), 1):
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    Thread(target=wait, daemon=True).start()


def refuse_missing_device(name: str) -> None:
    """Refuse `--device cuda` where there is no GPU. It is looked for in a process of its own.

    Raises:
        click.UsageError: If there is none.
    """
    if torch.device(name).type == "cuda" and not forked(torch.cuda.is_available):
        raise click.UsageError(f"--device {name}: torch finds no GPU here; use --device cpu")
