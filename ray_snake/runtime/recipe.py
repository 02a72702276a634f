"""What every process of a run needs to build the same network and the same loss."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ray_snake.config import ModelConfig, SnakeConfig
from ray_snake.extensions import OwnClasses
from ray_snake.seeds import derive_seed

if TYPE_CHECKING:
    from torch import Tensor

    from ray_snake.engine.objective import Objective, TaskLoss
    from ray_snake.engine.stack import BlockStack, Network


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """The settings, and what a user gave as Python functions in place of names.

    Importing this module does not import torch, so that the driver can pass a recipe on.

    Attributes:
        config: All settings.
        function: A user's model function; none: the settings' model is built.
        loss: A user's task loss; none: the settings' loss.
        own: A user's strategy and order; none: what the settings name.
    """

    config: SnakeConfig
    function: Callable[[], Network] | None = None
    loss: TaskLoss | None = None
    own: OwnClasses | None = None

    def build(self) -> Network:
        """Return a new network with weights from torch's current random state.

        Raises:
            ModelError: If the settings' model can't be built.
        """
        if self.function is not None:
            return self.function()
        from ray_snake.models.registry import build_model

        return build_model(self.config.model.name, self.config.model.options)

    def model_options(self, model: ModelConfig) -> dict[str, Any]:
        """Return the options of a model of settings, those at their default too.

        Where a user's function is the model, they are as they were given.

        Raises:
            ModelError: If they are refused.
        """
        if self.function is not None:
            return model.options
        from ray_snake.models.registry import all_options

        return all_options(model.name, model.options)

    def skeleton(self) -> BlockStack:
        """Return the network cut into blocks, its weights on the meta device.

        Raises:
            ModelError: If the network can't be built or cut.
        """
        from ray_snake.engine.stack import BlockStack

        return BlockStack.skeleton(self.build)

    def initial(self) -> BlockStack:
        """Return the network cut into blocks, with the initial weights of the run's seed.

        Raises:
            ModelError: If the network can't be built or cut.
        """
        import torch

        from ray_snake.engine.stack import BlockStack

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(self.config.seed, "initial weights"))
            return BlockStack.build(self.build)

    def initial_blocks(self) -> Iterator[dict[str, Tensor]]:
        """Yield the initial weights and buffers of each part by name, in order: see `engine.stack`.

        A network whose blocks have a method `fill_weights` is built without memory, and its blocks
        are filled one at a time; the caller lets go of each before it asks for the next. Bases come
        last, so blocks that have one are filled twice, to the same bits.

        Raises:
            ModelError: If the network can't be built or cut.
        """
        import torch

        stack = self.skeleton()
        filling: list[list[Callable[[], None]]] = [
            [
                fill
                for layer in block.modules()
                if (fill := getattr(layer, "fill_weights", None)) is not None
            ]
            for block in stack.blocks
        ]
        if not all(filling):
            stack = self.initial()
            yield from (stack.part(part) for part in range(len(stack.owners)))
            return
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(self.config.seed, "initial weights"))
            first = torch.get_rng_state()
        state = first
        for part, block in enumerate(stack.owners):
            if part == len(stack):
                state = first
            with torch.random.fork_rng(devices=[]):
                torch.set_rng_state(state)
                for fill in filling[block]:
                    fill()
                state = torch.get_rng_state()
            yield stack.part(part)
            stack.unload(block)

    def named_task(self) -> TaskLoss | None:
        """Return the loss that the settings name; none where it is a user's own.

        To be tried before a run starts: a function that was passed may count its calls.
        """
        return self.objective().task if self.loss is None else None

    def objective(self, label_counts: object = None) -> Objective:
        """Return the loss of a visit, adjusted for a node's label counts (classes,) if given."""
        import torch

        from ray_snake.engine.objective import Objective

        counts = None if label_counts is None else torch.as_tensor(label_counts)
        return Objective(self.config.loss, label_counts=counts, task=self.loss)
