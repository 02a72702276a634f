import copy
import math
import random
import tempfile

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from ray_snake.config import LossConfig, TrainingConfig
from ray_snake.engine.objective import Objective
from ray_snake.engine.stack import BlockStack
from ray_snake.engine.visit import VisitControl, VisitStoppedError, train_visit
from ray_snake.errors import ModelError
from ray_snake.layers.tensors import pack, unpack
from ray_snake.models.registry import model_names
from ray_snake.planning.cost import total_steps
from ray_snake.seeds import derive_seed

SEED = 5
PLAIN = LossConfig(distillation=0.0, logit_adjustment=0.0)
ONE_STEP = TrainingConfig(
    learning_rate=1.0, momentum=0.0, weight_decay=0.0, clip_norm=None, batch_size=64, steps=1
)


class Scale(nn.Module):
    """Computes each value on its own, so that its bits can't depend on the rest of a batch."""

    def __init__(self, width):
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(0.5, 1.5, width))

    def forward(self, x):
        return x * self.weight


def visit(stack, samples, trained, *, loss=PLAIN, training=ONE_STEP, rate=0.05, seed=SEED, **more):
    objective = more.pop("objective", None) or Objective(loss)
    return train_visit(
        stack,
        samples,
        trained=trained,
        learning_rate=rate,
        seed=seed,
        training=training,
        objective=objective,
        **more,
    )


def spans(blocks):
    """Spans at the start, in the middle and at the end, with and without the ends."""
    last = blocks - 1
    return [(0,), (1,), (last,), (1, 2), (1, last), (0, last), (0, 1, last), tuple(range(blocks))]


def weights_of(stack):
    return [
        {name: tensor.clone() for name, tensor in stack.tensors(block).items()}
        for block in range(len(stack))
    ]


def assert_same(one, other):
    for block, tensors in enumerate(one):
        for name, tensor in tensors.items():
            assert torch.equal(tensor, other[block][name]), (block, name)


def epoch_batches(rows, training, seed=SEED):
    """The batches of a visit, written out; a lone last row is left out."""
    for epoch in range(training.epochs):
        draw = np.random.Generator(np.random.PCG64(derive_seed(seed, "epoch", epoch)))
        order = draw.permutation(rows)
        for start in range(0, rows, training.batch_size):
            batch = order[start : start + training.batch_size]
            if len(batch) > 1:
                yield batch


def plain_loop(stack, samples, trained, training, rate, loss=F.cross_entropy):
    """Training as anyone would write it, with torch's own optimizer and no cache."""
    for block, module in enumerate(stack.blocks):
        module.train(block in trained)
    weights = [weight for block in trained for weight in stack.blocks[block].parameters()]
    kind = {
        "sgd": lambda: torch.optim.SGD(
            weights, lr=rate, momentum=training.momentum, weight_decay=training.weight_decay
        ),
        "adamw": lambda: torch.optim.AdamW(
            weights, lr=rate, weight_decay=training.weight_decay, fused=True
        ),
    }
    optimizer = kind[training.optimizer]()
    for rows in epoch_batches(len(samples), training):
        inputs, targets = samples.batch(rows)
        optimizer.zero_grad()
        loss(stack(torch.from_numpy(inputs)), torch.from_numpy(targets)).backward()
        if training.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(weights, training.clip_norm)
        optimizer.step()


def full_gradients(stack, samples, trained, loss):
    """Gradients of all weights of the whole model, its blocks in the modes of such a visit."""
    for block, module in enumerate(stack.blocks):
        module.train(block in trained)
    inputs, targets = samples.batch(next(epoch_batches(len(samples), ONE_STEP)))
    outputs = stack(torch.from_numpy(inputs))
    names = [
        [(block, name) for name, _ in module.named_parameters()]
        for block, module in enumerate(stack.blocks)
    ]
    flat = torch.autograd.grad(loss(outputs, torch.from_numpy(targets)), list(stack.parameters()))
    return dict(zip([key for block in names for key in block], flat, strict=True))


