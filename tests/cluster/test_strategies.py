"""Strategies on real clusters: those that must come to the same weights do, bit for bit."""

import pytest
import torch
from scenarios import fit, kill, on_visit, pid_of

from ray_snake import SnakeConfig
from ray_snake.runtime.journal import Journal
from ray_snake.storage import Storage

HIDDEN = [24, 16]
MLP = {"name": "mlp", "options": {"inputs": 64, "classes": 10, "hidden": HIDDEN}}
# Its batch norms' statistics travel, are averaged, and stay as they are in the second trip.
CNN = {"name": "cnn", "options": {"width": 4, "norm": "batch"}}


def config(strategy, *, count, **sections):
    return SnakeConfig.from_tree(
        {
            "seed": 5,
            "strategy": strategy,
            "model": MLP,
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


@pytest.mark.parametrize("model", [MLP, CNN])
def test_fedavg_with_one_node_is_centralised_training(raylets, tmp_path, model):
    averaged = weights(config("fedavg", count=1, model=model), tmp_path / "fedavg")
    central = weights(config("centralised", count=1, model=model), tmp_path / "centralised")
    assert averaged == central


@pytest.mark.parametrize(("model", "blocks"), [(MLP, len(HIDDEN) + 1), (CNN, 5)])
def test_a_span_of_the_whole_model_is_cyclic_training(raylets, tmp_path, model, blocks):
    wide = config("snake", count=3, model=model, snake={"span_width": blocks})
    cyclic = config("cyclic", count=3, model=model)
    assert weights(wide, tmp_path / "snake") == weights(cyclic, tmp_path / "cyclic")


def test_averages_do_not_depend_on_where_nodes_are(raylets, tmp_path):
    apart = fit(config("fedavg", count=3, nodes={"nodes_per_actor": 1}), tmp_path / "apart")
    visits = Journal(Storage(apart.run)).visits
    assert [one.ends_round for one in visits] == [False, False, True] * 2
    assert apart.summary["bytes_moved"] == 2 * sum(one.bytes_returned for one in visits)
    assert apart.summary["weights_sha256"] == weights(config("fedavg", count=3), tmp_path / "one")


def test_a_run_ends_in_the_mean_of_the_models_after_its_last_visits(raylets, tmp_path):
    def model(name, **snake):
        training = {"batch_size": 16, "steps": 4, "schedule": "constant"}
        settings = config("snake", count=1, training=training, snake=snake)
        return fit(settings, tmp_path / name).model().state_dict()

    first, second = model("first", trips=1), model("second", trips=2)
    mean = model("mean", trips=2, mean_visits=2)
    assert any(not torch.equal(first[name], second[name]) for name in first)
    for name, values in mean.items():
        torch.testing.assert_close(values, (first[name] + second[name]) / 2)


def test_a_lost_engine_changes_neither_whole_trips_nor_the_mean(raylets, tmp_path):
    snake = {
        "span_width": 1,
        "trips": 4,
        "whole_every": 2,
        "warmup_distillation": 0.4,
        "mean_visits": 5,
    }
    settings = config("snake", count=3, loss={"distillation": 0.1}, snake=snake)
    act = on_visit(11, lambda: kill(pid_of("SnakeEngine")))
    disturbed = fit(settings, tmp_path / "disturbed", on_event=act)
    trained = [len(one.trained) for one in Journal(Storage(disturbed.run)).visits]
    assert [trained[trip * 3] == len(HIDDEN) + 1 for trip in range(4)] == [False, True, False, True]
    assert disturbed.summary["weights_sha256"] == weights(settings, tmp_path / "clean")
