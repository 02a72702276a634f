"""What of a run's checks needs the network, and so torch: done here, or in a process apart.

Torch costs a process 120 MiB, and the one that starts a run needs it for these checks alone.
Importing this does not import torch.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from ray_snake.config import ModelConfig
from ray_snake.data import ShardSource
from ray_snake.planning.cost import BlockCost
from ray_snake.runtime.apart import Apart, can_fork
from ray_snake.runtime.messages import BlockTable
from ray_snake.runtime.recipe import Recipe
from ray_snake.runtime.shard_checks import ShardFacts

if TYPE_CHECKING:
    from ray_snake.engine.stack import BlockStack

ANSWER_SECONDS = 900.0
"""How long building the network, timing its blocks, or looking through one shard may take."""


class ModelChecks(Protocol):
    """What a run wants to know of its network and its shards before any actor starts."""

    def blocks(self) -> BlockTable:
        """Build the network without weights, see that all that is named fits it, and describe it.

        Raises:
            ModelError: If it can't be built or cut.
            ConfigError: If strategy, order or loss are not known, or don't fit nodes or network.
        """

    def options(self, model: ModelConfig) -> dict[str, Any]:
        """Return a model's options, those at their default too.

        Raises:
            ModelError: If they are refused.
        """

    def classes(self, facts: ShardFacts, name: str) -> int | None:
        """Return how many classes it tells apart; see `preflight.classes_for`."""

    def look(
        self, function: Callable[..., Any], source: int | ShardSource, *arguments: object
    ) -> Any:  # noqa: ANN401 - what it returns
        """Call a function with a source, given as it is or by number, before other arguments."""

    def costs(
        self, sample_shape: tuple[int, ...], integer_inputs: bool, timed: bool
    ) -> tuple[BlockCost, ...]:
        """Return what each block costs; see `forecast.measured_costs`."""


class ChecksHere:
    """The checks, in this process.

    Args:
        recipe: The run's settings and functions.
        nodes: Number of nodes.
        sources: What can be looked at, by number.
    """

    def __init__(self, recipe: Recipe, nodes: int, sources: Sequence[ShardSource]) -> None:
        self._recipe = recipe
        self._nodes = nodes
        self._sources = sources
        self._stack: BlockStack | None = None

    def blocks(self) -> BlockTable:
        """See `ModelChecks`."""
        stack = self._skeleton()
        return BlockTable(names=stack.names, bytes=stack.part_bytes())

    def options(self, model: ModelConfig) -> dict[str, Any]:
        """See `ModelChecks`."""
        return self._recipe.model_options(model)

    def classes(self, facts: ShardFacts, name: str) -> int | None:
        """See `ModelChecks`."""
        from ray_snake.runtime.preflight import classes_for

        return classes_for(self._skeleton(), facts, name, self._recipe.named_task())

    def look(
        self, function: Callable[..., Any], source: int | ShardSource, *arguments: object
    ) -> Any:  # noqa: ANN401 - what it returns
        """See `ModelChecks`."""
        found = self._sources[source] if isinstance(source, int) else source
        return function(found, *arguments)

    def costs(
        self, sample_shape: tuple[int, ...], integer_inputs: bool, timed: bool
    ) -> tuple[BlockCost, ...]:
        """See `ModelChecks`."""
        from ray_snake.runtime.forecast import measured_costs

        return measured_costs(
            self._recipe.config,
            self._skeleton(),
            sample_shape=sample_shape,
            integer_inputs=integer_inputs,
            timed=timed,
        )

    def _skeleton(self) -> BlockStack:
        from ray_snake.runtime.preflight import check_model

        if self._stack is None:
            self._stack = check_model(self._recipe, nodes=self._nodes)
        return self._stack


class ChecksApart:
    """The checks, in a process apart that has the same in memory.

    Args:
        process: The process; its object is a `ChecksHere`.
    """

    def __init__(self, process: Apart) -> None:
        self._process = process

    def blocks(self) -> BlockTable:
        """See `ModelChecks`."""
        table: BlockTable = self._process.call("blocks")
        return table

    def options(self, model: ModelConfig) -> dict[str, Any]:
        """See `ModelChecks`."""
        options: dict[str, Any] = self._process.call("options", model)
        return options

    def classes(self, facts: ShardFacts, name: str) -> int | None:
        """See `ModelChecks`."""
        classes: int | None = self._process.call("classes", facts, name)
        return classes

    def look(
        self, function: Callable[..., Any], source: int | ShardSource, *arguments: object
    ) -> Any:  # noqa: ANN401 - what it returns
        """See `ModelChecks`."""
        return self._process.call("look", function, source, *arguments)

    def costs(
        self, sample_shape: tuple[int, ...], integer_inputs: bool, timed: bool
    ) -> tuple[BlockCost, ...]:
        """See `ModelChecks`."""
        costs: tuple[BlockCost, ...] = self._process.call(
            "costs", sample_shape, integer_inputs, timed
        )
        return costs


@contextlib.contextmanager
def model_checks(
    recipe: Recipe, nodes: int, sources: Sequence[ShardSource], *, apart: bool
) -> Iterator[ModelChecks]:
    """Have a run's network looked at, until the block ends.

    Args:
        recipe: The run's settings and functions.
        nodes: Number of nodes.
        sources: What `ModelChecks.look` can look at.
        apart: Whether a process apart is wanted. There is none where torch has been imported
            already, or this process can't be forked.
    """
    here = ChecksHere(recipe, nodes, sources)
    if not apart or "torch" in sys.modules or not can_fork():
        yield here
        return
    seconds = max(ANSWER_SECONDS, recipe.config.nodes.start_timeout_seconds)
    with Apart(here, what="the process that looks at model and data", seconds=seconds) as process:
        yield ChecksApart(process)
