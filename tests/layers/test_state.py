import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ray_snake.layers.state import LayerState, weights_sha256
from ray_snake.layers.tensors import pack

BROKEN = [float("nan"), float("inf"), float("-inf")]


def make_state(block=0, version=0, **arrays):
    arrays = arrays or {
        "weight": np.arange(6, dtype=np.float32).reshape(2, 3),
        "steps": np.array(4, dtype=np.int64),
    }
    dtypes = {name: str(array.dtype) for name, array in arrays.items()}
    return LayerState(block=block, version=version, arrays=arrays, dtypes=dtypes)


def both_sums(state):
    return state.checksum(), weights_sha256([state])


def assert_told_apart(one, other):
    assert one.checksum() != other.checksum()
    assert weights_sha256([one]) != weights_sha256([other])


@given(
    content=st.binary(min_size=1, max_size=64),
    at=st.integers(0),
    flip=st.integers(1, 255),
)
def test_any_changed_byte_changes_the_sums(content, at, flip):
    changed = bytearray(content)
    changed[at % len(content)] ^= flip
    states = [make_state(a=np.frombuffer(bytes(c), dtype=np.uint8)) for c in (content, changed)]
    assert_told_apart(*states)


@given(st.text(min_size=1, max_size=8), st.text(min_size=1, max_size=8))
def test_another_name_changes_the_sums(name, other):
    array = np.ones(3, dtype=np.float32)
    one, two = make_state(**{name: array}), make_state(**{other: array})
    assert (both_sums(one) == both_sums(two)) is (name == other)


def test_another_dtype_of_the_same_bytes_changes_the_sums():
    array = np.arange(4, dtype=np.float32)
    assert_told_apart(make_state(a=array), make_state(a=array.view(np.int32)))
    raw = make_state(a=np.zeros(2, dtype=np.uint16))
    assert_told_apart(raw, dataclasses.replace(raw, dtypes={"a": "bfloat16"}))


@pytest.mark.parametrize(("shape", "other"), [((6,), (2, 3)), ((2, 3), (3, 2)), ((), (1,))])
def test_another_shape_of_the_same_bytes_changes_the_sums(shape, other):
    array = np.ones(shape, dtype=np.float32)
    assert_told_apart(make_state(a=array), make_state(a=array.reshape(other)))


def test_another_block_number_changes_the_sums():
    assert_told_apart(make_state(block=0), make_state(block=1))


def test_memory_layout_and_order_of_arrays_do_not_matter():
    array = np.arange(12, dtype=np.float32).reshape(3, 4)
    strided = np.asfortranarray(array)
    one = make_state(a=array, b=array)
    assert both_sums(one) == both_sums(make_state(b=strided, a=strided))


def test_the_sums_do_not_depend_on_versions():
    assert both_sums(make_state(version=0)) == both_sums(make_state(version=7))


def test_the_sum_of_all_weights_depends_on_every_block():
    states = [make_state(block=block) for block in range(3)]
    whole = weights_sha256(states)
    assert whole == weights_sha256([dataclasses.replace(one, version=9) for one in states])
    for block in range(3):
        changed = list(states)
        changed[block] = make_state(block=block, weight=np.ones(2, dtype=np.float32))
        assert weights_sha256(changed) != whole
    assert weights_sha256(states[:2]) != whole


def test_sums_are_hexadecimal_of_their_length():
    state = make_state()
    assert len(bytes.fromhex(state.checksum())) == 16
    assert len(bytes.fromhex(weights_sha256([state]))) == 32


def test_bytes_are_those_of_all_arrays():
    assert make_state().nbytes == 6 * 4 + 8


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("value", BROKEN)
def test_one_broken_value_makes_a_state_not_finite(dtype, value):
    tensor = torch.ones(2, 3, dtype=dtype)
    tensor[1, 2] = value
    assert not pack(0, 0, {"fine": torch.ones(2), "a": tensor}).is_finite()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_the_largest_and_smallest_numbers_are_finite(dtype):
    limits = torch.finfo(dtype)
    tensor = torch.tensor([limits.max, limits.min, limits.tiny, 0.0, -0.0], dtype=dtype)
    assert pack(0, 0, {"a": tensor}).is_finite()


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.bool])
def test_whole_numbers_are_finite_whatever_their_bits(dtype):
    assert pack(0, 0, {"a": torch.tensor([0, 1, 255, 127]).to(dtype)}).is_finite()


def test_whole_numbers_with_the_bits_of_a_broken_bfloat16_are_finite():
    assert make_state(a=np.array([0x7F80], dtype=np.uint16)).is_finite()


def test_empty_arrays_are_finite():
    assert pack(0, 0, {"a": torch.ones(0, 3), "b": torch.ones(0).bfloat16()}).is_finite()
