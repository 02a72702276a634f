"""What a difference is encoded to, what it is decoded to, and how many bytes it takes."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ray_snake.config import CodecConfig
from ray_snake.layers.codec import CODECS, PIECE_NUMBERS, decode, encode, encoded_nbytes

NAMES = sorted(CODECS)


def tensors(seed, *, shape=(6, 5), dtype=torch.float32, spread=1.0):
    draws = np.random.default_rng(seed)
    weight = torch.from_numpy(draws.normal(size=shape) * spread).to(dtype)
    return {
        "weight": weight,
        "bias": torch.from_numpy(draws.normal(size=shape[0]).astype("float32")),
        "steps": torch.tensor(seed),
    }


def moved(base, seed, step=0.01):
    """A version near another one, all of it changed."""
    other = tensors(seed, shape=tuple(base["weight"].shape))
    weight = base["weight"].float() + step * other["weight"]
    return {**other, "weight": weight.to(base["weight"].dtype)}


def travel(new, base, config, seed=0):
    delta = encode(3, 7, new, base=base, base_version=2, config=config, seed=seed)
    return delta, decode(delta, base, config)


@pytest.mark.parametrize("name", NAMES)
@given(
    rows=st.integers(1, 9),
    columns=st.integers(1, 9),
    seed=st.integers(0, 99),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float64]),
)
def test_everything_arrives_in_its_shape_and_dtype_and_bytes_are_as_predicted(
    name, rows, columns, seed, dtype
):
    config = CodecConfig(name=name, top_k=0.3)
    base = tensors(seed, shape=(rows, columns), dtype=dtype)
    new = moved(base, seed + 1)
    delta, arrived = travel(new, base, config)
    assert (delta.block, delta.version, delta.base, delta.codec) == (3, 7, 2, name)
    assert delta.nbytes == encoded_nbytes(new, config)
    assert list(arrived) == list(new)
    for key, tensor in arrived.items():
        assert (tensor.shape, tensor.dtype) == (new[key].shape, new[key].dtype)
    # Vectors and counters travel as they are.
    assert torch.equal(arrived["bias"], new["bias"])
    assert torch.equal(arrived["steps"], new["steps"])


@pytest.mark.parametrize(("name", "most"), [("bf16", 2**-8), ("int8", 1 / 127), ("int4", 1 / 7)])
@given(seed=st.integers(0, 999))
def test_the_error_is_less_than_a_step_of_the_channel(name, most, seed):
    base = tensors(seed, shape=(4, 33))
    new = moved(base, seed + 1)
    _, arrived = travel(new, base, CodecConfig(name=name), seed)
    difference = new["weight"] - base["weight"]
    largest = difference.abs().amax(dim=1, keepdim=True)
    assert ((arrived["weight"] - new["weight"]).abs() <= 1.001 * most * largest + 1e-7).all()


@pytest.mark.parametrize("name", ["int8", "int4"])
def test_rounding_is_right_on_average(name):
    base = {"weight": torch.zeros(1, 2)}
    # Far less than half a step, so that the nearest is always nothing.
    new = {"weight": torch.tensor([[1.0, 0.011]])}
    seen = [
        travel(new, base, CodecConfig(name=name), seed)[1]["weight"][0, 1] for seed in range(4000)
    ]
    step = {"int8": 1 / 127, "int4": 1 / 7}[name]
    error = step / (2 * len(seen) ** 0.5)
    assert abs(float(torch.stack(seen).mean()) - 0.011) < 4 * error


@pytest.mark.parametrize("name", NAMES)
def test_an_unchanged_block_arrives_unchanged(name):
    base = tensors(1)
    _, arrived = travel(base, base, CodecConfig(name=name))
    assert all(torch.equal(arrived[key], base[key]) for key in base)


def test_topk_sends_the_largest_and_leaves_the_rest():
    base = {"weight": torch.zeros(2, 3)}
    new = {"weight": torch.tensor([[0.5, -4.0, 0.25], [1.0, 0.0, 2.0]])}
    _, arrived = travel(new, base, CodecConfig(name="topk", top_k=0.5))
    assert arrived["weight"].tolist() == [[0.0, -4.0, 0.0], [1.0, 0.0, 2.0]]


@pytest.mark.parametrize("name", NAMES)
def test_the_same_seed_gives_the_same_bits_and_pieces_do_not_show(name):
    # More than one piece, of rows that don't divide it.
    base = tensors(1, shape=(700, 3 * PIECE_NUMBERS // 1000))
    new = moved(base, 2)
    config = CodecConfig(name=name)
    delta, arrived = travel(new, base, config, seed=5)
    again, arrived_again = travel(new, base, config, seed=5)
    for key, part in delta.parts["weight"].items():
        assert np.array_equal(part, again.parts["weight"][key])
    assert torch.equal(arrived["weight"], arrived_again["weight"])
    difference, sent = new["weight"] - base["weight"], arrived["weight"] - base["weight"]
    if name != "topk":
        cosine = torch.nn.functional.cosine_similarity(difference.flatten(), sent.flatten(), dim=0)
        assert cosine > 0.97


@pytest.mark.parametrize("name", NAMES)
def test_the_base_is_only_read(name):
    base = tensors(1)
    before = {key: tensor.clone() for key, tensor in base.items()}
    _, arrived = travel(moved(base, 2), base, CodecConfig(name=name))
    for tensor in arrived.values():
        tensor.zero_()
    assert all(torch.equal(base[key], before[key]) for key in base)


@pytest.mark.parametrize("name", ["int8", "int4"])
def test_weights_that_are_not_finite_do_not_stop_the_encoding(name):
    base = tensors(1)
    new = {**moved(base, 2), "weight": torch.full((6, 5), float("nan"))}
    delta, _ = travel(new, base, CodecConfig(name=name))
    assert delta.nbytes == encoded_nbytes(new, CodecConfig(name=name))
