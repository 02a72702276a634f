"""One raylet per virtual machine: the commands and the environment that start them."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from cluster.testbed.namespaces import Namespaces, address_of
from cluster.testbed.profile import MachineSpec
from ray_snake.errors import RunError

# Below 10002, where the ports of Ray's workers begin.
HEAD_PORT = 6379
DASHBOARD_PORT = 8265
_PORTS = {
    "node-manager": 6380,
    "object-manager": 6381,
    "dashboard-agent-grpc": 6382,
    "dashboard-agent-listen": 6383,
    "runtime-env-agent": 6384,
    "metrics-export": 6385,
}
START_SECONDS = 120.0
# Ray gives a raylet's agents 15 s, which a machine busy with something else may exceed.
ATTEMPTS = 3
# A dead machine is noticed after about 2 s instead of 14; the timeout leaves a full queue on a
# slow link the time to pass a health check on.
_SYSTEM_CONFIG = {
    "health_check_initial_delay_ms": 0,
    "health_check_period_ms": 500,
    "health_check_timeout_ms": 1000,
    "health_check_failure_threshold": 3,
    # Ray pulls again what has not arrived within 10 s: over a slow link everything would go twice.
    "object_manager_pull_timeout_ms": 120_000,
    "metrics_report_interval_ms": 1000,
}


def write_token(folder: Path) -> Path:
    """Write a new token, readable by this user only, into a folder; return its path."""
    path = folder / "token"
    path.touch(mode=0o600)
    path.write_text(secrets.token_hex(32), encoding="ascii")
    return path


def ray_environment(token: Path, folder: Path) -> dict[str, str]:
    """Return this process's environment with only the test bed's settings of Ray.

    Args:
        token: File with the cluster's token.
        folder: What Ray has for its temporary folder, with its note of the cluster last started.
    """
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    return environment | {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_TMPDIR": str(folder),
        "RAY_USAGE_STATS_ENABLED": "0",
        # So that the command finds the programs of the environment that the test bed runs in.
        "PATH": os.pathsep.join(
            [str(Path(sys.executable).parent), environment.get("PATH", os.defpath)]
        ),
    }


def start_raylets(
    machines: Sequence[Namespaces],
    specs: Sequence[MachineSpec],
    *,
    token: Path,
    folder: Path,
    dashboard: bool,
) -> None:
    """Start the head on the first machine, then the others' raylets; returns when all are up.

    Raises:
        RunError: If one of them doesn't start, with the last thing it said.
    """
    for index, (machine, spec) in enumerate(zip(machines, specs, strict=True)):
        for attempt in range(1, ATTEMPTS + 1):
            own = machine_folder(folder, index)
            shutil.rmtree(own, ignore_errors=True)
            own.mkdir()
            command = _command(index, spec, own, dashboard=dashboard)
            problem = _start(machine, command, ray_environment(token, own), own)
            if problem is None:
                break
            if attempt == ATTEMPTS:
                raise RunError(
                    f"the raylet of {machine.name} didn't start in {ATTEMPTS} attempts ({problem})",
                    "see whether the machine is overloaded",
                )
            machine.kill_processes()


def machine_folder(folder: Path, index: int) -> Path:
    """Return the folder of one machine in the test bed's."""
    return folder / str(index)


def _start(
    machine: Namespaces, command: list[str], environment: dict[str, str], own: Path
) -> str | None:
    """Run `ray start`, which returns once the raylet has joined; return what went wrong if so."""
    log = own / "start.log"
    with log.open("w", encoding="utf-8") as output:
        process = machine.start(command, environment=environment, folder=own, output=output)
        try:
            status = process.wait(START_SECONDS)
        except subprocess.TimeoutExpired:
            return f"not up within {START_SECONDS:g} s"
        finally:
            process.kill()
            process.wait()
    return " ".join(log.read_text(encoding="utf-8").split())[-300:] if status else None


def _command(index: int, spec: MachineSpec, own: Path, *, dashboard: bool) -> list[str]:
    address = address_of(index)
    role = [f"--address={address_of(0)}:{HEAD_PORT}"]
    if index == 0:
        role = [
            "--head",
            f"--port={HEAD_PORT}",
            f"--include-dashboard={str(dashboard).lower()}",
            f"--dashboard-host={address}",
            f"--dashboard-port={DASHBOARD_PORT}",
            f"--system-config={json.dumps(_SYSTEM_CONFIG)}",
            # Nothing here scales by itself, and a Python process less is seconds less.
            "--no-monitor",
        ]
    return [
        *(sys.executable, "-m", "ray.scripts.scripts", "start"),
        *role,
        f"--node-ip-address={address}",
        f"--node-name=machine-{index}",
        *(f"--{what}-port={port}" for what, port in _PORTS.items()),
        f"--num-cpus={spec.cpus}",
        "--num-gpus=0",
        # Lines that workers print would travel to the driver, and count as the links' bytes.
        "--include-log-monitor=false",
        f"--object-store-memory={spec.object_store_bytes}",
        f"--labels={','.join(f'{key}={value}' for key, value in spec.labels.items())}",
        f"--temp-dir={own / 'ray'}",
        "--disable-usage-stats",
    ]
