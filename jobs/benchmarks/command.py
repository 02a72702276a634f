"""A benchmark's command line."""

from __future__ import annotations

import click
import torch
from forked import forked

from ray_snake.errors import SnakeError


class Benchmark(click.Command):
    """Shows the project's errors as one line, and exits with their status."""

    def invoke(self, ctx: click.Context) -> object:
        """Run the command; see `click.Command`."""
        try:
            return super().invoke(ctx)
        except SnakeError as error:
            shown = click.ClickException(str(error))
            shown.exit_code = error.exit_status
            raise shown from None


def refuse_missing_device(name: str) -> None:
    """Refuse `--device cuda` where there is no GPU. It is looked for in a process of its own.

    Raises:
        click.UsageError: If there is none.
    """
    if torch.device(name).type == "cuda" and not forked(torch.cuda.is_available):
        raise click.UsageError(f"--device {name}: torch finds no GPU here; use --device cpu")
