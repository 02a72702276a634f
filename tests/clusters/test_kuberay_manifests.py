"""Manifests for KubeRay: each field is one that its resource has, and they fit each other."""

from importlib.metadata import version
from pathlib import Path

import jsonschema
import pytest
import yaml
from rayio import SCHEMAS

FOLDER = Path(__file__).parents[2] / "cluster" / "kuberay"
FILES = sorted(FOLDER.glob("*.yaml"))


def resources(path):
    return [one for one in yaml.safe_load_all(path.read_text()) if one]


def pods(resource):
    spec = resource["spec"].get("rayClusterSpec", resource["spec"])
    groups = [spec["headGroupSpec"], *spec["workerGroupSpecs"]]
    return [group["template"]["spec"] for group in groups]


RAY = [one for path in FILES for one in resources(path) if one["apiVersion"] == "ray.io/v1"]


def test_the_tests_look_at_something():
    assert {one["kind"] for one in RAY} == {"RayCluster", "RayJob"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_a_manifest_has_only_fields_that_its_resource_has(path):
    for resource in resources(path):
        jsonschema.validate(resource, SCHEMAS[resource["kind"]])


@pytest.mark.parametrize("resource", RAY, ids=lambda one: one["kind"])
def test_a_field_with_a_typing_error_would_be_found(resource):
    pods(resource)[0]["containers"][0]["volumeMount"] = []
    try:
        with pytest.raises(jsonschema.ValidationError, match="volumeMount"):
            jsonschema.validate(resource, SCHEMAS[resource["kind"]])
    finally:
        del pods(resource)[0]["containers"][0]["volumeMount"]


@pytest.mark.parametrize("resource", RAY, ids=lambda one: one["kind"])
def test_what_is_mounted_is_there_and_no_pod_is_root(resource):
    for pod in pods(resource):
        volumes = {one["name"] for one in pod["volumes"]}
        assert {one["name"] for one in pod["containers"][0]["volumeMounts"]} <= volumes
        assert pod["securityContext"]["runAsNonRoot"]


@pytest.mark.parametrize("resource", RAY, ids=lambda one: one["kind"])
def test_a_cluster_asks_for_a_token_and_has_the_projects_ray(resource):
    spec = resource["spec"].get("rayClusterSpec", resource["spec"])
    assert spec["authOptions"] == {"mode": "token"}
    assert spec["rayVersion"] == version("ray")


def test_the_volume_and_account_that_are_mounted_are_those_that_are_made():
    made = {one["metadata"]["name"] for one in resources(FOLDER / "storage.yaml")}
    for resource in RAY:
        for pod in pods(resource):
            claims = [
                one["persistentVolumeClaim"]["claimName"]
                for one in pod["volumes"]
                if "persistentVolumeClaim" in one
            ]
            assert set(claims) <= made
            assert pod.get("serviceAccountName", "ray-snake") in made
