"""Which of a sweep's trials is the best one."""

import math

from ray_snake.config import SnakeConfig
from ray_snake.storage import Storage
from ray_snake.tune.sweep import Sweep, Trial


def test_a_loss_that_is_no_number_ranks_behind_every_number(tmp_path):
    config = SnakeConfig.from_tree({"tune": {"metric": "loss"}})
    losses = {"a": 2.0, "b": math.nan, "c": 1.0, "d": None, "e": math.inf, "f": 3.0}
    trials = [Trial(id=name, run=name, values={}, loss=loss) for name, loss in losses.items()]
    ranked = Sweep(config, Storage(str(tmp_path)), print)._ranked(trials)
    assert [one.id for one in ranked] == ["c", "a", "f", "e", "b", "d"]