@pytest.mark.parametrize("name", model_names())
def test_a_spans_gradients_are_the_whole_models_restricted_to_it(name, registered):
    for trained in spans(len(registered(name)[0])):
        stack, samples = registered(name)
        before = weights_of(stack)
        gradients = full_gradients(copy.deepcopy(stack), samples, trained, F.cross_entropy)
        visit(stack, samples, trained, rate=1.0)
        for block in trained:
            for key, weight in stack.blocks[block].named_parameters():
                expected = before[block][key] - gradients[block, key]
                assert torch.equal(weight, expected), (trained, block, key)


@pytest.mark.parametrize("name", model_names())
def test_gradients_with_distillation_and_adjustment_are_those_of_the_written_loss(name, registered):
    settings = LossConfig(distillation=0.4, logit_adjustment=0.7, temperature=3.0)
    counts = torch.tensor([5, 1, 2, 4])
    for trained in spans(len(registered(name)[0])):
        stack, samples = registered(name)
        before = weights_of(stack)
        order = next(epoch_batches(len(samples), ONE_STEP))
        with torch.no_grad():
            teacher = copy.deepcopy(stack).eval()(torch.from_numpy(samples.inputs[order]))
        prior = torch.log(counts / counts.sum())

        def loss(outputs, targets, teacher=teacher, prior=prior):
            task = F.cross_entropy(outputs + 0.7 * prior, targets)
            target, softened = (teacher / 3).softmax(-1), (outputs / 3).log_softmax(-1)
            kept = 9 * (target * (target.log() - softened)).sum(-1).mean()
            return 0.6 * task + 0.4 * kept

        gradients = full_gradients(copy.deepcopy(stack), samples, trained, loss)
        visit(stack, samples, trained, rate=1.0, objective=Objective(settings, label_counts=counts))
        for block in trained:
            for key, weight in stack.blocks[block].named_parameters():
                moved = before[block][key] - weight.detach()
                torch.testing.assert_close(moved, gradients[block, key], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", model_names())
@pytest.mark.parametrize("distillation", [0.0, 0.3])
def test_frozen_blocks_keep_every_bit_their_statistics_included(name, distillation, registered):
    training = TrainingConfig(batch_size=4, epochs=2)
    for trained in spans(len(registered(name)[0])):
        stack, samples = registered(name)
        before = weights_of(stack)
        visit(
            stack, samples, trained, loss=LossConfig(distillation=distillation), training=training
        )
        for block in range(len(stack)):
            same = [
                torch.equal(one, before[block][key]) for key, one in stack.tensors(block).items()
            ]
            assert all(same) if block not in trained else not any(same), (trained, block)


def test_trained_norms_take_in_the_batches_of_training_and_no_others(registered):
    training = TrainingConfig(batch_size=4, epochs=2)
    stack, samples = registered("cnn")
    visit(stack, samples, (1,), loss=LossConfig(), training=training)
    batches = {
        block: int(tensor)
        for block in range(len(stack))
        for name, tensor in stack.tensors(block).items()
        if name.endswith("num_batches_tracked")
    }
    assert batches == {0: 0, 1: 6, 2: 0, 3: 0}


@pytest.mark.filterwarnings("ignore:The given NumPy array is not writable")
@pytest.mark.parametrize("trained", [(1,), (0, 4), (0, 1, 2, 3, 4)])
def test_tensors_that_arrive_are_never_written_to(trained, registered):
    stack, samples = registered("cnn")
    states = [pack(block, 0, weights_of(stack)[block]) for block in range(len(stack))]
    sums = [state.checksum() for state in states]
    for block, state in enumerate(states):
        for array in state.arrays.values():
            array.flags.writeable = False
        stack.load(block, unpack(state), trainable=False)
    visit(stack, samples, trained, loss=LossConfig(), training=TrainingConfig(batch_size=4))
    assert [state.checksum() for state in states] == sums
    for block, state in enumerate(states):
        for name, tensor in stack.tensors(block).items():
            shared = tensor.data_ptr() == state.arrays[name].ctypes.data
            assert shared is (block not in trained)


def test_the_first_batch_computes_on_the_weights_as_they_arrived_but_on_buffers_of_its_own(
    registered,
):
    stack, samples = registered("cnn")
    arrived = {name: tensor.data_ptr() for name, tensor in stack.tensors(1).items()}
    weights = {name for name, _ in stack.blocks[1].named_parameters()}
    shared = []

    def looking(outputs, targets):
        now = {name: tensor.data_ptr() for name, tensor in stack.tensors(1).items()}
        shared.append({name for name in now if now[name] == arrived[name]})
        return F.cross_entropy(outputs, targets)

    training = TrainingConfig(batch_size=4, epochs=1)
    visit(stack, samples, (1,), training=training, objective=Objective(PLAIN, task=looking))
    assert weights < arrived.keys()
    assert shared == [weights, set(), set()]


def test_a_layer_of_torchs_that_writes_to_its_weights_gets_a_copy_first(random_samples):
    torch.manual_seed(0)
    table = nn.Embedding(5, 3, max_norm=0.1)
    stack = BlockStack.cut([nn.Sequential(table), nn.Sequential(nn.Flatten(), nn.Linear(6, 4))])
    arrived = table.weight.detach()
    before = arrived.clone()
    samples = random_samples(12, (2,))
    samples.inputs = np.abs(samples.inputs * 2).astype(np.int64) % 5
    outcome = visit(stack, samples, (0, 1), training=TrainingConfig(batch_size=4))
    assert outcome.finite
    assert torch.equal(arrived, before)
    assert not torch.equal(table.weight, before)


class Clamped(nn.Linear):
    """Writes to its weights whenever it computes."""

    def forward(self, x):
        with torch.no_grad():
            self.weight.clamp_(-0.1, 0.1)
        return super().forward(x)


def test_a_block_that_writes_to_its_weights_is_refused_by_name(random_samples):
    stack = BlockStack.cut([nn.Linear(6, 5), nn.Sequential(Clamped(5, 4))])
    with pytest.raises(ModelError, match=r"weight 1\.0\.weight: was written to by its own layer"):
        visit(stack, random_samples(12, (6,)), (0, 1), training=TrainingConfig(batch_size=4))


def scaled_stack():
    torch.manual_seed(2)
    return BlockStack.cut([Scale(6), Scale(6), nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4)])


