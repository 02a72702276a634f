"""`BlockStack`: a network as an ordered list of blocks, each of which can travel on its own.

A module may name weights of its own in an attribute `never_trains`, as one with adapters does (see
`models.lora`): the base of its block. No visit changes it, so a block's versions consist of the
rest. Versions and bases together are a network's parts: block i's version is part i, and the bases
follow, numbered on from there in the order of their blocks.
"""

from __future__ import annotations

import itertools
import operator
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ray_snake.engine.norms import keep_statistics
from ray_snake.errors import ModelError

Network = nn.Module | Sequence[nn.Module]
"""What a model function may return: a BlockStack, an nn.Sequential, or a list of blocks."""

BlockRun = Callable[[Tensor], Tensor]
"""A block's input -> its output."""

_NORMS = (
    nn.modules.batchnorm._BatchNorm,
    nn.GroupNorm,
    nn.LayerNorm,
    nn.modules.instancenorm._InstanceNorm,
)


class BlockStack(nn.Module):
    """An ordered list of blocks; block i feeds block i+1.

    Args:
        blocks: The blocks with their names, in order. Every block has weights of its own.

    Attributes:
        reads: For each block the other blocks whose weights it computes with too, such as a tied
            head the embedding's; see `models.tied`. They are to be loaded where it computes.
        owners: The block of each part.

    Raises:
        ModelError: If there are no blocks, or two blocks share a weight.
    """

    def __init__(self, blocks: Iterable[tuple[str, nn.Module]]) -> None:
        super().__init__()
        named = list(blocks)
        if not named:
            raise ModelError("model", "has no blocks", "return a network with at least one layer")
        self.names = tuple(name for name, _ in named)
        self.blocks = nn.ModuleList(module for _, module in named)
        self.runs: Mapping[int, BlockRun] = {}
        self._refuse_shared_weights()
        self._ties = tuple(_ties(module) for module in self.blocks)
        self._never_train = tuple(_never_trains(module) for module in self.blocks)
        self.owners = (
            *range(len(named)),
            *(index for index, names in enumerate(self._never_train) if names),
        )
        self.reads = tuple(self._read_by(module) for module in self.blocks)

    @property
    def stages(self) -> tuple[nn.Module, ...]:
        """What runs one after the other: the blocks, and the last one's scoring by itself.

        A language model's head without weights that train belongs to the layer before it, as every
        head does where adapters train; its stage comes after that layer's.
        """
        *others, last = self.blocks
        if isinstance(last, nn.Sequential) and len(last) > 1 and _position_scores(last[-1]):
            return (*others, last[:-1], last[-1])
        return (*others, last)

    @property
    def scoring(self) -> int:
        """The last stage, which makes the network's outputs."""
        return len(self.stages) - 1

    def block_of(self, stage: int) -> int:
        """Return the block that a stage belongs to: the one of its number, or the last."""
        return min(stage, len(self.blocks) - 1)

    @property
    def position_scores(self) -> int:
        """How many scores the last stage gives each position of a sequence by itself; 0: unknown.

        The blocks of language models say it, in an attribute of this name.
        """
        return _position_scores(self.stages[-1])

    @classmethod
    def cut(cls, network: Network) -> BlockStack:
        """Cut a network into blocks.

        The children of an `nn.Sequential` are blocks; a norm layer, and a layer without weights
        that train, belongs to the block before it. The entries of a list are blocks as they are,
        but for layers without weights that train.

        Raises:
            ModelError: If the network is of another kind, or two blocks share a weight.
        """
        if isinstance(network, BlockStack):
            return network
        if isinstance(network, nn.Sequential):
            return cls(_group(network.named_children(), joined=_NORMS))
        if isinstance(network, (list, tuple, nn.ModuleList)) and all(
            isinstance(one, nn.Module) for one in network
        ):
            return cls(_group(((str(i), one) for i, one in enumerate(network)), joined=()))
        raise ModelError(
            "model",
            f"{type(network).__name__} can't be cut into blocks",
            "return an nn.Sequential or a list of modules, each feeding the next",
        )

    @classmethod
    def skeleton(cls, build: Callable[[], Network]) -> BlockStack:
        """Build a network without memory for its weights: they are loaded block by block later.

        Parameters and persistent buffers live on the meta device. Buffers that don't travel
        (non-persistent ones) keep their values. A function that can't run on the meta device is
        run as it is, and its weights are let go.

        Raises:
            ModelError: If the function fails, or its network can't be cut.
        """
        try:
            with torch.device("meta"), _NoDraws():
                stack = cls.cut(build())
            if _is_bare(stack):
                return stack
        except Exception:
            # Whatever it is, it may be the meta device's fault; if not, it comes again now.
            pass
        # What it draws is let go, so that nobody else's draws are to be others for it.
        with torch.random.fork_rng(devices=[]):
            stack = cls.build(build)
        for module in stack.modules():
            for name, parameter in module.named_parameters(recurse=False):
                setattr(module, name, nn.Parameter(parameter.to("meta"), requires_grad=False))
            for name, buffer in module.named_buffers(recurse=False):
                if name not in module._non_persistent_buffers_set:
                    setattr(module, name, buffer.to("meta"))
        return stack

    @classmethod
    def build(cls, build: Callable[[], Network]) -> BlockStack:
        """Build a network with its initial weights, from torch's current random state.

        Raises:
            ModelError: If the function fails, or its network can't be cut.
        """
        try:
            network = build()
        except ModelError:
            raise
        except Exception as error:
            raise ModelError(
                "model", f"its function failed ({type(error).__name__}: {error})", "correct it"
            ) from error
        return cls.cut(network)

    def move_constants(self, device: torch.device) -> None:
        """Move the buffers that don't travel to where the network computes; all else is loaded."""
        for module in self.modules():
            for name, buffer in module.named_buffers(recurse=False):
                if name in module._non_persistent_buffers_set:
                    setattr(module, name, buffer.to(device))

    @property
    def padding(self) -> int | None:
        """The token of padding, if its features are zeros that change nothing; none: no token."""
        return getattr(self.blocks[0], "padding", None)

    def __len__(self) -> int:
        return len(self.blocks)

    def forward(self, x: Tensor, start: int = 0, stop: int | None = None) -> Tensor:
        """Run stages [start, stop) on `x`, the output of stage start-1; by default to the end.

        Those that have an entry in `runs` are run by it.
        """
        stages = self.stages
        for index in range(start, len(stages) if stop is None else stop):
            x = self.runs.get(index, stages[index])(x)
        return x

    def tensors(self, block: int) -> dict[str, Tensor]:
        """Return a block's weights and persistent buffers by name, not copied, detached.

        What layers of the block share comes once, under the first of its names.
        """
        ties = self._ties[block]
        state = self.blocks[block].state_dict()
        return {name: tensor for name, tensor in state.items() if name not in ties}

    def base(self, block: int) -> dict[str, Tensor]:
        """Return the weights of a block that no visit changes; {} if there are none."""
        names = self._never_train[block]
        return {name: one for name, one in self.tensors(block).items() if name in names}

    def part(self, part: int) -> dict[str, Tensor]:
        """Return the tensors of a part: of a block what its versions consist of, or its base."""
        block, is_base = self.owners[part], part >= len(self)
        names = self._never_train[block]
        return {n: one for n, one in self.tensors(block).items() if (n in names) == is_base}

    def trainable(self, block: int) -> dict[str, nn.Parameter]:
        """Return the weights of a block that visits train, by name."""
        names = self._never_train[block]
        return {n: one for n, one in self.blocks[block].named_parameters() if n not in names}

    def load(self, block: int, tensors: Mapping[str, Tensor], *, trainable: bool) -> None:
        """Put tensors in place of a block's weights and buffers, without copying them.

        Args:
            block: The block's number.
            tensors: Its weights and persistent buffers, all of them, by name.
            trainable: Whether gradients are computed for its weights, but for its base, and its
                layers are in training mode. A frozen block may be read-only memory: nothing writes
                to it.

        Raises:
            ModelError: If names or shapes are not the block's.
        """
        self._put(block, tensors, self.tensors(block).keys())
        self._set_trainable(block, trainable)

    def load_part(self, part: int, tensors: Mapping[str, Tensor]) -> None:
        """Put tensors in place of a part's, frozen; whatever else is in its block stays as it is.

        Raises:
            ModelError: If names or shapes are not the part's.
        """
        self._put(self.owners[part], tensors, self.part(part).keys())

    def load_base(self, block: int, tensors: Mapping[str, Tensor]) -> None:
        """Put tensors in place of a block's base; its trained weights stay the objects they are.

        Raises:
            ModelError: If names or shapes are not the base's.
        """
        self._put(block, tensors, self.base(block).keys())

    def _put(self, block: int, tensors: Mapping[str, Tensor], expected: Collection[str]) -> None:
        module, ties = self.blocks[block], self._ties[block]
        try:
            if tensors.keys() != expected:
                names = sorted(tensors.keys() ^ expected)
                raise RuntimeError(f"missing or unknown: {', '.join(names)}")
            module.load_state_dict(tensors, strict=False, assign=True)
        except RuntimeError as error:
            raise ModelError(
                f"block {block} ({self.names[block]})",
                f"can't take these weights ({' '.join(str(error).split())})",
                "use the model that the weights were made with",
            ) from None
        for name, first in ties.items():
            layer, _, leaf = name.rpartition(".")
            setattr(module.get_submodule(layer), leaf, operator.attrgetter(first)(module))
        for name, weight in module.named_parameters():
            if name in tensors:
                weight.requires_grad_(False)

    def _set_trainable(self, block: int, trainable: bool) -> None:
        self.require_gradients(block, trainable)
        self.blocks[block].train(trainable)

    def require_gradients(self, block: int, required: bool) -> None:
        """Have gradients computed for a block's weights, but for its base; or for none."""
        self.blocks[block].requires_grad_(False)
        for weight in self.trainable(block).values():
            weight.requires_grad_(required)

    def unload(self, block: int) -> None:
        """Let go of a block's weights, so that the memory they lie in can be released."""
        self.load(
            block,
            {name: tensor.to("meta") for name, tensor in self.tensors(block).items()},
            trainable=False,
        )

    def unload_base(self, block: int) -> None:
        """Let go of the weights of a block that no visit changes; its trained ones stay."""
        base = {name: tensor.to("meta") for name, tensor in self.base(block).items()}
        self.load_base(block, base)

    def freeze_all_but(self, trained: Iterable[int], *, fix_norms: bool = False) -> None:
        """Compute gradients for, and put in training mode, the blocks in `trained` only.

        Args:
            trained: Their numbers.
            fix_norms: Whether their batch norms use and keep the statistics that they have.
        """
        chosen = set(trained)
        for index, module in enumerate(self.blocks):
            self._set_trainable(index, index in chosen)
            if fix_norms:
                keep_statistics(module)

    def block_bytes(self) -> tuple[int, ...]:
        """Return the bytes of a version of each block: its weights and persistent buffers."""
        return self.part_bytes()[: len(self)]

    def part_bytes(self) -> tuple[int, ...]:
        """Return the bytes of each part: of a version of each block, then of each base."""
        return tuple(
            sum(tensor.numel() * tensor.element_size() for tensor in self.part(part).values())
            for part in range(len(self.owners))
        )

    def _read_by(self, block: nn.Module) -> frozenset[int]:
        read = {id(one) for layer in block.modules() for one in getattr(layer, "reads", ())}
        return frozenset(
            index
            for index, module in enumerate(self.blocks)
            if module is not block and read & {id(layer) for layer in module.modules()}
        )

    def _refuse_shared_weights(self) -> None:
        owner: dict[int, str] = {}
        for name, module in zip(self.names, self.blocks, strict=True):
            for parameter in module.parameters():
                first = owner.setdefault(id(parameter), name)
                if first != name:
                    raise ModelError(
                        "model",
                        f"blocks {first!r} and {name!r} share a weight",
                        "put the layers that share it into one block",
                    )


