import torch

from ray_snake.engine.device import take_device


def test_without_a_gpu_share_the_cpu_is_taken():
    assert take_device(0) == torch.device("cpu")
    assert take_device(-1.0) == torch.device("cpu")