@pytest.mark.parametrize("cache_bytes", [0, 2**20])
def test_the_prefix_cache_gives_the_bits_of_computing_the_prefix_each_time(
    cache_bytes, random_samples
):
    training = TrainingConfig(batch_size=4, epochs=3, cache_bytes=cache_bytes)
    samples = random_samples(13, (6,))
    cached, plain = scaled_stack(), scaled_stack()
    visit(cached, samples, (2,), training=training)
    plain_loop(plain, samples, (2,), training, 0.05)
    assert_same(weights_of(cached), weights_of(plain))


@pytest.mark.parametrize("name", model_names())
def test_the_prefix_cache_is_close_to_computing_the_prefix_each_time(name, registered):
    training = TrainingConfig(batch_size=5, epochs=2)
    trained = (2,)
    (cached, samples), (plain, _) = registered(name), registered(name)
    visit(cached, samples, trained, training=training, rate=0.01)
    plain_loop(plain, samples, trained, training, 0.01)
    for block in trained:
        for key, tensor in cached.tensors(block).items():
            torch.testing.assert_close(tensor, plain.tensors(block)[key], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", model_names())
def test_a_memory_mapped_cache_gives_the_bits_of_one_in_memory(name, registered):
    results = []
    for cache_bytes in (0, 2**28):
        stack, samples = registered(name)
        training = TrainingConfig(batch_size=5, epochs=2, cache_bytes=cache_bytes)
        visit(stack, samples, (2,), loss=LossConfig(), training=training)
        results.append(weights_of(stack))
    assert_same(*results)


def test_the_prefix_runs_once_per_visit_however_many_passes(random_samples):
    calls = []
    stack = scaled_stack()
    stack.blocks[0].register_forward_hook(lambda *_: calls.append(1))
    training = TrainingConfig(batch_size=4, epochs=5)
    visit(stack, random_samples(12, (6,)), (2,), loss=LossConfig(), training=training)
    assert len(calls) == 3


def test_one_pass_without_a_teacher_needs_no_cache(random_samples, monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "no such folder"))
    training = TrainingConfig(batch_size=4, epochs=1, cache_bytes=0)
    visit(scaled_stack(), random_samples(12, (6,)), (2,), training=training)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("name", model_names())
