"""`python -m cluster.testbed`: run one command against a Ray cluster on a network of its own."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable
from types import FrameType

import click
from pydantic import ValidationError

from cluster.testbed.folder import remove_stale
from cluster.testbed.host import check_host
from cluster.testbed.profile import MachineSpec, config_error, load_profile
from cluster.testbed.testbed import Testbed
from ray_snake.errors import ConfigError, SnakeError

GRACE_SECONDS = 60.0
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class _Signals:
    """Passes signals on to the command while there is one; before and after, they end the bed."""

    def __init__(self) -> None:
        self._running = False
        self._command: subprocess.Popen[str] | None = None
        self._caught = 0
        for signum in _SIGNALS:
            signal.signal(signum, self._on_signal)

    def _on_signal(self, signum: int, _frame: FrameType | None) -> None:
        self._caught = signum
        if not self._running:
            sys.exit(128 + signum)
        if self._command is not None:
            self._command.send_signal(signum)

    def run(self, start: Callable[[], subprocess.Popen[str]]) -> int:
        """Return the command's exit status; one that outlives a signal too long is ended."""
        self._running = True
        try:
            command = self._command = start()
            # One that came before the line above was done has reached nobody yet.
            if self._caught:
                command.send_signal(self._caught)
            left = GRACE_SECONDS
            while True:
                try:
                    return command.wait(1.0)
                except subprocess.TimeoutExpired:
                    left -= 1.0 if self._caught else 0.0
                    if left <= 0:
                        return 128 + self._caught
        finally:
            self._running = False


@click.group()
def commands() -> None:
    """A real network on one machine, with one Ray raylet per virtual machine."""


@commands.command(context_settings={"ignore_unknown_options": True})
@click.option("--link", "links", multiple=True, metavar="RATE", help="One machine; or 'none'.")
@click.option("--profile", type=click.Path(), help="TOML file with [[machine]] tables instead.")
@click.option("--cpus", type=click.IntRange(0), default=2, show_default=True, help="Per machine.")
@click.option("--dashboard", is_flag=True, help="Start the dashboard and jobs API on the head.")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def run(
    links: tuple[str, ...],
    profile: str | None,
    cpus: int,
    dashboard: bool,
    command: tuple[str, ...],
) -> None:
    """Build a network and a cluster, run COMMAND on the head, take everything down.

    The exit status is COMMAND's. RAY_ADDRESS is set for it.
    """
    signals = _Signals()
    with Testbed(machines=_specs(links, profile, cpus), dashboard=dashboard) as bed:
        before = bed.interface_bytes()
        status = signals.run(lambda: bed.start(command))
        after = bed.interface_bytes()
        for machine in bed.machines:
            received, sent = (
                b - a for a, b in zip(before[machine.name], after[machine.name], strict=True)
            )
            click.echo(
                f"{machine.name} ({machine.rate or 'unlimited'}): "
                f"received {received:,} bytes, sent {sent:,} bytes",
                err=True,
            )
    sys.exit(status)


@commands.command()
def clean() -> None:
    """Remove what test beds that were killed left behind: their folders, nothing else lasts."""
    for path in remove_stale():
        click.echo(f"removed {path}")


@commands.command()
def check() -> None:
    """Say whether this machine can hold a test bed."""
    check_host()
    click.echo("this machine can hold a test bed")


def _specs(links: tuple[str, ...], profile: str | None, cpus: int) -> list[MachineSpec]:
    if bool(links) == (profile is not None):
        raise ConfigError("--link", "and --profile: give one of them", "such as --link 20mbit")
    if profile is not None:
        return load_profile(profile)
    try:
        return [MachineSpec(link=link, cpus=cpus) for link in links]
    except ValidationError as error:
        raise config_error(error, "--link") from None


def main() -> None:
    """Run the command line; exit status 2 means bad input, or a machine that can't do it."""
    try:
        commands.main(prog_name="python -m cluster.testbed", standalone_mode=False)
    except SnakeError as error:
        click.echo(f"testbed: {error}", err=True)
        sys.exit(error.exit_status)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except click.Abort:
        sys.exit(130)


if __name__ == "__main__":
    main()
