"""Classifiers of grey images behind the interface of those of colour images."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

LUMA = (0.299, 0.587, 0.114)
"""ITU-R BT.601, with which PIL and torchvision make images grey; sums to one."""


class GreyInput(torch.nn.Module):
    """A network of one channel that takes three: it sees their luma. Differentiable; grey images pass unchanged.

    Luma is linear with weights that sum to one, so resizing and normalising (one mean, one deviation for all three
    channels) come to the same before it as after it.
    """

    luma: Tensor

    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        self.network: Any = network
        self.register_buffer("luma", torch.tensor(LUMA).view(1, 3, 1, 1), persistent=False)

    def grey(self, images: Tensor) -> Tensor:
        """[B, 3, h, w] to [B, 1, h, w]."""
        return (images * self.luma).sum(1, keepdim=True)

    def forward(self, images: Tensor) -> Tensor:
        """[B, 3, h, w] to logits [B, K]."""
        logits: Tensor = self.network(self.grey(images))
        return logits


class GreyFeatures(GreyInput):
    """The same around a network that separates its head as timm's do."""

    def forward_features(self, images: Tensor) -> Any:
        return self.network.forward_features(self.grey(images))

    def forward_head(self, maps: Any, pre_logits: bool = False) -> Any:
        return self.network.forward_head(maps, pre_logits=pre_logits)


def grey_input(network: torch.nn.Module) -> GreyInput:
    """``network`` behind :class:`GreyInput`."""
    separate = hasattr(network, "forward_features") and hasattr(network, "forward_head")
    return (GreyFeatures if separate else GreyInput)(network)
