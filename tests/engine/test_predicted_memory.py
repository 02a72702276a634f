"""What the memory model predicts against what torch allocates in a visit."""

import numpy as np
import pytest

from ray_snake.config import LossConfig, TrainingConfig
from ray_snake.engine.memory import peak_bytes
from ray_snake.engine.objective import Objective
from ray_snake.engine.profile import profile_blocks
from ray_snake.engine.stack import BlockStack
from ray_snake.engine.visit import train_visit
from ray_snake.models.registry import build_model
from ray_snake.planning.cost import predict_visit
from ray_snake.planning.span import Span, Visit

LANGUAGE = ("decoder", {"vocabulary": 600, "width": 96, "layers": 4, "tied": True})
PICTURES = ("vgg11", {"width": 0.25, "norm": "batch"})
WIDE = ("decoder", {"vocabulary": 4096, "width": 96, "layers": 4, "tied": True})
WIDE_UNTIED = ("decoder", {**WIDE[1], "tied": False})
HEAVY = ("decoder", {"vocabulary": 100, "width": 256, "layers": 4})
BATCHES = {"decoder": 4, "vgg11": 32}


def shard(name, options, array_samples):
    rng = np.random.default_rng(0)
    rows = 2 * BATCHES[name]
    if name == "decoder":
        # Of a wide vocabulary so many positions that their scores are made in several pieces.
        length = 49 if options["vocabulary"] < 1000 else 201
        tokens = rng.integers(0, options["vocabulary"], (rows, length))
        return array_samples(tokens[:, :-1], tokens[:, 1:])
    pictures = rng.normal(size=(rows, 3, 32, 32)).astype(np.float32)
    return array_samples(pictures, rng.integers(0, 10, rows))


def ratio(network, array_samples, trained, *, distillation=0.0, teacher="logits", **training):
    """Return the predicted peak over the measured one."""
    name, options = network
    samples = shard(name, options, array_samples)
    loss = LossConfig(logit_adjustment=0.0, distillation=distillation, teacher=teacher)
    settings = TrainingConfig(
        **{"optimizer": "adamw", "batch_size": BATCHES[name], "steps": 4, **training}
    )
    inputs = samples.inputs
    skeleton = BlockStack.skeleton(lambda: build_model(name, options))
    costs, _ = profile_blocks(skeleton, inputs.shape[1:], integer_inputs=name == "decoder", batch=1)
    predicted = predict_visit(
        Visit(number=1, trip=1, node=0, span=Span(trained[0], trained[0] + 1), trained=trained),
        costs,
        rows=len(samples),
        steps=settings.steps,
        training=settings,
        loss=loss,
    ).private_bytes
    stack = BlockStack.cut(build_model(name, options))

    def work():
        train_visit(
            stack,
            samples,
            trained=trained,
            learning_rate=1e-3,
            seed=0,
            training=settings,
            objective=Objective(loss),
        )

    return predicted / peak_bytes(work)


@pytest.mark.parametrize("trained", [(0, 5), (1, 5), (4, 5), tuple(range(6))])
@pytest.mark.parametrize(
    "training",
    [
        {},
        {"suffix": "recompute"},
        {"span": "recompute"},
        {"micro_batch": 1},
        {"residency": "stream"},
        {"residency": "stream", "frozen_dtype": "bfloat16", "micro_batch": 2},
        {"frozen_dtype": "bfloat16", "suffix": "recompute"},
    ],
    ids=["eager", "recompute", "span", "parts", "stream", "stream bf16 parts", "bf16"],
)
def test_a_language_models_visit_takes_about_what_is_predicted(array_samples, trained, training):
    assert 0.85 < ratio(LANGUAGE, array_samples, trained, **training) < 1.25


@pytest.mark.parametrize(
    ("network", "trained", "training"),
    [
        (WIDE, (0, 5), {}),
        (WIDE, (0, 5), {"residency": "stream", "frozen_dtype": "bfloat16", "micro_batch": 2}),
        (WIDE, (2, 3), {"residency": "stream", "frozen_dtype": "bfloat16", "micro_batch": 2}),
        (WIDE_UNTIED, (1, 5), {}),
        (WIDE_UNTIED, (1, 5), {"micro_batch": 2, "suffix": "recompute"}),
    ],
    ids=["embedding", "embedding, stream parts", "middle, stream parts", "untied", "untied, parts"],
)
def test_a_visit_with_wide_scores_takes_about_what_is_predicted(
    array_samples, network, trained, training
):
    assert 0.9 < ratio(network, array_samples, trained, **training) < 1.1


@pytest.mark.parametrize("teacher", ["logits", "top_k", "last_hidden"])
def test_a_teacher_of_wide_scores_takes_about_what_is_predicted(array_samples, teacher):
    assert 0.85 < ratio(WIDE, array_samples, (2, 5), distillation=0.5, teacher=teacher) < 1.3


@pytest.mark.parametrize("trained", [(0, 9), (2, 9), tuple(range(10))])
@pytest.mark.parametrize(
    "training", [{}, {"suffix": "lean"}, {"span": "recompute"}, {"residency": "stream"}]
)
def test_a_visit_to_a_network_of_pictures_takes_about_what_is_predicted(
    array_samples, trained, training
):
    assert 0.85 < ratio(PICTURES, array_samples, trained, **training) < 1.25


@pytest.mark.parametrize(
    ("network", "trained"), [(PICTURES, (7, 9)), (PICTURES, (9,)), (LANGUAGE, (5,))]
)
@pytest.mark.parametrize("training", [{}, {"micro_batch": 2}, {"residency": "stream"}])
def test_a_prefix_that_computes_in_each_step_takes_about_what_is_predicted(
    array_samples, network, trained, training
):
    # A single pass over the shard: nothing is kept of it.
    assert 0.85 < ratio(network, array_samples, trained, steps=2, **training) < 1.3


@pytest.mark.parametrize("teacher", ["logits", "top_k", "last_hidden"])
@pytest.mark.parametrize("residency", ["resident", "stream"])
def test_a_teacher_takes_about_what_is_predicted(array_samples, teacher, residency):
    found = ratio(
        LANGUAGE, array_samples, (2, 5), distillation=0.5, teacher=teacher, residency=residency
    )
    assert 0.85 < found < 1.3


@pytest.mark.parametrize("trained", [(0, 5), (1, 5), (3,)])
@pytest.mark.parametrize("suffix", ["eager", "recompute", "lean"])
def test_casts_of_weights_are_predicted(array_samples, trained, suffix):
    """Weights are most of it; of activations twice what they take in half precision is."""
    training = {"precision": "bf16", "micro_batch": 1, "suffix": suffix}
    assert 0.85 < ratio(HEAVY, array_samples, trained, **training) < 2


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_the_step_of_a_weight_that_is_most_of_the_network(array_samples, optimizer):
    network = ("decoder", {"vocabulary": 30_000, "width": 96, "layers": 2, "tied": True})
    found = ratio(network, array_samples, (0,), micro_batch=1, optimizer=optimizer)
    assert found == pytest.approx(1, abs=0.05)
