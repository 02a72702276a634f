"""Frozen blocks that run lean: the same gradients for less memory."""

import itertools
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.autograd.graph import saved_tensors_hooks

from ray_snake.config import LossConfig, TrainingConfig
from ray_snake.engine.lean import lean_run
from ray_snake.engine.lean_layers import pack, unpack
from ray_snake.engine.memory import peak_bytes
from ray_snake.engine.objective import Objective
from ray_snake.engine.profile import profile_blocks
from ray_snake.engine.stack import BlockStack
from ray_snake.engine.suffix import suffix_runs
from ray_snake.engine.visit import train_visit
from ray_snake.models.registry import build_model, model_names
from ray_snake.planning.cost import predict_visit
from ray_snake.planning.span import Span, Visit

OPTIONS = {
    "mlp": [{"inputs": 64, "classes": 4, "hidden": [16, 12]}],
    "cnn": [{"width": 8, "classes": 4, "norm": norm} for norm in ("group", "batch", "none")],
    "vgg11": [{"width": 0.125, "classes": 4, "norm": norm} for norm in ("group", "batch", "none")],
    "resnet18": [
        {"width": 0.125, "classes": 4, "norm": norm} for norm in ("group", "batch", "none")
    ],
}
SHAPES = {"mlp": (1, 8, 8), "cnn": (1, 9, 7), "vgg11": (3, 16, 16), "resnet18": (3, 7, 7)}
NETWORKS = [(name, options) for name, several in OPTIONS.items() for options in several]
SUFFIXES = ("eager", "recompute", "lean")
# Of VGG-11, with the head beside each.
SPANS = [(0, 1, 9), (2, 3, 9), (4, 5, 9), (6, 7, 9)]


def named(network):
    name, options = network
    return f"{name}-{options.get('norm', 'plain')}"


def build(name, options):
    torch.manual_seed(3)
    stack = BlockStack.cut(build_model(name, options))
    with torch.no_grad():
        for parameter in stack.parameters():
            # Zeros, such as a residual branch's last norm, would hide missing gradients.
            parameter.add_(torch.randn_like(parameter) * 0.05)
        for key, buffer in stack.named_buffers():
            if key.endswith("running_var"):
                buffer.uniform_(0.5, 1.5)
            if key.endswith("running_mean"):
                buffer.normal_(0, 0.2)
    return stack


def gradients(stack, trained, features, suffix, *, bf16=False):
    """Return the trained weights' gradients in one vector, with the loss."""
    stack.freeze_all_but(trained)
    stack.runs = suffix_runs(stack, trained, suffix)
    stack.zero_grad()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
        outputs = stack(features, trained[0])
        loss = F.cross_entropy(outputs, torch.arange(len(outputs)) % outputs.shape[1])
    loss.backward()
    stack.runs = {}
    assert all(one.grad is None for one in stack.parameters() if not one.requires_grad)
    parts = [one.grad.flatten() for one in stack.parameters() if one.requires_grad]
    return torch.cat([*parts, loss.detach()[None]])


class Saved:
    """Bytes that autograd keeps, each piece of memory once, and weights not at all."""

    def __init__(self, module):
        tensors = itertools.chain(module.parameters(), module.buffers())
        self.seen = {one.untyped_storage().data_ptr() for one in tensors}
        self.bytes = 0
        # What is kept stays where it is, or else its memory would be given to others.
        self.kept = []

    def pack(self, tensor):
        memory = tensor.untyped_storage()
        if memory.data_ptr() not in self.seen:
            self.seen.add(memory.data_ptr())
            self.bytes += memory.nbytes()
            self.kept.append(tensor)
        return tensor


def kept_bytes(module, work):
    saved = Saved(module)
    with saved_tensors_hooks(saved.pack, lambda tensor: tensor):
        output = work()
    return saved.bytes, output


