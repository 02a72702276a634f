import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from ray_snake.engine.samples import in_order, load_batch, shuffled
from ray_snake.planning.cost import batches_per_epoch

sizes = {"rows": st.integers(1, 60), "batch_size": st.integers(1, 20)}


@given(**sizes, seed=st.integers(0, 9))
def test_an_epoch_takes_every_row_once_but_for_a_lone_last_one(rows, batch_size, seed):
    batches = list(shuffled(rows, batch_size, seed))
    taken = np.concatenate(batches).tolist()
    lone = batch_size > 1 and rows > batch_size and rows % batch_size == 1
    assert len(set(taken)) == len(taken) == rows - (1 if lone else 0)
    assert set(taken) <= set(range(rows))


@given(**sizes)
def test_batches_are_full_but_for_the_last_which_has_two_rows_or_more(rows, batch_size):
    *others, last = shuffled(rows, batch_size, 0)
    assert all(len(batch) == batch_size for batch in others)
    assert min(2, batch_size, rows) <= len(last) <= batch_size


@given(**sizes)
def test_batches_per_epoch_is_what_an_epoch_yields(rows, batch_size):
    assert batches_per_epoch(rows, batch_size) == len(list(shuffled(rows, batch_size, 3)))


@given(**sizes, seed=st.integers(0, 9))
def test_rows_put_together_by_length_are_the_same_in_as_many_batches(rows, batch_size, seed):
    lengths = np.random.default_rng(seed).integers(1, 9, rows)
    plain = list(shuffled(rows, batch_size, seed))
    grouped = list(shuffled(rows, batch_size, seed, lengths))
    assert [len(one) for one in grouped] == [len(one) for one in plain]
    assert sorted(np.concatenate(grouped)) == sorted(np.concatenate(plain))


def test_a_batch_by_length_has_neighbours_of_its_pool_and_comes_in_any_order():
    lengths = np.random.default_rng(0).permutation(256)
    found = [lengths[batch] for batch in shuffled(256, 16, 1, lengths)]
    assert all(one.max() - one.min() == 15 for one in found)
    firsts = [one.min() for one in found]
    assert firsts != sorted(firsts)


def test_the_order_is_decided_by_the_seed():
    first, again, other = (np.concatenate(list(shuffled(50, 8, seed))) for seed in (1, 1, 2))
    assert first.tolist() == again.tolist()
    assert first.tolist() != other.tolist()


@given(**sizes)
def test_in_order_takes_every_row_in_order(rows, batch_size):
    batches = list(in_order(rows, batch_size))
    assert np.concatenate(batches).tolist() == list(range(rows))
    assert all(len(batch) <= batch_size for batch in batches)


def test_a_batch_is_loaded_in_the_order_of_its_rows(array_samples):
    samples = array_samples(np.arange(8, dtype=np.float32).reshape(4, 2), np.arange(4))
    inputs, targets = load_batch(samples, np.array([3, 0]), torch.device("cpu"))
    assert inputs.tolist() == [[6, 7], [0, 1]]
    assert targets.tolist() == [3, 0]
    assert (inputs.dtype, targets.dtype) == (torch.float32, torch.int64)
