"""One real Ray cluster for all tests that need one: three raylets, each with its own store."""

import json
import os
import subprocess
import sysconfig
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import HealthCheck, settings

# How long an example takes says more about the machine than about the code.
settings.register_profile(
    "ray_snake", deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("ray_snake")

# A killed raylet is noticed after about a second in place of fourteen.
QUICK_HEALTH_CHECKS = {
    "health_check_initial_delay_ms": 0,
    "health_check_period_ms": 500,
    "health_check_timeout_ms": 1000,
    "health_check_failure_threshold": 3,
    "metrics_report_interval_ms": 500,
}


@pytest.fixture(scope="session")
def ray_home(tmp_path_factory):
    """A home folder for tests that start Ray, which writes a token there."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="session")
def raylets(ray_home):
    """`machines.Machines` that this process has joined: the head, and the sites a and b."""
    import ray
    from machines import Machines

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(ray_home))
        patch.setenv("RAY_AUTH_TOKEN_PATH", str(ray_home / "token"))
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        cluster = Machines(num_cpus=2, _system_config=QUICK_HEALTH_CHECKS)
        try:
            for site in ("a", "b"):
                cluster.add_site(site)
            ray.init(address=cluster.address, log_to_driver=False)
            yield cluster
        finally:
            ray.shutdown()
            cluster.shutdown()


@pytest.fixture(scope="session")
def quickstart():
    """One trip of the quickstart.

    `command` runs it, `answer` is what it says without a cluster, `run` runs it and returns that.
    """
    with tempfile.TemporaryDirectory() as folder:
        command = [
            *(Path(sysconfig.get_path("scripts")) / "ray-snake", "train"),
            *(Path(__file__).parents[1] / "jobs" / "configs" / "quickstart.toml", "--json"),
            *("--set", "snake.trips=1", "--set", "nodes.nodes_per_actor=4"),
        ]

        def run(name, environment, *arguments):
            done = subprocess.run(
                [*command, "--storage", folder, "--name", name, *arguments],
                env=environment,
                capture_output=True,
                text=True,
                timeout=180,
            )
            assert done.returncode == 0, done.stderr
            return json.loads(done.stdout.splitlines()[-1])

        outside = {name: text for name, text in os.environ.items() if not name.startswith("RAY_")}
        alone = run("embedded", {**outside, "HOME": folder})
        yield SimpleNamespace(command=command, run=run, answer=alone)
