"""What a block is measured to cost."""

import torch
from torch import nn

from ray_snake.engine.profile import profile_blocks
from ray_snake.engine.stack import BlockStack


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
