"""Frozen layers that keep the least that the gradient of their input needs.

torch keeps the input of a frozen convolution, as if its weight's gradient were asked for too; that
of a batch norm; a ReLU's output; a max pooling's input, and 8 bytes for each of its outputs. What
the gradient of the input really needs of each is below. All these functions come to the bits of
torch's forward pass, and to its gradients up to rounding; none can be differentiated twice. They
take any floating-point dtype. Under autocast they cast as torch does, and keep no casts.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import FunctionCtx, once_differentiable

Size = int | tuple[int, ...] | list[int]
Nothing = tuple[None, ...]

MOST_OFFSETS = 256
"""A place within a pooling window is kept in one byte."""
_TRANSPOSED = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


class Context(FunctionCtx):
    """What a function keeps between its forward and its backward pass."""

    saved_tensors: tuple[Tensor, ...]
    shape: torch.Size
    dtype: torch.dtype
    geometry: tuple[Any, ...]


class Convolution(Function):
    """A convolution that keeps its weight alone, which is there anyway.

    The gradient of its input is the transposed convolution of its output's (Dumoulin and Visin, "A
    guide to convolution arithmetic for deep learning", arXiv 1603.07285, section 4).
    """

    @staticmethod
    def forward(
        ctx: Context,
        convolve: Callable[..., Tensor],
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        stride: Size,
        padding: Size,
        dilation: Size,
        groups: int,
    ) -> Tensor:
        """Return what `convolve` makes of (batch, channels, ...)."""
        ctx.save_for_backward(weight)
        ctx.shape, ctx.dtype = x.shape, x.dtype
        ctx.geometry = (stride, padding, dilation, groups)
        return convolve(x, weight, bias, stride, padding, dilation, groups)

    @staticmethod
    @once_differentiable
    def backward(ctx: Context, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradient of the input."""
        (weight,) = ctx.saved_tensors
        dimensions = weight.dim() - 2
        stride, padding, dilation = (_each(one, dimensions) for one in ctx.geometry[:3])
        # What the strides leave over at the far end.
        rest = [
            (ctx.shape[2 + i] + 2 * padding[i] - dilation[i] * (weight.shape[2 + i] - 1) - 1)
            % stride[i]
            for i in range(dimensions)
        ]
        x = _TRANSPOSED[dimensions](
            gradient,
            weight.to(gradient.dtype),
            stride=stride,
            padding=padding,
            output_padding=rest,
            groups=ctx.geometry[3],
            dilation=dilation,
        )
        return (None, x.to(ctx.dtype), *_nothing(6))


