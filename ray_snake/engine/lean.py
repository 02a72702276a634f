"""Frozen blocks that gradients pass through, run so that little is kept for the backward pass.

Behind a trained block nobody asks for the gradients of frozen weights, so that most layers need
keep almost nothing: see `lean_layers`. Group and layer norms are the exception, as the gradient of
their input depends on all of it (Wu and He, "Group Normalization", arXiv 1803.08494, equation 1). A
block with one keeps that norm's input, or its own where that is smaller, and runs again from there.
One with a layer that is not known here keeps its own input and runs again.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function
from torch.overrides import TorchFunctionMode

from ray_snake.engine.lean_layers import (
    MOST_OFFSETS,
    AvgPool2d,
    Convolution,
    FixedBatchNorm,
    Linear,
    MaxPool2d,
    Rectifier,
    Size,
)
from ray_snake.engine.recompute import (
    BATCH_NORMS,
    CONVOLUTIONS,
    MAKE_NEW,
    ROW_NORMS,
    keeping_input,
    leaves,
    run_again,
)
from ray_snake.engine.stack import BlockRun

_KEEP_LITTLE = (nn.Linear, nn.ReLU, nn.AvgPool2d)
_KEEP_NOTHING = (
    nn.Identity,
    nn.Flatten,
    nn.Unflatten,
    nn.Dropout,
    nn.Dropout1d,
    nn.Dropout2d,
    nn.Dropout3d,
)


def lean_run(block: nn.Module) -> BlockRun:
    """Return what runs a frozen block so that it keeps little for the gradient of its input.

    Its outputs have the bits of the block's. Gradients are equal up to rounding, and can't be
    differentiated once more. What is known goes by layers' types: a function that is not, and that
    a block of known layers calls itself, keeps what it keeps in torch. Hooks on a plain sequence
    and on its ReLUs are not called.

    Args:
        block: The block, without trained weights, in evaluation mode.

    Returns:
        A function of the block's input, (batch, ...) of a floating-point dtype, which gradients
        flow to.
    """
    layers = leaves(block)
    if not all(_is_known(layer) for layer in layers):
        return partial(run_again, _repeatable(block))
    block = _in_place(block)
    if not any(type(layer) in ROW_NORMS for layer in layers):
        return partial(_in_lean_form, block)
    whole = _repeatable(block)
    norm = _first_norm(block)
    if norm == 0 or type(block) is not nn.Sequential:
        return partial(run_again, whole)
    children = list(block)
    head, tail = nn.Sequential(*children[:norm]), _repeatable(nn.Sequential(*children[norm:]))

    def run(x: Tensor) -> Tensor:
        if _grows(head, x):
            return run_again(whole, x)
        return run_again(tail, _in_lean_form(head, x))

    return run


class _LeanFunctions(TorchFunctionMode):
    """Puts lean functions in place of torch's, wherever a block calls them."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,  # noqa: ANN401 - as the base class has it
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401 - what the torch function returns
        form = _FORMS.get(func)
        if form is None or not torch.is_grad_enabled() or not _flows_to(args):
            form = func
        return form(*args, **(kwargs or {}))


def _in_lean_form(block: nn.Module, x: Tensor) -> Tensor:
    with _LeanFunctions():
        y: Tensor = block(x)
        return y


