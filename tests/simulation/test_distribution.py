"""What the command line takes for a distribution, and what comes of it."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_snake.errors import ConfigError
from ray_snake.simulation.distribution import KINDS, Distribution

positive = st.floats(0.01, 100)


def drawn(text, number=2000):
    return Distribution.parse("--pace", text).draw(np.random.default_rng(1), number)


@pytest.mark.parametrize("text", ["3", " 3.0 ", "constant(3)"])
def test_a_bare_number_is_a_constant(text):
    assert drawn(text).tolist() == [3.0] * 2000


def test_each_kind_draws_what_its_name_says():
    assert 2 <= drawn("uniform(2, 4)").min() < 2.1 < 3.9 < drawn("uniform(2, 4)").max() <= 4
    assert np.median(drawn("lognormal(5, 0.5)")) == pytest.approx(5, rel=0.1)
    assert drawn("exponential(7)").mean() == pytest.approx(7, rel=0.1)
    assert set(drawn("choice(1, 2, 4)")) == {1.0, 2.0, 4.0}


@given(kind=st.sampled_from(sorted(KINDS)), values=st.tuples(positive, positive))
def test_whatever_is_taken_draws_finite_numbers_from_zero(kind, values):
    given_values = values[: len(KINDS[kind].parameters) or 2]
    numbers = drawn(f"{kind}({', '.join(map(str, sorted(given_values)))})", 20)
    assert np.isfinite(numbers).all()
    assert (numbers >= 0).all()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "fast",
        "normal(1, 2)",
        "uniform(1)",
        "constant(-1)",
        "choice()",
        "constant(inf)",
        "uniform(4, 2)",
    ],
)
def test_what_is_no_distribution_is_refused_with_the_forms(text):
    with pytest.raises(ConfigError, match=r"--pace: .*lognormal\(median, sigma\)"):
        Distribution.parse("--pace", text)
