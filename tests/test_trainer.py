from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from ray_snake import SnakeConfig, SnakeTrainer
from ray_snake.errors import ConfigError, DataError, ModelError
from ray_snake.telemetry.history import HISTORY_SCHEMA

CLASSES = 3
FEATURES = 6


def make_rows(count, seed):
    """Rows of three classes that a linear layer can tell apart."""
    draw = np.random.Generator(np.random.PCG64(seed))
    labels = draw.integers(0, CLASSES, count)
    inputs = draw.normal(size=(count, FEATURES)).astype(np.float32)
    inputs[np.arange(count), labels] += 4
    return inputs, labels


def settings(**sections):
    return SnakeConfig.from_tree(
        {
            "seed": 2,
            "nodes": {"nodes_per_actor": 3},
            "snake": {"span_width": 1, "trips": 3},
            "training": {"batch_size": 8, "epochs": 2},
            **sections,
        }
    )


@pytest.fixture(scope="module")
def finished(raylets, tmp_path_factory):
    """A run with a user's own network, loss and data in memory, and what it was told."""

    def build():
        return nn.Sequential(
            nn.Linear(FEATURES, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, CLASSES)
        )

    def smoothed(outputs, targets):
        return nn.functional.cross_entropy(outputs, targets, label_smoothing=0.1)

    events = []
    result = SnakeTrainer(
        model=build,
        nodes=[make_rows(24 + 8 * node, node) for node in range(3)],
        config=settings(),
        loss=smoothed,
        evaluation=make_rows(60, 9),
        storage=tmp_path_factory.mktemp("runs"),
        progress=False,
        on_event=events.append,
    ).fit()
    return result, events


def test_metrics_are_those_of_the_model(finished):
    result, _ = finished
    inputs, labels = make_rows(60, 9)
    model = result.model()
    assert isinstance(model, nn.Sequential)
    assert not model.training
    with torch.no_grad():
        outputs = model(torch.from_numpy(inputs))
    targets = torch.from_numpy(labels)
    loss = nn.functional.cross_entropy(outputs, targets, label_smoothing=0.1)
    assert result.metrics["accuracy"] == pytest.approx(
        (outputs.argmax(1) == targets).float().mean()
    )
    assert result.metrics["loss"] == pytest.approx(float(loss), rel=1e-5)
    assert result.metrics["accuracy"] > 0.8


def test_history_has_a_row_for_every_visit(finished):
    result, _ = finished
    assert isinstance(result.history, pa.Table)
    assert result.history.schema == HISTORY_SCHEMA
    rows = result.history.to_pylist()
    assert [row["visit"] for row in rows] == list(range(1, 10))
    assert [row["node_name"] for row in rows[:3]] == ["memory[0]", "memory[1]", "memory[2]"]
    assert [row["samples"] for row in rows[:3]] == [48, 64, 80]
    assert [row["visit"] for row in rows if row["test_loss"] is not None] == [3, 6, 9]
    assert rows[-1]["test_accuracy"] == result.metrics["accuracy"]


def test_checkpoint_holds_one_file_per_block(finished):
    result, _ = finished
    files = sorted(Path(result.checkpoint).rglob("*.safetensors"))
    assert [path.parent.name for path in files] == ["0000", "0001", "0002"]
    weights = dict(result.model().state_dict())
    assert torch.equal(load_file(files[0])["0.weight"], weights["0.weight"])


def test_summary_counts_the_run(finished):
    result, events = finished
    assert (result.summary["visits"], result.summary["trips"]) == (9, 3)
    assert result.summary["run"] == result.run
    assert result.summary["weights_sha256"] == events[-1].weights_sha256
    assert result.summary["bytes_moved"] > 0


def test_a_model_is_a_new_one_each_time(finished):
    result, _ = finished
    first, second = result.model(), result.model()
    with torch.no_grad():
        first[0].weight.zero_()
    assert second[0].weight.abs().sum() > 0


def test_regression_with_float_targets(raylets, tmp_path):
    draw = np.random.Generator(np.random.PCG64(1))
    weights = draw.normal(size=(FEATURES, 1)).astype(np.float32)

    def rows(count, seed):
        inputs = np.random.Generator(np.random.PCG64(seed)).normal(size=(count, FEATURES))
        inputs = inputs.astype(np.float32)
        return inputs, inputs @ weights

    held_out = rows(40, 9)
    result = SnakeTrainer(
        model=lambda: [nn.Linear(FEATURES, 8), nn.Linear(8, 1)],
        nodes=[rows(32, node) for node in range(3)],
        config=settings(
            loss={"name": "mse", "distillation": 0.1}, snake={"span_width": 1, "trips": 8}
        ),
        evaluation=held_out,
        storage=tmp_path,
        progress=False,
    ).fit()
    assert set(result.metrics) == {"loss"}
    inputs, targets = (torch.from_numpy(one) for one in held_out)
    with torch.no_grad():
        error = nn.functional.mse_loss(result.model()(inputs), targets)
    assert result.metrics["loss"] == pytest.approx(float(error), rel=1e-4)
    assert result.metrics["loss"] < 0.1 * float(targets.square().mean())
    assert result.history["accuracy"].null_count == len(result.history)


def refused(tmp_path, error, **arguments):
    """Check that nothing is written for a refused request; return the error."""
    values = {
        "model": lambda: [nn.Linear(FEATURES, 4), nn.Linear(4, CLASSES)],
        "nodes": [make_rows(8, 1)],
        "config": settings(),
        "storage": tmp_path / "runs",
        "progress": False,
        **arguments,
    }
    with pytest.raises(error) as caught:
        SnakeTrainer(**values).fit()
    assert list(tmp_path.iterdir()) == []
    return str(caught.value)


def test_a_model_function_that_raises_is_refused_with_its_error(tmp_path):
    def broken():
        raise ValueError("no licence for this network")

    assert "ValueError: no licence for this network" in refused(tmp_path, ModelError, model=broken)


def test_a_model_that_can_not_be_cut_is_refused(tmp_path):
    message = refused(tmp_path, ModelError, model=lambda: nn.Linear(FEATURES, CLASSES))
    assert "Linear can't be cut into blocks" in message


def test_no_nodes_are_refused(tmp_path):
    assert "no nodes" in refused(tmp_path, ConfigError, nodes=[])


def test_an_evaluation_that_does_not_fit_the_model_is_refused(tmp_path):
    wide = (np.zeros((4, FEATURES + 1), dtype=np.float32), np.zeros(4, dtype=np.int64))
    assert "(7,)" in refused(tmp_path, DataError, evaluation=wide)


def test_data_of_another_kind_is_refused(tmp_path):
    assert "nodes[0]: is a int" in refused(tmp_path, DataError, nodes=[3])


@pytest.mark.parametrize("given", ["folder", "folder_in_settings", "id"])
def test_a_transformers_model_is_named_by_its_folder_or_id(given, tmp_path, monkeypatch):
    (tmp_path / "tiny").mkdir()
    monkeypatch.chdir(tmp_path)
    options = {"task": "sequence_classification"}
    section = {"options": options}
    if given == "folder_in_settings":
        section = {"name": "huggingface", "options": {**options, "model": "tiny"}}
    model = {"folder": "tiny", "folder_in_settings": None, "id": "someone/tiny"}[given]
    trainer = SnakeTrainer(model, [make_rows(8, 0)], settings(model=section))
    expected = "someone/tiny" if given == "id" else str(tmp_path / "tiny")
    found = trainer._recipe.config.model
    assert (found.name, found.options) == ("huggingface", {**options, "model": expected})
