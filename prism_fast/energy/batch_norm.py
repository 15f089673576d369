"""Batch-norm statistics: whether a network's inner features are distributed as they were in its training.

Let x_l [B, C, h, w] be the input of batch-norm layer l, m and s² its running mean and variance, ε its own, and μ and v
mean and biased variance of one image's x_l over its h·w places. Of every channel, the squared 2-Wasserstein (Fréchet)
distance of the Gaussians N(μ, v + ε) and N(m, s² + ε), in units of the layer's variance:

    d_c = [(μ_c − m_c)² + (√(v_c + ε) − √(s²_c + ε))²] / (s²_c + ε)
    E   = 1/L Σ_l 1/C_l Σ_c d_c

Yin et al. 2020 (DeepInversion, arXiv 1912.08795) take ‖μ − m‖₂ + ‖v − s²‖₂ of a batch instead. Those norms have no
derivative where they are zero, and the channels of largest variance decide them. This form is smooth wherever ε > 0, a
constant channel (v = 0) included, is zero just where both statistics agree, and counts every layer and channel alike.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from prism_fast.energy.terms import Network, Outputs, wide
from prism_fast.errors import UserError


@dataclass(frozen=True, kw_only=True, eq=False)
class RunningStatistics:
    """What a batch-norm layer has kept of its training.

    Args:
        mean: [C].
        variance: [C], not negative.
        eps: ε of the layer, positive.
    """

    mean: Tensor
    variance: Tensor
    eps: float

    def __post_init__(self) -> None:
        if not self.eps > 0:
            raise UserError(
                f"a batch-norm layer with eps {self.eps}: its statistics cannot be compared, eps must be > 0"
            )


class _Compared(NamedTuple):
    """A layer's statistics beside the running ones, [B, C, 1, 1], or [1, C, 1, 1] where coupled."""

    shift: Tensor
    """μ − m."""
    deviation: Tensor
    """√(v + ε)."""
    unit: Tensor
    """√(s² + ε), [1, C, 1, 1]."""

    @property
    def distance(self) -> Tensor:
        """Mean over the channels of d_c, [B], or [1] where coupled."""
        squares = self.shift.square() + (self.deviation - self.unit).square()
        return (squares / self.unit.square()).flatten(1).mean(1)


@dataclass(frozen=True, kw_only=True, eq=False)
class BatchNormStatistics:
    """Mean distance of the layers' input statistics from the running ones; see the module's docstring.

    Args:
        running: of each layer, by the name of the tap that is its input, [B, C, h, w].
        coupled: μ and v are those of all rows that are given together; every row then has the energy of the group, and
            its cotangent is that of the rows' sum. Samplers refuse it: an image would depend on its neighbours.
    """

    running: Mapping[str, RunningStatistics] = field(repr=False)
    coupled: bool = False

    def __post_init__(self) -> None:
        if not self.running:
            raise ValueError("no batch-norm layer: there are no statistics to compare with")

    @property
    def needed_taps(self) -> tuple[str, ...]:
        """Inputs of the layers."""
        return tuple(self.running)

    @property
    def networks(self) -> Mapping[str, Network]:
        """None."""
        return {}

    def value(self, outputs: Outputs, targets: Tensor) -> Tensor:  # noqa: ARG002  the protocol's signature
        layers = [self._compare(outputs.taps[name], running)[0].distance for name, running in self.running.items()]
        return torch.stack(layers).mean(0).expand(outputs.logits.shape[0])  # from one row, where coupled

    def value_and_cotangents(self, outputs: Outputs, targets: Tensor) -> tuple[Tensor, Outputs]:  # noqa: ARG002
        layers = []
        cotangents: dict[str, Tensor] = {}
        for name, running in self.running.items():
            tap = outputs.taps[name].detach()
            layer, centred = self._compare(tap, running)
            # ∂μ/∂x = 1/N, ∂v/∂x = 2(x − μ)/N over N = h·w places; coupled over B·N, and the energy counts in B rows.
            along = layer.shift + (1 - layer.unit / layer.deviation) * centred
            share = 2 / (len(self.running) * math.prod(tap.shape[1:]))
            cotangents[name] = share * along / layer.unit.square()
            layers.append(layer.distance)
        logits = torch.zeros_like(wide(outputs.logits.detach()))
        value = torch.stack(layers).mean(0).expand(logits.shape[0])
        return value, Outputs(logits=logits, taps=cotangents)

    def _compare(self, tap: Tensor, running: RunningStatistics) -> tuple[_Compared, Tensor]:
        """The statistics, and x − μ, [B, C, h, w]."""
        x = wide(tap)
        axes = (0, 2, 3) if self.coupled else (2, 3)
        mean = x.mean(axes, keepdim=True)
        centred = x - mean
        deviation = (centred.square().mean(axes, keepdim=True) + running.eps).sqrt()
        kept, variance = (side.to(x).view(1, -1, 1, 1) for side in (running.mean, running.variance))
        return _Compared(mean - kept, deviation, (variance + running.eps).sqrt()), centred
