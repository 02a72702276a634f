"""A benchmark's command line."""

from __future__ import annotations

import click

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
