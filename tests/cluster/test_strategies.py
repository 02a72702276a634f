"""Strategies on real clusters: those that must come to the same weights do, bit for bit."""

import pytest
from scenarios import fit

from ray_snake import SnakeConfig
from ray_snake.runtime.journal import Journal
from ray_snake.storage import Storage

HIDDEN = [24, 16]


def config(strategy, *, nodes, **sections):
    return SnakeConfig.from_tree(
        {
            "seed": 5,
            "strategy": strategy,
            "model": {"name": "mlp", "options": {"inputs": 64, "classes": 10, "hidden": HIDDEN}},
            "data": {
                "source": "builtin://digits/train",
                "partition": {"scheme": "dirichlet", "nodes": nodes, "alpha": 0.5},
            },
            "nodes": {"nodes_per_actor": nodes},
            "training": {"batch_size": 16, "steps": 4},
            "loss": {"distillation": 0.0},
            **sections,
            "snake": {"trips": 2, **sections.get("snake", {})},
        }
    )


def weights(settings, folder):
    return fit(settings, folder).summary["weights_sha256"]


def test_fedavg_with_one_node_is_centralised_training(raylets, tmp_path):
    averaged = weights(config("fedavg", nodes=1), tmp_path / "fedavg")
    assert averaged == weights(config("centralised", nodes=1), tmp_path / "centralised")


def test_a_span_of_the_whole_model_is_cyclic_training(raylets, tmp_path):
    wide = config("snake", nodes=3, snake={"span_width": len(HIDDEN) + 1})
    assert weights(wide, tmp_path / "snake") == weights(
        config("cyclic", nodes=3), tmp_path / "cyclic"
    )


@pytest.mark.parametrize("spread", [1, 3], ids=["a process each", "one process"])
def test_averages_do_not_depend_on_where_nodes_are(raylets, tmp_path, spread):
    # Against a run whose blocks never left one process.
    settings = config("fedavg", nodes=3, nodes={"nodes_per_actor": spread})
    result = fit(settings, tmp_path / "run")
    visits = Journal(Storage(result.run)).visits
    assert [one.ends_round for one in visits] == [False, False, True] * 2
    assert result.summary["bytes_moved"] == 2 * sum(one.bytes_returned for one in visits)
    together = config("fedavg", nodes=3)
    assert result.summary["weights_sha256"] == weights(together, tmp_path / "together")
