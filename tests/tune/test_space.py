"""What a sweep may search, and what is refused before it starts."""

import pytest

from ray_snake.config import SnakeConfig
from ray_snake.errors import ConfigError
from ray_snake.runtime.preflight import check_model
from ray_snake.runtime.recipe import Recipe
from ray_snake.tune.findings import best_settings, importance, trials_table
from ray_snake.tune.space import applied, check_sweep, with_values
from ray_snake.tune.sweep import Trial

BASE = {"evaluation": {"data": "builtin://digits/test"}}


def any_run(config):
    """Find nothing wrong with a run."""


def a_model_that_fits(config):
    check_model(Recipe(config=config), nodes=2)


def config(space, **tune):
    return SnakeConfig.from_tree({**BASE, "tune": {"space": space, **tune}})


def test_dotted_keys_change_settings_and_leave_the_sweep_behind():
    swept = config({"snake.trips": {"choice": [3, 4]}})
    changed = with_values(swept, {"snake.trips": 4, "model.options.width": 8})
    assert (changed.snake.trips, changed.model.options) == (4, {"width": 8})
    assert not changed.tune.space
    assert changed.evaluation.data == BASE["evaluation"]["data"]


def test_a_sweep_does_not_decide_weights():
    swept = config({"snake.trips": {"choice": [3, 4]}})
    assert swept.fingerprint() == SnakeConfig.from_tree(BASE).fingerprint()


def test_what_depends_on_another_axis_counts_only_with_it():
    swept = config(
        {
            "training.optimizer": {"choice": ["sgd", "adamw"]},
            "training.momentum": {"uniform": [0.5, 0.9], "when": {"training.optimizer": "sgd"}},
        }
    )
    check_sweep(swept, any_run)
    given = {"training.optimizer": "adamw", "training.momentum": 0.7}
    assert applied(swept.tune.space, given) == {"training.optimizer": "adamw"}
    given["training.optimizer"] = "sgd"
    assert applied(swept.tune.space, given) == given


@pytest.mark.parametrize(
    ("space", "tune", "words"),
    [
        ({}, {}, "tune.space: is empty"),
        ({"snake.speed": {"choice": [1]}}, {}, 'tune.space."snake.speed": snake: unknown key'),
        ({"snake.trips": {"choice": [1, 0]}}, {}, 'tune.space."snake.trips": snake.trips'),
        ({"training.momentum": {"uniform": [0.5, 2.0]}}, {}, "training.momentum"),
        ({"seed": {"grid": [1, 2]}}, {"search": "optuna"}, "is a grid, which optuna does not know"),
        (
            {"snake.trips": {"choice": [1], "when": {"seed": 3}}},
            {},
            "waits for seed to be 3, which no axis gives it",
        ),
    ],
)
def test_what_can_not_be_searched_is_refused_by_its_key(space, tune, words):
    with pytest.raises(ConfigError) as caught:
        check_sweep(config(space, **tune), any_run)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    "proximal", [{"choice": [0.0, 0.1]}, {"choice": [0.1], "when": {"strategy": "fedprox"}}]
)
def test_a_value_that_needs_another_axis_is_tried_with_it(proximal):
    space = {"strategy": {"choice": ["snake", "fedprox"]}, "loss.proximal": proximal}
    check_sweep(config(space), a_model_that_fits)


@pytest.mark.parametrize(
    ("value", "words"),
    [("fedprox", "loss.proximal: is 0"), ("fedavgg", "strategy: there is no strategy 'fedavgg'")],
)
def test_a_value_that_no_other_axis_helps_is_refused_by_its_own(value, words):
    space = {"seed": {"grid": [1, 2]}, "strategy": {"choice": ["snake", value]}}
    with pytest.raises(ConfigError) as caught:
        check_sweep(config(space), a_model_that_fits)
    assert str(caught.value).startswith(f'tune.space."strategy": {words}')


@pytest.mark.parametrize(
    "axis",
    [
        {},
        {"choice": [1], "grid": [2]},
        {"uniform": [2.0, 1.0]},
        {"loguniform": [0.0, 1.0]},
        {"randint": [1.5, 3]},
        {"choice": []},
        {"range": [1, 2]},
    ],
)
def test_an_axis_that_is_none_is_refused_by_its_key(axis):
    with pytest.raises(ConfigError, match=r"tune\.space"):
        config({"snake.trips": axis})


def test_trials_without_held_out_rows_are_refused():
    swept = SnakeConfig.from_tree({"tune": {"space": {"seed": {"choice": [1, 2]}}}})
    with pytest.raises(ConfigError, match=r"evaluation\.data"):
        check_sweep(swept, any_run)


def trials(rates, scores):
    return [
        Trial(id=str(index), run="", values={"rate": rate, "order": "a"}, trip=1, accuracy=score)
        for index, (rate, score) in enumerate(zip(rates, scores, strict=True))
    ]


def test_importance_is_all_where_one_setting_decides_and_none_where_it_does_not_vary():
    found = importance(trials([0.1, 0.1, 0.2, 0.2], [0.5, 0.5, 0.9, 0.9]), "accuracy")
    assert found == {"rate": pytest.approx(1.0), "order": pytest.approx(0.0)}


def test_numbers_count_in_groups_of_about_equal_size():
    rates = [0.01 * step for step in range(1, 17)]
    found = importance(trials(rates, [float(index // 4) for index in range(16)]), "accuracy")
    assert found["rate"] == pytest.approx(1.0)


def test_the_best_settings_are_toml_that_gives_them_back():
    swept = config({"snake.trips": {"choice": [3, 4]}}).model_copy(update={"seed": 7})
    best = Trial(id="a", run="", values={"snake.trips": 4}, trip=4, accuracy=0.5)
    import tomllib

    back = SnakeConfig.from_tree(tomllib.loads(best_settings(swept, best)))
    assert back == with_values(swept, best.values)


def test_the_table_has_a_row_for_each_trial_and_a_column_for_each_setting():
    table = trials_table(trials([0.1, 0.2], [0.5, 0.9]))
    assert table["rate"].to_pylist() == ["0.1", "0.2"]
    assert table["accuracy"].to_pylist() == [0.5, 0.9]
