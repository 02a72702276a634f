"""A span visit's gradients are those of the whole model, restricted to what it trains."""

import copy

import pytest
import torch

from ray_snake.config import LossConfig
from ray_snake.engine.objective import Objective
from ray_snake.engine.stack import BlockStack
from ray_snake.models.registry import build_model, model_names

CLASSES = 4
OPTIONS = {
    "mlp": {"inputs": 3 * 16 * 16, "classes": CLASSES, "hidden": [12, 10, 8]},
    "cnn": {"channels": 3, "classes": CLASSES, "width": 8},
    "vgg11": {"channels": 3, "classes": CLASSES, "width": 0.125},
    "resnet18": {"channels": 3, "classes": CLASSES, "width": 0.125},
    "decoder": {
        "vocabulary": 11,
        "width": 16,
        "task": "sequence_classification",
        "classes": CLASSES,
        "padding": 0,
    },
    "huggingface": {
        "config": {
            "model_type": "gpt2",
            "vocab_size": 11,
            "n_embd": 16,
            "n_layer": 3,
            "n_head": 2,
            "n_positions": 8,
            "bos_token_id": 1,
            "eos_token_id": 1,
            "embd_pdrop": 0.0,
            "attn_pdrop": 0.0,
            "resid_pdrop": 0.0,
        },
        "task": "sequence_classification",
        "classes": CLASSES,
        "padding": 0,
    },
}
TOKENS = {"decoder": 11, "huggingface": 11}


@pytest.fixture(params=sorted(model_names()))
def stack(request):
    torch.manual_seed(0)
    built = BlockStack.cut(build_model(request.param, OPTIONS[request.param])).double()
    with torch.no_grad():
        # Norms that begin at zero would let no gradient through.
        for weight in built.parameters():
            weight.add_(torch.randn_like(weight), alpha=0.1)
    return built


@pytest.fixture
def batch(request):
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn((6, 3, 16, 16), generator=generator, dtype=torch.float64)
    name = request.node.callspec.params["stack"]
    if name in TOKENS:
        inputs = torch.arange(6 * 5).view(6, 5) % TOKENS[name]
    return inputs, torch.arange(6) % CLASSES


def spans(blocks):
    """The first, a middle and the last pair of blocks, alone and with one end or both."""
    for start in (0, blocks // 2, blocks - 2):
        for ends in ((), (blocks - 1,), (0, blocks - 1)):
            yield tuple(sorted({start, start + 1, *ends}))


def gradients(stack, trained, batch, *, whole):
    """Return the gradients of the trained blocks' weights, by block and name."""
    inputs, targets = batch
    objective = Objective(
        LossConfig(logit_adjustment=1.0, distillation=0.3), label_counts=torch.arange(1, 5)
    )
    with torch.no_grad():
        teacher = stack.eval()(inputs) + 0.1
    stack.zero_grad(set_to_none=True)
    stack.freeze_all_but(trained)
    if whole:
        stack.requires_grad_(True)
        outputs = stack(inputs)
    else:
        first = min(trained)
        with torch.no_grad():
            features = stack(inputs, 0, first)
        outputs = stack(features, first)
    objective(outputs, targets, (teacher,)).backward()
    return {
        (block, name): weight.grad
        for block in trained
        for name, weight in stack.blocks[block].named_parameters()
    }


def test_they_equal_the_whole_models(stack, batch):
    for trained in spans(len(stack)):
        # Batch norms count what they see.
        first, second = copy.deepcopy(stack), copy.deepcopy(stack)
        expected = gradients(first, trained, batch, whole=True)
        found = gradients(second, trained, batch, whole=False)
        assert found.keys() == expected.keys()
        for key, gradient in expected.items():
            torch.testing.assert_close(found[key], gradient, rtol=0, atol=1e-10)
            assert gradient.any()


def test_frozen_blocks_get_none(stack, batch):
    trained = (1, len(stack) - 1)
    gradients(stack, trained, batch, whole=False)
    frozen = [one for index, one in enumerate(stack.blocks) if index not in trained]
    assert all(weight.grad is None for block in frozen for weight in block.parameters())
