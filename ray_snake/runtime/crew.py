"""The nodes of a run: those that it started with, those that joined, those that left."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from ray_snake.config import DataConfig, SnakeConfig, TrainingConfig
from ray_snake.data import ShardSource
from ray_snake.planning.outlook import Facts
from ray_snake.runtime.messages import NodeSpec
from ray_snake.runtime.placement import NodeGroup, request_of
from ray_snake.runtime.records import JoinRecord, JournalRecord, LeaveRecord


@dataclass(frozen=True, kw_only=True)
class Crew:
    """The nodes of a run, by number.

    Attributes:
        names: Their names, of those that left too.
        rows: Rows of each node's shard.
        training: How each node that the run started with trains, where that is not as the settings
            say; empty: none is known.
        limits: Bytes of memory of each of these, 0 without a limit; likewise.
    """

    names: list[str]
    rows: list[int]
    training: tuple[TrainingConfig | None, ...] = ()
    limits: tuple[int, ...] = ()

    def facts(self) -> Facts:
        """Return what is known of the nodes now, without costs of blocks."""
        rows = tuple(self.rows)
        return Facts(rows=rows, costs=(), training=self.training, limits=self.limits)


def joining(uri: str, name: str | None, data: DataConfig, *, index: int) -> ShardSource:
    """Return the shard of a node that joins, read as the run reads all others."""
    return ShardSource(
        uri=uri,
        index=index,
        input=data.input,
        label=data.label,
        mean=data.mean,
        std=data.std,
        title=name,
    )


def spec_of(record: JoinRecord, data: DataConfig) -> NodeSpec:
    """Return a node that has joined, as it was when it did."""
    return NodeSpec(
        source=joining(record.uri, record.name, data, index=record.node),
        sample_shape=record.sample_shape,
        integer_inputs=record.integer_inputs,
        samples=record.rows,
        classes=record.classes,
        training=record.training,
    )


class Muster:
    """Who is to be there when a run starts or goes on; nothing is asked of nodes that left.

    Args:
        config: The run's settings.
        sources: The shards of the nodes that it started with, by number.
        groups: Their processes.
        records: The run's journal; empty for a new one.

    Attributes:
        sources: The shards of the nodes that take part now, in order of their numbers.
        groups: Their processes, with places in `sources` as numbers.
    """

    def __init__(
        self,
        config: SnakeConfig,
        sources: Sequence[ShardSource],
        groups: Sequence[NodeGroup],
        records: Iterable[JournalRecord] = (),
    ) -> None:
        changes = [one for one in records if isinstance(one, JoinRecord | LeaveRecord)]
        joined = [spec_of(one, config.data) for one in changes if isinstance(one, JoinRecord)]
        self._rows_of_gone = {one.node: one.rows for one in changes if isinstance(one, LeaveRecord)}
        self._first = list(sources)
        self._groups = list(groups)
        all_sources = [*sources, *(one.source for one in joined)]
        staying = [node for node in range(len(all_sources)) if node not in self._rows_of_gone]
        self._place = {node: place for place, node in enumerate(staying)}
        self.sources = [all_sources[node] for node in staying]
        alone = [
            NodeGroup(nodes=(number,), request=request_of(config.nodes, one.source))
            for number, one in enumerate(joined, start=len(sources))
        ]
        present = [(group, self._places(group)) for group in [*groups, *alone]]
        self.groups = [replace(group, nodes=places) for group, places in present if places]

    def numbers_or_sources(self) -> list[int | ShardSource]:
        """Return, of `sources`, the numbers of those that the run started with; others as such."""
        return [
            node if node < len(self._first) else self.sources[place]
            for node, place in self._place.items()
        ]

    def first_groups(self, shared: Sequence[NodeGroup]) -> list[NodeGroup]:
        """Return the processes of the nodes that the run started with.

        Args:
            shared: `groups` with their GPU shares.
        """
        requests = {group.nodes: group.request for group in shared}
        return [
            replace(
                group, request=requests.get(self._places(group), replace(group.request, gpus=0.0))
            )
            for group in self._groups
        ]

    def first_specs(self, checked: Sequence[NodeSpec]) -> list[NodeSpec]:
        """Return the nodes that the run started with; of those that left, only their rows are true.

        Args:
            checked: The nodes of `sources`.
        """
        return [
            checked[self._place[node]]
            if node in self._place
            else NodeSpec(
                source=source,
                sample_shape=(),
                integer_inputs=False,
                samples=self._rows_of_gone[node],
                classes=None,
            )
            for node, source in enumerate(self._first)
        ]

    def remaining(self, checked: Sequence[NodeSpec]) -> list[NodeSpec]:
        """Return the nodes that the run started with and that are left; all, if none of them is.

        What is measured for them is what was when it started: whoever joined since counts for
        nothing then.

        Args:
            checked: The nodes of `sources`.
        """
        first = [checked[place] for node, place in self._place.items() if node < len(self._first)]
        return first or list(checked)

    def _places(self, group: NodeGroup) -> tuple[int, ...]:
        return tuple(self._place[node] for node in group.nodes if node in self._place)
