"""How GPUs are shared out: a process has whole ones of one machine, or a share of a single one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence


def largest_share(gpus_of: Sequence[Sequence[float]], count: int) -> float:
    """Return the largest share of GPUs that so many processes can have; 0 without any GPU.

    Args:
        gpus_of: What is free of each GPU, in [0, 1], of each machine.
        count: How many processes.
    """
    whole = [sum(free >= 1 for free in machine) for machine in gpus_of]
    for share in range(max(whole, default=0), 0, -1):
        if sum(number // share for number in whole) >= count:
            return float(share)
    hundredths = [round(free * 100) for machine in gpus_of for free in machine]
    for share in range(99, 0, -1):
        if sum(free // share for free in hundredths) >= count:
            return share / 100
    # Where there are too few GPUs for that, the least share is refused.
    return 0.01 if any(hundredths) else 0.0


def single_gpus(amount: float) -> list[float]:
    """Return what is free of each GPU of a machine."""
    whole, rest = divmod(amount, 1.0)
    return [1.0] * int(whole) + ([rest] if rest else [])


def take_share(amount: float, gpus_of: Sequence[list[float]]) -> None:
    """Take a share where it is: of one GPU, or whole ones of one machine; nothing if nowhere."""
    for machine in gpus_of:
        if amount < 1:
            fitting = [number for number, free in enumerate(machine) if free >= amount - 1e-9]
            if fitting:
                machine[min(fitting, key=machine.__getitem__)] -= amount
                return
        elif sum(free >= 1 for free in machine) >= amount:
            for _ in range(int(amount)):
                machine.remove(1.0)
            return


def room_for(resource: str, amount: float, resources: Mapping[str, float]) -> int:
    """Return how many processes a machine has room for that ask for so much of a resource.

    Less than a GPU is of a single one.
    """
    there = resources.get(resource, 0.0)
    if resource == "GPU" and amount < 1:
        return sum(int(free / amount + 1e-9) for free in single_gpus(there))
    return int(there / amount + 1e-9)
