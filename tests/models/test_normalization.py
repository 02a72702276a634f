import pytest
import torch

from ray_snake.models.normalization import group_count, normalization


@pytest.mark.parametrize("channels", [1, 3, 8, 13, 16, 20, 64, 96, 512, 1024])
def test_groups_divide_the_channels_and_hold_at_least_four(channels):
    groups = group_count(channels)
    assert channels % groups == 0
    assert channels // groups >= min(channels, 4)


def test_wide_layers_have_the_paper_s_32_groups():
    assert [group_count(channels) for channels in (64, 128, 512)] == [16, 32, 32]


def test_group_norm_keeps_information_on_pictures_of_one_pixel():
    features = torch.arange(8.0).reshape(1, 8, 1, 1)
    assert normalization("group", 8)(features).std() > 0.5


def test_none_passes_features_on():
    features = torch.randn(2, 8, 4, 4)
    assert torch.equal(normalization("none", 8)(features), features)
