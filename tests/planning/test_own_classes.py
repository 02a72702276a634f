"""Strategies and orders of a user's own: by name, and as classes."""

import pytest

import ray_snake
from ray_snake import Order, SnakeConfig, SnakeTrainer, Strategy
from ray_snake.baselines.averaging import FedAvg
from ray_snake.errors import ConfigError
from ray_snake.extensions import OwnClasses, is_ours
from ray_snake.planning.snake import Snake
from ray_snake.planning.strategy import make_strategy


class BackToFront(Order):
    def choose(self, turn, least_trained):
        return max(least_trained)


class Misspelt(Order):
    def chose(self, turn, least_trained):
        return 0


class WithoutStay(Order):
    def __init__(self, spans, seed):
        self.spans, self.seed = spans, seed

    def choose(self, turn, least_trained):
        return 0


class Lost(BackToFront):
    def crossing(self, trip, nodes):
        raise ValueError("no way")


class HeadFirst(Strategy):
    def plan(self, number, trip, node):
        return self.whole(number, trip, node)


class OwnSnake(Snake):
    pass


def made(config=None, **own):
    return make_strategy(config or SnakeConfig(), nodes=3, blocks=6, own=OwnClasses(**own))


def refusal(**settings):
    with pytest.raises(ConfigError) as caught:
        made(
            SnakeConfig.from_tree({}, [f"{key}={value}" for key, value in settings.items()])
        ).next()
    text = str(caught.value)
    assert len(text.splitlines()) == 1
    return text


@pytest.mark.parametrize(
    ("order", "said"),
    [
        (f"{__name__}:Misspelt", f"{__name__}:Misspelt has no choose of its own; name a class"),
        (f"{__name__}:WithoutStay", f"{__name__}:WithoutStay raised TypeError: "),
        (f"{__name__}:Lost", f"{__name__}:Lost raised ValueError: no way (test_own_classes.py"),
        (
            f"{__name__}:HeadFirst",
            f"{__name__}:HeadFirst is no subclass of ray_snake.Order; derive",
        ),
        ("ray_snake:Order", "ray_snake.planning.order:Order has no choose of its own; name"),
        ("ray_snake:__name__", "'ray_snake:__name__' is a str, no class or function; name one"),
    ],
)
def test_an_order_that_is_none_or_raises_when_it_is_made_is_named_in_a_line(order, said):
    assert refusal(**{"snake.order": order}).startswith(f"snake.order: {said}")


def test_a_strategy_without_a_plan_is_named_in_a_line():
    assert refusal(strategy="ray_snake:Strategy") == (
        "strategy: ray_snake.planning.strategy:Strategy has no plan of its own; name a class "
        "derived from ray_snake.Strategy that has it"
    )


def test_an_order_as_a_class_is_checked_like_one_by_name():
    for order in (Misspelt, HeadFirst, WithoutStay):
        with pytest.raises(ConfigError, match=rf"^snake\.order: .*{order.__name__}"):
            made(order=order)


@pytest.mark.parametrize("strategy", [None, OwnSnake], ids=["the snake", "one of a user"])
def test_a_snake_takes_an_order_as_a_class(strategy):
    snake = made(strategy=strategy, order=BackToFront)
    assert type(snake) is (strategy or Snake)
    assert is_ours(type(snake)) is (strategy is None)
    first = snake.next()
    assert first.place == 2


@pytest.mark.parametrize(
    ("config", "own"),
    [("fedavg", {}), ("snake", {"strategy": HeadFirst}), ("snake", {"strategy": FedAvg})],
)
def test_an_order_goes_with_a_snake_alone(config, own):
    with pytest.raises(ConfigError, match=r"^order: .*BackToFront is for the snake, and the stra"):
        made(SnakeConfig(strategy=config), order=BackToFront, **own)


def recorded(**arguments):
    return SnakeTrainer(lambda: [], [], progress=False, **arguments)._recipe.config


def test_a_trainer_records_the_strategy_and_the_order_that_it_was_given():
    named = f"{__name__}:BackToFront"
    assert recorded(order=BackToFront).snake.order == named
    assert recorded(order=BackToFront).strategy == "snake"
    assert recorded(config=SnakeConfig(strategy="fedavg"), order=BackToFront).strategy == "fedavg"
    own = recorded(strategy=HeadFirst, order=BackToFront)
    assert (own.strategy, own.snake.order) == (f"{__name__}:HeadFirst", named)


def test_a_trainer_refuses_settings_that_do_not_go_with_its_order():
    config = SnakeConfig.from_tree({"snake": {"trips_per_span": 2}})
    with pytest.raises(ConfigError, match=r"^snake\.trips_per_span: 2 goes"):
        recorded(config=config, order=BackToFront)


def test_names_of_the_package_are_its_own_classes():
    assert is_ours(ray_snake.Order)
