"""Whether a visit's result becomes part of the model. A policy decides; only the driver acts."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ray_snake.config import AcceptanceConfig, SnakeConfig
from ray_snake.runtime.messages import VisitReport
from ray_snake.runtime.states import Deciding


@dataclass(frozen=True)
class Accept:
    """The result becomes part of the model."""


@dataclass(frozen=True)
class Refuse:
    """The result is dropped, for a reason that the journal keeps."""

    reason: str


def judge_visit(state: Deciding, staleness: int, config: SnakeConfig) -> Accept | Refuse:
    """Decide on a visit that came back, by what it is, when it came, and what came meanwhile.

    Args:
        state: The visit.
        staleness: How many results came in between its start and now.
        config: The run's settings.
    """
    limit = config.snake.max_staleness
    if state.late and config.adaptation.late == "drop":
        return Refuse(f"it was stopped at its deadline, after {state.seconds:.1f} s")
    if limit is not None and staleness > limit:
        return Refuse(
            f"{staleness} results came in meanwhile, more than snake.max_staleness = {limit}"
        )
    return judge(state.report, config.acceptance)


def judge(report: VisitReport, policy: AcceptanceConfig) -> Accept | Refuse:
    """Decide on a visit's result: finite, bounded change, loss not worse than allowed."""
    if report.steps == 0:
        return Refuse("it was stopped before its first step")
    change = report.update_norm
    if not report.finite or not (change is None or math.isfinite(change)):
        return Refuse("the trained weights are not finite")
    if not math.isfinite(report.loss):
        return Refuse(f"the training loss is {report.loss}")
    if policy.max_update_norm is not None:
        if change is None:
            raise RuntimeError("a node must measure the change that acceptance puts a limit to")
        if change > policy.max_update_norm:
            return Refuse(
                f"the weights changed by {change:.4g}, more than "
                f"acceptance.max_update_norm = {policy.max_update_norm:g}"
            )
    if policy.max_loss_ratio is not None:
        limit = policy.max_loss_ratio * report.first_loss
        if report.loss > limit:
            return Refuse(
                f"the loss ended at {report.loss:.4g}, above acceptance.max_loss_ratio = "
                f"{policy.max_loss_ratio:g} times the first epoch's {report.first_loss:.4g}"
            )
    return Accept()
