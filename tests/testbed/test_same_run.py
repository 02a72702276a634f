"""A run across machines with slow links gives the weights of the same run on one."""

from __future__ import annotations

import json


def test_the_test_bed_gives_the_weights_of_an_embedded_cluster(bed, quickstart, tmp_path):
    done = bed.run(
        [*quickstart.command, "--storage", str(tmp_path)],
        capture=True,
        timeout=180,
    )
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout.splitlines()[-1])
    assert answer["weights_sha256"] == quickstart.answer["weights_sha256"]
    assert answer["bytes_moved"] == quickstart.answer["bytes_moved"]
