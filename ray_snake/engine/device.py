"""The device a node computes on, and its share of it."""

from __future__ import annotations

import torch


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
    return device