class Linear(Function):
    """A linear layer that keeps its weight alone: torch does too, but its cast under autocast."""

    @staticmethod
    def forward(ctx: Context, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Return (..., outputs) of (..., inputs)."""
        ctx.save_for_backward(weight)
        ctx.dtype = x.dtype
        return F.linear(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Context, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradient of the input."""
        (weight,) = ctx.saved_tensors
        return (gradient.matmul(weight.to(gradient.dtype)).to(ctx.dtype), *_nothing(2))


class FixedBatchNorm(Function):
    """A batch norm with fixed statistics, a scale and a shift: it keeps one number per channel."""

    @staticmethod
    def forward(
        ctx: Context,
        x: Tensor,
        mean: Tensor,
        variance: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        epsilon: float,
    ) -> Tensor:
        """Return (batch, channels, ...) normalized."""
        scale = torch.rsqrt(variance + epsilon)
        ctx.save_for_backward(scale if weight is None else scale * weight)
        ctx.dtype = x.dtype
        return F.batch_norm(x, mean, variance, weight, bias, training=False, eps=epsilon)

    @staticmethod
    @once_differentiable
    def backward(ctx: Context, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradient of the input."""
        (scale,) = ctx.saved_tensors
        x = gradient * scale.view(-1, *[1] * (gradient.dim() - 2))
        return (x.to(ctx.dtype), *_nothing(5))


class Rectifier(Function):
    """A ReLU that keeps one bit for each output: whether it is positive."""

    @staticmethod
    def forward(ctx: Context, x: Tensor, in_place: bool) -> Tensor:
        """Return `x` or 0, whichever is more; in the memory of `x` if asked to."""
        y = x.relu_() if in_place else x.relu()
        if in_place:
            ctx.mark_dirty(x)
        ctx.save_for_backward(pack(y > 0))
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Context, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradient of the input."""
        (packed,) = ctx.saved_tensors
        x = unpack(packed, gradient.shape).to(gradient.dtype)
        # In torch it is much faster than `where`; a product would make NaN of infinity.
        torch.ops.aten.threshold_backward.grad_input(gradient, x, 0, grad_input=x)
        return x, None


class MaxPool2d(Function):
    """A 2-D max pooling that keeps one byte for each output: its place in the window."""

    @staticmethod
    def forward(
        ctx: Context,
        x: Tensor,
        kernel: tuple[int, int],
        stride: tuple[int, int],
        padding: tuple[int, int],
        dilation: tuple[int, int],
        ceil_mode: bool,
    ) -> Tensor:
        """Return the largest values of the windows of (..., height, width)."""
        # Along a row first: of equal values the first one in reading order counts, as in torch.
        y, column = _slide(x, -1, kernel[1], stride[1], padding[1], dilation[1], ceil_mode)
        y, place = _slide(
            y, -2, kernel[0], stride[0], padding[0], dilation[0], ceil_mode, column, kernel[1]
        )
        ctx.save_for_backward(place)
        ctx.shape = x.shape
        ctx.geometry = (kernel[1], stride, padding, dilation)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Context, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradient of the input."""
        (place,) = ctx.saved_tensors
        columns, stride, padding, dilation = ctx.geometry
        height, width = ctx.shape[-2:]
        device = gradient.device
        place_to_index = torch.arange(MOST_OFFSETS, device=device)
        place_to_index = (
            place_to_index // columns * (dilation[0] * width)
            + place_to_index % columns * dilation[1]
        )
        top = torch.arange(place.shape[-2], device=device) * stride[0] - padding[0]
        left = torch.arange(place.shape[-1], device=device) * stride[1] - padding[1]
        index = place_to_index[place.long()].add_(top[:, None] * width + left)
        x = gradient.new_zeros((*ctx.shape[:-2], height * width))
        x.scatter_add_(-1, index.flatten(-2), gradient.flatten(-2))
        return (x.view(ctx.shape), *_nothing(5))


class AvgPool2d(Function):
    """A 2-D average pooling that keeps nothing."""

    @staticmethod
    def forward(
        ctx: Context,
        x: Tensor,
        kernel: tuple[int, int],
        stride: tuple[int, int],
        padding: tuple[int, int],
        ceil_mode: bool,
        count_include_pad: bool,
        divisor: int | None,
    ) -> Tensor:
        """Return the means of the windows of (..., height, width)."""
        ctx.shape = x.shape
        ctx.geometry = (kernel, stride, padding, ceil_mode, count_include_pad, divisor)
        return F.avg_pool2d(x, *ctx.geometry)

    @staticmethod
    @once_differentiable
    def backward(ctx: Context, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradient of the input."""
        # Only the input's shape counts, so that one number stands for all.
        shape = gradient.new_zeros(()).expand(ctx.shape)
        x: Tensor = torch.ops.aten.avg_pool2d_backward(gradient, shape, *ctx.geometry)
        return (x, *_nothing(6))


def pack(bits: Tensor) -> Tensor:
    """Return a bool tensor as uint8, eight to a byte: byte i has bits i, i+n, i+2n, ... of 8n."""
    flat = bits.flatten()
    planes = F.pad(flat, (0, -len(flat) % 8)) if len(flat) % 8 else flat
    planes = planes.view(torch.uint8).view(8, -1)
    packed = planes[7].clone()
    for i in range(6, -1, -1):
        torch.add(planes[i], packed, alpha=2, out=packed)
    return packed


def unpack(packed: Tensor, shape: torch.Size) -> Tensor:
    """Return what `pack` packed, as zeros and ones in uint8 of a shape."""
    shifts = torch.arange(8, dtype=torch.uint8, device=packed.device)
    bits = (packed >> shifts[:, None]).bitwise_and_(1)
    return bits.view(-1)[: math.prod(shape)].view(shape)


def _slide(
    x: Tensor,
    dim: int,
    kernel: int,
    stride: int,
    padding: int,
    dilation: int,
    ceil_mode: bool,
    before: Tensor | None = None,
    factor: int = 1,
) -> tuple[Tensor, Tensor]:
    """Return the largest values of the windows along one dimension, and their places in uint8.

    A place is the offset in the window; with the places `before` of another dimension, `factor`
    times that plus the place there.
    """
    size = x.shape[dim]
    reach = size + 2 * padding - dilation * (kernel - 1) - 1
    count = (-(-reach // stride) if ceil_mode else reach // stride) + 1
    if ceil_mode and (count - 1) * stride >= size + padding:
        # torch leaves out windows that start behind the far end.
        count -= 1
    shape = list(x.shape)
    shape[dim] = count
    best = x.new_full(shape, -math.inf)
    # Where nothing is larger than minus infinity, the first that is no padding counts.
    starts = torch.arange(count, device=x.device) * stride - padding
    first = -(starts.clamp(max=0) // dilation)
    place = (first * factor).to(torch.uint8).view(-1, *[1] * (-1 - dim)).expand(shape).contiguous()
    if before is not None:
        place += before.index_select(dim, starts + first * dilation)
    for offset in range(kernel):
        shift = offset * dilation - padding
        start = max(0, -(shift // stride))
        stop = min(count, (size - 1 - shift) // stride + 1)
        if stop <= start:
            continue
        inside = _along(dim, start * stride + shift, (stop - 1) * stride + shift + 1, stride)
        outside = _along(dim, start, stop, 1)
        candidate, largest, known = x[inside], best[outside], place[outside]
        larger = candidate > largest
        torch.maximum(largest, candidate, out=largest)
        # known = here where larger, in bytes, which wrap around.
        here = -known + factor * offset
        if before is not None:
            here += before[inside]
        known += here.mul_(larger)
    return best, place


def _along(dim: int, start: int, stop: int, step: int) -> tuple[Any, ...]:
    """Return the index of a slice along a dimension counted from the last."""
    return (..., slice(start, stop, step), *[slice(None)] * (-1 - dim))


def _each(size: Size, dimensions: int) -> list[int]:
    sizes = [size] if isinstance(size, int) else list(size)
    return sizes * dimensions if len(sizes) == 1 else sizes


def _nothing(count: int) -> Nothing:
    return (None,) * count
