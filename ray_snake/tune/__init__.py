"""Sweeps over settings with Ray Tune: a trial is a whole run, in a placement group of its own.

For a `ray.tune.Tuner` of one's own: `make_trainable` and `tune_resources`.
"""

from ray_snake.tune.trial import make_trainable, tune_resources

__all__ = ["make_trainable", "tune_resources"]
