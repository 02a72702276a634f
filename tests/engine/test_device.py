import torch

from ray_snake.engine.device import compute_repeatably, take_device


def test_without_a_gpu_share_the_cpu_is_taken():
    assert take_device(0) == torch.device("cpu")
    assert take_device(-1.0) == torch.device("cpu")


def test_a_gpus_algorithms_are_those_that_repeat_themselves(monkeypatch):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    fills = torch.utils.deterministic.fill_uninitialized_memory
    try:
        compute_repeatably()
        assert torch.are_deterministic_algorithms_enabled()
        # What has no such form still runs.
        assert torch.is_deterministic_algorithms_warn_only_enabled()
        assert not torch.utils.deterministic.fill_uninitialized_memory
    finally:
        torch.use_deterministic_algorithms(False)
        torch.utils.deterministic.fill_uninitialized_memory = fills
