"""A sweep over settings: what is searched, how, and for how long."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from ray_snake.settings_tree import (
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    RefusedError,
    Section,
)

Values = Annotated[tuple[Any, ...], Field(strict=False, min_length=1)]
Range = Annotated[tuple[float, float], Field(strict=False)]
Integers = Annotated[tuple[int, int], Field(strict=False)]

KINDS = ("choice", "grid", "uniform", "loguniform", "randint")


class Axis(Section):
    """The values of one setting."""

    choice: Values | None = Field(default=None, description="One of these, drawn.")
    grid: Values | None = Field(default=None, description="Each of these, in every combination.")
    uniform: Range | None = Field(default=None, description="A number from low to high.")
    loguniform: Range | None = Field(default=None, description="Likewise, its logarithm evenly.")
    randint: Integers | None = Field(
        default=None, description="A whole number from low to below high."
    )
    when: dict[str, Any] = Field(
        default_factory=dict,
        description="Other axes' values with which it counts; else the setting stays as it is.",
    )

    @model_validator(mode="after")
    def _has_one_kind(self) -> Axis:
        given = [name for name in KINDS if getattr(self, name) is not None]
        if len(given) != 1:
            raise RefusedError(
                "", f"names {' and '.join(given) or 'no values'}", f"give one of {', '.join(KINDS)}"
            )
        bounds = self.uniform or self.loguniform or self.randint
        if bounds is not None and not bounds[0] < bounds[1]:
            raise RefusedError(
                given[0], f"goes from {bounds[0]} to {bounds[1]}", "give low and high"
            )
        if self.loguniform is not None and self.loguniform[0] <= 0:
            raise RefusedError("loguniform", f"begins at {self.loguniform[0]:g}", "begin above 0")
        return self


class TuneConfig(Section):
    """A sweep: `ray-snake tune`. Each trial is a whole run of the other settings."""

    space: dict[str, Axis] = Field(
        default_factory=dict,
        description='What is searched, by key: `"training.learning_rate" = { loguniform = '
        "[0.01, 0.2] }`; or `choice`, `grid`, `uniform`, `randint`, with `when` for those that "
        "depend on others.",
    )
    metric: Literal["accuracy", "loss"] = Field(
        default="accuracy", description="On held-out rows; what is best has most, or least loss."
    )
    samples: PositiveInt = Field(
        default=16, description="Trials to draw; with grids, for each of their combinations."
    )
    seed: NonNegativeInt = Field(default=0, description="Of what is drawn.")
    concurrency: PositiveInt | None = Field(
        default=None, description="Trials at once. `none`: as many as the cluster has room for."
    )
    budget_seconds: PositiveFloat | None = Field(
        default=None, description="No trial goes on after that. `none`: no limit."
    )
    max_failures: NonNegativeInt = Field(
        default=2, description="How often a trial that died goes on from its journal."
    )
    scheduler: Literal["asha", "median", "fifo"] = Field(
        default="asha",
        description="Which trials end early: the worse ones at each of ever later trips (`asha`), "
        "those below the median of the others (`median`), none (`fifo`).",
    )
    grace_trips: PositiveInt = Field(default=2, description="Trips that every trial gets.")
    reduction: Annotated[float, Field(gt=1)] = Field(
        default=3.0, description="With `asha`, one in so many goes on."
    )
    search: Literal["random", "optuna"] = Field(
        default="random",
        description="How values are drawn; `optuna` learns from finished trials (its TPE sampler) "
        "and knows no grids.",
    )
