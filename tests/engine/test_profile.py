"""What a block is measured to cost."""

from dataclasses import replace
from itertools import pairwise

import torch
from torch import nn

from ray_snake.config import LossConfig, TrainingConfig
from ray_snake.engine.profile import profile_blocks, time_blocks
from ray_snake.engine.stack import BlockStack
from ray_snake.models.registry import build_model


def profile(build, shape, batch=4):
    stack = BlockStack.skeleton(build)
    costs, speed = profile_blocks(stack, shape, integer_inputs=False, batch=batch)
    return stack, costs, speed


def test_a_linear_layer_costs_two_operations_for_each_weight_and_sample():
    _, costs, speed = profile(lambda: nn.Sequential(nn.Linear(6, 5, bias=False)), (6,))
    assert costs[0].forward_flops == 2 * 6 * 5
    assert costs[0].weight_bytes == 4 * 6 * 5
    assert (costs[0].input_bytes, costs[0].output_bytes) == (24, 20)
    assert speed > 0


def test_saved_bytes_are_what_the_backward_pass_needs_beside_the_weights():
    _, costs, _ = profile(lambda: nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2)), (6,))
    # A linear layer keeps its input, a ReLU its output, which is the next layer's input.
    assert costs[0].saved_bytes == 4 * (6 + 5)
    assert costs[1].saved_bytes == 4 * 5


def test_profiling_leaves_the_stack_without_weights():
    stack, _, _ = profile(lambda: nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 2)), (6,))
    assert all(parameter.is_meta for parameter in stack.parameters())


def test_token_inputs_are_profiled_too():
    stack = BlockStack.skeleton(lambda: nn.Sequential(nn.Embedding(11, 3), nn.Linear(3, 2)))
    costs, _ = profile_blocks(stack, (7,), integer_inputs=True, batch=2)
    assert costs[0].output_bytes == 7 * 3 * 4
    assert torch.is_grad_enabled()


def test_updates_and_the_loss_are_timed_where_there_are_any():
    stack, costs, _ = profile(
        lambda: nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2), nn.Flatten()), (6,)
    )
    before = torch.get_rng_state()
    timed = time_blocks(
        stack,
        costs,
        (6,),
        integer_inputs=False,
        training=TrainingConfig(batch_size=4),
        loss=LossConfig(),
        threads=1,
    )
    # It may be a user's own program that goes on with its draws.
    assert torch.equal(torch.get_rng_state(), before)
    assert [one.update_seconds > 0 for one in timed] == [bool(one.weight_bytes) for one in costs]
    assert [one.loss_seconds > 0 for one in timed] == [False] * (len(timed) - 1) + [True]
    assert all(parameter.is_meta for parameter in stack.parameters())


def convolutions(norm):
    return lambda: nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), norm, nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1), nn.ReLU()
    )


def test_a_lean_block_keeps_a_bit_of_each_activation():
    _, costs, _ = profile(convolutions(nn.BatchNorm2d(4)), (1, 8, 8))
    # And a batch norm's scale, which a batch shares.
    assert [one.lean_bytes for one in costs] == [4 * 64 // 8 + 4, 4 * 64 // 8]
    assert [one.lean_flops for one in costs] == [0, 0]


def test_a_lean_block_with_a_group_norm_keeps_its_input_if_that_is_less_and_runs_again():
    _, costs, _ = profile(convolutions(nn.GroupNorm(2, 4)), (1, 8, 8))
    assert costs[0].lean_bytes == 4 * 64
    assert costs[0].lean_flops == costs[0].forward_flops


def test_the_largest_convolution_of_a_block_is_known():
    wide, narrow = nn.Conv2d(1, 6, 3, padding=1), nn.Conv2d(6, 4, 5, padding=2)
    _, costs, _ = profile(
        lambda: nn.Sequential(nn.Sequential(wide, nn.ReLU(), narrow), nn.Linear(8, 2)),
        (1, 8, 8),
    )
    assert costs[0].convolved_bytes == 6 * 64 * 4
    assert costs[0].convolution_bytes == 4 * 6 * 25 * 4
    assert costs[1].convolved_bytes == costs[1].convolution_bytes == 0


class Counting(nn.Linear):
    """Counts the runs of all layers of its kind."""

    alike = "counting"
    runs = 0

    def forward(self, x):
        Counting.runs += 1
        return super().forward(x)


def test_of_blocks_that_say_they_are_alike_one_is_measured():
    def runs(*widths):
        Counting.runs = 0
        ends = list(pairwise(widths))
        _, costs, _ = profile(lambda: nn.Sequential(*(Counting(*one) for one in ends)), widths[:1])
        return Counting.runs, costs

    once, (alone,) = runs(6, 6)
    again, costs = runs(6, 6, 6, 6)
    assert again == once
    assert [one.name for one in costs] == ["0", "1", "2"]
    assert {replace(one, name="0") for one in costs} == {alone}
    # Weights of another shape are another kind.
    assert runs(6, 6, 5)[0] == 2 * once


def test_all_layers_of_a_decoder_are_alike():
    stack = BlockStack.skeleton(lambda: build_model("decoder", {"vocabulary": 30, "width": 16}))
    costs, _ = profile_blocks(stack, (7,), integer_inputs=True, batch=2)
    assert [one.name for one in costs] == list(stack.names)
    assert len({replace(one, name="") for one in costs[1:-1]}) == 1
    assert costs[-1].position_scores == 30
    assert not any(one.position_scores for one in costs[:-1])
