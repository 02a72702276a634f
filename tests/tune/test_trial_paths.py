"""Relative paths of a sweep begin where it was started, though its trials work in other folders."""

import pytest
from ray import tune

from ray_snake import SnakeConfig
from ray_snake.config import DataConfig
from ray_snake.data import write_shard
from ray_snake.data.shards import read_table
from ray_snake.runtime.journal import read_records
from ray_snake.storage import Storage
from ray_snake.trainer import with_absolute_paths
from ray_snake.tune import make_trainable, tune_resources

SETTINGS = {
    "model": {"options": {"width": 8}},
    "data": {"shards": ["rows/a.arrow", "rows/b.arrow"]},
    "evaluation": {"data": "rows/held_out.arrow"},
    "nodes": {"nodes_per_actor": 2},
    "snake": {"trips": 1},
    "training": {"steps": 2},
}


@pytest.fixture
def beside(tmp_path, monkeypatch):
    """The current folder, with rows in folders of it."""
    digits = read_table("builtin://digits/train")
    for folder in ("rows", "others"):
        (tmp_path / folder).mkdir()
        for number, name in enumerate(("a", "b", "held_out")):
            rows = digits.slice(40 * number, 40)
            write_shard(tmp_path / folder / f"{name}.arrow", rows)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_all_local_paths_of_settings_become_absolute(tmp_path):
    (tmp_path / "model").mkdir()
    config = SnakeConfig.from_tree(
        {
            "model": {"name": "huggingface", "options": {"model": "model"}},
            "data": {"shards": ["a.arrow", "/b.arrow", "s3://bucket/c.arrow"]},
            "evaluation": {"data": "held_out.arrow"},
            "storage": {"uri": "sweeps"},
        }
    )
    found = with_absolute_paths(config, tmp_path)
    assert found.model.options["model"] == f"{tmp_path}/model"
    assert found.data.shards == (f"{tmp_path}/a.arrow", "/b.arrow", "s3://bucket/c.arrow")
    assert found.evaluation.data == f"{tmp_path}/held_out.arrow"
    assert found.storage.uri == f"{tmp_path}/sweeps"
    assert with_absolute_paths(found, tmp_path / "model") == found


def test_names_that_are_no_local_paths_stay_as_they_are(tmp_path):
    config = SnakeConfig.from_tree(
        {
            "model": {"name": "huggingface", "options": {"model": "owner/model"}},
            "data": {"source": "builtin://digits/train", "partition": {"nodes": 2}},
            "evaluation": {"data": "builtin://digits/test"},
            "storage": {"uri": "s3://bucket/runs"},
        }
    )
    assert with_absolute_paths(config, tmp_path) == config


@pytest.mark.parametrize(
    "pattern", ["rows/{a,b}.arrow", "rows/[ab].arrow", "{rows/a,rows/b}.arrow"]
)
def test_patterns_become_the_files_that_they_stand_for(beside, monkeypatch, pattern):
    monkeypatch.chdir("/")
    config = SnakeConfig(data=DataConfig(shards=pattern))
    found = with_absolute_paths(config, beside).data.shards
    assert found == (f"{beside}/rows/a.arrow", f"{beside}/rows/b.arrow")


def test_trials_find_the_rows_that_their_settings_and_values_name(raylets, beside):
    config = SnakeConfig.from_tree(SETTINGS)
    results = tune.Tuner(
        tune.with_resources(make_trainable(config), tune_resources(config)),
        param_space={"data.shards": tune.grid_search([["rows/a.arrow"], "others/[ab].arrow"])},
        run_config=tune.RunConfig(storage_path=str(beside / "results"), verbose=0),
    ).fit()
    assert not results.errors
    runs = [Storage(str(run)) for run in (beside / "runs").iterdir()]
    visits = [[one for one in read_records(run) if one.kind == "visit"] for run in runs]
    assert sorted(len(one) for one in visits) == [1, 2]
