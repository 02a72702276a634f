"""A loss that can't compare labels with what the model gives is refused before anything starts."""

import numpy as np
import pytest

from ray_snake.config import SnakeConfig
from ray_snake.data import ShardSource, make_table
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
