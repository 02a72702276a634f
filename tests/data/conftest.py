import numpy as np
import pytest

from ray_snake.data import make_table


@pytest.fixture
def pictures():
    """Sixty random colour pictures of three classes and their labels."""
    generator = np.random.Generator(np.random.PCG64(7))
    inputs = generator.integers(0, 256, (60, 3, 4, 5), dtype=np.uint8)
    return inputs, np.arange(60, dtype=np.int64) % 3


@pytest.fixture
def picture_table(pictures):
    return make_table(*pictures, {"mean": [0.5, 0.4, 0.3], "std": [0.25, 0.2, 0.1]})
