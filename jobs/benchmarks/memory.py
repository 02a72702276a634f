"""Memory of fine-tuning a language model in full, with LoRA, and as a snake's node; and its steps.

A model of SmolLM2-135M's shape, or another `--shape`, with random weights. Every way trains the
same rows with AdamW, in the same parts of a batch, in a process of its own, from weights in
memory-mapped files:

- `full`: all blocks. `lora`: adapters on all linear layers of all layers.
- `snake_resident`, `snake_stream`: a node's visit to one layer; the dearer of the first and the
  last one. `snake_*_embedding` is the visit to the embedding, which outweighs several layers.
- `snake_adapters_*`: a visit that trains adapters in all layers, each of which runs again in the
  backward pass; with `stream` no layer's own weights are there for longer than it runs.
- `*_over_*`: of peak bytes. They are the peak of what torch allocates, so the process's own: what
  a way keeps of frozen weights counts, files do not. `process_peak_bytes` and
  `process_private_bytes` are of the whole process, with and without its files.
- With `--device cuda` the peak is that of the GPU's memory. A way of which more is predicted than
  the GPU has free is not gone: it counts as predicted, and stands in `predicted_only`.
- `seconds`: of each way's second time; on the CPU with every allocation recorded, which takes long.
- `predicted_over_measured`: what `ray-snake plan` says over the peak; of all ways the one that is
  furthest from 1.
- `cached_step_over_full_step`: time (on the CPU its own) of a step of forward and backward pass and
  optimizer on kept outputs of the prefix, over a step of the whole network; mean over all spans,
  of VGG-11 and of the language model the larger one.

    python jobs/benchmarks/memory.py --json
    python jobs/benchmarks/memory.py --shape opt-1.3b --device cuda --precision bf16 --json
"""

from __future__ import annotations

import json
import math
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from command import Benchmark, refuse_missing_device
from forked import forked
from memory_ways import (
    ADAPTERS,
    WAYS,
    Shape,
    Tokens,
    measured,
    predictions,
    ways_of,
    write_weights,
)
from torch import Tensor

from ray_snake.config import TrainingConfig
from ray_snake.engine.device import compute_repeatably
from ray_snake.engine.objective import cross_entropy
from ray_snake.engine.stack import BlockStack
from ray_snake.engine.trained import TrainedBlocks
from ray_snake.models.registry import build_model

MIB = 2**20
SECTIONS = ("memory", "steps")
SHAPES: dict[str, dict[str, Any]] = {
    # https://huggingface.co/HuggingFaceTB/SmolLM2-135M
    "smollm2-135m": {
        "layers": 30,
        "width": 576,
        "heads": 9,
        "key_value_heads": 3,
        "hidden": 1536,
        "vocabulary": 49_152,
    },
    # Zhang et al. (2022), arXiv:2205.01068, table 1.
    "opt-1.3b": {
        "family": "opt",
        "layers": 24,
        "width": 2048,
        "heads": 32,
        "key_value_heads": 32,
        "hidden": 8192,
        "vocabulary": 50_272,
    },
    # Grattafiori et al. (2024), arXiv:2407.21783, table 3.
    "llama-3-8b": {
        "tied": False,
        "layers": 32,
        "width": 4096,
        "heads": 32,
        "key_value_heads": 8,
        "hidden": 14_336,
        "vocabulary": 128_256,
    },
    # A decoder that is trained in a second.
    "tiny": {
        "builder": "decoder",
        "layers": 4,
        "width": 64,
        "heads": 4,
        "key_value_heads": 4,
        "hidden": 192,
        "vocabulary": 512,
        "sequence": 16,
    },
}


def _take_shape(context: click.Context, option: click.Parameter, name: str) -> str:
    """Let a shape's sizes be the defaults of other options."""
    del option
    context.default_map = SHAPES[name]
    return name