def compare(block, x, *, bf16=False):
    """Check a frozen block's output and gradient; return the bytes kept by torch and by lean."""
    block.requires_grad_(False).eval()
    results = []
    for run in (block, lean_run(block)):
        leaf = x.clone().requires_grad_()
        # Not a leaf, so that layers may work in place.
        inputs = leaf * 1
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
            kept, y = kept_bytes(block, partial(run, inputs))
        torch.manual_seed(5)
        y.backward(torch.randn_like(y))
        results.append((kept, y.detach(), leaf.grad))
    (eager, y, gradient), (lean, other_y, other_gradient) = results
    assert torch.equal(other_y, y)
    assert other_y.dtype == y.dtype
    torch.testing.assert_close(other_gradient, gradient)
    return eager, lean


def test_every_registered_network_is_tested():
    # Those of token sequences in test_decoder.py and test_huggingface.py.
    assert {*OPTIONS, "decoder", "huggingface"} == set(model_names())


@pytest.mark.parametrize("network", NETWORKS, ids=named)
def test_gradients_are_those_of_torch_for_every_span(network):
    stack = build(*network)
    inputs = torch.randn(4, *SHAPES[network[0]])
    for start in range(len(stack)):
        stack.eval()
        with torch.no_grad():
            features = stack(inputs, 0, start)
        for stop in range(start + 1, len(stack) + 1):
            for trained in {(*range(start, stop),), (*range(start, stop), len(stack) - 1)}:
                eager = gradients(stack, trained, features, "eager")
                lean = gradients(stack, trained, features, "lean")
                torch.testing.assert_close(lean, eager, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("network", NETWORKS, ids=named)
def test_gradients_are_those_of_torch_in_bfloat16(network):
    stack = build(*network)
    features = torch.randn(4, *SHAPES[network[0]])
    eager, lean = (gradients(stack, (0,), features, one, bf16=True) for one in ("eager", "lean"))
    # Half of a bfloat16's last digit, some layers deep.
    assert (lean - eager).norm() <= 0.01 * eager.norm()


def test_trained_blocks_are_run_by_torch():
    stack = build("vgg11", OPTIONS["vgg11"][1])
    assert set(suffix_runs(stack, (1, 2, 9), "lean")) == set(range(10)) - {1, 2, 9}
    assert suffix_runs(stack, (1, 2, 9), "eager") == {}


@pytest.mark.parametrize("norm", ["group", "batch", "none"])
def test_less_is_kept_at_every_span_of_vgg11(norm):
    stack = build("vgg11", {"width": 0.25, "norm": norm})
    inputs = torch.randn(4, 3, 32, 32)
    for trained in SPANS[:3]:
        stack.freeze_all_but(trained)
        first = trained[1] + 1
        with torch.no_grad():
            features = stack(inputs, 0, first)
        kept = {}
        for suffix in SUFFIXES:
            stack.runs = suffix_runs(stack, trained, suffix)
            leaf = features.clone().requires_grad_()
            kept[suffix], _ = kept_bytes(stack, partial(stack, leaf, first, 9))
        assert kept["lean"] < kept["recompute"] < kept["eager"]
        if norm != "group":
            assert kept["lean"] < 0.2 * kept["recompute"]


@pytest.mark.parametrize("norm", ["group", "batch", "none"])
def test_a_visits_peak_is_lower(norm, random_samples):
    samples = random_samples(32, (3, 32, 32), classes=10)

    def peak(suffix):
        stack = build("vgg11", {"width": 0.25, "norm": norm})
        return peak_bytes(lambda: visit(stack, samples, suffix))

    eager, recompute, lean = (peak(one) for one in SUFFIXES)
    assert lean < recompute < eager


def visit(stack, samples, suffix, **settings):
    train_visit(
        stack,
        samples,
        trained=(1, 9),
        learning_rate=0.01,
        seed=1,
        training=TrainingConfig(suffix=suffix, **settings),
        objective=Objective(LossConfig(logit_adjustment=0.0, distillation=0.0)),
    )


@pytest.mark.parametrize("norm", ["group", "batch"])
def test_a_lean_visit_takes_about_the_memory_that_is_predicted(norm, random_samples):
    options = {"width": 0.25, "norm": norm}
    skeleton = BlockStack.skeleton(lambda: build_model("vgg11", options))
    costs, _ = profile_blocks(skeleton, (3, 32, 32), integer_inputs=False, batch=4)
    predicted = predict_visit(
        Visit(number=1, trip=1, node=0, span=Span(1, 2), trained=(1, 9)),
        costs,
        rows=32,
        steps=1,
        training=TrainingConfig(suffix="lean"),
        loss=LossConfig(distillation=0.0),
    )
    samples = random_samples(32, (3, 32, 32), classes=10)
    stack = build("vgg11", options)
    measured = peak_bytes(lambda: visit(stack, samples, "lean"))
    assert measured <= predicted.private_bytes <= 1.3 * measured


def test_a_visit_comes_to_the_same_weights_and_leaves_nothing_behind(random_samples):
    samples = random_samples(64, (3, 16, 16))
    weights = []
    for suffix in ("eager", "lean"):
        stack = build(*NETWORKS[5])
        visit(stack, samples, suffix, epochs=2, batch_size=8)
        assert stack.runs == {}
        weights.append(torch.cat([one.detach().flatten() for one in stack.parameters()]))
    torch.testing.assert_close(weights[1], weights[0], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(4, 6, 3),
        nn.Conv2d(4, 6, (3, 2), stride=(2, 3), padding=(1, 0), bias=False),
        nn.Conv2d(4, 8, 3, stride=3, padding=2, dilation=2, groups=2),
        nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"),
        nn.Conv2d(4, 4, 1, stride=4),
        nn.Conv2d(4, 4, 3, padding="same"),
        nn.BatchNorm2d(4),
        nn.BatchNorm2d(4, affine=False),
        nn.BatchNorm2d(4, track_running_stats=False),
        nn.AvgPool2d(2),
        nn.AvgPool2d(3, stride=2, padding=1, ceil_mode=True, count_include_pad=False),
        nn.AdaptiveAvgPool2d(1),
        nn.AdaptiveAvgPool2d(3),
        nn.LayerNorm([11, 10]),
        nn.GroupNorm(2, 4),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Linear(10, 12),
    ],
    ids=str,
)
@pytest.mark.parametrize("bf16", [False, True])
def test_a_layer_has_the_gradient_that_it_has_in_torch(layer, bf16):
    torch.manual_seed(0)
    x = torch.randn(3, 4, 11, 10)
    _, lean = compare(layer, x, bf16=bf16)
    # No more than its input, and a batch norm's scale.
    assert lean <= x.nbytes + 4 * 4


