"""Strategies on real clusters: those that must come to the same weights do, bit for bit."""

from scenarios import fit

from ray_snake import SnakeConfig
from ray_snake.runtime.journal import Journal
from ray_snake.storage import Storage

HIDDEN = [24, 16]


def config(strategy, *, count, **sections):
    return SnakeConfig.from_tree(
        {
            "seed": 5,
            "strategy": strategy,
            "model": {"name": "mlp", "options": {"inputs": 64, "classes": 10, "hidden": HIDDEN}},
            "data": {
                "source": "builtin://digits/train",
                "partition": {"scheme": "dirichlet", "nodes": count, "alpha": 0.5},
            },
            "nodes": {"nodes_per_actor": count},
            "training": {"batch_size": 16, "steps": 4},
            "loss": {"distillation": 0.0},
            **sections,
            "snake": {"trips": 2, **sections.get("snake", {})},
        }
    )


def weights(settings, folder):
    return fit(settings, folder).summary["weights_sha256"]


def test_fedavg_with_one_node_is_centralised_training(raylets, tmp_path):
    averaged = weights(config("fedavg", count=1), tmp_path / "fedavg")
    assert averaged == weights(config("centralised", count=1), tmp_path / "centralised")


def test_a_span_of_the_whole_model_is_cyclic_training(raylets, tmp_path):
    wide = config("snake", count=3, snake={"span_width": len(HIDDEN) + 1})
    assert weights(wide, tmp_path / "snake") == weights(
        config("cyclic", count=3), tmp_path / "cyclic"
    )


def test_averages_do_not_depend_on_where_nodes_are(raylets, tmp_path):
    apart = fit(config("fedavg", count=3, nodes={"nodes_per_actor": 1}), tmp_path / "apart")
    visits = Journal(Storage(apart.run)).visits
    assert [one.ends_round for one in visits] == [False, False, True] * 2
    assert apart.summary["bytes_moved"] == 2 * sum(one.bytes_returned for one in visits)
    assert apart.summary["weights_sha256"] == weights(config("fedavg", count=3), tmp_path / "one")
