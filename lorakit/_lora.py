"""The forward pass of LoRA layers: base(x) + B(scale * A(x)), in the base's precision, scaled where it is smallest."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from peft.tuners.lora.layer import Conv2d, Linear

NAME = "default"  # the one adapter that a layer holds; a second would never be trained


class LoraLinear(Linear):
    """peft's LoRA layer for a linear layer, with a shorter forward."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        down, up = self.lora_A[NAME].weight.to(x.dtype), self.lora_B[NAME].weight.to(x.dtype)
        hidden = F.linear(self.lora_dropout[NAME](x), down) * self.scaling[NAME]
        return self.base_layer(x) + F.linear(hidden, up)


class LoraConv2d(Conv2d):
    """peft's LoRA layer for a convolution (here: 1x1), with a shorter forward."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        down, up = self.lora_A[NAME].weight.to(x.dtype), self.lora_B[NAME].weight.to(x.dtype)
        conv = self.lora_A[NAME]
        hidden = F.conv2d(self.lora_dropout[NAME](x), down, None, conv.stride, conv.padding) * self.scaling[NAME]
        return self.base_layer(x) + F.conv2d(hidden, up)


LAYERS = {torch.nn.Linear: LoraLinear, torch.nn.Conv2d: LoraConv2d}