@pytest.mark.parametrize(
    ("convolution", "shape"), [(nn.Conv1d, (9,)), (nn.Conv3d, (5, 6, 7))], ids=["1d", "3d"]
)
def test_convolutions_of_other_dimensions_keep_nothing(convolution, shape):
    layer = convolution(4, 6, 3, stride=2, padding=1)
    assert compare(layer, torch.randn(3, 4, *shape))[1] == 0


@pytest.mark.parametrize(
    "layer",
    [
        nn.MaxPool2d(2),
        nn.MaxPool2d(2, ceil_mode=True),
        nn.MaxPool2d(3, stride=2, padding=1),
        nn.MaxPool2d(3, stride=1, padding=1, dilation=2),
        nn.MaxPool2d((2, 3), stride=(1, 2), padding=(1, 0), ceil_mode=True),
        nn.MaxPool2d(2, stride=3),
        nn.MaxPool2d((17, 16), stride=1, padding=8),
    ],
    ids=str,
)
def test_of_equal_values_max_pooling_takes_the_one_that_torch_takes(layer):
    x = torch.randint(0, 3, (4, 2, 11, 10), generator=torch.Generator().manual_seed(0)).float()
    x[0] = -torch.inf
    compare(layer, x)


def test_max_pooling_leaves_its_input_as_it_is():
    x = torch.tensor([[[[1.0, 3.0, 2.0, 5.0, 4.0]]]])
    compare(nn.MaxPool2d((1, 3), stride=1), x)
    leaf = x.clone().requires_grad_()
    lean_run(nn.MaxPool2d((1, 3), stride=1))(leaf)
    assert torch.equal(leaf, x)


