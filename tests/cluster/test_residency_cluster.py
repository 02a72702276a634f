"""Where frozen blocks are, and how many rows at once a node bears, on real clusters."""

import pytest
from scenarios import fit

from ray_snake import SnakeConfig
from ray_snake.errors import ConfigError


def config(*, nodes=None, **training):
    return SnakeConfig.from_tree(
        {
            "seed": 5,
            "model": {"name": "mlp", "options": {"inputs": 64, "classes": 10, "hidden": [24, 16]}},
            "data": {
                "source": "builtin://digits/train",
                "partition": {"scheme": "iid", "nodes": 3},
            },
            "nodes": {"nodes_per_actor": 3, **(nodes or {})},
            "training": {"batch_size": 16, "epochs": 2, **training},
            "snake": {"trips": 2, "span_width": 1},
        }
    )


def test_frozen_blocks_that_come_and_go_change_no_bits(raylets, tmp_path):
    resident, stream = (
        fit(config(residency=one), tmp_path / one).summary for one in ("resident", "stream")
    )
    assert stream["weights_sha256"] == resident["weights_sha256"]


def test_nodes_with_little_memory_train_fewer_rows_at_once(raylets, tmp_path):
    # Parts of a batch come to other bits than the whole, and to nearly the same model.
    whole = fit(config(), tmp_path / "whole").summary
    limited = config(nodes={"memory_bytes": 52_000}, micro_batch="auto", frozen_dtype="bfloat16")
    parts = fit(limited, tmp_path / "parts").summary
    assert parts["visits"] == whole["visits"] == 6
    assert parts["weights_sha256"] != whole["weights_sha256"]
    again = fit(limited, tmp_path / "again").summary
    assert again["weights_sha256"] == parts["weights_sha256"]


def test_a_run_that_no_node_bears_is_refused_and_leaves_nothing(raylets, tmp_path):
    with pytest.raises(ConfigError, match="too few for"):
        fit(config(nodes={"memory_bytes": 1000}), tmp_path)
    assert list(tmp_path.iterdir()) == []
