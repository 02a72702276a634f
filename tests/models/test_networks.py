"""What holds for every registered network of pictures."""

import pytest
import torch
from torch import nn

from ray_snake.models.registry import build_model, model_names

CONVOLUTIONS = [f"conv{number}" for number in range(1, 9)]
BLOCK_NAMES = {
    "mlp": ["hidden1", "hidden2", "head"],
    "cnn": ["conv1", "conv2", "conv3", "conv4", "head"],
    "vgg11": [*CONVOLUTIONS, "hidden", "head"],
    "resnet18": ["stem", *[f"block{number}" for number in range(1, 9)], "head"],
}
PARAMETERS = {"mlp": 17_226, "cnn": 33_338, "vgg11": 9_491_018, "resnet18": 11_173_962}
FULL = {"mlp": {"inputs": 64, "classes": 10}}
SMALL = {
    "mlp": {"inputs": 64, "classes": 10, "hidden": [16, 16]},
    "cnn": {"width": 8},
    "vgg11": {"width": 0.125},
    "resnet18": {"width": 0.125},
}
# Of token sequences: test_decoder.py and test_huggingface.py have them.
LANGUAGE = ["decoder", "huggingface"]
CONVOLUTIONAL = ["cnn", "vgg11", "resnet18"]


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def pictures(name, rows=8, size=32):
    channels = {"mlp": 1, "cnn": 1, "vgg11": 3, "resnet18": 3}[name]
    generator = torch.Generator().manual_seed(1)
    size = 8 if name == "mlp" else size
    return torch.randn(rows, channels, size, size, generator=generator)


def weights(model):
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def test_every_registered_network_is_tested_here():
    assert tuple(sorted([*BLOCK_NAMES, *LANGUAGE])) == model_names()


@pytest.mark.parametrize("name", BLOCK_NAMES)
def test_blocks_have_their_names_and_number_of_weights(name):
    with torch.device("meta"):
        model = build_model(name, FULL.get(name, {}))
    assert [child for child, _ in model.named_children()] == BLOCK_NAMES[name]
    assert sum(parameter.numel() for parameter in model.parameters()) == PARAMETERS[name]


@pytest.mark.parametrize("name", BLOCK_NAMES)
def test_meta_construction_gives_the_same_arrays_without_memory(name):
    with torch.device("meta"):
        planned = build_model(name, SMALL[name])
    built = build_model(name, SMALL[name])
    assert all(one.is_meta for one in planned.state_dict().values())
    assert {key: one.shape for key, one in planned.state_dict().items()} == {
        key: one.shape for key, one in built.state_dict().items()
    }


@pytest.mark.parametrize("name", BLOCK_NAMES)
def test_blocks_share_no_parameters(name):
    model = build_model(name, SMALL[name])
    owners = [parameter for block in model for parameter in block.parameters()]
    assert len({id(parameter) for parameter in owners}) == len(owners)


@pytest.mark.parametrize("name", BLOCK_NAMES)
def test_same_seed_gives_the_same_weights(name):
    drawn = []
    for seed in (7, 7, 8):
        torch.manual_seed(seed)
        drawn.append(weights(build_model(name, SMALL[name])))
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


@pytest.mark.parametrize("name", BLOCK_NAMES)
@pytest.mark.parametrize("norm", ["group", "batch", "none"])
def test_a_gradient_step_changes_every_block_and_lowers_the_loss(name, norm):
    torch.manual_seed(0)
    options = SMALL[name] if name == "mlp" else {**SMALL[name], "norm": norm}
    model = build_model(name, options)
    before = [weights(block) for block in model]
    inputs, labels = pictures(name), torch.arange(8)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    first = nn.functional.cross_entropy(model(inputs), labels)
    first.backward()
    optimizer.step()
    assert all(
        not torch.equal(old, weights(block)) for old, block in zip(before, model, strict=True)
    )
    assert nn.functional.cross_entropy(model(inputs), labels) < first


@pytest.mark.parametrize("name", CONVOLUTIONAL)
@pytest.mark.parametrize("size", [8, 28, 32])
def test_pictures_from_8_to_32_pixels_give_one_row_of_scores_each(name, size):
    model = build_model(name, {**SMALL[name], "classes": 7})
    scores = model(pictures(name, rows=2, size=size))
    assert scores.shape == (2, 7)
    assert not torch.equal(scores[0], scores[1])


@pytest.mark.parametrize("name", CONVOLUTIONAL)
def test_width_scales_the_channels_down_to_eight(name):
    model = build_model(name, {"width": 1 if name == "cnn" else 0.001})
    channels = [one.out_channels for one in model.modules() if isinstance(one, nn.Conv2d)]
    assert min(channels) == 8


@pytest.mark.parametrize("name", CONVOLUTIONAL)
def test_norm_decides_which_layers_and_buffers_there_are(name):
    kinds = {"group": nn.GroupNorm, "batch": nn.BatchNorm2d}
    for norm in ("group", "batch", "none"):
        model = build_model(name, {**SMALL[name], "norm": norm})
        found = {
            type(one) for one in model.modules() if isinstance(one, nn.GroupNorm | nn.BatchNorm2d)
        }
        assert found == ({kinds[norm]} if norm in kinds else set())
        assert (len(list(model.buffers())) > 0) == (norm == "batch")


def test_residual_blocks_start_as_their_shortcuts():
    model = build_model("resnet18", {**SMALL["resnet18"], "norm": "none"})
    features = torch.rand(2, 8, 8, 8)
    assert torch.equal(model.get_submodule("block1")(features), features)


def test_mlp_without_hidden_layers_is_its_head():
    model = build_model("mlp", {"inputs": 12, "classes": 3, "hidden": []})
    assert [child for child, _ in model.named_children()] == ["head"]
    assert model(torch.zeros(2, 3, 4)).shape == (2, 3)


def test_cnn_learns_to_tell_patterns_apart_within_one_pass():
    torch.manual_seed(0)
    patterns = torch.randn(10, 1, 8, 8)
    labels = torch.arange(640) % 10
    inputs = patterns[labels] + 0.3 * torch.randn(640, 1, 8, 8)
    model = build_model("cnn", {})
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for batch in torch.arange(512).split(32):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs[batch]), labels[batch]).backward()
        optimizer.step()
    accuracy = (model(inputs[512:]).argmax(1) == labels[512:]).float().mean()
    assert accuracy > 0.95
