"""Several visits at once: who trains beside whom, and what the journal says of it."""

import asyncio
from collections import Counter
from itertools import pairwise

import pytest
from fakes import Fault, make_config, make_driver, run, until

from ray_snake.config import SnakeConfig
from ray_snake.errors import ConfigError
from ray_snake.planning.strategy import make_strategy
from ray_snake.runtime.events import VisitDecided
from ray_snake.runtime.journal import Journal
from ray_snake.runtime.states import Failed, Finished, Visiting

HEADS = {"heads": 2, "span_width": 2}


def visits_of(storage):
    return Journal(storage).visits


def together(driver):
    """Step a driver to its end; return the visits that were under way at each of its looks."""

    async def steps():
        seen = []
        while not isinstance(driver.state, (Finished, Failed)):
            await driver.step()
            if isinstance(driver.state, Visiting):
                seen.append(driver.state.visits)
        assert isinstance(driver.state, Finished)
        return seen

    return run(steps())


def test_two_heads_train_other_blocks_on_other_nodes(cluster, storage):
    seen = together(make_driver(cluster, make_config(snake=HEADS), storage, nodes=4))
    assert max(len(visits) for visits in seen) == 2
    for visits in seen:
        trained = [block for visit in visits for block in visit.trained]
        assert len(trained) == len(set(trained))
        assert len({visit.node for visit in visits}) == len(visits)


def test_every_node_is_visited_once_a_trip_whatever_the_heads(cluster, storage):
    run(make_driver(cluster, make_config(snake=HEADS), storage, nodes=5).run())
    turns = Counter((one.trip, one.node) for one in visits_of(storage))
    assert turns == {(trip, node): 1 for trip in (1, 2, 3) for node in range(5)}


def test_a_visit_names_the_versions_it_saw_and_what_came_in_meanwhile(cluster, storage):
    run(make_driver(cluster, make_config(snake=HEADS), storage, nodes=4).run())
    visits = visits_of(storage)
    made = {(block.block, block.version) for one in visits for block in one.blocks}
    for one in visits:
        assert all(
            version == 0 or (block, version) in made for block, version in enumerate(one.versions)
        )
    assert {one.staleness for one in visits} == {0, 1}


def test_a_slow_visit_holds_up_no_other(cluster, storage):
    """The other head goes on while one node dawdles: nothing waits for it but its own span."""
    cluster.faults["visit", 1] = [Fault.DAWDLES]
    config = make_config(snake={**HEADS, "train_last": False})

    async def scenario():
        driver = make_driver(cluster, config, storage, nodes=4)
        running = asyncio.create_task(driver.run())
        # All turns of the first trips but those that need what the dawdler has.
        await until(lambda: len(cluster.visits) >= 4)
        cluster.nodes[0].finish()
        return await running

    assert isinstance(run(scenario()), Finished)
    slow = next(one for one in visits_of(storage) if one.visit == 1)
    assert slow.staleness >= 2


def test_a_result_that_is_too_stale_is_refused(cluster, storage):
    cluster.faults["visit", 1] = [Fault.DAWDLES]
    config = make_config(snake={**HEADS, "train_last": False, "max_staleness": 1})

    async def scenario():
        running = asyncio.create_task(make_driver(cluster, config, storage, nodes=4).run())
        await until(lambda: len(cluster.visits) >= 4)
        cluster.nodes[0].finish()
        return await running

    run(scenario())
    slow = next(one for one in visits_of(storage) if one.visit == 1)
    assert not slow.accepted
    assert "snake.max_staleness = 1" in slow.reason


def test_heads_set_out_after_the_first_trips(cluster, storage):
    config = make_config(snake={**HEADS, "heads_after_trips": 2})
    seen = together(make_driver(cluster, config, storage, nodes=4))
    for visits in seen:
        if all(visit.trip <= 2 for visit in visits):
            assert len(visits) == 1
    assert max(len(visits) for visits in seen) == 2


@pytest.mark.parametrize("after", [1, 3, 6])
def test_a_resumed_run_does_what_was_not_decided_and_nothing_twice(cluster, storage, after):
    config = make_config(snake=HEADS)

    async def interrupted():
        decided = []
        driver = make_driver(
            cluster,
            config,
            storage,
            nodes=4,
            emit=lambda event: decided.append(event) if isinstance(event, VisitDecided) else None,
        )
        running = asyncio.create_task(driver.run())
        await until(lambda: len(decided) >= after or running.done())
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    run(interrupted())
    before = [one.visit for one in visits_of(storage)]
    assert before
    assert isinstance(run(make_driver(cluster, config, storage, nodes=4).run()), Finished)
    visits = visits_of(storage)
    assert [one.visit for one in visits][: len(before)] == before
    assert Counter((one.trip, one.node) for one in visits) == {
        (trip, node): 1 for trip in (1, 2, 3) for node in range(4)
    }
    assert len({one.visit for one in visits}) == len(visits)


def test_a_node_lost_under_one_head_is_started_again_and_the_other_goes_on(cluster, storage):
    cluster.faults["visit", 2] = [Fault.DIES]
    state = run(make_driver(cluster, make_config(snake=HEADS), storage, nodes=4).run())
    assert isinstance(state, Finished)
    assert len(visits_of(storage)) == 12
    assert len(cluster.killed) == 1 + 4


def test_a_visit_that_can_not_be_done_ends_the_other_too(cluster, storage):
    cluster.faults["visit", 2] = [Fault.RAISES]
    state = run(make_driver(cluster, make_config(snake=HEADS), storage, nodes=4).run())
    assert isinstance(state, Failed)
    assert "visit 2 failed" in str(state.error)


def test_nodes_of_one_process_are_not_visited_at_once(cluster, storage):
    config = make_config(snake=HEADS, nodes={"nodes_per_actor": 2})
    for visits in together(make_driver(cluster, config, storage, nodes=4)):
        assert len({visit.node // 2 for visit in visits}) == len(visits)


def test_rounds_spread_over_heads_average_all_the_same(cluster, storage):
    """FedAvg's nodes all start from one model, so heads change who works when, and no weight."""
    sums = []
    for heads in (1, 3):
        config = make_config(snake={"heads": heads}, strategy="fedavg", loss={"distillation": 0})
        state = run(make_driver(type(cluster)(), config, storage.child(str(heads)), nodes=3).run())
        visits = visits_of(storage.child(str(heads)))
        rounds = [
            (one.trip, sorted(block.version for block in one.blocks))
            for one in visits
            if one.blocks
        ]
        assert all(one[0] < other[0] for one, other in pairwise(rounds))
        sums.append(state.weights_sha256)
    assert sums[0] == sums[1]


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"snake": {"heads": 3, "span_width": 2}}, "snake.heads"),
        ({"snake": {"heads": 5, "span_width": 1}}, "snake.heads"),
        ({"snake": HEADS, "codec": {"name": "bf16"}}, "snake.heads"),
        ({"snake": {"heads": 2}, "strategy": "cyclic"}, "snake.heads"),
    ],
)
def test_heads_that_do_not_fit_are_refused(settings, key):
    with pytest.raises(ConfigError, match=key):
        make_strategy(SnakeConfig.from_tree(settings), nodes=4, blocks=4)
