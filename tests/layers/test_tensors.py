import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ray_snake.layers.files import decode, encode
from ray_snake.layers.tensors import pack, unpack, weighted_mean

DTYPES = [
    torch.bfloat16,
    torch.float16,
    torch.float32,
    torch.float64,
    torch.int64,
    torch.int32,
    torch.uint8,
    torch.int8,
    torch.bool,
]


@st.composite
def tensors(draw):
    """A tensor of any bits, of any dtype that a block may hold, 0-d and empty ones too."""
    dtype = draw(st.sampled_from(DTYPES))
    shape = draw(st.lists(st.integers(0, 4), max_size=3))
    count = int(np.prod(shape, dtype=np.int64))
    if dtype == torch.bool:
        flags = draw(st.lists(st.booleans(), min_size=count, max_size=count))
        return torch.tensor(flags, dtype=torch.bool).reshape(shape)
    size = count * dtype.itemsize
    if count == 0:
        return torch.empty(shape, dtype=dtype)
    raw = np.frombuffer(draw(st.binary(min_size=size, max_size=size)), dtype=np.uint8)
    if draw(st.booleans()) and len(shape) == 2:
        # A transposed one is not contiguous.
        return torch.from_numpy(raw.copy()).view(dtype).reshape(shape[::-1]).t()
    return torch.from_numpy(raw.copy()).view(dtype).reshape(shape)


names = st.text(
    alphabet=st.characters(min_codepoint=33, max_codepoint=0x2FF), min_size=1, max_size=8
).filter(lambda name: name != "__metadata__")
blocks = st.dictionaries(names, tensors(), max_size=4)


def bits(tensor):
    return tensor.contiguous().reshape(-1).view(torch.uint8) if tensor.numel() else tensor


def assert_same(one, other):
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert tensor.dtype == other[name].dtype
        assert tensor.shape == other[name].shape
        assert torch.equal(bits(tensor), bits(other[name]))


@given(blocks)
def test_packing_and_unpacking_keeps_every_bit(block):
    state = pack(3, 7, block)
    assert (state.block, state.version) == (3, 7)
    assert state.nbytes == sum(one.numel() * one.element_size() for one in block.values())
    assert_same(unpack(state), block)


@given(blocks)
def test_encoding_and_decoding_keeps_every_bit_and_the_checksum(block):
    state = pack(3, 7, block)
    back = decode(b"".join(encode(state)), block=3, version=7)
    assert (back.block, back.version) == (3, 7)
    assert back.checksum() == state.checksum()
    assert_same(unpack(back), block)


@given(blocks)
def test_packed_arrays_are_contiguous(block):
    assert all(array.flags.c_contiguous for array in pack(0, 0, block).arrays.values())


def test_packing_copies_nothing():
    for dtype in DTYPES:
        tensor = torch.ones(2, 3, dtype=dtype)
        (array,) = pack(0, 0, {"a": tensor}).arrays.values()
        assert array.ctypes.data == tensor.data_ptr()


def test_unpacking_gives_views_of_the_same_memory():
    for dtype in DTYPES:
        state = pack(0, 0, {"a": torch.ones(2, 3, dtype=dtype)})
        (tensor,) = unpack(state).values()
        assert tensor.data_ptr() == state.arrays["a"].ctypes.data


@pytest.mark.filterwarnings("ignore:The given NumPy array is not writable")
def test_read_only_arrays_unpack_without_a_copy():
    state = pack(0, 0, {"a": torch.ones(2, 3), "b": torch.ones(4).bfloat16()})
    for array in state.arrays.values():
        array.flags.writeable = False
    unpacked = unpack(state, torch.device("cpu"))
    for name, tensor in unpacked.items():
        assert tensor.data_ptr() == state.arrays[name].ctypes.data


def test_weights_that_are_being_trained_pack_without_their_gradients():
    weight = torch.ones(3, requires_grad=True)
    assert not unpack(pack(0, 0, {"a": weight}))["a"].requires_grad


@given(
    st.integers(1, 40),
    st.sampled_from([torch.bfloat16, torch.float16, torch.float32, torch.float64]),
    st.integers(0, 2**31),
)
def test_a_mean_is_rounded_to_its_dtype_once(count, dtype, seed):
    draw = torch.Generator().manual_seed(seed)
    weights = torch.rand(count, generator=draw, dtype=torch.float64) + 0.01
    versions = [
        torch.randn(50, generator=draw, dtype=torch.float64).to(dtype) for _ in range(count)
    ]
    mean = weighted_mean([{"weight": one} for one in versions], weights.tolist())["weight"]
    assert mean.dtype == dtype
    shares = weights / weights.sum()
    exact = sum(one.double() * share for one, share in zip(versions, shares, strict=True))
    # Of each sum in float32 a rounding, and one at the end.
    summed = count * 1e-6 if dtype != torch.float64 else 1e-13
    assert torch.allclose(mean.double(), exact, rtol=torch.finfo(dtype).eps, atol=summed)


@given(st.integers(1, 40))
def test_the_mean_of_equal_versions_in_bfloat16_is_that_version(count):
    version = torch.randn(200, generator=torch.Generator().manual_seed(count)).bfloat16()
    mean = weighted_mean([{"weight": version}] * count, [1.0] * count)["weight"]
    assert torch.equal(mean, version)