def test_max_pooling_of_many_planes_is_that_of_each():
    compare(nn.MaxPool2d(2), torch.randn(7, 61, 32, 32))


def test_max_pooling_keeps_a_byte_for_each_output():
    assert compare(nn.MaxPool2d(2), torch.randn(2, 3, 8, 6))[1] == 2 * 3 * 4 * 3


def test_what_relu_cuts_off_stays_zero_whatever_its_gradient():
    x = torch.tensor([[-1.0, 2.0, 0.0]], requires_grad=True)
    gradient = torch.tensor([[torch.inf, 3.0, torch.nan]])
    lean_run(nn.ReLU())(x).backward(gradient)
    assert x.grad.tolist() == [[0.0, 3.0, 0.0]]


@given(st.lists(st.booleans(), max_size=70))
def test_packed_bits_are_unpacked_to_themselves(bits):
    packed = pack(torch.tensor(bits, dtype=torch.bool))
    assert len(packed) == -(-len(bits) // 8)
    assert unpack(packed, torch.Size([len(bits)])).tolist() == bits


def chain(*layers):
    torch.manual_seed(0)
    return nn.Sequential(*layers)


@pytest.mark.parametrize(
    "layers",
    [
        (nn.Conv2d(4, 4, 3), nn.GroupNorm(2, 4), nn.ReLU(inplace=True)),
        (nn.Conv2d(4, 8, 3), nn.GroupNorm(2, 8), nn.ReLU(inplace=True), nn.MaxPool2d(2)),
        (nn.ReLU(inplace=True), nn.Conv2d(4, 8, 3), nn.GroupNorm(2, 8)),
        (nn.Conv2d(4, 4, 3), nn.Sequential(nn.ReLU(inplace=True), nn.GroupNorm(2, 4))),
        (nn.ReLU(inplace=True), nn.GroupNorm(2, 4)),
        (nn.Flatten(), nn.ReLU(inplace=True), nn.Linear(4 * 64, 3)),
        (nn.SiLU(inplace=True), nn.Conv2d(4, 4, 3)),
        (nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True)),
    ],
    ids=lambda layers: "-".join(type(one).__name__ for one in layers),
)
def test_layers_that_work_in_place_do_so_on_nothing_that_is_needed_again(layers):
    compare(chain(*layers), torch.randn(2, 4, 8, 8))


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Conv1d(4, 4, 3), (4, 8)),
        (nn.Conv2d(4, 4, 3), (4, 8, 8)),
        (nn.Conv3d(4, 4, 3), (4, 8, 8, 8)),
        (nn.Linear(8, 6), (4, 8)),
        (nn.Linear(8, 6), (4, 3, 8)),
        (nn.Linear(8, 6, bias=False), (3, 8)),
        (nn.BatchNorm2d(4), (4, 8, 8)),
        (nn.BatchNorm1d(4), (4,)),
        (nn.LayerNorm(8), (4, 8)),
        (nn.MaxPool2d(2), (4, 8, 8)),
        (nn.AvgPool2d(2), (4, 8, 8)),
        (nn.ReLU(), (4, 8, 8)),
        (nn.Identity(), (4, 8, 8)),
        (nn.Dropout(0.5), (4, 8, 8)),
        (nn.AdaptiveAvgPool2d(1), (4, 8, 8)),
        (nn.Flatten(), (4, 8, 8)),
    ],
    ids=lambda one: str(one),
)
@pytest.mark.parametrize("bf16", [False, True])
def test_every_layer_may_be_followed_by_one_that_works_in_place(layer, shape, bf16):
    compare(chain(layer, nn.ReLU(inplace=True)), torch.randn(2, *shape), bf16=bf16)
    compare(chain(layer, nn.ReLU()), torch.randn(2, *shape), bf16=bf16)


