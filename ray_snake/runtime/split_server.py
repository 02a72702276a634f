"""The split server: the back of a network that is cut in two. Its actor is a shell around it."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from ray_snake.engine.batch_result import BatchResult
from ray_snake.engine.split import BackTrainer, Exchange, Reply
from ray_snake.layers.state import Array, LayerState
from ray_snake.layers.tensors import from_array, pack, to_array, unpack
from ray_snake.runtime.messages import BackReport, VisitTask
from ray_snake.runtime.recipe import Recipe

Ask = Callable[[Array, str, Array], tuple[Array, BatchResult]]
"""(activations, their torch dtype by name, targets) -> (their gradient, the batch's scalars)."""


def exchange_through(ask: Ask) -> Exchange:
    """Return the exchange of a front whose batches travel as arrays."""

    def exchange(features: Tensor, targets: Tensor) -> Reply:
        dtype = str(features.dtype).removeprefix("torch.")
        gradient, batch = ask(to_array(features), dtype, to_array(targets))
        # A copy: a weight whose gradient is this very one would be clipped in memory that is only
        # read.
        private = from_array(gradient, dtype).to(features.device, copy=True)
        return Reply(gradient=private, batch=batch)

    return exchange


class SplitServer:
    """Trains the blocks from the cut on, one visit at a time, on what the visit's node sends.

    It keeps nothing between visits. A session is one attempt at a visit: what a node that was lost
    had still sent is refused.

    Args:
        recipe: The run's settings and functions.
        device: Where to compute.
    """

    def __init__(self, recipe: Recipe, device: torch.device) -> None:
        self._recipe = recipe
        self._device = device
        self._stack = recipe.skeleton()
        self._stack.move_constants(device)
        self._session = ""
        self._trainer: BackTrainer | None = None

    def open(
        self, session: str, task: VisitTask, states: Iterable[LayerState], counts: Array | None
    ) -> None:
        """Begin a visit.

        Args:
            session: Names the attempt.
            task: What to do.
            states: The blocks from the cut on, whole.
            counts: The node's rows of each class, (classes,); none without classes.
        """
        self._unload()
        cut = task.visit.cut
        if cut is None:
            raise RuntimeError(f"visit {task.visit.number} has no cut; its node has all blocks")
        for state in states:
            self._stack.load_part(state.block, unpack(state, self._device))
        config = self._recipe.config
        self._trainer = BackTrainer(
            self._stack,
            cut=cut,
            learning_rate=task.learning_rate,
            fix_norms=config.fixes_norms(task.visit.trip),
            seed=task.seed,
            training=config.training,
            objective=self._recipe.objective(counts),
            measure_update=config.acceptance.max_update_norm is not None,
            device=self._device,
        )
        self._session = session

    def step(
        self, session: str, features: Array, dtype: str, targets: Array
    ) -> tuple[Array, BatchResult]:
        """Take one step on a batch.

        Args:
            session: The one that was opened last.
            features: The front's outputs, (n, ...).
            dtype: Their torch dtype by name.
            targets: (n, ...).

        Returns:
            The gradient of the front's outputs, as they are, and the batch's scalars.
        """
        if self._trainer is None or session != self._session:
            raise RuntimeError("that visit was given up")
        reply = self._trainer.step(from_array(features, dtype), torch.from_numpy(targets))
        return to_array(reply.gradient), reply.batch

    def close(self, task: VisitTask) -> tuple[BackReport, list[LayerState]]:
        """End a visit; return what happened and the blocks from the cut on, ascending."""
        if self._trainer is None:
            raise RuntimeError(f"visit {task.visit.number} was not begun")
        finite, change = self._trainer.result()
        states = [
            pack(block, task.visit.number, self._stack.part(block))
            for block in task.visit.trained
            if not task.visit.on_node(block)
        ]
        self._unload()
        return BackReport(finite=finite, update_norm=change), states

    def _unload(self) -> None:
        self._trainer, self._session = None, ""
        for block in range(len(self._stack)):
            self._stack.unload(block)
