import math

import pytest
import torch

from ray_snake.engine.change import CHUNK, are_finite, update_norm


def test_the_norm_is_taken_over_all_weights_together_whatever_their_shapes():
    torch.manual_seed(0)
    arrived = [torch.randn(shape) for shape in ((3, 4), (), (CHUNK + 5,))]
    weights = [weight + torch.randn(weight.shape) for weight in arrived]
    pairs = zip(weights, arrived, strict=True)
    expected = torch.cat([(one - before).flatten() for one, before in pairs]).norm()
    assert update_norm(weights, arrived) == pytest.approx(float(expected), rel=1e-5)
    assert update_norm(arrived, arrived) == 0.0


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_the_norm_of_a_change_to_what_is_no_number_is_infinite(bad):
    arrived = [torch.zeros(4)]
    assert update_norm([torch.tensor([0.0, bad, 1.0, 2.0])], arrived) == math.inf


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_one_number_that_is_none_is_found_in_any_floating_point_tensor(dtype):
    good = torch.ones(1000, dtype=dtype)
    assert are_finite([good, torch.arange(3)])
    for bad in (math.nan, math.inf, -math.inf):
        spoilt = good.clone()
        spoilt[700] = bad
        assert not are_finite([good, spoilt])
    opposite = good.clone()
    opposite[:2] = torch.tensor([math.inf, -math.inf])
    assert not are_finite([opposite])


def test_numbers_whose_sum_overflows_are_finite():
    assert are_finite([torch.full((4,), torch.finfo(torch.float32).max)])
