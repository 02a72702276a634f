"""The measured peak of what torch allocates."""

import torch

from ray_snake.engine.memory import peak_bytes

MEGABYTE = 250_000


def test_what_is_held_at_the_same_time_counts_once():
    kept = []

    def work():
        first = torch.empty(MEGABYTE)
        second = torch.empty(2 * MEGABYTE)
        del first, second
        kept.append(torch.empty(MEGABYTE // 2))

    assert peak_bytes(work) == 3_000_000


def test_what_was_there_before_does_not_count():
    before = torch.empty(4 * MEGABYTE)
    assert peak_bytes(lambda: before.zero_()) == 0


def test_a_view_of_other_memory_does_not_count():
    array = torch.empty(MEGABYTE).numpy()
    assert peak_bytes(lambda: torch.from_numpy(array).zero_()) == 0


def test_gradients_and_saved_activations_count():
    layer = torch.nn.Linear(100, 100, bias=False)
    x = torch.ones(10, 100, requires_grad=True)
    peak = peak_bytes(lambda: layer(x).square().sum().backward())
    weights, activations = 4 * 100 * 100, 4 * 10 * 100
    assert peak >= weights + 2 * activations


def test_the_release_of_what_was_there_before_takes_nothing_off():
    kept = []
    assert peak_bytes(lambda: kept.append(torch.zeros(10_000))) == 40_000

    def work():
        kept.clear()
        torch.zeros(1_000)

    assert peak_bytes(work) == 4_000
