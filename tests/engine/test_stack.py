import pytest
import torch
from torch import nn

from ray_snake.engine.stack import BlockStack
from ray_snake.errors import ModelError
from ray_snake.layers.files import decode, encode
from ray_snake.layers.tensors import pack, unpack
from ray_snake.models.registry import model_names


class FixedTable(nn.Module):
    """Has a buffer that does not travel."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 3)
        self.register_buffer("table", torch.arange(3.0), persistent=False)
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x):
        return self.linear(x) + self.table


class Tied(nn.Module):
    """Two layers that share one weight, and one layer under two names."""

    def __init__(self):
        super().__init__()
        self.down = nn.Linear(3, 3)
        self.up = nn.Linear(3, 3)
        self.up.weight = self.down.weight
        self.norm = nn.BatchNorm1d(3)
        self.same_norm = self.norm

    def forward(self, x):
        return self.same_norm(self.up(self.norm(self.down(x))))


def simple():
    return nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))


def assert_holds_nothing(stack):
    for block in range(len(stack)):
        assert all(tensor.is_meta for tensor in stack.tensors(block).values())
    assert all(parameter.is_meta for parameter in stack.parameters())


def copies(stack, block):
    return {name: tensor.clone() for name, tensor in stack.tensors(block).items()}


def test_a_sequential_is_cut_at_its_weighted_layers_with_norms_and_bare_layers_joined():
    network = nn.Sequential(
        nn.Flatten(),
        nn.Linear(4, 4),
        nn.LayerNorm(4),
        nn.ReLU(),
        nn.Linear(4, 4, bias=False),
        nn.BatchNorm1d(4),
        nn.GroupNorm(2, 4),
        nn.Linear(4, 2),
        nn.Softmax(-1),
    )
    stack = BlockStack.cut(network)
    assert stack.names == ("1", "4", "7")
    assert [len(block) for block in stack.blocks] == [4, 3, 2]
    x = torch.randn(5, 4)
    assert torch.equal(stack(x), network(x))


def test_named_layers_name_their_blocks():
    network = nn.Sequential()
    network.add_module("stem", nn.Linear(2, 3))
    network.add_module("act", nn.ReLU())
    network.add_module("head", nn.Linear(3, 1))
    assert BlockStack.cut(network).names == ("stem", "head")


@pytest.mark.parametrize("kind", [list, tuple, nn.ModuleList])
def test_the_entries_of_a_list_are_blocks_as_they_are(kind):
    blocks = [nn.Linear(3, 3), nn.LayerNorm(3), nn.Linear(3, 2)]
    stack = BlockStack.cut(kind(blocks))
    assert stack.names == ("0", "1", "2")
    assert [own is given for own, given in zip(stack.blocks, blocks, strict=True)] == [True] * 3


def test_bare_entries_of_a_list_join_the_block_before_them():
    stack = BlockStack.cut([nn.Flatten(), nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 2)])
    assert stack.names == ("1", "3")
    assert [type(layer) for layer in stack.blocks[0]] == [nn.Flatten, nn.Linear, nn.ReLU]


def test_a_stack_is_taken_as_it_is():
    stack = BlockStack.cut(simple())
    assert BlockStack.cut(stack) is stack


@pytest.mark.parametrize(
    ("network", "kind"),
    [(nn.Linear(2, 2), "Linear"), ([nn.Linear(2, 2), "x"], "list"), (3, "int")],
)
def test_what_is_no_list_of_layers_is_refused(network, kind):
    with pytest.raises(ModelError) as caught:
        BlockStack.cut(network)
    assert str(caught.value) == (
        f"model: {kind} can't be cut into blocks; "
        "return an nn.Sequential or a list of modules, each feeding the next"
    )


@pytest.mark.parametrize("network", [[], nn.Sequential(), nn.Sequential(nn.ReLU(), nn.Flatten())])
def test_a_network_without_weights_is_refused(network):
    with pytest.raises(ModelError, match="has no blocks"):
        BlockStack.cut(network)


def test_blocks_that_share_a_weight_are_refused_by_name():
    first, second = nn.Linear(3, 3), nn.Linear(3, 3)
    second.weight = first.weight
    with pytest.raises(ModelError, match="blocks 'a' and 'b' share a weight; put the layers"):
        BlockStack([("a", first), ("b", second)])


def test_a_layer_used_twice_is_refused():
    layer = nn.Linear(3, 3)
    with pytest.raises(ModelError, match="share a weight"):
        BlockStack.cut([layer, nn.Linear(3, 3), layer])


def test_layers_of_one_block_stay_tied_through_loading_and_unloading():
    stack = BlockStack.cut([Tied(), nn.Linear(3, 2)])
    tied = stack.blocks[0]
    tensors = copies(stack, 0)
    stack.unload(0)
    stack.load(0, tensors, trainable=True)
    assert tied.up.weight is tied.down.weight
    assert tied.same_norm.running_mean is tied.norm.running_mean
    assert len(list(tied.parameters())) == 5
    stack(torch.randn(4, 3)).sum().backward()
    assert tied.down.weight.grad is not None


def test_what_layers_of_one_block_share_travels_once():
    stack = BlockStack.cut([Tied()])
    state = pack(0, 0, stack.tensors(0))
    norm = ["norm.weight", "norm.bias", "norm.running_mean", "norm.running_var"]
    assert list(state.arrays) == [
        "down.weight",
        "down.bias",
        "up.bias",
        *norm,
        "norm.num_batches_tracked",
    ]
    back = BlockStack.skeleton(lambda: [Tied()])
    back.load(0, unpack(decode(b"".join(encode(state)), block=0, version=0)), trainable=False)
    stack.eval()
    x = torch.randn(4, 3)
    assert torch.equal(back(x), stack(x))


@pytest.mark.parametrize("name", model_names())
def test_a_skeleton_of_a_registered_network_holds_no_memory(name, registered):
    built, _ = registered(name)
    skeleton = BlockStack.skeleton(lambda: registered(name)[0])
    assert_holds_nothing(skeleton)
    assert skeleton.names == built.names
    assert skeleton.block_bytes() == built.block_bytes()


def test_a_skeleton_keeps_the_values_of_buffers_that_do_not_travel():
    skeleton = BlockStack.skeleton(lambda: [FixedTable(), nn.Linear(3, 2)])
    assert_holds_nothing(skeleton)
    assert skeleton.blocks[0].table.tolist() == [0, 1, 2]


def test_buffers_that_do_not_travel_go_where_the_network_computes_and_nothing_else_does():
    stack = BlockStack.cut([FixedTable()])
    stack.move_constants(torch.device("meta"))
    assert stack.blocks[0].table.is_meta
    assert not any(one.is_meta for one in stack.tensors(0).values())


def test_a_function_that_needs_real_values_gives_a_skeleton_all_the_same():
    def build():
        layer = nn.Linear(3, 2)
        layer.scale = layer.weight.sum().item()
        layer.numbers = layer.weight.detach().numpy()
        return [layer]

    assert_holds_nothing(BlockStack.skeleton(build))


def test_a_function_that_names_its_device_gives_a_skeleton_all_the_same():
    assert_holds_nothing(BlockStack.skeleton(lambda: [nn.Linear(3, 2, device="cpu")]))


@pytest.mark.parametrize("error", [TypeError, RuntimeError, KeyError])
@pytest.mark.parametrize("make", [BlockStack.skeleton, BlockStack.build])
def test_a_function_that_fails_is_a_model_error_with_its_reason(make, error):
    def build():
        raise error("three is not four")

    with pytest.raises(ModelError, match=rf"failed \({error.__name__}: .*three is not four"):
        make(build)


def test_building_a_skeleton_draws_nothing():
    before = torch.get_rng_state()
    BlockStack.skeleton(simple)
    # One that can't do without values.
    BlockStack.skeleton(lambda: [FixedTable(), nn.Linear(3, 2)])
    assert torch.equal(torch.get_rng_state(), before)


def test_loaded_blocks_compute_what_the_built_ones_do(registered):
    built, samples = registered("resnet18")
    skeleton = BlockStack.skeleton(lambda: registered("resnet18")[0])
    for block in range(len(built)):
        skeleton.load(block, built.tensors(block), trainable=False)
    x = torch.from_numpy(samples.inputs)
    assert torch.equal(skeleton(x), built.eval()(x))


def test_loading_copies_nothing():
    stack = BlockStack.cut(simple())
    tensors = copies(stack, 0)
    stack.load(0, tensors, trainable=False)
    assert stack.tensors(0)["0.weight"].data_ptr() == tensors["0.weight"].data_ptr()


@pytest.mark.parametrize("trainable", [True, False])
def test_loading_sets_gradients_and_mode(trainable):
    stack = BlockStack.cut(simple())
    stack.load(0, copies(stack, 0), trainable=trainable)
    assert all(one.requires_grad is trainable for one in stack.blocks[0].parameters())
    assert stack.blocks[0].training is trainable


@pytest.mark.parametrize(
    "change",
    [
        lambda tensors: {**tensors, "0.weight": torch.zeros(9, 9)},
        lambda tensors: {"0.weight": tensors["0.weight"]},
        lambda tensors: {**tensors, "more": torch.zeros(1)},
    ],
)
def test_weights_of_another_network_are_refused_with_the_blocks_name(change):
    stack = BlockStack.cut(simple())
    with pytest.raises(ModelError) as caught:
        stack.load(0, change(copies(stack, 0)), trainable=False)
    assert str(caught.value).startswith("block 0 (0): can't take these weights (")
    assert len(str(caught.value).splitlines()) == 1


def test_unloading_lets_go_of_the_block_and_of_no_other():
    stack = BlockStack.cut(simple())
    stack.unload(0)
    assert all(tensor.is_meta for tensor in stack.tensors(0).values())
    assert not any(tensor.is_meta for tensor in stack.tensors(1).values())


def test_a_part_of_the_stack_runs_on_its_own():
    stack = BlockStack.cut(simple())
    x = torch.randn(2, 3)
    assert torch.equal(stack(stack(x, 0, 1), 1), stack(x))
    assert torch.equal(stack(x, 1, 1), x)


def test_freeze_all_but_leaves_gradients_and_training_mode_to_the_trained():
    stack = BlockStack.cut([nn.Linear(2, 2) for _ in range(4)])
    stack.freeze_all_but((1, 3))
    assert [block.training for block in stack.blocks] == [False, True, False, True]
    assert [block.weight.requires_grad for block in stack.blocks] == [False, True, False, True]


def test_block_bytes_count_weights_and_travelling_buffers():
    stack = BlockStack.cut([FixedTable(), nn.BatchNorm1d(2).double()])
    assert stack.block_bytes() == (4 * (9 + 3 + 1), 8 * 2 * 4 + 8)