def test_a_norm_over_rows_keeps_its_input_and_the_convolution_does_not_run_again():
    block = chain(nn.Conv2d(4, 4, 3, padding=1), nn.GroupNorm(2, 4), nn.ReLU())
    calls = []
    block[0].register_forward_hook(lambda *_: calls.append("convolution"))
    block[1].register_forward_hook(lambda *_: calls.append("norm"))
    eager, lean = compare(block, torch.randn(2, 4, 8, 8))
    assert lean == 4 * 2 * 4 * 64 < eager
    assert calls == ["convolution", "norm"] * 2 + ["norm"]


def test_of_a_linear_layer_that_widens_rows_its_input_is_kept():
    _, lean = compare(chain(nn.Linear(8, 32), nn.LayerNorm(32), nn.ReLU()), torch.randn(5, 8))
    assert lean == 4 * 5 * 8


class Gate(nn.Module):
    """A layer that lean knows nothing of."""

    def forward(self, x):
        return x * x.sigmoid().tanh()


class Functional(nn.Module):
    """A block that calls torch's functions itself, on what trains and on what does not."""

    def __init__(self):
        super().__init__()
        self.convolution = nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x):
        counts = F.max_pool2d((x.detach() * 9).round().long(), 2)
        y = torch.relu(self.convolution(F.relu(input=x)))
        weight = self.convolution.weight
        y = F.conv2d(y, weight=weight, padding="same") + y.relu()
        return F.max_pool2d(y, kernel_size=2).relu_() + F.avg_pool2d(x, 2, ceil_mode=True) * counts


def test_a_block_may_call_functions_in_any_way():
    compare(Functional(), torch.randn(2, 4, 8, 8))


class OwnConvolution(nn.Conv2d):
    """A layer of a known kind that does something else."""

    def forward(self, x):
        return super().forward(x).exp().square()


@pytest.mark.parametrize(
    "layers",
    [(nn.Conv2d(4, 4, 3), Gate()), (OwnConvolution(4, 4, 3), nn.ReLU())],
    ids=["unknown", "subclass"],
)
def test_a_block_with_an_unknown_layer_keeps_its_input_and_runs_again(layers):
    block = chain(*layers)
    calls = []
    block.register_forward_pre_hook(lambda *_: calls.append(1))
    eager, lean = compare(block, torch.randn(2, 4, 8, 8))
    assert lean == 4 * 2 * 4 * 64 < eager
    assert len(calls) == 3


@pytest.mark.parametrize(
    ("layer", "shape"),
    [(nn.Conv2d(64, 64, 3, bias=False), (64, 3, 3)), (nn.Linear(64, 512), (64,))],
    ids=["convolution", "linear"],
)
def test_autocast_copies_of_frozen_weights_are_not_kept(layer, shape):
    eager, lean = compare(chain(layer, nn.ReLU()), torch.randn(1, *shape), bf16=True)
    assert eager >= 2 * layer.weight.numel()
    assert lean <= 64


def test_a_weight_that_trains_gets_its_gradient_all_the_same():
    block = chain(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.ReLU())
    block.requires_grad_(False).eval()
    block[0].weight.requires_grad_()
    found = []
    for run in (block, lean_run(block)):
        block.zero_grad()
        run(torch.ones(2, 2, 5, 5).requires_grad_()).square().sum().backward()
        found.append(block[0].weight.grad.clone())
    torch.testing.assert_close(found[1], found[0])
