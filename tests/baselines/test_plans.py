"""What each rival plans: who trains which blocks, and what is averaged."""

import re
from dataclasses import replace

import pytest

from ray_snake.config import SnakeConfig, SnakeSection
from ray_snake.errors import ConfigError
from ray_snake.planning.strategy import make_strategy

NODES = 4
BLOCKS = 6


def plan(name, *, nodes=NODES, blocks=BLOCKS, **sections):
    config = SnakeConfig.from_tree({"strategy": name, "snake": {"trips": 9}, **sections})
    strategy = make_strategy(config, nodes=nodes, blocks=blocks)
    return list(iter(strategy.next, None))


def test_fedavg_trains_everything_everywhere_and_averages_each_trip():
    visits = plan("fedavg")
    assert {one.trained for one in visits} == {tuple(range(BLOCKS))}
    assert all(one.averaged for one in visits)
    assert [one.trip for one in visits] == [trip for trip in range(1, 10) for _ in range(NODES)]


SNAKES_OWN = {
    "order": "random",
    "spans": [[0, 1], [2, 3]],
    "warmup_trips": 2,
    "whole_every": 2,
    "warmup_nodes": [0],
    "warmup_rate": 0.5,
    "warmup_distillation": 0.1,
    "damping": 0.5,
    "max_staleness": 1,
    "train_first": True,
    "train_last": False,
}


def planned(name, **snake):
    """A strategy's visits, each with how it trains."""
    config = SnakeConfig.from_tree({"strategy": name, "snake": {"trips": 9, **snake}})
    strategy = make_strategy(config, nodes=NODES, blocks=BLOCKS)
    return [
        (one, strategy.learning_rate(one), strategy.distillation(one), strategy.damping(one))
        for one in iter(strategy.next, None)
    ]


@pytest.mark.parametrize("name", ["fedavg", "fedpart", "cyclic", "fedcybgd", "lisa"])
def test_rivals_leave_aside_what_is_the_snakes_own(name):
    assert planned(name, **SNAKES_OWN) == planned(name)
    assert planned("snake", **SNAKES_OWN) != planned("snake")


def test_the_settings_page_says_which_keys_all_strategies_go_by():
    common = {"trips", "turns", "heads", "heads_after_trips", "mean_visits", "adapt"}
    assert set(re.findall(r"`(.*?)`", SnakeSection.__doc__)) == common
    others = {"span_width", "trips_per_span"}
    assert common | {*SNAKES_OWN} | others == set(SnakeSection.model_fields)


def test_fedprox_plans_as_fedavg_and_needs_its_term():
    assert plan("fedprox", loss={"proximal": 0.1}) == plan("fedavg")
    with pytest.raises(ConfigError, match=r"^loss\.proximal: is 0, and fedprox without it is"):
        plan("fedprox")


def test_fedpart_trains_all_then_each_block_in_turn():
    visits = plan("fedpart", baseline={"full_rounds": 2})
    rounds = [{one.trained for one in visits if one.trip == trip} for trip in range(1, 10)]
    everything = tuple(range(BLOCKS))
    in_turn = [(block,) for block in range(BLOCKS)]
    assert rounds == [{one} for one in [everything, everything, *in_turn, everything]]
    assert all(one.averaged for one in visits)


