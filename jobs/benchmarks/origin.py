"""Where a benchmark's figures come from: its command, the commit, the machine."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]


def made_by() -> str:
    """Return the command, the commit and the machine, for the head of a table."""
    script = Path(sys.argv[0]).resolve().relative_to(ROOT)
    command = " ".join(["python", str(script), *sys.argv[1:]])
    return f"`{command}`, commit {commit()}, {machine()}."


def machine() -> str:
    """Return what the numbers depend on besides the code."""
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_initialized() else ""
    return f"{platform.machine()} with {os.cpu_count()} cores{gpu}, torch {torch.__version__}"


def commit() -> str:
    """Return the commit that runs."""
    done = subprocess.run(
        ["git", "-C", str(ROOT), "describe", "--always", "--dirty"],
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout.strip() or "unknown"