@click.command(cls=Benchmark)
@click.option(
    "--shape",
    "name",
    type=click.Choice(list(SHAPES)),
    default="smollm2-135m",
    show_default=True,
    is_eager=True,
    callback=_take_shape,
    help="Whose sizes the next ones are by default.",
)
@click.option("--builder", default="huggingface", show_default=True, help="Or decoder.")
@click.option("--family", type=click.Choice(["llama", "opt"]), default="llama", show_default=True)
@click.option("--tied/--own-head", default=True, help="Whether the head is the embedding's.")
@click.option("--layers", type=int, required=True)
@click.option("--width", type=int, required=True)
@click.option("--heads", type=int, required=True)
@click.option("--key-value-heads", type=int, required=True)
@click.option("--hidden", type=int, required=True)
@click.option("--vocabulary", type=int, required=True)
@click.option("--sequence", default=128, show_default=True, help="Tokens of a row.")
@click.option("--batch", default=2, show_default=True, help="Rows of a step.")
@click.option("--micro-batch", default=1, show_default=True, help="Rows at once.")
@click.option("--frozen-dtype", default="bfloat16", show_default=True, help="Or float32.")
@click.option("--rank", default=8, show_default=True, help="Of LoRA's adapters.")
@click.option("--precision", type=click.Choice(["fp32", "bf16"]), default="fp32")
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True)
@click.option("--only", type=click.Choice(SECTIONS), multiple=True, help="Leave out the others.")
@click.option("--repeats", default=2, show_default=True, help="Timed steps; the fastest counts.")
@click.option("--threads", default=1, show_default=True, help="CPU threads.")
@click.option("--json", "as_json", is_flag=True)
def main(
    name: str,
    only: tuple[str, ...],
    repeats: int,
    threads: int,
    as_json: bool,
    **options: Any,  # noqa: ANN401 - the fields of a shape
) -> None:
    """Measure what each way takes, and what was predicted."""
    shape = Shape(**options)
    refuse_missing_device(shape.device)
    chosen = only or SECTIONS
    figures: dict[str, Any] = {"name": name, "shape": asdict(shape)}
    if "memory" in chosen:
        figures |= _memory_figures(shape, threads)
    if "steps" in chosen:
        figures |= _step_figures(shape, repeats, threads, pictures=4 if name == "tiny" else 32)
    if as_json:
        click.echo(json.dumps(figures))
        return
    for name, figure in figures.items():
        click.echo(f"{name}: {figure}")


def _memory_figures(shape: Shape, threads: int) -> dict[str, Any]:
    ways = ways_of(shape)
    # On the meta device: what a network needs is imported once, before processes fork.
    for adapted in {way in ADAPTERS for way in ways}:
        BlockStack.skeleton(replace(shape, adapted=adapted).build)
    room = forked(_room, shape)
    expected = forked(predictions, shape, ways)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        forked(write_weights, shape, folder)
        found = {
            way: forked(measure, shape, folder, way, threads)
            for way in ways
            if (expected[way] or 0) <= room
        }
    peaks = {way: one["peak_bytes"] for way, one in found.items()}
    ratios = {way: one / peaks[way] for way, one in expected.items() if one and way in peaks}
    # What was too large to be tried is as large as predicted.
    peaks = {**{way: one for way, one in expected.items() if one is not None}, **peaks}
    for residency in ("resident", "stream"):
        own = [f"snake_{residency}_{place}" for place in ("first", "last")]
        peaks[f"snake_{residency}"] = max(peaks[one] for one in own)
    stream = peaks["snake_stream"]
    adapters = {
        f"{one}_over_snake_adapters_stream": round(peaks[one] / peaks["snake_adapters_stream"], 2)
        for one in ("full", "lora", "lora_checkpointed")
        if "snake_adapters_stream" in ways
    }
    return {
        "full_over_snake_stream": round(peaks["full"] / stream, 2),
        "full_over_snake_resident": round(peaks["full"] / peaks["snake_resident"], 2),
        "lora_over_snake_stream": round(peaks["lora"] / stream, 2),
        "lora_checkpointed_over_snake_stream": round(peaks["lora_checkpointed"] / stream, 2),
        "full_over_snake_stream_embedding": round(
            peaks["full"] / peaks["snake_stream_embedding"], 2
        ),
        **adapters,
        "predicted_over_measured": round(_furthest(ratios.values()), 3),
        "predicted_over_measured_by_way": {way: round(one, 3) for way, one in ratios.items()},
        "predicted_only": [way for way in ways if way not in found],
        "peak_mib": {way: round(one / MIB, 1) for way, one in peaks.items()},
        **{
            f"process_{kind}_mib": {
                way: round(one[f"process_{kind}_bytes"] / MIB, 1) for way, one in found.items()
            }
            for kind in ("peak", "private")
        },
        "seconds": {way: round(one["seconds"], 2) for way, one in found.items()},
    }


