"""A loss that can't compare labels with what the model gives is refused before anything starts."""

import numpy as np
import pytest

from ray_snake.config import SnakeConfig
from ray_snake.data import NodeDataset, ShardSource, make_table
from ray_snake.engine.evaluate import evaluate
from ray_snake.engine.visit import train_visit
from ray_snake.errors import DataError
from ray_snake.runtime.preflight import check_model, check_shards
from ray_snake.runtime.recipe import Recipe

FLOATS = np.zeros((4, 3), dtype=np.float32)


def check(labels, name="cross_entropy", loss=None):
    model = {"name": "mlp", "options": {"inputs": 3, "hidden": [4], "classes": 5}}
    config = SnakeConfig.from_tree({"model": model, "loss": {"name": name}})
    recipe = Recipe(config=config, loss=loss)
    source = ShardSource(table=make_table(FLOATS, labels))
    return check_shards(check_model(recipe, nodes=1), [source], recipe.named_task())


@pytest.mark.parametrize(
    ("labels", "loss"),
    [
        (np.zeros(4, dtype=np.float32), "cross_entropy"),
        (np.zeros(4, dtype=np.float32), "mse"),
        (np.zeros(4, dtype=np.int64), "mse"),
        (np.zeros((4, 4), dtype=np.float32), "mse"),
    ],
    ids=["targets for classes", "one target of five", "classes for targets", "four of five"],
)
def test_labels_that_the_loss_can_not_take_are_refused(labels, loss):
    with pytest.raises(DataError, match=r"don't fit the loss, which says .*; choose another loss"):
        check(labels, loss)


def test_a_function_that_was_passed_is_called_by_visits_alone():
    """It may count its calls."""
    calls = []
    check(np.zeros(4, dtype=np.int64), loss=lambda *batch: calls.append(batch))
    assert not calls


def test_labels_that_it_can_take_pass():
    (spec,) = check(np.arange(4))
    assert spec.classes == 5


def test_whole_numbers_to_be_predicted_are_asked_for_as_floats():
    model = {"name": "mlp", "options": {"inputs": 3, "hidden": [4], "classes": 1}}
    recipe = Recipe(config=SnakeConfig.from_tree({"model": model, "loss": {"name": "mse"}}))
    source = ShardSource(table=make_table(FLOATS, np.array([0, 3, 76, 12])))
    with pytest.raises(DataError, match=r"label 3 in row 1 .*; store numbers to predict"):
        check_shards(check_model(recipe, nodes=1), [source], recipe.named_task())


def test_several_whole_numbers_for_a_row_of_floats_are_targets():
    """Rows of tokens have a label for each position; those of anything else have numbers."""
    model = {"name": "mlp", "options": {"inputs": 3, "hidden": [4], "classes": 2}}
    tree = {"model": model, "loss": {"name": "mse", "distillation": 0.3}}
    recipe = Recipe(config=SnakeConfig.from_tree(tree))
    counts = make_table(FLOATS, np.array([[1, 2], [300, 4], [5, 6], [7, 8]]))
    source = ShardSource(table=counts)
    stack = check_model(recipe, nodes=1)
    (spec,) = check_shards(stack, [source], recipe.named_task())
    assert (spec.classes, spec.tokens) == (None, None)
    samples = NodeDataset.open(source)
    outcome = train_visit(
        recipe.initial(),
        samples,
        trained=[0, 1],
        learning_rate=1e-3,
        seed=1,
        # As many rows as a row has numbers.
        training=recipe.config.training.model_copy(update={"batch_size": 2}),
        objective=recipe.objective(),
    )
    assert outcome.accuracy is None
    assert outcome.finite
    task = recipe.named_task()
    judged = evaluate(recipe.initial(), samples, task=task, batch_size=2)
    assert judged.accuracy is None
