"""Files for Ray's cluster launcher: Ray takes them, and they say what the README says of them."""

from pathlib import Path

import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

CLUSTER = Path(__file__).parents[2] / "cluster"
CLOUDS = ("aws", "gcp", "azure")


def read(name):
    return yaml.safe_load((CLUSTER / f"{name}.yaml").read_text())


@pytest.mark.parametrize("name", [*CLOUDS, "onpremise"])
def test_rays_launcher_takes_the_file(name):
    validate_config(prepare_config(read(name)))


def test_a_typing_error_would_be_found():
    config = read("aws")
    config["available_node_types"]["spot"]["max_worker"] = 3
    with pytest.raises(Exception, match="max_worker"):
        validate_config(prepare_config(config))


@pytest.mark.parametrize("name", CLOUDS)
def test_a_cloud_has_a_head_that_computes_nothing_and_workers_with_sites(name):
    types = read(name)["available_node_types"]
    assert types["head"]["resources"]["CPU"] == 0
    workers = {key: one for key, one in types.items() if key != "head"}
    assert all(one["min_workers"] == 0 for one in workers.values())
    assert {one["labels"]["site"] for one in workers.values()} == {"a", "b", "anywhere"}
    assert any(one["resources"].get("GPU") for one in workers.values())
    assert "spot" in str(workers["spot"]["node_config"]).lower()


@pytest.mark.parametrize("name", [*CLOUDS, "onpremise"])
def test_every_ray_that_is_started_asks_for_a_token(name):
    config = read(name)
    starts = config["head_start_ray_commands"] + config["worker_start_ray_commands"]
    for command in starts:
        if "ray start" in command:
            assert command.startswith("RAY_AUTH_MODE=token")
    assert "~/.ray/auth_token" in config["file_mounts"]
    assert all("dashboard-host=0.0.0.0" not in command for command in starts)
