import numpy as np
import pytest
import torch

from ray_snake.engine.stack import BlockStack
from ray_snake.models.registry import build_model

SHAPES = {
    "mlp": (1, 8, 8),
    "cnn": (1, 8, 8),
    "vgg11": (3, 16, 16),
    "resnet18": (3, 8, 8),
    "decoder": (6,),
    "huggingface": (6,),
}
OPTIONS = {
    "mlp": {"inputs": 64, "classes": 4, "hidden": [16, 12]},
    "cnn": {"width": 8, "classes": 4, "norm": "batch"},
    "vgg11": {"width": 0.125, "classes": 4, "norm": "batch"},
    "resnet18": {"width": 0.125, "classes": 4, "norm": "batch"},
    "decoder": {
        "vocabulary": 11,
        "width": 16,
        "layers": 2,
        "task": "sequence_classification",
        "classes": 4,
        "padding": 0,
    },
    "huggingface": {
        "config": {
            "model_type": "qwen2",
            "vocab_size": 11,
            "hidden_size": 16,
            "intermediate_size": 24,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
        },
        "task": "sequence_classification",
        "classes": 4,
        "padding": 0,
    },
}
TOKENS = {"decoder": 11, "huggingface": 11}


class ArraySamples:
    """A shard that is two arrays."""

    def __init__(self, inputs, targets):
        self.inputs = np.asarray(inputs)
        self.targets = np.asarray(targets)

    def __len__(self):
        return len(self.inputs)

    def batch(self, rows):
        return self.inputs[rows], self.targets[rows]


def draw_samples(rows, shape, classes=4, seed=0):
    generator = np.random.Generator(np.random.PCG64(seed))
    inputs = generator.standard_normal((rows, *shape)).astype(np.float32)
    return ArraySamples(inputs, generator.integers(0, classes, rows))


def draw_tokens(rows, length, tokens, classes=4, seed=0):
    """Rows of tokens, the last of some of them padding, which is token 0."""
    generator = np.random.Generator(np.random.PCG64(seed))
    inputs = generator.integers(1, tokens, (rows, length))
    inputs[::3, -2:] = 0
    return ArraySamples(inputs, generator.integers(0, classes, rows))


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def array_samples():
    """A function of (inputs, targets) that returns a shard."""
    return ArraySamples


@pytest.fixture
def random_samples():
    """A function of (rows, shape, classes, seed) that returns a shard of random rows."""
    return draw_samples


@pytest.fixture
def registered():
    """A function of (name, rows) that returns a small network and a shard that fits it."""

    def make(name, rows=12):
        torch.manual_seed(3)
        stack = BlockStack.cut(build_model(name, OPTIONS[name]))
        with torch.no_grad():
            for parameter in stack.parameters():
                # Zeros, such as a residual branch's last norm, would hide missing gradients.
                parameter.add_(torch.randn_like(parameter) * 0.05)
            for key, buffer in stack.named_buffers():
                if key.endswith("running_var"):
                    buffer.uniform_(0.5, 1.5)
        if name in TOKENS:
            return stack, draw_tokens(rows, *SHAPES[name], TOKENS[name])
        return stack, draw_samples(rows, SHAPES[name])

    return make
