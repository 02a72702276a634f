"""Which block is brought to a GPU ahead; the copying itself needs one."""

import pytest

from ray_snake.engine.device_feed import expected_next, padded


@pytest.mark.parametrize(
    ("last", "block", "following"),
    [
        (None, 3, None),
        (3, 4, 7),
        (4, 3, 1),
        (7, 9, None),
        (3, 1, None),
        (4, 4, None),
        # Over the span, which is not among them.
        (4, 7, 9),
        (7, 4, 3),
    ],
)
def test_the_next_block_lies_in_the_direction_of_the_last_two(last, block, following):
    assert expected_next([1, 3, 4, 7, 9], last, block) == following


@pytest.mark.parametrize(("size", "room"), [(0, 0), (1, 16), (16, 16), (17, 32)])
def test_tensors_begin_where_any_dtype_may(size, room):
    assert padded(size) == room