class _NoDraws(TorchFunctionMode):
    """Skips random initialisation of meta tensors.

    Drawing normal numbers on the meta device makes torch import its compiler, which costs every
    process well over a second, for tensors that hold nothing.
    """

    _DRAWS = frozenset({Tensor.normal_, Tensor.uniform_, Tensor.bernoulli_})

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,  # noqa: ANN401 - as the base class has it
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401 - what the torch function returns
        if func in self._DRAWS and args[0].is_meta:
            return args[0]
        return func(*args, **(kwargs or {}))


def _group(
    children: Iterable[tuple[str, nn.Module]], joined: tuple[type[Any], ...]
) -> list[tuple[str, nn.Module]]:
    """Join layers that don't train, and layers of the `joined` types, to the block before them."""
    groups: list[tuple[str, list[nn.Module]]] = []
    leading: list[nn.Module] = []
    for name, module in children:
        never = _never_trains(module)
        bare = all(weight in never for weight, _ in module.named_parameters())
        if groups and (bare or isinstance(module, joined)):
            groups[-1][1].append(module)
        elif bare:
            leading.append(module)
        else:
            groups.append((name, [*leading, module]))
            leading = []
    return [
        (name, modules[0] if len(modules) == 1 else nn.Sequential(*modules))
        for name, modules in groups
    ]


def _position_scores(module: nn.Module) -> int:
    scores: int = getattr(module, "position_scores", 0)
    return scores


def _never_trains(module: nn.Module) -> frozenset[str]:
    """Return the names of a module's weights that no visit changes."""
    return frozenset(
        f"{prefix}.{name}".lstrip(".")
        for prefix, layer in module.named_modules()
        for name in getattr(layer, "never_trains", ())
    )


def _ties(module: nn.Module) -> dict[str, str]:
    """Return the further names of weights and buffers with several, each with the first one."""
    first: dict[int, str] = {}
    named = itertools.chain(
        module.named_parameters(remove_duplicate=False),
        module.named_buffers(remove_duplicate=False),
    )
    return {
        name: own for name, tensor in named if (own := first.setdefault(id(tensor), name)) != name
    }


def _is_bare(stack: BlockStack) -> bool:
    tensors = itertools.chain(stack.parameters(), stack.buffers())
    return all(tensor.is_meta for tensor in tensors) and not any(
        module._non_persistent_buffers_set for module in stack.modules()
    )
