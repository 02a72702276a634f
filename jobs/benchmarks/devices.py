"""Whether a visit on a GPU comes to what it comes to on the CPU, and twice to the same bits.

Small networks of every kind make the same visit on both devices, with settings one at a time:
residency, precision, suffix, optimizer, teacher, parts of a batch. `difference` is the norm of the
difference between both results over the norm of what the visit changed, fp32 but where `bf16`
stands; `repeats` says whether a second visit on the device has the same bits; `error` is there
where a visit failed, and then the exit status is 1.

    python jobs/benchmarks/devices.py --device cuda --json
"""

from __future__ import annotations

import json
import traceback
from collections.abc import Mapping
from functools import partial
from typing import Any

import click
import numpy as np
import torch
from command import Benchmark, refuse_missing_device
from numpy.typing import NDArray
from torch import Tensor

from ray_snake.config import AugmentationConfig, LossConfig, TrainingConfig
from ray_snake.engine.device import compute_repeatably, repeatably
from ray_snake.engine.evaluate import evaluate
from ray_snake.engine.objective import Objective, cross_entropy
from ray_snake.engine.residency import place
from ray_snake.engine.stack import BlockStack
from ray_snake.engine.visit import train_visit
from ray_snake.models.registry import build_model

ROWS = 24
CLASSES = 4
TOKENS = 40
NETWORKS: Mapping[str, tuple[str, dict[str, Any]]] = {
    "cnn": ("cnn", {"width": 8, "classes": CLASSES, "norm": "batch"}),
    "vgg11": ("vgg11", {"width": 0.5, "classes": CLASSES, "norm": "group"}),
    "resnet18": ("resnet18", {"width": 0.125, "classes": CLASSES, "norm": "batch"}),
    "decoder": ("decoder", {"vocabulary": TOKENS, "width": 16, "layers": 4, "tied": True}),
    "llama": (
        "huggingface",
        {
            "config": {
                "model_type": "llama",
                "vocab_size": TOKENS,
                "hidden_size": 32,
                "intermediate_size": 48,
                "num_hidden_layers": 4,
                "num_attention_heads": 4,
                "num_key_value_heads": 2,
                "tie_word_embeddings": True,
            }
        },
    ),
}
SHAPES = {"cnn": (1, 16, 16), "vgg11": (3, 32, 32), "resnet18": (3, 16, 16)}
CASES: Mapping[str, dict[str, Any]] = {
    "sgd": {},
    "adamw": {"training": {"optimizer": "adamw"}},
    "adamw, carried": {"training": {"optimizer": "adamw", "optimizer_state": "carry"}},
    "sgd, carried": {"training": {"optimizer_state": "carry"}},
    "bf16": {"training": {"precision": "bf16"}},
    "frozen bf16": {"training": {"frozen_dtype": "bfloat16"}},
    "frozen and computing bf16": {"training": {"frozen_dtype": "bfloat16", "precision": "bf16"}},
    "stream": {"training": {"residency": "stream"}},
    "stream, bf16": {
        "training": {"residency": "stream", "frozen_dtype": "bfloat16", "precision": "bf16"}
    },
    "lean": {"training": {"suffix": "lean"}},
    "recompute": {"training": {"suffix": "recompute"}},
    "parts": {"training": {"micro_batch": 2}},
    "parts, stream": {"training": {"micro_batch": 2, "residency": "stream"}},
    "cache in a file": {"training": {"cache_bytes": 0}},
    "distillation": {"loss": {"distillation": 0.3}},
    "teacher of top classes": {"loss": {"distillation": 0.3, "teacher": "top_k"}},
    "teacher's last hidden state": {"loss": {"distillation": 0.3, "teacher": "last_hidden"}},
    "proximal": {"loss": {"proximal": 0.1}},
    "augmented": {"augmentation": {"flip": True, "crop": 2}},
}
Tensors = dict[str, Tensor]


class Rows:
    """A shard of random pictures, or of random tokens, as `engine.samples.Samples`."""

    def __init__(self, network: str) -> None:
        rng = np.random.default_rng(0)
        if network in SHAPES:
            self._inputs: NDArray[Any] = rng.normal(size=(ROWS, *SHAPES[network])).astype("float32")
            self._targets = rng.integers(0, CLASSES, ROWS)
        else:
            tokens = rng.integers(0, TOKENS, (ROWS, 13))
            self._inputs, self._targets = tokens[:, :-1].copy(), tokens[:, 1:].copy()

    def __len__(self) -> int:
        return ROWS

    def batch(self, rows: NDArray[np.int64]) -> tuple[NDArray[Any], NDArray[Any]]:
        """Return (inputs, targets)."""
        return self._inputs[rows], self._targets[rows]


