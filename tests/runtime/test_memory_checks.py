"""Whether visits fit the memory that nodes have, and what is said and done about it."""

from dataclasses import replace

import numpy as np
import pytest
from fakes import make_config

from ray_snake.config import SnakeConfig
from ray_snake.data import ShardSource, make_table
from ray_snake.errors import ConfigError
from ray_snake.planning.blocks import BlockCost
from ray_snake.runtime.forecast import measured_costs
from ray_snake.runtime.memory_checks import Entry, fit_joining, fit_nodes, has_limits, known_costs
from ray_snake.runtime.messages import NodeSpec
from ray_snake.runtime.preflight import check_joining, check_model, check_shards
from ray_snake.runtime.recipe import Recipe

ROWS = 64
COSTS = tuple(
    BlockCost(
        name=f"block{index}",
        weight_bytes=1000,
        forward_flops=1.0,
        saved_bytes=500,
        input_bytes=100,
        output_bytes=100,
        lean_bytes=400,
    )
    for index in range(6)
)
NODES = [
    NodeSpec(
        source=ShardSource(uri=f"node_{index}.arrow"),
        sample_shape=(8,),
        integer_inputs=False,
        samples=ROWS,
        classes=4,
    )
    for index in range(3)
]


def config(limit=0, *, each=(), snake=None, **training):
    return make_config(
        nodes={"memory_bytes": limit, "each": each},
        training={"batch_size": 32, "micro_batch": "auto", "span": "eager", **training},
        loss={"distillation": 0.0},
        snake={"trips": 8, "span_width": 2, **(snake or {})},
    )


def ways(nodes):
    return [(one.training.residency, one.training.micro_batch) for one in nodes]


def suffixes(nodes):
    return {one.training.suffix for one in nodes}


def peak(settings, **training):
    """Return what the largest visit takes, as a refusal says it."""
    changed = settings.training.model_copy(update={"micro_batch": None, **training})
    with pytest.raises(ConfigError) as caught:
        fit_nodes(settings.model_copy(update={"training": changed}), NODES, COSTS)
    return int(str(caught.value).partition("takes ")[2].split(";")[0])


def test_only_settings_with_a_limit_have_one():
    assert not has_limits(config())
    assert has_limits(config(5))
    assert has_limits(config(each=[{"match": "node_1*", "memory_bytes": 5}]))


def test_without_a_limit_a_node_trains_as_the_settings_say():
    settings = config()
    fixed = settings.model_copy(
        update={"training": settings.training.model_copy(update={"micro_batch": None})}
    )
    assert fit_nodes(fixed, NODES, COSTS) == NODES
    assert ways(fit_nodes(settings, NODES, COSTS)) == [("resident", 32)] * 3


def test_a_node_with_less_memory_gets_fewer_rows_at_once():
    each = [{"match": "node_1*", "memory_bytes": 40_000}]
    first, second, third = ways(fit_nodes(config(each=each), NODES, COSTS))
    assert first == third == ("resident", 32)
    assert second[0] == "resident"
    assert 1 <= second[1] < 32


def test_a_node_for_which_one_row_is_too_many_streams():
    copies = {"frozen_dtype": "bfloat16"}
    large = [replace(one, weight_bytes=100_000, saved_bytes=10) for one in COSTS]
    # Three trained blocks with momentum take 900,000; three copies 150,000 more, and one 50,000.
    (found,) = set(ways(fit_nodes(config(1_010_000, **copies), NODES, large)))
    assert found[0] == "stream"


def test_a_suffix_runs_lean_where_the_limit_asks_for_it_and_nowhere_else():
    eager, lean = (peak(config(5), suffix=one) for one in ("eager", "lean"))
    assert lean < eager
    whole = {"micro_batch": None}
    assert suffixes(fit_nodes(config(eager, **whole), NODES, COSTS)) == {"eager"}
    assert suffixes(fit_nodes(config(lean, **whole), NODES, COSTS)) == {"lean"}
    assert suffixes(fit_nodes(config(lean, **whole, suffix="recompute"), NODES, COSTS)) == {
        "recompute"
    }
    with pytest.raises(ConfigError, match=r'set training\.suffix to "auto"'):
        fit_nodes(config(lean, **whole, suffix="eager"), NODES, COSTS)


def test_trained_blocks_run_again_where_a_lean_suffix_is_not_enough():
    lean, again = (peak(config(5), suffix="lean", span=one) for one in ("eager", "recompute"))
    assert again < lean
    whole = {"micro_batch": None}
    for limit, span in ((lean, "eager"), (lean - 1, "recompute"), (again, "recompute")):
        found = fit_nodes(config(limit, **whole, span="auto"), NODES, COSTS)
        assert {(one.training.suffix, one.training.span) for one in found} == {("lean", span)}
    with pytest.raises(ConfigError, match=r'set training\.span to "auto"'):
        fit_nodes(config(again, **whole, span="eager"), NODES, COSTS)


def test_fewer_rows_at_once_come_before_a_lean_suffix_until_they_are_few():
    eager = peak(config(5), suffix="eager", micro_batch=8)
    found = fit_nodes(config(eager), NODES, COSTS)
    assert suffixes(found) == {"eager"}
    assert ways(found) == [("resident", 8)] * 3
    found = fit_nodes(config(eager - 1), NODES, COSTS)
    assert suffixes(found) == {"lean"}


