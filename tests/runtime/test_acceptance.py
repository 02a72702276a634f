import math
from dataclasses import replace

import pytest
from fakes import GOOD_REPORT

from ray_snake.config import AcceptanceConfig
from ray_snake.runtime.acceptance import Accept, Refuse, judge


def judged(policy=None, **changes):
    return judge(replace(GOOD_REPORT, **changes), AcceptanceConfig(**(policy or {})))


def test_accepts_a_finite_result_without_limits():
    assert judged() == Accept()
    assert judged(update_norm=1e30, loss=1e30) == Accept()


@pytest.mark.parametrize(
    "changes", [{"finite": False}, {"update_norm": math.inf}, {"update_norm": math.nan}]
)
def test_refuses_weights_that_are_not_finite(changes):
    assert judged(**changes) == Refuse("the trained weights are not finite")


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_refuses_a_loss_that_is_not_finite(loss):
    assert judged(loss=loss) == Refuse(f"the training loss is {loss}")


def test_refuses_a_change_above_the_limit_only():
    policy = {"max_update_norm": 1.5}
    assert judged(policy, update_norm=1.5) == Accept()
    refusal = judged(policy, update_norm=1.75)
    assert refusal == Refuse(
        "the weights changed by 1.75, more than acceptance.max_update_norm = 1.5"
    )


def test_a_limit_needs_a_change_that_was_measured():
    with pytest.raises(RuntimeError, match="must measure the change"):
        judged({"max_update_norm": 1.5}, update_norm=None)


def test_refuses_a_loss_that_grew_more_than_allowed_only():
    policy = {"max_loss_ratio": 1.5}
    assert judged(policy, loss=3.0, first_loss=2.0) == Accept()
    refusal = judged(policy, loss=3.5, first_loss=2.0)
    assert isinstance(refusal, Refuse)
    assert "acceptance.max_loss_ratio = 1.5" in refusal.reason