def test_all_blocks_without_distillation_is_plain_training_bit_for_bit(name, optimizer, registered):
    training = TrainingConfig(optimizer=optimizer, batch_size=5, epochs=2, clip_norm=1.0)
    (snake, samples), (plain, _) = registered(name), registered(name)
    everything = tuple(range(len(snake)))
    visit(snake, samples, everything, training=training, rate=0.01)
    plain_loop(plain, samples, everything, training, 0.01)
    assert_same(weights_of(snake), weights_of(plain))


def test_a_regression_by_mean_squared_error_is_plain_training_bit_for_bit(array_samples):
    draw = np.random.Generator(np.random.PCG64(0))
    inputs = draw.standard_normal((20, 3)).astype(np.float32)
    samples = array_samples(inputs, inputs.sum(1, dtype=np.float32))
    training = TrainingConfig(batch_size=4, epochs=20)
    stacks = []
    for _ in range(2):
        torch.manual_seed(0)
        stacks.append(BlockStack.cut([nn.Linear(3, 5), nn.Linear(5, 1)]))
    loss = LossConfig(name="mse", distillation=0.0)
    outcome = visit(stacks[0], samples, (0, 1), loss=loss, training=training, rate=0.02)
    plain_loop(
        stacks[1], samples, (0, 1), training, 0.02, lambda z, y: F.mse_loss(z, y.reshape(z.shape))
    )
    assert_same(weights_of(stacks[0]), weights_of(stacks[1]))
    assert outcome.accuracy is None
    assert outcome.loss < 0.05 * outcome.first_loss


def test_a_users_own_loss_is_what_a_visit_minimises(registered):
    def own(outputs, targets):
        return F.multi_margin_loss(outputs, targets)

    training = TrainingConfig(batch_size=4, epochs=2)
    (snake, samples), (plain, _) = registered("mlp"), registered("mlp")
    visit(snake, samples, (0, 1, 2), training=training, objective=Objective(PLAIN, task=own))
    plain_loop(plain, samples, (0, 1, 2), training, 0.05, own)
    assert_same(weights_of(snake), weights_of(plain))


def test_the_proximal_term_adds_its_pull_to_the_gradient(registered):
    mu, rate = 0.3, 0.5
    training = ONE_STEP.model_copy(update={"steps": 2})
    (with_pull, samples), (without, _) = registered("mlp"), registered("mlp")
    start = weights_of(with_pull)[2]
    visit(without, samples, (2,), rate=rate)
    between = weights_of(without)[2]
    # At the first step the weights have not moved, so that only the second one is pulled.
    visit(with_pull, samples, (2,), rate=rate, training=training, proximal=mu)
    reference, _ = registered("mlp")
    visit(reference, samples, (2,), rate=rate, training=training)
    for name, weight in with_pull.tensors(2).items():
        pull = mu * (between[name] - start[name])
        torch.testing.assert_close(
            weight, reference.tensors(2)[name] - rate * pull, rtol=1e-4, atol=1e-6
        )


