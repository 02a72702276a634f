"""How it is trained: the snake, a visit's training, its loss, and what only rivals have."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from ray_snake.settings_tree import (
    Fraction,
    Integers,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveFraction,
    PositiveInt,
    RefusedError,
    Section,
    TwoOrMore,
)


class SnakeSection(Section):
    """How the snake crawls: who trains what, when.

    All strategies go by `trips`, `turns`, `heads`, `heads_after_trips` and `mean_visits`, and with
    `adapt` have late visits stopped. The other keys are for the snake: its rivals leave them aside.
    """

    order: str = Field(
        default="span_major",
        description="How spans and nodes are paired: `span_major`, `diagonal`, `random`, or one of "
        "your own; see docs/extending.md.",
    )
    span_width: PositiveInt = Field(default=2, description="Blocks trained together.")
    spans: Annotated[tuple[Integers, ...] | None, Field(strict=False, min_length=1)] = Field(
        default=None,
        description="The blocks of each span, such as `[[2, 3], [4, 5, 6]]`, in place of "
        "`span_width`. A block of no span is trained with the whole model alone.",
    )
    trips_per_span: PositiveInt = Field(
        default=1, description="Trips that `span_major` stays with a span before it moves on."
    )
    trips: PositiveInt = Field(default=12, description="How often the snake crosses all nodes.")
    turns: bool = Field(
        default=True,
        description="Go back over the nodes on every second trip: the node at each end then comes "
        "twice in a row and pulls nothing in between. False: each trip begins with the first node, "
        "so that none waits longer for its next visit than others.",
    )
    warmup_trips: NonNegativeInt = Field(
        default=0, description="First trips in which nodes train the whole model, where they can."
    )
    whole_every: TwoOrMore | None = Field(
        default=None,
        description="After the warm-up too, every so many trips one trains the whole model where "
        "nodes can: with 3, two trips train spans, then one the whole. `none`: the warm-up alone.",
    )
    warmup_nodes: Integers | None = Field(
        default=None,
        description="Numbers, from 0, of the nodes that can train the whole model; others train "
        "spans in every trip. `none`: all can.",
    )
    warmup_rate: PositiveFloat = Field(
        default=1.0,
        description="Factor of the learning rate where the whole model trains: it bears less.",
    )
    warmup_distillation: PositiveFraction | None = Field(
        default=None,
        description="Weight of distillation where the whole model trains, in place of "
        "`loss.distillation`: it forgets more.",
    )
    mean_visits: TwoOrMore | None = Field(
        default=None,
        description="Last visits of a run that its final weights are the mean over: of the model "
        "after each. Their versions wait at the driver's side; no node gets a byte more. `none`: "
        "the final weights are the last visit's.",
    )
    adapt: bool = Field(
        default=False,
        description="Suit visits to what nodes turn out to be able to do: see `[adaptation]`. "
        "False: the fixed order, and the same weights each time.",
    )
    heads: PositiveInt = Field(
        default=1,
        description="Visits under way at once, on as many nodes, each to blocks of its own. They "
        "count as they come in, so more than one head makes runs differ in their weights. With "
        "`fedavg` and its like: the nodes that train at once.",
    )
    heads_after_trips: NonNegativeInt = Field(
        default=0, description="First trips with a single head, before the others set out."
    )
    damping: Annotated[float, Field(gt=0, le=1)] = Field(
        default=1.0,
        description="Share of its change that a visit returns where several heads go at once, as "
        "others change meanwhile what it started from. 1: all of it.",
    )
    max_staleness: PositiveInt | None = Field(
        default=None,
        description="Results that came in during a visit beyond which its own is refused. `none`: "
        "any number.",
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
            raise RefusedError(
                "trips_per_span",
                f"{self.trips_per_span} goes with order span_major, not {self.order}",
                "set it to 1",
            )
        return self


class AdaptationConfig(Section):
    """How far `snake.adapt` may go: fewer steps and cheaper spans for slow nodes."""

    patience: PositiveFloat = Field(
        default=1.0,
        description="How long a slow node's visit may be, in visits of the middling node: the one "
        "that half of all nodes are slower than.",
    )
    min_steps: Annotated[float, Field(gt=0, le=1)] = Field(
        default=0.25, description="The least share of its steps that a visit makes all the same."
    )
    min_coverage: Fraction = Field(
        default=0.9,
        description="How often every node trains each span at least, as a share of how often it "
        "would if all came equally often.",
    )
    hysteresis: Fraction = Field(
        default=0.2,
        description="Change of a predicted time, as a share of it, below which nothing changes.",
    )
    deadline: PositiveFloat | None = Field(
        default=4.0,
        description="Multiple of its predicted time after which a visit is stopped. `none`: never.",
    )
    min_deadline_seconds: PositiveFloat = Field(
        default=10.0, description="No visit is stopped before this."
    )
    late: Literal["use", "drop"] = Field(
        default="use", description="What becomes of the steps that a stopped visit has made."
    )
    probation_trips: NonNegativeInt = Field(
        default=1, description="Trips in which a node that was late comes last, with fewest steps."
    )


CountOrAuto = PositiveInt | Literal["auto"] | None


class TrainingConfig(Section):
    """How a node trains a span during one visit."""

    optimizer: Literal["sgd", "adamw"] = Field(default="sgd", description="Local optimizer.")
    learning_rate: PositiveFloat = Field(default=0.05, description="Peak learning rate.")
    schedule: Literal["cosine", "constant"] = Field(
        default="cosine",
        description="Learning rate over trips (constant within a trip): `cosine` falls to 0.",
    )
    optimizer_state: Literal["reset", "carry"] = Field(
        default="reset",
        description="What an optimizer keeps of a weight starts anew with each visit, or travels "
        "with its block: one block's bytes more with sgd, two with adamw.",
    )
    momentum: Fraction = Field(default=0.9, description="Momentum of sgd.")
    weight_decay: NonNegativeFloat = Field(default=5e-4, description="Weight decay.")
    batch_size: PositiveInt = Field(default=32, description="Samples per optimizer step.")
    epochs: PositiveInt = Field(default=1, description="Passes over the shard in one visit.")
    steps: PositiveInt | None = Field(
        default=None, description="Optimizer steps in one visit; takes the place of epochs."
    )
    group_lengths: bool = Field(
        default=False,
        description="Batches of rows of about one length, where a model knows its padding: less of "
        "it is computed.",
    )
    fix_norms_after_trips: CountOrAuto = Field(
        default="auto",
        description="Trips after which BatchNorm keeps its statistics and trains its weights alone "
        "(FixBN). `auto`: after a third of them, rounded up. `none`: it never does.",
    )
    precision: Literal["fp32", "bf16"] = Field(
        default="fp32",
        description="`bf16`: forward and backward passes in bfloat16 where torch deems it "
        "safe; weights and optimizer stay fp32.",
    )
    clip_norm: PositiveFloat | None = Field(
        default=5.0, description="Largest norm of a step's gradient; `none` switches clipping off."
    )
    suffix: Literal["auto", "eager", "recompute", "lean"] = Field(
        default="auto",
        description="What frozen blocks behind a trained one keep for the backward pass. `eager`: "
        "what torch keeps. `recompute`: their input alone; they run again then, to the same bits. "
        "`lean`: the least that the gradient of their input needs, to the same up to rounding. "
        "`auto`: `eager`, or `lean` where a node's memory limit asks for it.",
    )
    span: Literal["auto", "eager", "recompute"] = Field(
        default="auto",
        description="What trained blocks keep for the backward pass. `eager`: what torch keeps. "
        "`recompute`: their input alone; they run again then, to the same bits (activation "
        "checkpointing). `auto`: `eager`, or `recompute` where a node's memory limit asks for it.",
    )
    residency: Literal["resident", "stream"] = Field(
        default="resident",
        description="Where frozen blocks are during a visit. `resident`: all in memory. `stream`: "
        "one at a time. Those before the span compute once, each over all rows before the next; "
        "those behind it come in for each step, forward and backward, and run again there "
        "whatever `suffix` says. So do the weights that adapters leave as they are, where trained "
        "blocks run again.",
    )
    frozen_dtype: Literal["model", "float32", "bfloat16"] = Field(
        default="model",
        description="In which precision frozen blocks are held and compute; `model`: as they are. "
        "Trained ones stay as they are.",
    )
    micro_batch: CountOrAuto = Field(
        default=None,
        description="Rows that go through the network at once. The gradients of a batch's parts "
        "add up to the batch's, but for batch norms that train: each part has its own statistics, "
        "and one row alone those from before. `auto`: as many as `nodes.memory_bytes` bears; where "
        "one is too many, frozen blocks `stream` too. `none`: the whole batch.",
    )
    cache_bytes: NonNegativeInt = Field(
        default=2**28,
        description="Up to this size a visit's prefix outputs stay in memory, and so does what its "
        "teacher keeps; beyond it they go to memory-mapped temporary files.",
    )


class AugmentationConfig(Section):
    """How pictures are changed at random before they are trained on. Nothing by default."""

    flip: bool = Field(default=False, description="Mirror half of them, left to right.")
    crop: NonNegativeInt = Field(
        default=0, description="Pixels of zeros around them, before they are cut out at random."
    )
    variants: PositiveInt | None = Field(
        default=None,
        description="How many forms of a row a visit draws; epochs take them in turn. `none`: a "
        "fresh one in every epoch.",
    )


class LossConfig(Section):
    """What a visit minimises: (1-a) * task + a * distillation + mu/2 * |w - w0|^2."""

    name: str = Field(
        default="cross_entropy",
        description="The task's own loss: `cross_entropy` (of classes, or of the tokens of a "
        "language model), `mse`, or one of your own; see "
        "docs/extending.md.",
    )
    logit_adjustment: NonNegativeFloat = Field(
        default=1.0, description="Weight tau of the node's log label frequencies (classification)."
    )
    distillation: Fraction = Field(
        default=0.3, description="Weight a of staying close to the model that arrived."
    )
    teacher: Literal["logits", "top_k", "last_hidden"] = Field(
        default="logits",
        description="What is compared with the model that arrived: all outputs, the likeliest "
        "classes alone (of very wide outputs), or the last block's input.",
    )
    teacher_top_k: PositiveInt = Field(
        default=16, description="How many classes `top_k` keeps of each row."
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
    block_rounds: PositiveInt = Field(
        default=1,
        description="Rounds in a row in which `fedpart` trains a block; its authors have 2.",
    )
    train_last: bool = Field(
        default=False,
        description="Whether the last block trains in every visit of `fedcybgd`, as its authors "
        "have it for classification.",
    )
    layers: PositiveInt = Field(
        default=2, description="Layers that `lisa` trains at a time, beside both ends."
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
