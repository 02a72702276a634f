"""`ray-snake`: finds the subcommand, and turns errors into one line and an exit status."""

from __future__ import annotations

import importlib
import signal
import sys
from types import FrameType

import click

from ray_snake import __version__
from ray_snake.errors import ConfigError, SnakeError

INTERRUPTED = 130

# A group without a subcommand; before click 8.2 that is no error.
_HELP = getattr(click.exceptions, "NoArgsIsHelpError", ())
_COMMANDS = (
    "data",
    "doctor",
    "evaluate",
    "export",
    "nodes",
    "plan",
    "report",
    "simulate",
    "status",
    "submit",
    "train",
    "tune",
)
_RESUMABLE = {"train", "tune"}


class _Commands(click.Group):
    """Imports a subcommand's module when it is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        module = importlib.import_module(f"ray_snake.cli.{cmd_name}")
        command: click.Command = getattr(module, cmd_name)
        return command


@click.command(cls=_Commands)
@click.version_option(__version__, prog_name="ray-snake")
def commands() -> None:
    """Train one network across nodes that keep their data, a few layers at a time."""


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit: 0 done, 1 failed, 2 bad input, 130 interrupted."""
    signal.signal(signal.SIGTERM, _interrupt)
    given = sys.argv[1:] if arguments is None else arguments
    try:
        _refuse_empty(given)
        # What a command left with, if it was by `click.exceptions.Exit`.
        sys.exit(commands.main(args=given, prog_name="ray-snake", standalone_mode=False))
    except SnakeError as error:
        click.echo(f"ray-snake: {error}", err=True)
        sys.exit(error.exit_status)
    except click.ClickException as error:
        if isinstance(error, _HELP):
            error.show()
        else:
            click.echo(f"ray-snake: {_one_line(error)}", err=True)
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, click.Abort):
        then = "; the same command with --resume goes on" if _RESUMABLE & {*given[:1]} else ""
        click.echo(f"ray-snake: interrupted{then}", err=True)
        sys.exit(INTERRUPTED)


def _refuse_empty(arguments: list[str]) -> None:
    """Refuse what a shell makes of a variable that is not set: no path, name or address is empty.

    Raises:
        ConfigError: If there is such an argument.
    """
    subject = "the first argument"
    for one in arguments:
        option, equals, value = one.partition("=")
        if one.startswith("--") and equals and not value:
            subject = option
        if not one or subject == option:
            raise ConfigError(subject, "is empty", "give a value, or leave it out")
        subject = f"the argument after {one!r}"


def _one_line(error: click.ClickException) -> str:
    context = error.ctx if isinstance(error, click.UsageError) else None
    path = "ray-snake" if context is None else context.command_path
    message = " ".join(error.format_message().split()).rstrip(".")
    return f"{message}; see '{path} --help'"


def _interrupt(signum: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