def test_the_proximal_term_counts_in_the_reported_loss(registered):
    (with_pull, samples), (without, _) = registered("mlp"), registered("mlp")
    training = ONE_STEP.model_copy(update={"steps": 1})
    first = visit(with_pull, samples, (1,), training=training, proximal=100.0)
    assert first.loss == visit(without, samples, (1,), training=training).loss
    longer = TrainingConfig(batch_size=4, epochs=3, momentum=0.0)
    (with_pull, samples), (without, _) = registered("mlp"), registered("mlp")
    measured = {"training": longer, "measure_update": True}
    strong = visit(with_pull, samples, (1,), proximal=10.0, **measured)
    assert strong.update_norm < visit(without, samples, (1,), **measured).update_norm


@pytest.mark.parametrize("clip_norm", [0.01, 0.1])
def test_a_steps_gradient_is_clipped_over_all_trained_weights(clip_norm, registered):
    stack, samples = registered("cnn")
    training = ONE_STEP.model_copy(update={"clip_norm": clip_norm})
    outcome = visit(stack, samples, (1, 4), training=training, rate=1.0, measure_update=True)
    assert outcome.update_norm == pytest.approx(clip_norm, rel=1e-3)


def test_without_clipping_a_step_is_as_long_as_its_gradient(registered):
    stack, samples = registered("cnn")
    gradients = full_gradients(copy.deepcopy(stack), samples, (1, 4), F.cross_entropy)
    outcome = visit(stack, samples, (1, 4), rate=1.0, measure_update=True)
    squares = sum(float(g.square().sum()) for (block, _), g in gradients.items() if block in (1, 4))
    assert outcome.update_norm == pytest.approx(math.sqrt(squares), rel=1e-4)


@settings(deadline=None, max_examples=60)
@given(
    rows=st.integers(1, 20),
    batch_size=st.integers(1, 8),
    epochs=st.integers(1, 3),
    steps=st.none() | st.integers(1, 9),
)
def test_total_steps_are_the_steps_that_a_visit_takes(rows, batch_size, epochs, steps):
    training = TrainingConfig(batch_size=batch_size, epochs=epochs, steps=steps)
    draw = np.random.Generator(np.random.PCG64(0))
    samples = Tokens(draw.integers(0, 3, (rows,)))
    stack = BlockStack.cut([nn.Embedding(3, 2), nn.Linear(2, 3)])
    control = VisitControl()
    outcome = visit(stack, samples, (1,), training=training, control=control)
    assert outcome.steps == total_steps(rows, training) == control.step == control.steps
    lone = 1 if batch_size > 1 and rows > batch_size and rows % batch_size == 1 else 0
    if steps is None:
        assert outcome.samples == epochs * (rows - lone)
    else:
        assert outcome.steps == steps
    assert math.isfinite(outcome.loss)
    assert math.isfinite(outcome.first_loss)


class Tokens:
    """A shard whose targets are its inputs."""

    def __init__(self, numbers):
        self.numbers = numbers

    def __len__(self):
        return len(self.numbers)

    def batch(self, rows):
        return self.numbers[rows], self.numbers[rows]


def test_losses_and_accuracy_are_means_over_the_samples_of_first_and_last_epoch(registered):
    stack, samples = registered("mlp")
    seen = []

    def recorded(outputs, targets):
        loss = F.cross_entropy(outputs, targets)
        seen.append((loss.item(), (outputs.argmax(-1) == targets).sum().item(), len(targets)))
        return loss

    training = TrainingConfig(batch_size=5, epochs=3)
    outcome = visit(
        stack, samples, (1, 2), training=training, objective=Objective(PLAIN, task=recorded)
    )
    assert [rows for _, _, rows in seen] == [5, 5, 2] * 3
    first, last = (sum(loss * n for loss, _, n in part) / 12 for part in (seen[:3], seen[-3:]))
    assert outcome.first_loss == pytest.approx(first)
    assert outcome.loss == pytest.approx(last)
    assert outcome.accuracy == sum(right for _, right, _ in seen[-3:]) / 12


