import tempfile

import numpy as np
import pytest
import torch

from ray_snake.engine.cache import RowCache

CPU = torch.device("cpu")
ROWS = 10


def outputs(dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(ROWS, 3, 2, generator=generator).to(dtype)


def filled(limit_bytes, dtype=torch.float32):
    cache = RowCache(ROWS, limit_bytes=limit_bytes)
    for part in outputs(dtype).split(4):
        cache.append(part)
    return cache


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64])
@pytest.mark.parametrize("limit_bytes", [0, 2**20])
def test_rows_come_back_in_the_order_asked_for_bit_for_bit(limit_bytes, dtype):
    rows = np.array([9, 0, 4, 4])
    gathered = filled(limit_bytes, dtype).gather(rows, CPU)
    assert gathered.dtype == dtype
    assert torch.equal(gathered, outputs(dtype)[rows])


def test_only_what_is_larger_than_the_limit_goes_to_a_file(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "no such folder"))
    size = ROWS * 6 * 4
    filled(size)
    with pytest.raises(FileNotFoundError):
        filled(size - 1)


def test_the_file_is_gone_from_its_folder_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    cache = filled(0)
    assert list(tmp_path.iterdir()) == []
    assert torch.equal(cache.gather(np.arange(ROWS), CPU), outputs())


def test_what_is_gathered_stays_when_the_cache_is_closed():
    cache = filled(0)
    gathered = cache.gather(np.arange(ROWS), CPU)
    cache.close()
    assert torch.equal(gathered, outputs())
    with pytest.raises(RuntimeError, match="empty"):
        cache.gather(np.arange(ROWS), CPU)


def test_the_cache_keeps_no_graph():
    cache = RowCache(2, limit_bytes=2**20)
    cache.append(torch.ones(2, 3, requires_grad=True) * 2)
    assert not cache.gather(np.arange(2), CPU).requires_grad
