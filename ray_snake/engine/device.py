"""The process and the device a node computes on, and its share of it."""

from __future__ import annotations

import ctypes
import os
import warnings
from collections.abc import Callable
from typing import TypeVar

import psutil
import pyarrow as pa
import torch

NO_WAY = "does not have a deterministic implementation"
"""torch's words for an operation that comes to other bits each time."""
Result = TypeVar("Result")
_refuses = True


def prepare_process(threads: int) -> None:
    """Set up torch for this process.

    Args:
        threads: How many it may use; part of what makes results repeatable.
    """
    # Large tensors on huge pages: copying a span into memory of its own is five times faster.
    # torch reads this at its first large allocation.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    torch.set_num_threads(threads)
    # pyarrow's own pool keeps 10 MiB for a shard of 100 KiB.
    pa.set_memory_pool(pa.system_memory_pool())


def take_device(gpu_share: float) -> torch.device:
    """Return the device of this process and hold it to its share.

    Args:
        gpu_share: GPUs this process was given; 0 means the CPU. A share below 1 becomes a hard
            limit of the allocator on the GPU's memory.
    """
    if gpu_share <= 0 or not torch.cuda.is_available():
        return torch.device("cpu")
    device = torch.device("cuda", 0)
    if gpu_share < 1:
        torch.cuda.set_per_process_memory_fraction(gpu_share, device)
    compute_repeatably()
    return device


def compute_repeatably() -> None:
    """Have a GPU come to the same bits each time, wherever torch has a way to.

    Else a visit that is done again would differ: by default convolutions add up their gradients in
    no fixed order. Where torch has no such way it warns; see `repeatably` for more than that.
    """
    # cuBLAS reads this when it starts; torch.use_deterministic_algorithms says which values do.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    # What is allocated is written to before it is read. torch has no types for it.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def repeatably(work: Callable[[], Result], device: torch.device) -> Result:
    """Do work that ends in the same bits each time, wherever torch has a way to on its device.

    While it only warns where it has none, torch does attention's backward pass in no fixed order
    either. So here it refuses; and then the work is done anew, with a warning, from the start.

    Args:
        work: What to do, twice if need be.
        device: Where it computes. The CPU comes to the same bits anyway.
    """
    global _refuses
    if device.type == "cpu" or not _refuses:
        return work()
    torch.use_deterministic_algorithms(True)
    try:
        return work()
    except RuntimeError as error:
        if NO_WAY not in str(error):
            raise
        _refuses = False
        warnings.warn(f"results may differ from run to run: {error}", stacklevel=2)
    finally:
        torch.use_deterministic_algorithms(True, warn_only=True)
    return work()


def give_back_memory() -> None:
    """Give the memory that this process has freed back to its machine.

    glibc keeps freed pieces of up to 32 MiB, which most weights and activations are: without this
    a node would hold about the peak of its last visit until its next one. A pass over what it
    keeps; elsewhere nothing is done.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def free_bytes(device: torch.device) -> int:
    """Return the bytes that a device has free now; of the CPU, those of its machine."""
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        return free_of_share(
            free=free,
            limit=int(torch.cuda.get_per_process_memory_fraction(device) * total),
            reserved=torch.cuda.memory_reserved(device),
            allocated=torch.cuda.memory_allocated(device),
        )
    return int(psutil.virtual_memory().available)


def free_of_share(*, free: int, limit: int, reserved: int, allocated: int) -> int:
    """Return the bytes of a GPU that are free for a process.

    Args:
        free: Of the whole GPU.
        limit: What the process may take of it: its share.
        reserved: What torch's allocator has taken, of which it keeps some for later.
        allocated: What of that is in use.
    """
    return max(0, min(free, limit - reserved)) + reserved - allocated


def computing(precision: str, device: torch.device) -> torch.autocast:
    """Return the context of forward passes: with `bf16` torch chooses what can bear it.

    Weights, gradients and the optimizer's state stay fp32. It is entered anew for each step: within
    one, casts of weights are kept.
    """
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16")