def test_the_update_norm_is_that_of_the_change_to_the_trained_weights(registered):
    stack, samples = registered("cnn")
    before = weights_of(stack)
    training = TrainingConfig(batch_size=4)
    outcome = visit(stack, samples, (1, 4), training=training, measure_update=True)
    change = [
        (weight.detach() - before[block][name]).flatten()
        for block in (1, 4)
        for name, weight in stack.blocks[block].named_parameters()
    ]
    assert outcome.update_norm == pytest.approx(float(torch.cat(change).norm()), rel=1e-5)


def test_the_change_is_measured_only_where_it_is_asked_for(registered):
    stack, samples = registered("cnn")
    outcome = visit(stack, samples, (1, 4), training=TrainingConfig(batch_size=4))
    assert outcome.update_norm is None
    assert outcome.finite


@pytest.mark.parametrize("clip_norm", [None, 1e30])
def test_weights_that_are_no_longer_finite_are_reported_as_such(clip_norm, registered):
    stack, samples = registered("mlp")
    training = TrainingConfig(batch_size=4, epochs=3, clip_norm=clip_norm)
    outcome = visit(stack, samples, (0, 1, 2), training=training, rate=1e30)
    assert not outcome.finite
    assert outcome.update_norm == math.inf


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("step", [0, 2])
def test_one_gradient_that_is_no_number_is_found_under_clipping(optimizer, bad, step, registered):
    stack, samples = registered("mlp")
    steps = []

    def loss(outputs, targets):
        steps.append(len(steps))
        return F.cross_entropy(outputs, targets) * (bad if steps[-1] == step else 1.0)

    training = TrainingConfig(optimizer=optimizer, batch_size=4, epochs=1, clip_norm=1.0)
    objective = Objective(PLAIN, task=loss)
    outcome = visit(stack, samples, (1,), training=training, objective=objective)
    assert len(steps) == 3
    assert not outcome.finite


def test_weights_that_only_decay_spoils_are_found_under_clipping(registered):
    stack, samples = registered("mlp")
    training = TrainingConfig(
        batch_size=12, steps=5, clip_norm=1e-9, weight_decay=1e9, momentum=0.0
    )
    assert not visit(stack, samples, (1,), training=training, rate=1.0).finite


def test_statistics_that_are_no_longer_finite_are_found_under_clipping(registered):
    stack, samples = registered("cnn")
    norm = next(one for one in stack.blocks[1].modules() if isinstance(one, nn.BatchNorm2d))
    norm.running_var.fill_(math.inf)
    outcome = visit(stack, samples, (1,), training=TrainingConfig(batch_size=4), loss=PLAIN)
    assert not outcome.finite


def drop_out_stack():
    torch.manual_seed(0)
    return BlockStack.cut(
        nn.Sequential(nn.Linear(6, 9), nn.Dropout(0.5), nn.Linear(9, 4), nn.Dropout(0.5))
    )


def test_the_same_seed_gives_the_same_bits_and_another_seed_others(random_samples):
    samples = random_samples(12, (6,))
    training = TrainingConfig(batch_size=12)
    results = []
    for seed in (1, 1, 2):
        torch.rand(3)
        stack = drop_out_stack()
        visit(stack, samples, (0, 1), training=training, seed=seed, loss=LossConfig())
        results.append(weights_of(stack))
    assert_same(results[0], results[1])
    assert not torch.equal(results[0][0]["0.weight"], results[2][0]["0.weight"])


