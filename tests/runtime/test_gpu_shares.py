"""Shares of GPUs that Ray can give: of a single GPU, or whole ones of one machine."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_snake.runtime.gpu_shares import largest_share, room_for, single_gpus, take_share

CLUSTERS = st.lists(st.integers(0, 5), min_size=1, max_size=4)


def placed(machines, share, count):
    """Give so many processes their share, one after the other, as Ray does; return how many got it.

    In hundredths, so that nothing is rounded.
    """
    free = [[100] * number for number in machines]
    asked = round(share * 100)
    for done in range(count):
        for machine in free:
            if asked < 100:
                fitting = [i for i, one in enumerate(machine) if one >= asked]
                if fitting:
                    machine[fitting[0]] -= asked
                    break
            elif machine.count(100) >= asked // 100:
                for _ in range(asked // 100):
                    machine.remove(100)
                break
        else:
            return done
    return count


@given(CLUSTERS, st.integers(1, 40))
def test_all_get_the_share_and_none_larger_would_do(machines, count):
    share = largest_share([single_gpus(number) for number in machines], count)
    if not any(machines):
        assert share == 0
        return
    assert placed(machines, share, count) == count
    larger = share + 1 if share >= 1 else (share + 0.01 if share < 0.99 else 1.0)
    assert placed(machines, larger, count) < count


@given(st.integers(1, 5), st.integers(1, 99))
def test_room_is_what_can_be_placed(number, hundredths):
    share = hundredths / 100
    assert room_for("GPU", share, {"GPU": number}) == placed([number], share, 1000)


@pytest.mark.parametrize(
    ("number", "count", "share"), [(2, 3, 0.5), (2, 5, 0.33), (4, 2, 2.0), (1, 8, 0.12)]
)
def test_uneven_numbers_share_gpus_evenly(number, count, share):
    assert largest_share([single_gpus(number)], count) == share


def test_too_many_for_a_gpu_get_a_share_that_is_refused_rather_than_none():
    assert largest_share([single_gpus(1)], 101) == 0.01
    assert room_for("GPU", 0.01, {"GPU": 1}) == 100


def test_what_others_take_comes_from_the_fullest_gpu_that_has_it():
    machine = single_gpus(2)
    take_share(0.5, [machine])
    take_share(0.25, [machine])
    take_share(0.5, [machine])
    assert sorted(machine) == [0.25, 0.5]
    machine = single_gpus(3)
    take_share(2, [single_gpus(1), machine])
    assert machine == [1.0]


def test_nodes_share_what_the_drivers_side_leaves():
    machine = single_gpus(2)
    take_share(0.5, [machine])
    assert [largest_share([machine], count) for count in (1, 2, 3, 4)] == [1.0, 0.5, 0.5, 0.33]


def test_other_resources_are_counted_in_sum():
    assert room_for("CPU", 0.5, {"CPU": 4}) == 8
    assert room_for("GPU", 0.5, {}) == 0
