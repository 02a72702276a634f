import pytest
import torch
from torch import nn

from ray_snake.engine.fit import output_shape
from ray_snake.engine.stack import BlockStack
from ray_snake.errors import DataError
from ray_snake.models.registry import model_names

REMEDY = "set model.options to the data's channels and size, or use the data it is made for"


def refusal(build, shape, *, integer_inputs=False):
    with pytest.raises(DataError) as caught:
        output_shape(
            BlockStack.skeleton(build), shape, integer_inputs=integer_inputs, subject="a.arrow"
        )
    text = str(caught.value)
    assert text.startswith(f"a.arrow: rows of shape {shape} don't fit the model: block ")
    assert text.endswith(f"; {REMEDY}")
    assert len(text.splitlines()) == 1
    return text


@pytest.mark.parametrize("name", model_names())
def test_registered_networks_give_the_shape_of_their_output(name, registered):
    _, samples = registered(name)
    skeleton = BlockStack.skeleton(lambda: registered(name)[0])
    shape = output_shape(
        skeleton,
        samples.inputs.shape[1:],
        integer_inputs=samples.inputs.dtype == "int64",
        subject="a.arrow",
    )
    assert shape == (4,)


def test_token_numbers_are_looked_up():
    skeleton = BlockStack.skeleton(lambda: [nn.Embedding(7, 5), nn.Linear(5, 7)])
    assert output_shape(skeleton, (3,), integer_inputs=True, subject="a.arrow") == (3, 7)


def test_a_number_that_is_no_token_is_refused():
    skeleton = BlockStack.skeleton(lambda: [nn.Embedding(7, 5), nn.Linear(5, 7)])
    with pytest.raises(DataError, match=r"a\.arrow: holds the number 7, which block '0' does not"):
        output_shape(skeleton, (3,), integer_inputs=True, subject="a.arrow", largest=7)


def test_a_network_of_one_number_a_row_has_no_output_axis():
    skeleton = BlockStack.skeleton(lambda: nn.Sequential(nn.Linear(2, 1), nn.Flatten(0)))
    assert output_shape(skeleton, (2,), integer_inputs=False, subject="a.arrow") == ()


def test_the_block_that_rows_do_not_fit_is_named(registered):
    assert "block 'conv1' says" in refusal(lambda: registered("cnn")[0], (3, 8, 8))
    assert "block 'hidden1' says" in refusal(lambda: registered("mlp")[0], (5,))
    assert "block '1' says" in refusal(lambda: [nn.Linear(2, 3), nn.Linear(4, 1)], (2,))


def test_rows_of_the_wrong_kind_of_number_are_refused():
    assert "block '0' says" in refusal(lambda: [nn.Embedding(7, 5), nn.Linear(5, 7)], (3,))
    assert "block '0' says" in refusal(lambda: [nn.Linear(3, 5)], (3,), integer_inputs=True)


@pytest.mark.parametrize("after", [[], [nn.Linear(4, 1)]])
def test_a_block_that_returns_more_than_a_tensor_is_refused(after):
    text = refusal(lambda: [nn.LSTM(2, 4, batch_first=True), *after], (3, 2))
    assert "block '0' says it returns tuple, not one tensor" in text


def test_a_blocks_own_error_of_any_kind_is_told():
    class Fails(nn.Linear):
        def forward(self, x):
            raise KeyError("depth")

    assert "depth" in refusal(lambda: [Fails(2, 2)], (2,))


@pytest.mark.parametrize("shape", [(3,), (2,)])
def test_the_skeleton_holds_nothing_afterwards_either_way(shape):
    skeleton = BlockStack.skeleton(lambda: [nn.Linear(3, 3), nn.Linear(3, 2)])
    try:
        output_shape(skeleton, shape, integer_inputs=False, subject="a.arrow")
    except DataError:
        assert shape == (2,)
    assert all(parameter.is_meta for parameter in skeleton.parameters())


def test_looking_draws_nothing_from_torch():
    skeleton = BlockStack.skeleton(lambda: [nn.Linear(3, 3), nn.Dropout(0.5)])
    before = torch.get_rng_state()
    output_shape(skeleton, (3,), integer_inputs=False, subject="a.arrow")
    assert torch.equal(torch.get_rng_state(), before)
