import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_snake.errors import ConfigError
from ray_snake.planning.span import Span, cut_spans, trained_blocks

widths = st.integers(1, 40).flatmap(
    lambda blocks: st.tuples(st.just(blocks), st.integers(1, blocks))
)


@given(widths)
def test_spans_cover_every_block_once_in_order(sizes):
    blocks, width = sizes
    spans = cut_spans(blocks, width)
    assert [block for span in spans for block in span.blocks()] == list(range(blocks))


@given(widths)
def test_only_the_last_span_is_narrower(sizes):
    blocks, width = sizes
    *others, last = cut_spans(blocks, width)
    assert all(len(span) == width for span in others)
    assert 1 <= len(last) <= width


@given(blocks=st.integers(1, 40), more=st.integers(1, 40))
def test_a_span_wider_than_the_network_is_refused(blocks, more):
    with pytest.raises(ConfigError) as caught:
        cut_spans(blocks, blocks + more)
    assert str(caught.value) == (
        f"snake.span_width: {blocks + more} blocks are more than the network's {blocks}; "
        f"set it to {blocks} or less"
    )


@given(widths, st.booleans(), st.booleans())
def test_trained_is_the_span_and_the_chosen_ends_ascending(sizes, first, last):
    blocks, width = sizes
    for span in cut_spans(blocks, width):
        trained = trained_blocks(span.blocks(), blocks, train_first=first, train_last=last)
        expected = set(span.blocks())
        expected |= {0} if first else set()
        expected |= {blocks - 1} if last else set()
        assert trained == tuple(sorted(expected))


def test_a_span_knows_its_blocks_and_its_text():
    span = Span(2, 5)
    assert [block in span for block in range(1, 6)] == [False, True, True, True, False]
    assert len(span) == 3
    assert str(span) == "2-4"
    assert str(Span(2, 3)) == "2"
