"""Which version differences are taken from."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from ray_snake.config import CodecConfig, SnakeConfig, SnakeSection
from ray_snake.planning.anchor import make_anchors
from ray_snake.planning.snake import Snake

NODES = 3
BLOCKS = 4


def walk(*, trips=12, anchor_trips=4, **snake):
    """Yield (visit, current versions, anchors) for all visits of a run."""
    section = SnakeSection(**{"span_width": 2, "train_last": False, **snake, "trips": trips})
    schedule = Snake(SnakeConfig(snake=section, seed=1), nodes=NODES, blocks=BLOCKS)
    codec = CodecConfig(name="int8", anchor_trips=anchor_trips)
    anchors = make_anchors(codec, blocks=BLOCKS)
    current = [0] * BLOCKS
    while (visit := schedule.next()) is not None:
        found = anchors.at(visit, current)
        yield visit, tuple(current), found
        anchors.advance(visit, found)
        assert anchors.versions == found
        for block in visit.trained:
            current[block] = visit.number


def test_blocks_that_travel_whole_have_no_anchors():
    assert make_anchors(CodecConfig(), blocks=BLOCKS) is None


def test_within_a_stay_the_anchor_stays():
    stays = {}
    for visit, _, anchors in walk(trips_per_span=3, anchor_trips=99, trips=6):
        stays.setdefault(visit.span, set()).add(tuple(anchors[b] for b in visit.trained))
    assert [len(found) for found in stays.values()] == [1, 1]


def test_a_span_that_the_snake_left_is_its_own_anchor_at_once():
    left = 0
    previous = None
    for visit, current, anchors in walk(trips_per_span=2, anchor_trips=99):
        if previous is not None and visit.span != previous.span:
            left += 1
            for block in previous.trained:
                assert anchors[block] == current[block]
        previous = visit
    assert left > 2


def test_a_block_of_every_visit_moves_its_anchor_every_so_many_trips():
    last = [anchors[-1] for _, _, anchors in walk(train_last=True, anchor_trips=4)]
    changes = [new for old, new in pairwise(last) if new != old]
    assert changes == [3 * NODES, 7 * NODES, 11 * NODES]


@given(
    order=st.sampled_from(["span_major", "diagonal", "random"]),
    width=st.integers(1, BLOCKS),
    train_first=st.booleans(),
    train_last=st.booleans(),
    anchor_trips=st.integers(1, 6),
)
def test_an_anchor_is_a_version_there_was_and_never_an_older_one_than_before(
    order, width, train_first, train_last, anchor_trips
):
    before = (0,) * BLOCKS
    known = {(block, 0) for block in range(BLOCKS)}
    for visit, current, anchors in walk(
        order=order,
        span_width=width,
        train_first=train_first,
        train_last=train_last,
        anchor_trips=anchor_trips,
    ):
        known |= set(enumerate(current))
        assert set(enumerate(anchors)) <= known
        assert all(new >= old for new, old in zip(anchors, before, strict=True))
        # Only at a trip's first visit to a block, so that within a trip all encode alike.
        for block in visit.trained:
            if anchors[block] != before[block]:
                assert anchors[block] == current[block]
        before = anchors
