"""Initial weights. Draws come from torch's global generator, which the caller seeds."""

from __future__ import annotations

from torch import nn


def kaiming_for_relu(module: nn.Module) -> None:
    """Initialise every convolution and linear layer below `module` for a ReLU behind it.

    Normal weights with variance 2 / outputs for convolutions and 2 / inputs for linear layers, and
    zero biases (He et al., "Delving Deep into Rectifiers", arXiv 1502.01852, equations 10 and 14).
    Layers on the meta device are left as they are.
    """
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            outputs = isinstance(layer, nn.Conv2d)
            nn.init.kaiming_normal_(
                layer.weight, mode="fan_out" if outputs else "fan_in", nonlinearity="relu"
            )
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
