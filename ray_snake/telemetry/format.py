"""Numbers as people read them."""

from __future__ import annotations

BINARY_UNITS = ("KiB", "MiB", "GiB", "TiB", "PiB")


def format_bytes(count: int) -> str:
    """Return a number of bytes in binary units, such as `512 B` or `12.3 MiB`."""
    if abs(count) < 1024:
        return f"{count} B"
    value = float(count)
    for unit in BINARY_UNITS:
        value /= 1024
        # One decimal less than 1024 would still be shown as 1024.0.
        if abs(value) < 1023.95 or unit == BINARY_UNITS[-1]:
            return f"{value:.1f} {unit}"
    raise AssertionError("unreachable: the last unit takes any value")


def format_seconds(seconds: float) -> str:
    """Return a duration in one or two units: `0.4 s`, `45 s`, `3 min 05 s`, `2 h 10 min`."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min"
