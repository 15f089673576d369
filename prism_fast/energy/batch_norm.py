"""Batch-norm statistics: whether a network's inner features are distributed as they were in its training.

Let x_l [B, C, h, w] be the input of batch-norm layer l, m and s² its running mean and variance, ε its own, and μ and v
mean and biased variance of one image's x_l over its h·w places. Of every channel, the squared 2-Wasserstein (Fréchet)
distance of the Gaussians N(μ, v + ε) and N(m, s² + ε), in units of the layer's variance:

    d_c = [(μ_c − m_c)² + (√(v_c + ε) − √(s²_c + ε))²] / (s²_c + ε)
    E   = 1/L Σ_l 1/C_l Σ_c d_c

Yin et al. 2020 (DeepInversion, arXiv 1912.08795) take ‖μ − m‖₂ + ‖v − s²‖₂ of a batch instead. Those norms have no
derivative where they are zero, and the channels of largest variance decide them. This form is smooth wherever ε > 0, a
constant channel (v = 0) included, is zero just where both statistics agree, and counts every layer and channel alike.

Their norms are here as the form ``norm``, which DDIS (arXiv 2506.15381) and DiffDFKD (arXiv 2504.00870) guide with, of
one image's μ and v:

    E = Σ_l ‖μ_l − m_l‖₂ + ‖v_l − s²_l‖₂

with √(Σ d² + 1e-12) for a norm, so that it has a derivative where it is zero.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from prism_fast.energy.terms import Network, Outputs
from prism_fast.errors import UserError
from prism_fast.wide import wide

Form = Literal["squared", "norm"]

_NORM_FLOOR = 1e-12
"""Under the root of a norm: far below the square of any difference that fp32 statistics show."""


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
    spread: Tensor
    """v − s²."""

    @property
    def distance(self) -> Tensor:
        """Mean over the channels of d_c, [B], or [1] where coupled."""
        squares = self.shift.square() + (self.deviation - self.unit).square()
        return (squares / self.unit.square()).flatten(1).mean(1)

    @property
    def norms(self) -> tuple[Tensor, Tensor]:
        """‖μ − m‖₂ and ‖v − s²‖₂, [B] each, or [1] where coupled."""
        shift, spread = ((x.square().flatten(1).sum(1) + _NORM_FLOOR).sqrt() for x in (self.shift, self.spread))
        return shift, spread


@dataclass(frozen=True, kw_only=True, eq=False)
class BatchNormStatistics:
    """Mean distance of the layers' input statistics from the running ones; see the module's docstring.

    Args:
        running: of each layer, by the name of the tap that is its input, [B, C, h, w].
        coupled: μ and v are those of all rows that are given together; every row then has the energy of the group, and
            its cotangent is that of the rows' sum. Samplers refuse it: an image would depend on its neighbours.
        form: ``squared`` or ``norm``.
    """

    running: Mapping[str, RunningStatistics] = field(repr=False)
    coupled: bool = False
    form: Form = "squared"

    def __post_init__(self) -> None:
        if self.form not in get_args(Form):
            raise ValueError(f"form must be {' or '.join(get_args(Form))}, not {self.form!r}")
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
        layers = [self._energy(self._compare(outputs.taps[name], each)[0]) for name, each in self.running.items()]
        return self._together(layers).expand(outputs.logits.shape[0])  # from one row, where coupled

    def value_and_cotangents(self, outputs: Outputs, targets: Tensor) -> tuple[Tensor, Outputs]:  # noqa: ARG002
        layers = []
        cotangents: dict[str, Tensor] = {}
        for name, running in self.running.items():
            tap = outputs.taps[name].detach()
            layer, centred = self._compare(tap, running)
            cotangents[name] = self._cotangent(layer, centred)
            layers.append(self._energy(layer))
        logits = torch.zeros_like(wide(outputs.logits.detach()))
        value = self._together(layers).expand(logits.shape[0])
        return value, Outputs(logits=logits, taps=cotangents)

    def _energy(self, layer: _Compared) -> Tensor:
        """Of one layer, [B], or [1] where coupled."""
        return layer.distance if self.form == "squared" else torch.add(*layer.norms)

    def _together(self, layers: Sequence[Tensor]) -> Tensor:
        stacked = torch.stack(list(layers))
        return stacked.mean(0) if self.form == "squared" else stacked.sum(0)

    def _cotangent(self, layer: _Compared, centred: Tensor) -> Tensor:
        """d E / d x_l [B, C, h, w] of x − μ."""
        # ∂μ/∂x = 1/N, ∂v/∂x = 2(x − μ)/N over N = h·w places; coupled over B·N, and the energy counts in B rows.
        if self.form == "squared":
            along = layer.shift + (1 - layer.unit / layer.deviation) * centred
            share = 2 / (len(self.running) * math.prod(centred.shape[1:]))
            return share * along / layer.unit.square()
        shift, spread = (norm.view(-1, 1, 1, 1) for norm in layer.norms)
        return (layer.shift / shift + 2 * centred * layer.spread / spread) / math.prod(centred.shape[2:])

    def _compare(self, tap: Tensor, running: RunningStatistics) -> tuple[_Compared, Tensor]:
        """The statistics, and x − μ, [B, C, h, w]."""
        x = wide(tap)
        axes = (0, 2, 3) if self.coupled else (2, 3)
        mean = x.mean(axes, keepdim=True)
        centred = x - mean
        spread = centred.square().mean(axes, keepdim=True)
        kept, variance = (side.to(x).view(1, -1, 1, 1) for side in (running.mean, running.variance))
        unit = (variance + running.eps).sqrt()
        return _Compared(mean - kept, (spread + running.eps).sqrt(), unit, spread - variance), centred