def _convolution(convolve: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Return the lean form of a convolution of some number of dimensions."""

    def form(
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: Size = 1,
        padding: Size | str = 0,
        dilation: Size = 1,
        groups: int = 1,
    ) -> Tensor:
        options = (x, weight, bias, stride, padding, dilation, groups)
        if _trains(weight, bias) or isinstance(padding, str) or x.dim() != weight.dim():
            return convolve(*options)
        return _apply(Convolution, convolve, *options)

    return form


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    if _trains(weight, bias):
        return F.linear(x, weight, bias)
    return _apply(Linear, x, weight, bias)


def _batch_norm(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    if training or running_mean is None or running_var is None or _trains(weight, bias):
        return F.batch_norm(
            x, running_mean, running_var, weight, bias, training, momentum=momentum, eps=eps
        )
    return _apply(FixedBatchNorm, x, running_mean, running_var, weight, bias, eps)


def _relu(x: Tensor, inplace: bool = False) -> Tensor:
    return _apply(Rectifier, x, inplace)


def _max_pool2d(
    x: Tensor,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Size = 0,
    dilation: Size = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    kernel = _pair(kernel_size)
    steps = _pair(stride) if stride else kernel
    options = (x, kernel, steps, _pair(padding), _pair(dilation), ceil_mode)
    if return_indices:
        return F.max_pool2d_with_indices(*options)
    if kernel[0] * kernel[1] > MOST_OFFSETS:
        return F.max_pool2d(*options)
    return _apply(MaxPool2d, *options)


def _avg_pool2d(
    x: Tensor,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Size = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Tensor:
    kernel = _pair(kernel_size)
    steps = _pair(stride) if stride else kernel
    options = (kernel, steps, _pair(padding), ceil_mode, count_include_pad, divisor_override)
    return _apply(AvgPool2d, x, *options)


_FORMS: dict[Callable[..., Any], Callable[..., Any]] = {
    **{one: _convolution(one) for one in (F.conv1d, F.conv2d, F.conv3d)},
    F.linear: _linear,
    F.batch_norm: _batch_norm,
    **dict.fromkeys((F.relu, torch.relu, Tensor.relu), _relu),
    **dict.fromkeys((torch.relu_, Tensor.relu_), partial(_relu, inplace=True)),
    # Which of the two torch names differs between its versions.
    **dict.fromkeys((F.max_pool2d, torch.max_pool2d), _max_pool2d),
    F.avg_pool2d: _avg_pool2d,
}


def _is_known(layer: nn.Module) -> bool:
    """Return whether what a layer keeps is known here, and it is the least."""
    if type(layer) in CONVOLUTIONS:
        return not isinstance(layer.padding, str)
    if type(layer) in BATCH_NORMS:
        return bool(layer.track_running_stats)
    if type(layer) is nn.MaxPool2d:
        return not layer.return_indices
    if type(layer) is nn.AdaptiveAvgPool2d:
        # A mean; with any other size torch keeps the input.
        return layer.output_size in (1, (1, 1))
    return type(layer) in (*ROW_NORMS, *_KEEP_LITTLE, *_KEEP_NOTHING)


def _grows(layers: nn.Sequential, x: Tensor) -> bool:
    """Return whether layers are one convolution or linear layer that makes more than it gets."""
    layer = layers[0]
    if len(layers) > 1 or not isinstance(layer, (*CONVOLUTIONS, nn.Linear)):
        return False
    if isinstance(layer, nn.Linear):
        return layer.out_features > layer.in_features
    padding = [int(one) for one in layer.padding]
    sizes = [
        (size + 2 * pad - dilation * (kernel - 1) - 1) // stride + 1
        for size, pad, dilation, kernel, stride in zip(
            x.shape[2:], padding, layer.dilation, layer.kernel_size, layer.stride, strict=True
        )
    ]
    return layer.out_channels * math.prod(sizes) > math.prod(x.shape[1:])


def _in_place(block: nn.Module) -> nn.Module:
    """Return a block of the same layers whose ReLUs work in place on what nobody else needs.

    Blocks that are no plain sequence come back as they are.
    """
    if type(block) is not nn.Sequential:
        return block
    layers: list[nn.Module] = []
    for layer in block:
        if type(layer) is nn.ReLU and layers and type(layers[-1]) in MAKE_NEW:
            layers.append(nn.ReLU(inplace=True).train(layer.training))
        else:
            layers.append(_in_place(layer))
    return nn.Sequential(*layers)


def _first_norm(block: nn.Module) -> int:
    """Return the number of the first child with a norm over whole rows; 0 without one."""
    for number, child in enumerate(block.children()):
        if any(type(layer) in ROW_NORMS for layer in child.modules()):
            return number
    return 0


def _repeatable(block: nn.Module) -> BlockRun:
    """Return what runs a block in lean form and leaves its input as it is."""
    return keeping_input(block, partial(_in_lean_form, block))


def _flows_to(args: tuple[Any, ...]) -> bool:
    """Return whether gradients flow to the first of a function's arguments."""
    return bool(args) and isinstance(args[0], Tensor) and args[0].requires_grad


def _trains(*weights: Tensor | None) -> bool:
    return any(one is not None and one.requires_grad for one in weights)


def _pair(size: Size) -> tuple[int, int]:
    sizes = (size,) if isinstance(size, int) else tuple(size)
    return (sizes[0], sizes[-1])


def _apply(function: type[Function], *args: object) -> Tensor:
    # torch has no types for it.
    y: Tensor = function.apply(*args)  # type: ignore[no-untyped-call]
    return y
