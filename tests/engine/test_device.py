import pytest
import torch

from ray_snake.engine import device
from ray_snake.engine.device import (
    compute_repeatably,
    free_of_share,
    repeatably,
    take_device,
)

GPU = torch.device("cuda")


def test_without_a_gpu_share_the_cpu_is_taken():
    assert take_device(0) == torch.device("cpu")
    assert take_device(-1.0) == torch.device("cpu")


@pytest.mark.parametrize(
    ("free", "limit", "reserved", "allocated", "found"),
    [
        # Alone on its GPU, and with a fifth of it; others have most of it; its share is used up.
        (70, 80, 10, 4, 76),
        (70, 16, 10, 4, 12),
        (2, 16, 10, 4, 8),
        (70, 16, 16, 15, 1),
        (70, 16, 17, 17, 0),
    ],
)
def test_what_is_free_of_a_share_is_no_more_than_the_share(free, limit, reserved, allocated, found):
    own = {"limit": limit, "reserved": reserved, "allocated": allocated}
    assert free_of_share(free=free, **own) == found


@pytest.fixture
def as_on_a_gpu(monkeypatch):
    monkeypatch.setattr(device, "_refuses", True)
    fills = torch.utils.deterministic.fill_uninitialized_memory
    compute_repeatably()
    yield
    torch.use_deterministic_algorithms(False)
    torch.utils.deterministic.fill_uninitialized_memory = fills


def put():
    """Something that torch has no repeatable way for, on the CPU neither."""
    found.append(torch.is_deterministic_algorithms_warn_only_enabled())
    return torch.zeros(3).put_(torch.tensor([1]), torch.tensor([2.0]))


found = []


def test_what_has_a_repeatable_way_is_done_in_it(as_on_a_gpu):
    assert not repeatably(torch.is_deterministic_algorithms_warn_only_enabled, GPU)
    assert torch.is_deterministic_algorithms_warn_only_enabled()


def test_what_has_no_repeatable_way_is_done_again_with_a_warning(as_on_a_gpu):
    found.clear()
    with pytest.warns(UserWarning, match="may differ from run to run: put_"):
        result = repeatably(put, GPU)
    assert result.tolist() == [0, 2, 0]
    assert found == [False, True]
    # From then on nobody starts in vain.
    repeatably(put, GPU)
    assert found == [False, True, True]


def test_other_errors_are_not_tried_again(as_on_a_gpu):
    calls = []

    def fail():
        calls.append(1)
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        repeatably(fail, GPU)
    assert len(calls) == 1
    assert torch.is_deterministic_algorithms_warn_only_enabled()


def test_the_cpu_repeats_itself_anyway(as_on_a_gpu):
    assert repeatably(torch.is_deterministic_algorithms_warn_only_enabled, torch.device("cpu"))


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
