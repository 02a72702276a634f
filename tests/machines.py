"""A Ray cluster of several machines' raylets on this one."""

import sys
from pathlib import Path

import pytest
import ray
from ray.cluster_utils import Cluster

from ray_snake.runtime import worker_entry
from ray_snake.runtime.warm import WarmProcess

TESTS = Path(__file__).parent
ORDINARY = Path(ray.__file__).parent / "_private" / "workers" / "setup_worker.py"


class Machines(Cluster):
    """A head and sites, whose workers are forked from processes that have imported what they need.

    As those of an embedded cluster are; the imports were most of what a test computed. The heads of
    `jobs/heads.py` start workers as Ray does.
    """

    def __init__(self, **head):
        self._warm = []
        super().__init__()
        self._add_warm(**head)

    def add_site(self, site):
        """Add a machine with the label site=`site`; return its raylet."""
        return self._add_warm(num_cpus=2, labels={"site": site})

    def _add_warm(self, **options):
        # A process for each: a worker has its raylet's number from when it imported Ray.
        self._warm.append(WarmProcess())
        with pytest.MonkeyPatch.context() as patch:
            # A cluster's machines know no test's module.
            known = [one for one in sys.path if not Path(one).is_relative_to(TESTS)]
            patch.setattr(sys, "path", known)
            for name, text in self._warm[-1].start(str(ORDINARY)).items():
                patch.setenv(name, text)
            return self.add_node(setup_worker_path=worker_entry.__file__, **options)

    def shutdown(self):
        super().shutdown()
        for warm in self._warm:
            warm.end()