def test_fedpart_stays_with_a_block_for_as_many_rounds_as_it_is_told():
    visits = plan("fedpart", nodes=1, baseline={"full_rounds": 1, "block_rounds": 2})
    blocks = [one.trained for one in visits if len(one.trained) == 1]
    assert blocks == [(block // 2,) for block in range(8)]
    assert len(visits) - len(blocks) == 1


def test_cyclic_trains_everything_one_after_another():
    visits = plan("cyclic")
    assert {one.trained for one in visits} == {tuple(range(BLOCKS))}
    assert not any(one.averaged for one in visits)
    assert [one.node for one in visits[:8]] == [0, 1, 2, 3, 3, 2, 1, 0]


@pytest.mark.parametrize(("nodes", "blocks"), [(4, 6), (6, 4), (8, 10), (1, 3), (5, 5)])
def test_fedcybgd_gives_every_node_a_segment_of_its_own(nodes, blocks):
    visits = plan("fedcybgd", nodes=nodes, blocks=blocks)
    segments = [{one.trained for one in visits if one.node == node} for node in range(nodes)]
    assert all(len(one) == 1 for one in segments)
    trained = [block for (one,) in segments[: min(nodes, blocks)] for block in one]
    assert trained == list(range(blocks))


def test_the_last_block_may_train_in_every_visit_of_fedcybgd():
    trained = [one.trained for one in plan("fedcybgd", baseline={"train_last": True})[:4]]
    assert trained == [(0, 5), (1, 2, 5), (3, 5), (4, 5)]


def test_lisa_trains_both_ends_and_layers_that_are_drawn_evenly():
    visits = plan("lisa", baseline={"layers": 2}, snake={"trips": 100})
    assert all(len(one.trained) == 4 for one in visits)
    assert all({0, BLOCKS - 1} < set(one.trained) for one in visits)
    counts = [sum(layer in one.trained for one in visits) for layer in range(1, BLOCKS - 1)]
    assert sum(counts) == 2 * len(visits)
    assert min(counts) > 0.85 * len(visits) * 2 / (BLOCKS - 2)
    assert visits == plan("lisa", baseline={"layers": 2}, snake={"trips": 100})
    assert visits != plan("lisa", baseline={"layers": 2}, snake={"trips": 100}, seed=1)


def test_lisa_needs_as_many_layers_as_it_draws():
    with pytest.raises(ConfigError, match=r"^baseline\.layers: 5 are more than the 4 blocks"):
        plan("lisa", baseline={"layers": 5})


@pytest.mark.parametrize("name", ["centralised", "local"])
def test_training_in_one_place_needs_one_node(name):
    assert {one.trained for one in plan(name, nodes=1)} == {tuple(range(BLOCKS))}
    with pytest.raises(ConfigError, match=rf"^strategy: '{name}' trains on one node's rows, and"):
        plan(name)


def test_an_unknown_strategy_is_refused_with_the_nearest():
    with pytest.raises(ConfigError, match=r"^strategy: there is no strategy 'fedavgg'; did you m"):
        plan("fedavgg")


def test_what_is_no_strategy_is_refused():
    with pytest.raises(ConfigError, match=r"^strategy: json:dumps is no subclass of"):
        plan("json:dumps")


def test_what_can_not_be_imported_is_refused():
    with pytest.raises(ConfigError, match=r"^strategy: 'nowhere:Thing' can't be imported \(Mod"):
        plan("nowhere:Thing")


SPLIT = {"baseline": {"cut": 2, "shares_activations": True}, "loss": {"distillation": 0.0}}


def test_split_learning_trains_everything_in_turn_with_the_back_at_the_drivers_side():
    visits = plan("split", **SPLIT)
    assert {one.trained for one in visits} == {tuple(range(BLOCKS))}
    assert {tuple(map(one.on_node, range(BLOCKS))) for one in visits} == {
        (True, True, False, False, False, False)
    }
    assert not any(one.averaged for one in visits)
    assert [one.node for one in visits[:8]] == [0, 1, 2, 3, 3, 2, 1, 0]


def test_splitfed_is_split_learning_whose_visits_are_averaged():
    assert plan("splitfed", **SPLIT) == [
        replace(one, averaged=True) for one in plan("split", **SPLIT)
    ]


@pytest.mark.parametrize("name", ["split", "splitfed"])
@pytest.mark.parametrize(
    ("sections", "message"),
    [
        (
            {"baseline": {}},
            "baseline.shares_activations: is false, .* activations at the cut and the label of "
            "every row, .* leave their node",
        ),
        (
            {"baseline": {"shares_activations": True, "cut": BLOCKS}},
            "baseline.cut: 6 blocks on the node .* of the network's 6; .* from 1 to 5",
        ),
        ({"loss": {"distillation": 0.3}}, "loss.distillation: 0.3 compares with a whole network"),
        (
            {"loss": {"distillation": 0.0, "proximal": 0.1}},
            "loss.proximal: 0.1 compares with a whole network",
        ),
        ({"codec": {"name": "int8"}}, "codec.name: 'int8' is for blocks that"),
        ({"training": {"micro_batch": 2}}, "training.micro_batch: 2 is for networks in one place"),
        ({"training": {"group_lengths": True}}, "training.group_lengths: true, and what goes over"),
    ],
)
def test_split_strategies_refuse_in_one_line_what_they_can_not_do(name, sections, message):
    with pytest.raises(ConfigError, match=f"^{message}") as caught:
        plan(name, **{**SPLIT, **sections})
    assert "\n" not in str(caught.value)


def test_a_cut_of_nothing_is_no_setting():
    with pytest.raises(ConfigError, match=r"^baseline\.cut"):
        plan("split", **{**SPLIT, "baseline": {"shares_activations": True, "cut": 0}})
