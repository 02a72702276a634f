"""Memory and time of a training step with each way to run the frozen blocks behind the span.

For each span of VGG-11 on pictures of 32x32: one step of forward and backward pass, from what the
prefix makes of a batch. Bytes are the measured peak of what torch allocates in it: activations and
gradients, but no weights. Seconds are the least of some steps. What recompute and lean take is a
ratio to eager, which is torch as it is.

    python jobs/benchmarks/suffix.py --json
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import click
import torch
import torch.nn.functional as F
from command import Benchmark
from torch import Tensor

from ray_snake.config import TrainingConfig
from ray_snake.engine.device import computing
from ray_snake.engine.memory import peak_bytes
from ray_snake.engine.stack import BlockStack
from ray_snake.engine.suffix import suffix_runs
from ray_snake.models.registry import build_model

SUFFIXES = ("eager", "recompute", "lean")
CLASSES = 10


@click.command(cls=Benchmark)
@click.option("--width", default=0.25, show_default=True, help="Of VGG-11's channels.")
@click.option("--norm", default="group", show_default=True, help="group, batch or none.")
@click.option("--batch", default=128, show_default=True, help="Rows of a step.")
@click.option("--span-length", default=2, show_default=True, help="Blocks of a span.")
@click.option("--last/--no-last", default=True, show_default=True, help="Train the last one too.")
@click.option("--precision", default="fp32", show_default=True, help="fp32 or bf16.")
@click.option("--repeats", default=5, show_default=True, help="Timed steps; the fastest counts.")
@click.option("--threads", default=1, show_default=True, help="CPU threads.")
@click.option("--gpu", is_flag=True, help="Compute on the first GPU.")
@click.option("--json", "as_json", is_flag=True)
def main(
    width: float,
    norm: str,
    batch: int,
    span_length: int,
    last: bool,
    precision: str,
    repeats: int,
    threads: int,
    gpu: bool,
    as_json: bool,
) -> None:
    """Take steps on every span, with every suffix."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    device = torch.device("cuda" if gpu else "cpu")
    training = TrainingConfig(batch_size=batch, precision=precision)
    options = {"width": width, "norm": norm, "classes": CLASSES}
    stack = BlockStack.cut(build_model("vgg11", options)).to(device)
    inputs = torch.randn(batch, 3, 32, 32, device=device)
    classes = torch.randint(CLASSES, (batch,), device=device)
    rows = []
    for start in range(0, len(stack), span_length):
        trained = list(range(start, min(start + span_length, len(stack))))
        if last and trained[-1] != len(stack) - 1:
            trained.append(len(stack) - 1)
        stack.freeze_all_but(trained)
        with torch.no_grad(), computing(training.precision, device):
            features = stack(inputs, 0, start)
        step = Step(stack, trained, features, classes, training)
        rows.append({"trained": trained, **step.figures(repeats)})
    figures = {**options, "batch": batch, "precision": precision, "device": device.type}
    if as_json:
        click.echo(json.dumps({**figures, "spans": rows}))
        return
    click.echo(figures)
    for row in rows:
        click.echo(row)


@dataclass(frozen=True)
class Step:
    """A step that trains some blocks.

    Attributes:
        stack: The network, all but those blocks frozen.
        trained: Their numbers.
        features: The first one's input.
        classes: int64 (batch,).
        training: Batch size and precision.
    """

    stack: BlockStack
    trained: Sequence[int]
    features: Tensor
    classes: Tensor
    training: TrainingConfig

    def figures(self, repeats: int) -> dict[str, Any]:
        """Return bytes and seconds with `eager`, and ratios to them."""
        runs = {one: suffix_runs(self.stack, self.trained, one) for one in SUFFIXES}
        peaks, seconds = {}, dict.fromkeys(SUFFIXES, math.inf)
        for suffix in SUFFIXES:
            self.stack.runs = runs[suffix]
            self._take()
            peaks[suffix] = peak_bytes(self._take, self.features.device)
        # In turn, so that what else the machine does meets all of them.
        for suffix in SUFFIXES * repeats:
            self.stack.runs = runs[suffix]
            seconds[suffix] = min(seconds[suffix], _seconds(self._take, self.features.device))
        figures: dict[str, Any] = {
            "eager_bytes": peaks["eager"],
            "eager_seconds": round(seconds["eager"], 4),
        }
        for suffix in SUFFIXES[1:]:
            figures[f"{suffix}_bytes_ratio"] = round(peaks[suffix] / peaks["eager"], 3)
            figures[f"{suffix}_seconds_ratio"] = round(seconds[suffix] / seconds["eager"], 3)
        return figures

    def _take(self) -> None:
        with computing(self.training.precision, self.features.device):
            outputs = self.stack(self.features, self.trained[0])
            loss = F.cross_entropy(outputs, self.classes)
        loss.backward()
        self.stack.zero_grad(set_to_none=True)


def _seconds(work: Callable[[], object], device: torch.device) -> float:
    started = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
