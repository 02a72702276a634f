"""Between torch tensors and the arrays that travel."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from ray_snake.layers.state import OPTIMIZER, Array, LayerState

# Frozen blocks are read-only views on purpose: the engine never writes to a frozen block.
warnings.filterwarnings("ignore", message="The given NumPy array is not writable")


def pack(block: int, version: int, tensors: Mapping[str, Tensor]) -> LayerState:
    """Return the tensors of a block as a `LayerState`; CPU tensors are not copied."""
    return LayerState(
        block=block,
        version=version,
        arrays={name: to_array(tensor) for name, tensor in tensors.items()},
        dtypes={name: str(tensor.dtype).removeprefix("torch.") for name, tensor in tensors.items()},
    )


def unpack(state: LayerState, device: torch.device | None = None) -> dict[str, Tensor]:
    """Return weights and buffers as tensors: on the CPU read-only views of the same memory."""
    return _tensors(state, device, optimizer=False)


def unpack_optimizer(state: LayerState, device: torch.device | None = None) -> dict[str, Tensor]:
    """Return what an optimizer left with a block, in the same way; {} where it left nothing."""
    found = _tensors(state, device, optimizer=True)
    return {name.removeprefix(OPTIMIZER): tensor for name, tensor in found.items()}


def _tensors(
    state: LayerState, device: torch.device | None, *, optimizer: bool
) -> dict[str, Tensor]:
    return {
        name: from_array(array, state.dtypes[name]).to(device or torch.device("cpu"))
        for name, array in state.arrays.items()
        if name.startswith(OPTIMIZER) == optimizer
    }


def weighted_mean(
    versions: Iterable[Mapping[str, Tensor]], weights: Sequence[float]
) -> dict[str, Tensor]:
    """Return the weighted mean of versions of one block, one of which is looked at after another.

    It is added up in float32 at least: each sum of bfloat16 loses more than a round may change.
    Integers, such as a norm's count of batches, are the first one's. The mean of one is that one,
    bit for bit.
    """
    shares = [weight / sum(weights) for weight in weights]
    mean: dict[str, Tensor] = {}
    dtypes: dict[str, torch.dtype] = {}
    for tensors, share in zip(versions, shares, strict=True):
        for name, tensor in tensors.items():
            if not tensor.is_floating_point():
                mean.setdefault(name, tensor)
            elif name in mean:
                mean[name].add_(tensor, alpha=share)
            else:
                dtypes[name] = tensor.dtype
                mean[name] = tensor.to(torch.promote_types(tensor.dtype, torch.float32)) * share
    return {name: one.to(dtypes.get(name, one.dtype)) for name, one in mean.items()}


def to_array(tensor: Tensor) -> Array:
    """Return a tensor as the array that travels; a CPU tensor is not copied."""
    tensor = tensor.detach().cpu().contiguous()
    if tensor.dtype == torch.bfloat16:
        tensor = tensor.view(torch.uint16)
    return tensor.numpy()


def from_array(array: Array, dtype: str) -> Tensor:
    """Return an array as the tensor it was, with its torch dtype by name; not copied."""
    tensor: Tensor = torch.from_numpy(array).view(getattr(torch, dtype))
    return tensor
