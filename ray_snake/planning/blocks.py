"""What single blocks of a network cost, as it was measured."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class BlockCost:
    """One block, measured for one sample.

    Attributes:
        name: The block's name.
        weight_bytes: A version of it: its weights and persistent buffers, but for its base.
        forward_flops: Floating-point operations of its forward pass.
        saved_bytes: What its forward pass keeps for the backward pass, weights left out.
        input_bytes: Size of its input.
        output_bytes: Size of its output.
        base_bytes: Weights that no visit changes.
        trained_share: Operations of its weights' gradients over those of its forward pass.
        value_bytes: Size of one of its weights.
        largest_bytes: The largest of its weights; 0: unknown, so that it counts as all of them.
        reads: Other blocks whose weights it computes with too.
        position_scores: How many scores it gives each position of a sequence by itself; 0: it does
            not, or doesn't say so.
        lead_bytes: What of `saved_bytes` comes before it scores positions; 0: nothing that was
            measured.
        frozen_bytes: What it keeps for the gradient of its input alone, when it is frozen; 0 if
            that was not measured.
        lean_bytes: What it keeps for the gradient of its input when it is frozen and runs lean;
            0 if that was not measured.
        lean_flops: Floating-point operations that it then does again in the backward pass,
            likewise.
        convolved_bytes: The largest output of its convolutions.
        convolution_bytes: The largest weight of its convolutions.
        forward_seconds: Time of its forward pass where it was measured; 0 if it was not.
        backward_seconds: Time of its backward pass with frozen weights, likewise.
        training_seconds: Time of its backward pass with trained weights, likewise.
        update_seconds: Time of an optimizer step on its weights, clipping included, likewise: of a
            whole step, however many samples.
        loss_seconds: Time of a step's loss on its outputs, both ways, likewise; 0 but for the last
            block.
    """

    name: str
    weight_bytes: int
    forward_flops: float
    saved_bytes: int
    input_bytes: int
    output_bytes: int
    base_bytes: int = 0
    trained_share: float = 1.0
    value_bytes: int = 4
    largest_bytes: int = 0
    reads: tuple[int, ...] = ()
    position_scores: int = 0
    lead_bytes: int = 0
    frozen_bytes: int = 0
    lean_bytes: int = 0
    lean_flops: float = 0.0
    convolved_bytes: int = 0
    convolution_bytes: int = 0
    forward_seconds: float = 0.0
    backward_seconds: float = 0.0
    training_seconds: float = 0.0
    update_seconds: float = 0.0
    loss_seconds: float = 0.0
