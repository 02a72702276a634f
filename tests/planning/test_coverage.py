from ray_snake.planning.coverage import Coverage


def test_visits_are_counted_by_node_and_span():
    coverage = Coverage(nodes=2, spans=3)
    coverage.add(0, 1)
    coverage.add(0, 1)
    coverage.add(1, 2)
    assert coverage.counts(0) == (0, 2, 0)
    assert coverage.counts(1) == (0, 0, 1)


def test_the_least_trained_spans_are_all_named_ascending():
    coverage = Coverage(nodes=1, spans=3)
    assert coverage.least_trained(0) == [0, 1, 2]
    coverage.add(0, 1)
    assert coverage.least_trained(0) == [0, 2]
    coverage.add(0, 0)
    coverage.add(0, 2)
    assert coverage.least_trained(0) == [0, 1, 2]


def test_spans_trained_a_little_more_often_are_named_on_request():
    coverage = Coverage(nodes=1, spans=3)
    for span in (0, 1, 1):
        coverage.add(0, span)
    assert coverage.least_trained(0, within=1) == [0, 2]
    assert coverage.least_trained(0, within=2) == [0, 1, 2]


def test_a_visit_taken_back_makes_its_span_least_trained_again():
    coverage = Coverage(nodes=1, spans=2)
    coverage.add(0, 0)
    coverage.add(0, 1)
    coverage.take_back(0, 1)
    assert coverage.least_trained(0) == [1]
