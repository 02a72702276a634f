"""The settings of a run: one tree, from a TOML file or from Python, checked at construction.

`SnakeConfig` is the root; every section is a frozen, keyword-only model whose field descriptions
are the reference (docs/configuration.md is generated from them). An unknown key is an error that
suggests the nearest known one.
"""

from __future__ import annotations

import glob
import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    BeforeValidator,
    Field,
    ValidationError,
    model_validator,
)

from ray_snake.errors import ConfigError
from ray_snake.settings_tree import (
    Fraction,
    Integers,
    NonNegativeFloat,
    NonNegativeInt,
    Numbers,
    PositiveFloat,
    PositiveInt,
    Section,
    Texts,
    apply_setting,
    differences,
    first_problem,
    none_if_named,
)

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


class ModelConfig(Section):
    """Which network is trained."""

    name: str = Field(
        default="cnn",
        description="A registered model (mlp, cnn, vgg11, resnet18), or `package.module:function` "
        "that returns a torch module, an `nn.Sequential`, or a list of blocks.",
    )
    options: dict[str, Any] = Field(
        default_factory=dict, description="Keyword arguments of the model's function."
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
        description="One Arrow or Parquet file per node: a list of paths or URIs, or one glob "
        "pattern (local paths only), sorted by name.",
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
    label: str = Field(default="label", description="Column of integer labels or float targets.")
    mean: Numbers | None = Field(
        default=None,
        description="Per-channel mean taken off the inputs after scaling 8-bit ones to [0, 1]; "
        "default: what the file's metadata says, else 0.",
    )
    std: Numbers | None = Field(
        default=None, description="Per-channel standard deviation to divide by, likewise; else 1."
    )

    @model_validator(mode="after")
    def _one_source(self) -> DataConfig:
        if self.shards is not None and self.source is not None:
            raise ValueError("shards and source are both set; keep one of them")
        if self.partition is not None and self.source is None:
            raise ValueError("partition splits data.source, which is not set; set data.source")
        if self.source is not None and self.partition is None:
            raise ValueError("source needs data.partition; set data.partition.nodes and .scheme")
        return self

    def shard_uris(self) -> tuple[str, ...]:
        """Return the shard paths or URIs in node order, with a local glob pattern expanded."""
        if self.shards is None:
            return ()
        if isinstance(self.shards, tuple):
            return self.shards
        if "://" in self.shards or not glob.has_magic(self.shards):
            return (self.shards,)
        return tuple(sorted(glob.glob(self.shards)))


class NodesConfig(Section):
    """What every node actor asks of the cluster, and how it is started."""

    cpus: NonNegativeFloat = Field(
        default=0.0,
        description="CPUs a node reserves. 0 by default: a node computes only during its visit.",
    )
    gpus: NonNegativeFloat | Literal["auto"] = Field(
        default="auto",
        description="GPU share a node reserves; the share is enforced at the allocator. `auto` "
        "divides the cluster's GPUs evenly over the actors.",
    )
    memory_bytes: NonNegativeInt = Field(default=0, description="Heap memory a node reserves.")
    labels: dict[str, str] = Field(
        default_factory=dict,
        description="Ray label selector of the machines that may host the nodes, such as "
        '`{ site = "in(a,b)" }`.',
    )
    threads: PositiveInt = Field(
        default=1, description="torch threads per node process; part of what makes runs repeatable."
    )
    nodes_per_actor: PositiveInt = Field(
        default=1, description="How many nodes share one actor process (with one shard each)."
    )
    start_timeout_seconds: PositiveFloat = Field(
        default=120.0, description="How long a node may take to start before the run says why."
    )
    may_scale: bool = Field(
        default=False,
        description="The cluster can grow: don't refuse a request it can't satisfy yet.",
    )


class SnakeSection(Section):
    """How the snake crawls: who trains what, when."""

    order: str = Field(
        default="span_major",
        description="How spans and nodes are paired: `span_major`, `diagonal`, `random`, or one of "
        "your own; see docs/extending.md.",
    )
    span_width: PositiveInt = Field(default=2, description="Blocks trained together.")
    spans: Annotated[tuple[Integers, ...] | None, Field(strict=False, min_length=1)] = Field(
        default=None,
        description="The blocks of each span, such as `[[2, 3], [4, 5, 6]]`, in place of "
        "`span_width`. A block of no span is trained in warm-up visits alone.",
    )
    trips_per_span: PositiveInt = Field(
        default=1, description="Trips that `span_major` stays with a span before it moves on."
    )
    trips: PositiveInt = Field(default=12, description="How often the snake crosses all nodes.")
    warmup_trips: NonNegativeInt = Field(
        default=0, description="First trips in which nodes train the whole model, where they can."
    )
    warmup_nodes: Integers | None = Field(
        default=None,
        description="Numbers, from 0, of the nodes that can train the whole model; others train "
        "spans from the start. None: all can.",
    )
    warmup_rate: PositiveFloat = Field(
        default=1.0,
        description="Factor of the learning rate where the whole model trains: it bears less.",
    )
    train_first: bool = Field(
        default=False, description="Train the first block (basic features) in every visit too."
    )
    train_last: bool = Field(
        default=True, description="Train the last block (decision boundary) in every visit too."
    )

    @model_validator(mode="after")
    def _only_span_major_stays(self) -> SnakeSection:
        if self.trips_per_span > 1 and self.order != "span_major":
            raise ValueError(
                f"trips_per_span {self.trips_per_span} goes with order span_major, not "
                f"{self.order}; set it to 1"
            )
        return self


class TrainingConfig(Section):
    """How a node trains a span during one visit."""

    optimizer: Literal["sgd", "adamw"] = Field(default="sgd", description="Local optimizer.")
    learning_rate: PositiveFloat = Field(default=0.05, description="Peak learning rate.")
    schedule: Literal["cosine", "constant"] = Field(
        default="cosine",
        description="Learning rate over trips (constant within a trip): `cosine` falls to 0.",
    )
    momentum: Fraction = Field(default=0.9, description="Momentum of sgd.")
    weight_decay: NonNegativeFloat = Field(default=5e-4, description="Weight decay.")
    batch_size: PositiveInt = Field(default=32, description="Samples per optimizer step.")
    epochs: PositiveInt = Field(default=1, description="Passes over the shard in one visit.")
    steps: PositiveInt | None = Field(
        default=None, description="Optimizer steps in one visit; takes the place of epochs."
    )
    clip_norm: Annotated[PositiveFloat | None, BeforeValidator(none_if_named)] = Field(
        default=5.0, description='Largest norm of a step\'s gradient; "none" switches clipping off.'
    )
    cache_bytes: NonNegativeInt = Field(
        default=2**28,
        description="Up to this size a visit's prefix outputs stay in memory; beyond it they go "
        "to a memory-mapped temporary file.",
    )


class LossConfig(Section):
    """What a visit minimises: (1-a) * task + a * distillation + mu/2 * |w - w0|^2."""

    name: str = Field(
        default="cross_entropy",
        description="The task's own loss: `cross_entropy`, `mse`, or one of your own; see "
        "docs/extending.md.",
    )
    logit_adjustment: NonNegativeFloat = Field(
        default=1.0, description="Weight tau of the node's log label frequencies (classification)."
    )
    distillation: Fraction = Field(
        default=0.3, description="Weight a of staying close to the model that arrived."
    )
    temperature: PositiveFloat = Field(default=2.0, description="Temperature T of distillation.")
    proximal: NonNegativeFloat = Field(
        default=0.0, description="Weight mu of the squared distance from the arriving weights."
    )


class BaselineConfig(Section):
    """What only the snake's rivals have."""

    full_rounds: NonNegativeInt = Field(
        default=5, description="Rounds of the whole model before each cycle of `fedpart`."
    )
    cut: PositiveInt = Field(
        default=2,
        description="Blocks at the front of the network that nodes hold with `split` and "
        "`splitfed`; a server at the driver's side holds the others.",
    )
    shares_activations: bool = Field(
        default=False,
        description="Let `split` and `splitfed` send the server each batch's activations at the "
        "cut, its labels, and the node's label counts. They need it, and nothing else does: "
        "otherwise none of that leaves a node.",
    )
    server_gpus: NonNegativeFloat = Field(
        default=0.0, description="GPU share of the server of `split` and `splitfed`."
    )


class TransportConfig(Section):
    """How trained blocks get from node to node."""

    mode: Literal["p2p", "client_server"] = Field(
        default="p2p",
        description="`p2p`: straight from the machine that trained them. `client_server`: through "
        "the driver's side, which pulls, checks and serves them; nodes never reach each other.",
    )


class CodecConfig(Section):
    """In what form trained blocks travel."""

    name: Literal["none", "bf16", "int8", "int4", "topk"] = Field(
        default="none",
        description="`none`: whole, as they are. Else the difference from a version that all nodes "
        "have, with 2 bytes a weight (`bf16`), 1 (`int8`), a half (`int4`), or the largest alone "
        "(`topk`). A run's weights are those that travelled.",
    )
    top_k: Annotated[float, Field(gt=0, le=1)] = Field(
        default=0.02, description="Share of a tensor's weights that `topk` sends."
    )
    anchor_trips: PositiveInt = Field(
        default=4,
        description="A block that is trained in every trip gets a new version to differ from "
        "after so many trips; others get one each time that the snake comes back to them.",
    )


class AcceptanceConfig(Section):
    """When the driver refuses a visit's result. A result that is not finite is always refused."""

    max_update_norm: PositiveFloat | None = Field(
        default=None, description="Largest L2 norm of the change to the trained weights."
    )
    max_loss_ratio: PositiveFloat | None = Field(
        default=None, description="Largest ratio of the last to the first epoch's training loss."
    )
    max_refused: NonNegativeInt = Field(
        default=3, description="Refused visits in a row before the run fails."
    )


class FailureConfig(Section):
    """How often what died is started again, and how long anything may take."""

    node_restarts: NonNegativeInt = Field(
        default=3, description="How often one node may be started again in a run."
    )
    recoveries: NonNegativeInt = Field(
        default=3,
        description="How often the run may go back to its journal after the driver, the process "
        "engine or the only copy of a block was lost.",
    )
    visit_timeout_seconds: PositiveFloat = Field(
        default=3600.0, description="A visit that takes longer counts as a failed node."
    )


class EvaluationConfig(Section):
    """How the model is judged, at the driver's side."""

    data: str | None = Field(
        default=None, description="Arrow or Parquet file of held-out rows; none: no evaluation."
    )
    every_visits: PositiveInt | None = Field(
        default=None, description="Evaluate after so many visits; default: after every trip."
    )
    last_visits: NonNegativeInt = Field(
        default=0, description="Evaluate after each of a run's last visits too, so many of them."
    )
    batch_size: PositiveInt = Field(default=256, description="Samples per evaluation batch.")
    gpus: NonNegativeFloat = Field(default=0.0, description="GPU share of the evaluation.")


class StorageConfig(Section):
    """Where runs are kept."""

    uri: str = Field(
        default="runs",
        description="Folder of runs: a local path, `s3://bucket/prefix` or `gs://bucket/prefix`.",
    )
    timeout_seconds: PositiveFloat = Field(
        default=60.0, description="How long one storage operation may take."
    )


class SnakeConfig(Section):
    """All settings of a run.

    Raises:
        ConfigError: From `load` and `from_tree`, naming the key, its value and the remedy.
        pydantic.ValidationError: From the constructor, for the same reasons.
    """

    seed: NonNegativeInt = Field(default=0, description="Every random draw derives from it.")
    strategy: str = Field(
        default="snake",
        description="`snake`, or a rival: `fedavg`, `fedprox`, `fedpart`, `cyclic`, `fedcybgd`, "
        "`split`, `splitfed`, `centralised`, `local`; or one of your own; see docs/extending.md.",
    )
    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    nodes: NodesConfig = NodesConfig()
    snake: SnakeSection = SnakeSection()
    training: TrainingConfig = TrainingConfig()
    loss: LossConfig = LossConfig()
    transport: TransportConfig = TransportConfig()
    codec: CodecConfig = CodecConfig()
    baseline: BaselineConfig = BaselineConfig()
    acceptance: AcceptanceConfig = AcceptanceConfig()
    failures: FailureConfig = FailureConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    storage: StorageConfig = StorageConfig()

    # Sections whose values decide a run's weights; the others may change between resumes.
    DECISIVE: ClassVar[tuple[str, ...]] = (
        "seed",
        "strategy",
        "model",
        "data",
        "snake",
        "training",
        "loss",
        "codec",
        "baseline",
        "acceptance",
    )

    @classmethod
    def load(cls, path: str | Path, settings: Sequence[str] = ()) -> SnakeConfig:
        """Read a TOML file and apply `section.key=value` settings on top.

        Args:
            path: The file.
            settings: Each `section.key=value`; the value is TOML, or else taken as text.

        Raises:
            ConfigError: If the file can't be read or a key or value is refused.
        """
        file = Path(path)
        try:
            tree = tomllib.loads(file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise ConfigError(str(file), "no such file", "give the path of a TOML file") from None
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(str(file), f"can't be read ({error})", "check the file") from None
        except tomllib.TOMLDecodeError as error:
            raise ConfigError(str(file), f"is not TOML ({error})", "correct that line") from None
        return cls.from_tree(tree, settings)

    @classmethod
    def from_tree(cls, tree: Mapping[str, Any], settings: Sequence[str] = ()) -> SnakeConfig:
        """Check a nested mapping, as TOML or JSON gives it, with settings applied on top.

        Raises:
            ConfigError: If a key or value is refused.
        """
        # TOML's dates and times are no setting's value: as text they are refused by key.
        merged = json.loads(json.dumps(tree, default=str))
        for setting in settings:
            apply_setting(merged, setting)
        try:
            return cls.model_validate_json(json.dumps(merged, default=str))
        except ValidationError as error:
            raise ConfigError(*first_problem(error, cls)) from None

    def tree(self) -> dict[str, Any]:
        """Return the settings as a nested mapping of JSON values; `from_tree` reads it back."""
        return self.model_dump(mode="json")

    def changed_keys(self, other: SnakeConfig) -> list[str]:
        """Return the dotted keys that decide a run's weights and differ in `other`."""
        mine, theirs = self.tree(), other.tree()
        return [
            key
            for section in self.DECISIVE
            for key in differences(section, mine[section], theirs[section])
        ]

    def fingerprint(self) -> str:
        """Return a short hash of all settings that decide a run's weights (hexadecimal)."""
        tree = self.tree()
        decisive = json.dumps({key: tree[key] for key in self.DECISIVE}, sort_keys=True)
        return hashlib.sha256(decisive.encode()).hexdigest()[:16]
