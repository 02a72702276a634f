import json

import pytest
import torch
from safetensors.torch import load_file

from ray_snake.engine.stack import BlockStack
from ray_snake.layers.state import weights_sha256
from ray_snake.layers.tensors import pack
from ray_snake.models.registry import build_model


def load_torch(path):
    return torch.load(path, weights_only=True)


@pytest.mark.parametrize(("form", "load"), [("safetensors", load_file), ("torch", load_torch)])
def test_an_exported_file_loads_into_the_model_with_the_runs_weights(trained, form, load):
    workplace, finished = trained
    ended = workplace.call_forked(
        "export", "runs/digits", "--format", form, "--out", f"model.{form}"
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout == ""
    model = build_model("cnn", {"width": 8})
    model.load_state_dict(load(workplace.folder / f"model.{form}"))
    stack = BlockStack.cut(model)
    states = [pack(block, 0, stack.tensors(block)) for block in range(len(stack))]
    assert weights_sha256(states) == json.loads(finished.stdout)["weights_sha256"]


def test_nothing_but_the_file_is_left(trained):
    workplace, _ = trained
    out = workplace.folder / "exported"
    out.mkdir()
    workplace.call_forked("export", "runs/digits", "--out", "exported/digits.safetensors")
    assert [path.name for path in out.iterdir()] == ["digits.safetensors"]
