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
MOST_PARTS = 8
LEAST_OUTPUTS = 2**14
"""A pooling is done in so many parts at most, each of so many outputs at least."""
_Index = tuple[Any, ...]
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
        return _own(convolve(x, weight, bias, stride, padding, dilation, groups))

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
        return _own(F.linear(x, weight, bias))

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
        return _own(F.batch_norm(x, mean, variance, weight, bias, training=False, eps=epsilon))

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
        rows = _Windows(x.shape[-2], kernel[0], stride[0], padding[0], dilation[0], ceil_mode)
        columns = _Windows(x.shape[-1], kernel[1], stride[1], padding[1], dilation[1], ceil_mode)
        y = x.new_empty((*x.shape[:-2], rows.count, columns.count))
        place = torch.empty_like(y, dtype=torch.uint8)
        planes, largest, places = (one.reshape(-1, *one.shape[-2:]) for one in (x, y, place))
        for some in _parts(len(planes), y.numel()):
            # Along a row first: of equal values the first in reading order counts, as in torch.
            largest[some], places[some] = rows.largest(*columns.largest(planes[some]), kernel[1])
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
        offset = torch.arange(MOST_OFFSETS, device=device)
        offset = offset // columns * (dilation[0] * width) + offset % columns * dilation[1]
        top = torch.arange(place.shape[-2], device=device) * stride[0] - padding[0]
        left = torch.arange(place.shape[-1], device=device) * stride[1] - padding[1]
        corner = (top[:, None] * width + left).flatten()
        x = gradient.new_zeros((math.prod(ctx.shape[:-2]), height * width))
        source, places = gradient.reshape(-1, len(corner)), place.view(-1, len(corner))
        for some in _parts(len(x), place.numel()):
            x[some].scatter_add_(-1, offset[places[some].int()].add_(corner), source[some])
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


class _Windows:
    """The windows of a pooling along one dimension.

    Args:
        size: Of the input.
        kernel: Size of a window.
        stride: From one window to the next.
        padding: Before the first and behind the last value.
        dilation: From one value of a window to the next.
        ceil_mode: Whether a last window may reach over the far end.
    """

    def __init__(
        self, size: int, kernel: int, stride: int, padding: int, dilation: int, ceil_mode: bool
    ) -> None:
        reach = size + 2 * padding - dilation * (kernel - 1) - 1
        self.count = (-(-reach // stride) if ceil_mode else reach // stride) + 1
        if ceil_mode and (self.count - 1) * stride >= size + padding:
            # torch leaves out windows that start behind the far end.
            self.count -= 1
        self._size = size
        self._kernel = kernel
        self._stride = stride
        self._padding = padding
        self._dilation = dilation

    def largest(
        self, x: Tensor, before: Tensor | None = None, factor: int = 1
    ) -> tuple[Tensor, Tensor]:
        """Return the windows' largest values, and their places in them in uint8.

        Args:
            x: (planes, height, width). Windows lie along the width; with `before`, the height.
            before: Places of these values in windows along the width.
            factor: The size of those: a row counts that much in a place.
        """
        dim = -1 if before is None else -2
        best, place = self._first(x, dim, before, factor)
        for offset in range(1 if self._padding == 0 else 0, self._kernel):
            inside, outside = self._reached(offset, dim)
            candidate, largest, known = x[inside], best[outside], place[outside]
            larger = candidate > largest
            torch.maximum(largest, candidate, out=largest)
            # known = here where larger, in bytes, which wrap around.
            here = -known + factor * offset
            if before is not None:
                here += before[inside]
            known += here.mul_(larger)
        return best, place

    def _first(
        self, x: Tensor, dim: int, before: Tensor | None, factor: int
    ) -> tuple[Tensor, Tensor]:
        """Return values to begin with, and the places of the windows' first ones."""
        if self._padding == 0:
            inside, _ = self._reached(0, dim)
            best = x[inside].clone(memory_format=torch.contiguous_format)
            place = torch.zeros_like(best, dtype=torch.uint8)
            return best, place if before is None else place + before[inside]
        shape = list(x.shape)
        shape[dim] = self.count
        # Where nothing is larger than minus infinity, the first that is no padding counts.
        starts = torch.arange(self.count, device=x.device) * self._stride - self._padding
        first = -(starts.clamp(max=0) // self._dilation)
        place = (first * factor).to(torch.uint8).view(-1, *[1] * (-1 - dim))
        place = place.expand(shape).contiguous()
        if before is not None:
            place += before.index_select(dim, starts + first * self._dilation)
        return x.new_full(shape, -math.inf), place

    def _reached(self, offset: int, dim: int) -> tuple[_Index, _Index]:
        """Return the values at an offset in windows, and the windows that have one there."""
        shift = offset * self._dilation - self._padding
        start = max(0, -(shift // self._stride))
        stop = max(start, min(self.count, (self._size - 1 - shift) // self._stride + 1))
        rest = [slice(None)] * (-1 - dim)
        first = start * self._stride + shift
        values = slice(first, first + (stop - start) * self._stride, self._stride)
        return (..., values, *rest), (..., slice(start, stop), *rest)


def _parts(count: int, outputs: int) -> list[slice]:
    """Return slices of `count` planes that have so many outputs.

    What is done with an output takes a multiple of its bytes, so that not all is done at once.
    """
    parts = max(1, min(MOST_PARTS, outputs // LEAST_OUTPUTS))
    length = max(1, -(-count // parts))
    return [slice(start, start + length) for start in range(0, count, length)]


def _own(y: Tensor) -> Tensor:
    """Return an output that layers may write to: of a view of what it was made from they must not.

    Nobody else has what it was made from.
    """
    return y.data if y._is_view() else y


def _each(size: Size, dimensions: int) -> list[int]:
    sizes = [size] if isinstance(size, int) else list(size)
    return sizes * dimensions if len(sizes) == 1 else sizes


def _nothing(count: int) -> Nothing:
    return (None,) * count
