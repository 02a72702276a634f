"""The same settings, unchanged, on an embedded cluster, a head with a token, and three raylets."""

import os


def test_a_head_gives_the_weights_of_an_embedded_cluster(head, quickstart):
    answer = quickstart.run("head", head.environment, "--address", head.ray_address)
    assert answer["weights_sha256"] == quickstart.answer["weights_sha256"]
    assert answer["metrics"] == quickstart.answer["metrics"]


def test_three_raylets_give_the_weights_of_an_embedded_cluster(raylets, ray_home, quickstart):
    environment = {
        **os.environ,
        "HOME": str(ray_home),
        "RAY_AUTH_TOKEN_PATH": str(ray_home / "token"),
    }
    answer = quickstart.run("raylets", environment, "--address", raylets.address)
    assert answer["weights_sha256"] == quickstart.answer["weights_sha256"]
    assert answer["visits"] == 8
