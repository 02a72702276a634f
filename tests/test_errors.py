import inspect
import pickle

import pytest

from ray_snake import errors
from ray_snake.errors import InputError, RunError, SnakeError

ALL = [
    one
    for _, one in inspect.getmembers(errors, inspect.isclass)
    if issubclass(one, SnakeError) and one is not SnakeError
]
INPUT = [one for one in ALL if issubclass(one, InputError)]
RUN = [one for one in ALL if issubclass(one, RunError)]


def make(kind):
    parts = ("training.epochs", "is 0, less than 1", "set it to 1 or more")
    return kind(*parts) if issubclass(kind, InputError) else kind(*parts[1:])


def test_every_error_is_an_input_error_or_a_run_error():
    assert set(ALL) == set(INPUT) | set(RUN)
    assert not set(INPUT) & set(RUN)


@pytest.mark.parametrize("kind", INPUT)
def test_input_errors_name_subject_problem_and_remedy(kind):
    error = make(kind)
    assert str(error) == "training.epochs: is 0, less than 1; set it to 1 or more"
    assert (error.subject, error.problem, error.remedy) == (
        "training.epochs",
        "is 0, less than 1",
        "set it to 1 or more",
    )


@pytest.mark.parametrize("kind", RUN)
def test_run_errors_name_problem_and_remedy(kind):
    error = make(kind)
    assert str(error) == "is 0, less than 1; set it to 1 or more"
    assert (error.problem, error.remedy) == ("is 0, less than 1", "set it to 1 or more")


@pytest.mark.parametrize("kind", INPUT)
def test_input_errors_end_with_exit_status_2(kind):
    assert make(kind).exit_status == 2


@pytest.mark.parametrize("kind", RUN)
def test_run_errors_end_with_exit_status_1(kind):
    assert make(kind).exit_status == 1


@pytest.mark.parametrize("kind", ALL)
def test_errors_survive_pickling(kind):
    error = make(kind)
    back = pickle.loads(pickle.dumps(error))  # noqa: S301 - our own bytes
    assert type(back) is kind
    assert str(back) == str(error)
    assert vars(back) == vars(error)


@pytest.mark.parametrize("kind", ALL)
def test_errors_are_one_line_whatever_they_quote(kind):
    parts = ["a\nb", "said\r\n  this\u2028and\x0bthat", "do\tit"][: 3 if kind in INPUT else 2]
    assert len(str(kind(*parts)).splitlines()) == 1
