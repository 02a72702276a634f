"""What Ray runs for each worker of an embedded cluster: it has the warm process fork that worker.

A script, run once for each worker, so it imports next to nothing. Where the warm process can't
help, it becomes what Ray would have run in its place.
"""

import sys

if __name__ == "__main__":
    # This folder, whose modules are not to be found in place of others.
    del sys.path[0]

import json
import os
import socket

ADDRESS = "RAY_SNAKE_WARM_PROCESS"
"""The variable with the name of the warm process' abstract socket."""
ORDINARY = "RAY_SNAKE_SETUP_WORKER"
"""The variable with the script that Ray would have run."""
CONTEXT, LANGUAGE = "--serialized-runtime-env-context", "--language"
FOR_OTHERS = frozenset({"PL_DISABLE_FORK"})
"""Variables that nothing here reads: Tune has all workers of its trials set one for Lightning."""


def plain_worker(arguments: list[str]) -> tuple[list[str], dict[str, str]] | None:
    """Return a worker of Python without an environment of its own: its script with arguments.

    And its variables, which are `FOR_OTHERS` alone. Nothing for any other worker, which can't begin
    as a copy of the warm process: what it has imported may read other variables.

    Args:
        arguments: What Ray gives to the script that sets up a worker.
    """
    own = [one for one in arguments if one.partition("=")[0] in (CONTEXT, LANGUAGE)]
    worker = [one for one in arguments if one not in own]
    asked = {name: text for name, _, text in (one.partition("=") for one in own)}
    context = json.loads(asked.get(CONTEXT) or "{}")
    elsewhere = context.pop("py_executable", None) not in (None, sys.executable)
    variables = context.pop("env_vars", None) or {}
    if asked.get(LANGUAGE) != "PYTHON" or elsewhere or any(context.values()):
        return None
    # Before the script there may be options for the interpreter.
    if not variables.keys() <= FOR_OTHERS or not worker or not worker[0].endswith(".py"):
        return None
    return worker, variables


def hand_over(worker: list[str], variables: dict[str, str]) -> bool:
    """Have a worker forked with this process' environment, folder and standard files.

    Args:
        worker: Its script and arguments.
        variables: What its environment has beside.

    Returns:
        Whether it was.
    """
    folder = os.getcwd()  # noqa: PTH109 - pathlib takes longer to import than all else here
    environment = {**os.environ, **variables}
    request = {"arguments": worker, "folder": folder, "environment": environment}
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect("\0" + os.environ[ADDRESS])
            socket.send_fds(connection, [b"0"], [0, 1, 2])
            connection.sendall(json.dumps(request).encode())
            connection.shutdown(socket.SHUT_WR)
            # Waits until the warm process has imported all that it is to.
            return connection.recv(1) == b"1"
    except OSError:
        return False


if __name__ == "__main__":
    found = plain_worker(sys.argv[1:])
    if found is None or not hand_over(*found):
        os.execv(sys.executable, [sys.executable, os.environ[ORDINARY], *sys.argv[1:]])
