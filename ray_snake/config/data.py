"""What is trained on what: the network, the rows of each node, and those it is judged on."""

from __future__ import annotations

import glob
import os
import re
from typing import Any, Literal

from pydantic import Field, model_validator

from ray_snake.settings_tree import (
    NonNegativeFloat,
    NonNegativeInt,
    Numbers,
    PositiveFloat,
    PositiveInt,
    RefusedError,
    Section,
    Texts,
)


class ModelConfig(Section):
    """Which network is trained."""

    name: str = Field(
        default="cnn",
        description="A registered model (mlp, cnn, vgg11, resnet18, decoder), `huggingface` for "
        "one of transformers, or `package.module:function` that returns an `nn.Sequential` "
        "or a list of blocks, each feeding the next.",
    )
    options: dict[str, Any] = Field(
        default_factory=dict,
        description="Keyword arguments of the model's function. Of `huggingface`: `model` (a "
        "folder or an id), `config`, `task`, `classes`, `padding`, `dtype`, `revision`, and "
        "`lora`, such as `{ rank = 8, alpha = 16, dropout = 0.0 }` with `targets` (names of linear "
        "layers; all without): adapters then train and travel in place of the weights.",
    )


class PartitionConfig(Section):
    """How one data set is split over the nodes when they all open the same file."""

    scheme: Literal["iid", "dirichlet", "shards", "quantity"] = Field(
        default="iid", description="How rows are dealt to nodes; see ray_snake.data.partition."
    )
    nodes: PositiveInt = Field(default=8, description="Number of nodes.")
    alpha: PositiveFloat = Field(
        default=0.5,
        description="Concentration of `dirichlet` and `quantity`; smaller is more skew.",
    )
    shards_per_node: PositiveInt = Field(
        default=2, description="Label-sorted pieces a node gets with scheme `shards`."
    )
    seed: NonNegativeInt = Field(default=0, description="Seed of the split alone.")


class DataConfig(Section):
    """What each node trains on. Only the node itself opens its shard."""

    shards: str | Texts | None = Field(
        default=None,
        description="One Arrow or Parquet file per node: a list of paths or URIs, or one pattern. "
        "`{north,south}` and `{01..12}` stand for each of these, anywhere; `*`, `?` and `[...]` "
        "for the local files that there are, sorted by name.",
    )
    source: str | None = Field(
        default=None,
        description="Instead of shards: one file that every node can open and takes its own rows "
        "of, as `partition` says. `builtin://digits/train` ships with the package.",
    )
    partition: PartitionConfig | None = Field(
        default=None, description="How `source` is split over the nodes."
    )
    input: str = Field(default="input", description="Column of fixed-shape inputs.")
    label: str = Field(
        default="label",
        description="Column of integer labels, of the tokens that follow each position, or of "
        "float targets.",
    )
    mean: Numbers | None = Field(
        default=None,
        description="Per-channel mean taken off the inputs after scaling 8-bit ones to [0, 1]. "
        "`none`: what the file's metadata says, else 0.",
    )
    std: Numbers | None = Field(
        default=None, description="Per-channel standard deviation to divide by, likewise; else 1."
    )

    @model_validator(mode="after")
    def _one_source(self) -> DataConfig:
        if self.shards is not None and self.source is not None:
            raise RefusedError("", "shards and source are both set", "keep one of them")
        if self.partition is not None and self.source is None:
            raise RefusedError(
                "partition", "splits data.source, which is not set", "set data.source"
            )
        if self.source is not None and self.partition is None:
            raise RefusedError(
                "source", "needs data.partition", "set data.partition.nodes and .scheme"
            )
        return self

    def shard_uris(self, folder: str | os.PathLike[str] | None = None) -> tuple[str, ...]:
        """Return the shard paths or URIs in node order, with patterns expanded.

        Args:
            folder: Where relative patterns are looked for; none: the current one.
        """
        if self.shards is None:
            return ()
        if isinstance(self.shards, tuple):
            return self.shards
        expanded = _braces_expanded(self.shards)
        return tuple(found for one in expanded for found in _files(one, folder))


def _braces_expanded(pattern: str) -> list[str]:
    """Return the texts that a pattern with `{a,b}` or `{01..12}` stands for, the first brace first.

    Unlike wildcards they need no look at the files, which only the nodes' machines may have.
    """
    found = re.search(r"\{([^{}]*)\}", pattern)
    if found is None:
        return [pattern]
    head, inside, tail = pattern[: found.start()], found[1], pattern[found.end() :]
    numbers = re.fullmatch(r"(\d+)\.\.(\d+)", inside)
    if numbers is None:
        chosen = inside.split(",")
    else:
        width = len(numbers[1]) if numbers[1].startswith("0") else 0
        chosen = [f"{one:0{width}d}" for one in range(int(numbers[1]), int(numbers[2]) + 1)]
    return [f"{head}{one}{rest}" for one in chosen for rest in _braces_expanded(tail)]


def _files(pattern: str, folder: str | os.PathLike[str] | None) -> list[str]:
    if "://" in pattern or not glob.has_magic(pattern):
        return [pattern]
    return sorted(glob.glob(pattern, root_dir=folder))


class EvaluationConfig(Section):
    """How the model is judged, at the driver's side."""

    data: str | None = Field(
        default=None, description="Arrow or Parquet file of held-out rows; `none`: no evaluation."
    )
    every_visits: PositiveInt | None = Field(
        default=None, description="Evaluate after so many visits. `none`: after every trip."
    )
    last_visits: NonNegativeInt = Field(
        default=0, description="Evaluate after each of a run's last visits too, so many of them."
    )
    batch_size: PositiveInt = Field(default=256, description="Samples per evaluation batch.")
    precision: Literal["fp32", "bf16"] | None = Field(
        default=None,
        description="As `training.precision`, of the evaluation. `none`: what `training` has.",
    )
    gpus: NonNegativeFloat = Field(default=0.0, description="GPU share of the evaluation.")