def _room(shape: Shape) -> float:
    """Return the bytes that there are to train in."""
    if shape.device != "cuda":
        return math.inf
    return float(torch.cuda.mem_get_info()[0])


def _furthest(ratios: Iterable[float]) -> float:
    return max(ratios, key=lambda one: abs(math.log(one)))


def measure(shape: Shape, folder: Path, way: str, threads: int) -> dict[str, float]:
    """Go a way twice: once for the process's memory, once for what torch allocates."""
    torch.set_num_threads(threads)
    if shape.device == "cuda":
        compute_repeatably()
    with PrivateMemory() as private:
        WAYS[way](shape, folder)
    started = time.perf_counter()
    return {
        "process_peak_bytes": _status("VmHWM"),
        "process_private_bytes": private.peak_bytes,
        "peak_bytes": measured(shape, folder, way),
        "seconds": time.perf_counter() - started,
    }


class PrivateMemory:
    """The peak of this process's memory that no file stands for, sampled while the context is."""

    INTERVAL_SECONDS = 0.01

    def __init__(self) -> None:
        self.peak_bytes = 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> PrivateMemory:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._over.wait(self.INTERVAL_SECONDS):
            self.peak_bytes = max(self.peak_bytes, _status("RssAnon"))


def _status(name: str) -> int:
    """Return a line of Linux's record of this process, in bytes."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    found = next(line for line in lines if line.startswith(f"{name}:"))
    return int(found.split()[1]) * 1024


def _step_figures(shape: Shape, repeats: int, threads: int, *, pictures: int) -> dict[str, Any]:
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    device = torch.device(shape.device)
    tokens, following = Tokens(shape).batch(np.arange(shape.micro_batch))
    networks = {
        "vgg11": (
            lambda: build_model("vgg11", {"width": 0.5}),
            torch.randn(pictures, 3, 32, 32),
            torch.randint(10, (pictures,)),
        ),
        "language_model": (shape.build, torch.from_numpy(tokens), torch.from_numpy(following)),
    }
    figures: dict[str, Any] = {}
    for name, (build, inputs, targets) in networks.items():
        stack = BlockStack.build(build).to(device)
        stack.move_constants(device)
        ratios = _span_ratios(stack, inputs.to(device), targets.to(device), repeats)
        figures[f"cached_step_over_full_step_{name}"] = round(sum(ratios) / len(ratios), 3)
        figures[f"cached_step_over_full_step_{name}_by_span"] = [round(one, 3) for one in ratios]
    worst = max(figures[f"cached_step_over_full_step_{name}"] for name in networks)
    return {"cached_step_over_full_step": worst, **figures}


def _span_ratios(stack: BlockStack, inputs: Tensor, targets: Tensor, repeats: int) -> list[float]:
    """Return for spans of one block and the last one: seconds of a step, over a full step's."""
    last = len(stack) - 1
    full, seconds = math.inf, [math.inf] * len(stack)
    # In turn, so that what else the machine does meets all of them.
    for _ in range(repeats):
        full = min(full, _seconds(_stepper(stack, range(len(stack)), inputs, targets)))
        features = inputs
        for block in range(len(stack)):
            step = _stepper(stack, sorted({block, last}), features, targets)
            seconds[block] = min(seconds[block], _seconds(step))
            with torch.no_grad():
                features = stack(features, block, block + 1)
    return [one / full for one in seconds]


def _stepper(
    stack: BlockStack, trained: Sequence[int], features: Tensor, targets: Tensor
) -> Callable[[], None]:
    """Return what takes a step on some blocks from what reaches the first of them."""
    blocks = TrainedBlocks(
        stack,
        trained,
        training=TrainingConfig(optimizer="adamw", weight_decay=0.0),
        learning_rate=1e-6,
        keeps_arrived=False,
        device=features.device,
    )
    stack.freeze_all_but(trained)

    def take() -> None:
        blocks.step(cross_entropy(stack(features, trained[0]), targets))

    return take


def _seconds(work: Callable[[], object]) -> float:
    """Return the seconds, on the CPU its own, of a second time: the first makes what is kept."""
    clock = time.perf_counter if torch.cuda.is_initialized() else time.process_time
    work()
    _wait()
    started = clock()
    work()
    _wait()
    return clock() - started


def _wait() -> None:
    """Wait for what a GPU still has to do."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