@click.command(cls=Benchmark)
@click.option("--device", "name", type=click.Choice(["cpu", "cuda"]), default="cuda")
@click.option("--network", "networks", multiple=True, type=click.Choice(list(NETWORKS)))
@click.option("--json", "as_json", is_flag=True)
def main(name: str, networks: tuple[str, ...], as_json: bool) -> None:
    """Make every visit on both devices, and compare."""
    refuse_missing_device(name)
    device = torch.device(name)
    compute_repeatably()
    # By default torch's convolutions round fp32 to 10 bits on a GPU: another difference.
    torch.backends.cudnn.allow_tf32 = False
    torch.set_num_threads(1)
    rows = [
        {"network": network, "case": case} | compared(network, settings, device)
        for network in networks or NETWORKS
        for case, settings in CASES.items()
        if "augmentation" not in settings or network in SHAPES
    ]
    failed = any("error" in one for one in rows)
    found = [one["difference"] for one in rows if one.get("difference") is not None]
    if as_json:
        figures = {"largest_difference": max(found, default=None), "rows": rows}
        click.echo(json.dumps({"device": name, "name": _called(device), **figures}))
    else:
        for one in rows:
            click.echo(" ".join(str(value) for value in one.values()))
    if failed:
        raise click.exceptions.Exit(1)


def compared(network: str, settings: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
    """Return what a visit on a device differs by from the same one on the CPU."""
    try:
        before, reference, loss = visited(network, settings, torch.device("cpu"))
        visit = partial(visited, network, settings, device)
        _, found, device_loss = repeatably(visit, device)
        _, again, _ = repeatably(visit, device)
    except Exception:
        return {"error": traceback.format_exc()[-1500:]}
    change = sum(float((reference[key] - before[key]).square().sum()) for key in before)
    apart = sum(float((found[key] - reference[key]).square().sum()) for key in before)
    return {
        "difference": (apart / change) ** 0.5,
        "loss": loss,
        "device_loss": device_loss,
        "repeats": all(torch.equal(found[key], again[key]) for key in found),
    }


def visited(
    network: str, settings: Mapping[str, Any], device: torch.device
) -> tuple[Tensors, Tensors, float]:
    """Make a visit to two blocks in the middle and the last one.

    Returns:
        Trained weights before and after, fp32 on the CPU, and the loss of the network afterwards.
    """
    torch.manual_seed(3)
    name, options = NETWORKS[network]
    stack = BlockStack.cut(build_model(name, options))
    training = TrainingConfig(
        batch_size=8, **{"learning_rate": 0.01, "epochs": 2, **settings.get("training", {})}
    )
    trained = (1, 2, len(stack) - 1)
    before = _weights(stack, trained)
    place(stack, trained, training=training, device=device)
    rows = Rows(network)
    loss = LossConfig(**{"logit_adjustment": 0.0, "distillation": 0.0, **settings.get("loss", {})})
    train_visit(
        stack,
        rows,
        trained=trained,
        learning_rate=training.learning_rate,
        seed=1,
        training=training,
        objective=Objective(loss),
        proximal=loss.proximal,
        augmentation=AugmentationConfig(**settings.get("augmentation", {})),
        carried={block: {} for block in trained} if training.optimizer_state == "carry" else None,
        measure_update=True,
        device=device,
    )
    after = _weights(stack, trained)
    for block in range(len(stack)):
        tensors = {key: one.to(device) for key, one in _detached(stack, block)}
        stack.load(block, tensors, trainable=False)
    judged = evaluate(
        stack,
        rows,
        task=cross_entropy,
        batch_size=8,
        precision=training.precision,
        device=device,
    )
    return before, after, judged.loss


def _weights(stack: BlockStack, blocks: tuple[int, ...]) -> Tensors:
    return {
        f"{block}.{key}": one.to("cpu", torch.float32, copy=True)
        for block in blocks
        for key, one in _detached(stack, block)
    }


def _detached(stack: BlockStack, block: int) -> list[tuple[str, Tensor]]:
    return [(key, one.detach()) for key, one in stack.tensors(block).items()]


def _called(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


if __name__ == "__main__":
    main()
