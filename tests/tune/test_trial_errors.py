"""What ended a trial is said, when it ends and once the sweep has."""

import math

import pytest

from ray_snake import SnakeConfig
from ray_snake.errors import RunError
from ray_snake.storage import Storage
from ray_snake.tune.sweep import Sweep, Trial, TrialDied

SETTINGS = {
    "model": {"options": {"width": 8}},
    "data": {"shards": ["none.arrow"]},
    "evaluation": {"data": "builtin://digits/test"},
    "snake": {"trips": 1},
    "tune": {
        "samples": 1,
        "scheduler": "fifo",
        "max_failures": 1,
        "space": {"seed": {"grid": [3]}},
    },
}


def test_what_a_trial_raised_is_told_and_ends_the_sweep(raylets, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    told = []
    sweep = Sweep(SnakeConfig.from_tree(SETTINGS), Storage("sweep"), told.append)
    with pytest.raises(RunError) as caught:
        sweep.run(resume=False)
    reason = f"{tmp_path}: could not open none.arrow in this location"
    assert [type(one) for one in told] == [TrialDied, TrialDied]
    assert [one.goes_on for one in told] == [True, False]
    for one in told:
        assert one.reason.startswith(reason)
    assert f"no trial came to the end of a trip ({reason}" in str(caught.value)


@pytest.mark.parametrize(
    ("metric", "trial"),
    [
        ("loss", Trial(id="a", run="a", values={}, trip=2, loss=math.nan)),
        ("accuracy", Trial(id="a", run="a", values={}, trip=2, loss=1.0)),
    ],
)
def test_trials_that_ended_without_a_score_are_not_said_to_have_no_trip(tmp_path, metric, trial):
    config = SnakeConfig.from_tree({"tune": {"metric": metric}})
    with pytest.raises(RunError, match=f"^no trial has a number as its {metric}; "):
        Sweep(config, Storage(str(tmp_path)), print)._ranked([trial])
