"""A trial's nodes are within what the trial reserved."""

import ray
from ray import tune

from ray_snake import SnakeConfig
from ray_snake.runtime.journal import read_records
from ray_snake.storage import Storage
from ray_snake.tune import make_trainable, tune_resources

SETTINGS = {
    "model": {"options": {"width": 8}},
    "data": {"source": "builtin://digits/train", "partition": {"nodes": 2}},
    "evaluation": {"data": "builtin://digits/test"},
    "snake": {"trips": 1},
    "training": {"steps": 4},
    # All CPUs of two machines: outside of the trial's group there is no room for them.
    "nodes": {
        "cpus": 2.0,
        "each": [
            {"match": "digits/train[0]", "labels": {"site": "b"}},
            {"match": "digits/train[1]", "labels": {"site": "a"}},
        ],
    },
    "tune": {"space": {"training.learning_rate": {"grid": [0.05]}}},
}


def test_nodes_use_what_their_trial_reserved(raylets, tmp_path):
    config = SnakeConfig.from_tree({**SETTINGS, "storage": {"uri": str(tmp_path / "runs")}})
    resources = tune_resources(config)
    assert [one.get("CPU") for one in resources.bundles] == [1.0, 2.0, 2.0]
    results = tune.Tuner(
        tune.with_resources(make_trainable(config), resources),
        param_space={"training.learning_rate": 0.05},
        run_config=tune.RunConfig(storage_path=str(tmp_path / "results"), verbose=0),
    ).fit()
    assert not results.errors
    sites = {
        one["NodeID"][:8]: (one["Labels"] or {}).get("site") for one in ray.nodes() if one["Alive"]
    }
    (run,) = (tmp_path / "runs").iterdir()
    visits = [one for one in read_records(Storage(str(run))) if one.kind == "visit"]
    assert [(one.node, sites[one.machine[:8]]) for one in visits] == [(0, "b"), (1, "a")]
