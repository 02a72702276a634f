"""What is refused of token data and tied models before anything starts."""

import numpy as np
import pytest

from ray_snake.config import SnakeConfig
from ray_snake.data import ShardSource, make_table
from ray_snake.errors import ConfigError, DataError
from ray_snake.runtime.preflight import check_model, check_settings, check_shards
from ray_snake.runtime.recipe import Recipe

OPTIONS = {"vocabulary": 9, "width": 8, "layers": 2, "heads": 2}
CLASSES = {**OPTIONS, "task": "sequence_classification", "classes": 3}


def recipe(options, **sections):
    tree = {"model": {"name": "decoder", "options": options}, **sections}
    return Recipe(config=SnakeConfig.from_tree(tree))


def shard(inputs, labels, index=0):
    table = make_table(np.asarray(inputs), np.asarray(labels))
    return ShardSource(table=table, index=index)


def check(options, *sources):
    return check_shards(check_model(recipe(options), nodes=len(sources)), sources)


def test_nodes_of_a_language_model_know_its_tokens():
    specs = check(OPTIONS, shard([[1, 2], [3, 4]], [[2, 3], [4, 5]]), shard([[8, 8]], [[8, 8]], 1))
    assert [(spec.classes, spec.tokens) for spec in specs] == [(None, 9), (None, 9)]
    settings = recipe(OPTIONS, loss={"teacher": "top_k"}).config
    check_settings(settings, specs)


def test_nodes_of_a_classifier_of_sequences_know_its_classes():
    (spec,) = check(CLASSES, shard([[1, 2], [3, 4]], [2, 0]))
    assert (spec.classes, spec.tokens) == (3, None)


def test_the_shard_with_a_token_that_the_model_lacks_is_named():
    shards = [shard([[1, 2]], [[2, 3]], 0), shard([[1, 9]], [[2, 3]], 1)]
    with pytest.raises(DataError, match=r"memory\[1\]: holds the number 9, which block 'embeddin"):
        check(OPTIONS, *shards)


@pytest.mark.parametrize(
    ("options", "labels", "says"),
    [
        (OPTIONS, [2, 0], r"has one label for each row, and the model scores each position"),
        (
            CLASSES,
            [[2, 3], [4, 5]],
            r"labels have the shape \(2,\), and the model scores whole row",
        ),
        (OPTIONS, [[2], [4]], r"labels have the shape \(1,\), and the model scores positions of"),
        (OPTIONS, [[2, 3], [4, 9]], r"label 9 in row 1 is neither one of the model's tokens"),
    ],
)
def test_labels_that_the_model_does_not_score_are_refused(options, labels, says):
    with pytest.raises(DataError, match=says):
        check(options, shard([[1, 2], [3, 4]], labels))


@pytest.mark.parametrize("strategy", ["split", "splitfed"])
def test_a_cut_between_blocks_with_a_tied_weight_is_refused(strategy):
    sections = {
        "strategy": strategy,
        "baseline": {"cut": 2, "shares_activations": True},
        "loss": {"distillation": 0.0},
    }
    check_model(recipe(OPTIONS, **sections), nodes=2)
    with pytest.raises(ConfigError, match="2 parts block 'head' from 'embedding', whose weight"):
        check_model(recipe({**OPTIONS, "tied": True}, **sections), nodes=2)
