"""What the report's figures are drawn from, and that they are drawn of any journal."""

import xml.etree.ElementTree as ElementTree
from itertools import pairwise

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ray_snake.telemetry.figures import MOST_COLOURS, MOST_MARKS, Course, draw
from ray_snake.telemetry.summary import busy_periods, busy_seconds

TITLES = {
    "Accuracy on held-out rows",
    "Training loss",
    "What each visit trained",
    "Who worked when",
    "Coverage",
    "Bytes moved",
}


def course(visits, judged=(), names=("clinic-0", "clinic-1"), blocks=5):
    return Course(names=names, blocks=blocks, visits=visits, judged=judged)


def titles(found):
    return {one.title for one in found}


def test_a_journal_has_all_figures_and_each_is_an_svg_document(visit_record, evaluation_record):
    found = draw(course([visit_record(1), visit_record(2)], [evaluation_record(2)]))
    assert titles(found) == TITLES
    for one in found:
        assert ElementTree.fromstring(one.svg).tag == "{http://www.w3.org/2000/svg}svg"


def test_without_evaluations_nothing_is_shown_of_held_out_rows(visit_record):
    assert titles(draw(course([visit_record(1)]))) == TITLES - {"Accuracy on held-out rows"}


def test_without_visits_there_is_no_figure():
    assert draw(course([])) == []


@pytest.mark.parametrize(
    ("changes", "title"),
    [
        ({"perplexity": 37.5}, "Perplexity on held-out rows"),
        ({"accuracy": None}, "Loss on held-out rows"),
    ],
)
def test_a_model_is_shown_by_the_measure_that_it_has(
    visit_record, evaluation_record, changes, title
):
    assert title in titles(draw(course([visit_record(1)], [evaluation_record(1, **changes)])))


def test_the_same_journal_gives_the_same_bytes(visit_record, evaluation_record):
    same = [
        [
            one.svg
            for one in draw(course([visit_record(1), visit_record(2)], [evaluation_record(2)]))
        ]
        for _ in range(2)
    ]
    assert same[0] == same[1]


def test_refused_visits_without_a_finite_loss_are_no_obstacle(visit_record):
    refused = visit_record(2, accepted=False, loss=float("nan"), reason="not finite")
    assert titles(draw(course([visit_record(1), refused]))) >= {
        "What each visit trained",
        "Training loss",
    }


def test_a_name_is_text_whatever_is_in_it(visit_record):
    names = ("$\\frac{a}{", "<b>&amp;</b>")
    for one in draw(course([visit_record(1), visit_record(2)], names=names)):
        ElementTree.fromstring(one.svg)


def test_many_nodes_and_visits_stay_a_small_page(visit_record):
    nodes = MOST_COLOURS * 10
    visits = [visit_record(number, node=number % nodes) for number in range(1, 3 * MOST_MARKS)]
    found = draw(course(visits, names=[f"clinic-{node}" for node in range(nodes)]))
    assert sum(len(one.svg) for one in found) < 2_000_000


TIMES = st.lists(
    st.tuples(st.floats(0, 1e6), st.floats(0.001, 1e3)).map(lambda one: (one[0], one[0] + one[1])),
    min_size=1,
    max_size=30,
)


# The fixture keeps nothing between examples.
@given(times=TIMES)
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_time_of_work_leaves_out_what_lies_between(visit_record, times):
    visits = [
        visit_record(number, finished_at=end, seconds=end - start)
        for number, (start, end) in enumerate(times, 1)
    ]
    periods = busy_periods(visits)
    assert all(end < start for (_, end), (start, _) in pairwise(periods))
    shown = course(visits)
    moments = sorted(moment for period in times for moment in period)
    clock = [shown.busy(moment) for moment in moments]
    assert clock == sorted(clock)
    assert shown.busy(moments[0]) == pytest.approx(0.0, abs=1e-6)
    assert shown.busy(moments[-1]) == pytest.approx(busy_seconds(visits), rel=1e-9, abs=1e-6)
    # Nothing is longer by that clock than it was.
    for start, end in times:
        assert shown.busy(end) - shown.busy(start) == pytest.approx(end - start, abs=1e-6)
