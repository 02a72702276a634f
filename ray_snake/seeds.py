"""Named random seeds: every draw in a run comes from the run's seed and the name of its purpose."""

from __future__ import annotations

import hashlib


def derive_seed(seed: int, *name: str | int) -> int:
    """Return the seed for one named purpose, in [0, 2**63).

    The same arguments give the same seed on every machine and Python version, and different names
    give independent seeds, so that adding one draw never shifts another.

    Args:
        seed: The run's seed.
        name: What the draw is for, such as `("visit", 17, "epoch", 2)`.
    """
    text = "/".join(_written(part) for part in (seed, *name))
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def _written(part: str | int) -> str:
    # A slash within a name must not read as the end of it.
    text = str(part).replace("\\", "\\\\").replace("/", "\\/")
    return f"{type(part).__name__}:{text}"
