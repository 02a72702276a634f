"""A real network on one machine: virtual machines with links of their own, and Ray across them.

`Testbed` is the library; `python -m cluster.testbed` runs one command. See cluster/README.md.
"""

from __future__ import annotations

from cluster.testbed.profile import MachineSpec, load_profile
from cluster.testbed.testbed import Machine, Testbed

__all__ = ["Machine", "MachineSpec", "Testbed", "load_profile"]