def test_a_refusal_says_by_how_much_it_does_not_fit_and_who():
    with pytest.raises(ConfigError) as caught:
        fit_nodes(config(5000), NODES, COSTS)
    assert caught.value.subject == "nodes.memory_bytes"
    text = str(caught.value)
    takes = int(text.partition("takes ")[2].split(";")[0])
    assert f"5000 bytes are {takes - 5000} too few for {NODES[0].name}" in text
    assert f"give it {takes} bytes" in text


def test_a_refusal_names_the_widest_span_that_fits():
    takes = [
        fit_nodes(config(2**40, snake={"span_width": one}, micro_batch=4), NODES, COSTS)
        for one in (1, 2, 3)
    ]
    assert all(takes)
    limit = 12_000
    with pytest.raises(ConfigError, match=r"set snake\.span_width to 1"):
        fit_nodes(config(limit, snake={"span_width": 4}), NODES, COSTS)
    assert fit_nodes(config(limit, snake={"span_width": 1}), NODES, COSTS)
    with pytest.raises(ConfigError):
        fit_nodes(config(limit, snake={"span_width": 2}), NODES, COSTS)


def test_a_refusal_names_the_setting_that_decides_and_what_would_fit():
    each = [{"match": "node_2*", "memory_bytes": 40_000}]
    with pytest.raises(ConfigError, match="rows at once, resident, it fits") as caught:
        fit_nodes(config(each=each, micro_batch=32), NODES, COSTS)
    assert caught.value.subject == "nodes.each[0].memory_bytes"


def test_a_run_that_adapts_needs_one_span_that_fits():
    heavy = [
        replace(one, weight_bytes=100_000 if index < 2 else 10) for index, one in enumerate(COSTS)
    ]
    with pytest.raises(ConfigError):
        fit_nodes(config(150_000), NODES, heavy)
    fitted = fit_nodes(config(150_000, snake={"adapt": True}), NODES, heavy)
    assert all(one.training is not None for one in fitted)


def texts(length):
    """Return a shard of sixteen rows of tokens."""
    tokens = np.random.default_rng(length).integers(0, 100, (16, length + 1))
    return make_table(tokens[:, :-1], tokens[:, 1:])


DECODER = SnakeConfig.from_tree(
    {
        "model": {"name": "decoder", "options": {"vocabulary": 100, "width": 32, "layers": 2}},
        "nodes": {"memory_bytes": 2_000_000},
        "training": {"micro_batch": 16},
    }
)
"""Texts of eight tokens fit these settings' memory, those of 512 don't."""


@pytest.mark.parametrize("lengths", [(8, 512), (512, 8)])
def test_the_longest_rows_stand_for_all_in_whatever_order_nodes_come(lengths):
    recipe = Recipe(config=DECODER)
    sources = [ShardSource(table=texts(length), index=i) for i, length in enumerate(lengths)]
    stack = check_model(recipe, nodes=2)
    nodes = check_shards(stack, sources, recipe.named_task())

    def measure(shape, integers, timed):
        return measured_costs(
            DECODER, stack, sample_shape=shape, integer_inputs=integers, timed=timed
        )

    costs = known_costs(DECODER, nodes, measure)
    with pytest.raises(ConfigError, match=r"2000000 .* too few"):
        fit_nodes(DECODER, nodes, costs)


LATE = replace(NODES[0], source=ShardSource(uri="late.arrow"))
FIFTH = Entry(node=4, gone=(1,), trip=1)


def test_a_node_that_joins_trains_so_that_it_fits():
    (first, *_) = fit_nodes(config(40_000), NODES, COSTS)
    late = fit_joining(config(40_000), LATE, COSTS, FIFTH)
    assert late.training == first.training
    assert late.training.micro_batch < 32
    assert fit_joining(config(micro_batch=32), LATE, COSTS, FIFTH) == LATE


def test_a_node_that_joins_and_fits_in_no_way_is_told_how_much_it_lacks():
    with pytest.raises(ConfigError) as caught:
        fit_joining(config(5000), LATE, COSTS, FIFTH)
    assert caught.value.subject == "nodes.memory_bytes"
    text = str(caught.value)
    takes = int(text.partition("takes ")[2].split(";")[0])
    assert f"5000 bytes are {takes - 5000} too few for late:" in text
    assert f"resume the run with at least {takes} for it" in text
    assert fit_joining(config(takes), LATE, COSTS, FIFTH).training is not None


def test_warm_up_visits_count_for_who_joins_while_there_are_some_to_come():
    settings = config(snake={"warmup_trips": 3}, micro_batch=32)

    def takes(trip):
        limited = settings.model_copy(
            update={"nodes": settings.nodes.model_copy(update={"memory_bytes": 5000})}
        )
        with pytest.raises(ConfigError) as caught:
            fit_joining(limited, LATE, COSTS, Entry(node=3, gone=(), trip=trip))
        return int(str(caught.value).partition("takes ")[2].split(";")[0])

    assert takes(0) == takes(2) > takes(3)


def test_the_shard_of_a_node_that_joins_is_measured_as_it_is():
    recipe = Recipe(config=DECODER)
    entry = Entry(node=2, gone=(), trip=1)
    assert check_joining(recipe, ShardSource(table=texts(8), index=2), entry).training is not None
    with pytest.raises(ConfigError, match=r"2000000 .* too few"):
        check_joining(recipe, ShardSource(table=texts(512), index=2), entry)