def test_the_seed_decides_the_order_of_rows(registered):
    results = []
    for seed in (1, 1, 2):
        stack, samples = registered("mlp")
        visit(stack, samples, (2,), training=TrainingConfig(batch_size=4), seed=seed)
        results.append(weights_of(stack))
    assert_same(results[0], results[1])
    assert not torch.equal(results[0][2]["0.weight"], results[2][2]["0.weight"])


def test_frozen_blocks_drop_nothing_out(random_samples):
    samples = random_samples(12, (6,))
    for trained in [(0,), (1,)]:
        with_dropout, without = drop_out_stack(), drop_out_stack()
        (frozen,) = {0, 1} - set(trained)
        without.blocks[frozen][1].p = 0.0
        for stack in (with_dropout, without):
            visit(stack, samples, trained, training=TrainingConfig(batch_size=4, epochs=2))
        assert_same(weights_of(with_dropout), weights_of(without))


def test_a_visit_leaves_every_global_generator_alone(random_samples):
    def states():
        return torch.get_rng_state().tolist(), random.getstate(), str(np.random.get_state())

    before = states()
    visit(drop_out_stack(), random_samples(12, (6,)), (0, 1), loss=LossConfig())
    assert states() == before


def test_a_visit_that_is_stopped_ends_before_its_next_step(registered):
    stack, samples = registered("mlp")
    control = VisitControl()
    calls = []

    def stopping(outputs, targets):
        calls.append(control.step)
        if len(calls) == 2:
            control.stop.set()
        return F.cross_entropy(outputs, targets)

    with pytest.raises(VisitStoppedError):
        visit(
            stack,
            samples,
            (2,),
            training=TrainingConfig(batch_size=4, epochs=5),
            objective=Objective(PLAIN, task=stopping),
            control=control,
        )
    assert calls == [0, 1]
    assert (control.step, control.steps) == (2, 15)
    assert math.isfinite(control.loss)


def test_a_visit_that_is_stopped_before_it_starts_takes_no_step(registered):
    stack, samples = registered("mlp")
    before = weights_of(stack)
    control = VisitControl()
    control.stop.set()
    with pytest.raises(VisitStoppedError):
        visit(stack, samples, (2,), control=control)
    assert_same(weights_of(stack), before)


def test_a_lone_last_row_does_not_disturb_batch_statistics(array_samples, random_samples):
    stack = BlockStack.cut(nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Linear(4, 4)))
    training = TrainingConfig(batch_size=4, epochs=2)
    outcome = visit(stack, random_samples(9, (6,)), (0, 1), training=training, loss=LossConfig())
    assert (outcome.steps, outcome.samples) == (4, 16)
    assert math.isfinite(outcome.loss)


def test_batches_of_one_row_train_on_every_row(registered):
    stack, samples = registered("mlp")
    outcome = visit(stack, samples, (1,), training=TrainingConfig(batch_size=1, epochs=2))
    assert (outcome.steps, outcome.samples) == (24, 24)


def test_teacher_and_weights_stay_together_when_steps_are_given_instead_of_epochs(registered):
    results = []
    for training in (
        TrainingConfig(batch_size=4, epochs=2),
        TrainingConfig(batch_size=4, epochs=7, steps=6),
    ):
        stack, samples = registered("cnn")
        visit(stack, samples, (1,), training=training, loss=LossConfig())
        results.append(weights_of(stack))
    assert_same(*results)


def test_strong_distillation_holds_on_to_what_the_arriving_model_says(registered):
    changes = []
    for distillation in (0.0, 0.9):
        stack, samples = registered("mlp")
        inputs = torch.from_numpy(samples.inputs)
        before = stack.eval()(inputs).detach()
        training = TrainingConfig(batch_size=4, epochs=20)
        visit(stack, samples, (1, 2), training=training, loss=LossConfig(distillation=distillation))
        changes.append(float((stack.eval()(inputs).detach() - before).norm()))
    assert changes[1] < 0.5 * changes[0]
