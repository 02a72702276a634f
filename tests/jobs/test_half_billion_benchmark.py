"""The benchmark of half a billion parameters on 8 nodes, with a model that trains in a moment."""

import json
import subprocess
import sys
from pathlib import Path

BENCHMARK = Path(__file__).parents[2] / "jobs" / "benchmarks" / "half_billion.py"


def test_every_node_is_visited_and_every_span_trained():
    done = subprocess.run(
        [sys.executable, str(BENCHMARK), "--tiny", "--json"],
        capture_output=True,
        text=True,
        timeout=600,
        check=True,
    )
    figures = json.loads(done.stdout.splitlines()[-1])
    assert figures["nodes"] == figures["nodes_visited"] == 8
    spans = [tuple(one) for one in figures["spans_trained"]]
    assert {block for start, stop in spans for block in range(start, stop)} == set(range(25))
    # The weights of a tied embedding and 24 layers of Qwen 2, with its biases, and the last norm.
    layer = 32 * (2 * 32 + 2 * 16) + 32 + 2 * 16 + 3 * 32 * 64 + 2 * 32
    assert figures["parameters"] == 16_384 * 32 + 24 * layer + 32
    assert figures["last_loss"] < figures["first_loss"]
    assert figures["perplexity"] < 16_384
    assert figures["bytes_moved"] > 4 * figures["parameters"]
    assert 0 < figures["largest_node_gib"] < figures["peak_gib"]
    assert figures["predicted_visit_without_embedding_gib"] > 0
    assert figures["predicted_visit_gib"] < figures["predicted_full_gib"]
    assert figures["predicted_full_gib"] < figures["whole_on_all_nodes_gib"]
