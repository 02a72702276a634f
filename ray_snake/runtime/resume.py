"""Where a run goes on: strategy, anchors and blocks as its journal left them."""

from __future__ import annotations

from ray_snake.config import CodecConfig
from ray_snake.errors import CheckpointError
from ray_snake.layers.ledger import BlockVersion
from ray_snake.location import without_secrets
from ray_snake.planning.anchor import Anchors, make_anchors
from ray_snake.planning.span import Visit
from ray_snake.planning.strategy import Strategy
from ray_snake.runtime.final_mean import versions_since
from ray_snake.runtime.handles import EngineHandle, Ref
from ray_snake.runtime.journal import Journal
from ray_snake.runtime.records import JoinRecord, LeaveRecord, VisitRecord


def replay(
    journal: Journal, strategy: Strategy, codec: CodecConfig, *, parts: int
) -> tuple[Anchors | None, int]:
    """Take a new strategy to where the journal ends.

    Args:
        journal: The journal.
        strategy: The strategy.
        codec: Whether and how blocks travel as differences.
        parts: Number of the network's parts.

    Returns:
        The anchors there (none where blocks travel whole), and how many of the last visits were
        refused in a row.

    Raises:
        CheckpointError: If the journal holds visits that the strategy does not plan.
    """
    versions = [0] * parts
    anchors = make_anchors(codec, blocks=parts)
    refused_in_a_row = 0
    for record in journal:
        if isinstance(record, JoinRecord):
            strategy.join(
                record.rows, trip=record.trip, training=record.training, limit=record.limit
            )
        elif isinstance(record, LeaveRecord):
            strategy.leave(record.node, trip=record.trip)
        if not isinstance(record, VisitRecord):
            continue
        if strategy.config.snake.heads > 1:
            # They are journalled as they came in; those that did not are handed out anew.
            visit: Visit | None = record.planned
            strategy.adopt(record.planned)
        else:
            visit = strategy.next()
        if visit is None or (visit.number, visit.node, visit.trained, visit.steps) != (
            record.visit,
            record.node,
            record.trained,
            record.planned_steps,
        ):
            raise CheckpointError(
                f"visit {record.visit} of the journal of {without_secrets(journal.uri)} is not the "
                "one that these settings plan",
                "resume with the settings and the version the run was started with",
            )
        if anchors is not None:
            anchors.advance(visit, anchors.at(visit, versions))
        for block in record.blocks:
            versions[block.block] = block.version
        strategy.observe(record.outcome)
        if record.accepted:
            refused_in_a_row = 0
        else:
            refused_in_a_row += not record.late
            strategy.refused(visit)
    return anchors, refused_in_a_row


async def stored_blocks(
    journal: Journal, anchors: Anchors | None, engine: EngineHandle, mean: range | None = None
) -> dict[BlockVersion, Ref]:
    """Return the journal's current blocks and the anchors, whole; of a new run the initial ones.

    With a mean over the run's last visits, what counts for it so far comes too.

    Raises:
        CheckpointError: If one is missing or damaged.
    """
    stored = journal.current_blocks()
    if not stored:
        return {(block, 0): ref for block, ref in enumerate(await engine.initial())}
    if anchors is not None:
        current = set(stored)
        bases = [journal.block(*one) for one in enumerate(anchors.versions)]
        stored += [one for one in bases if one not in current]
    if mean is not None and journal.visits and journal.visits[-1].visit < mean[-1]:
        counted = versions_since(journal, mean[0])
        current = set(stored)
        versions = [journal.block(block, one) for block in counted for one in counted[block]]
        stored += [one for one in versions if one not in current]
    refs = await engine.restore(stored)
    return {(one.block, one.version): ref for one, ref in zip(stored, refs, strict=True)}
