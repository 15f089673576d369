"""Energy terms on a classifier's logits f [B, K] and targets y [B]: per-image values and their cotangents.

A term has two faces. ``value`` is plain ATen and differentiable: the fp64 truth, and what an exported graph holds.
``value_and_cotangents`` is what a sampling loop calls: values and d value / d outputs in closed form, no graph.
Both work in at least fp32, whatever the logits' dtype, and treat every image alone, but for a term marked ``coupled``.
Terms that read more than the logits say which taps they need.

Low energy means "the teacher recognises this". Free energy after Liu et al. 2020 (arXiv 2010.03759); the joint energy
of a class after Grathwohl et al. 2020 (arXiv 1912.03263).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from prism_fast.errors import UserError
from prism_fast.wide import wide


@dataclass(frozen=True, kw_only=True)
class Outputs:
    """What a teacher says about a batch.

    Args:
        logits: [B, K].
        taps: named intermediate features, each with the batch first.
    """

    logits: Tensor
    taps: dict[str, Tensor] = field(default_factory=dict)


class Network(Protocol):
    """What computes a tap that is not the teacher's own: another classifier, named by its weights."""

    @property
    def fingerprint(self) -> str:
        """16 hex digits of weights and settings."""
        ...

    @property
    def num_classes(self) -> int:
        """K."""
        ...

    def outputs(self, images: Tensor) -> Outputs:
        """Logits of images [B, 3, H, W] in [0, 1]; differentiable where gradients are enabled."""
        ...


class EnergyTerm(Protocol):
    """One term of an energy; see the module's docstring.

    Attributes:
        needed_taps: names of the taps that it reads; empty where the logits are enough.
        networks: of the needed taps that are logits of other networks, what computes them.
        coupled: the energy of an image depends on the rows beside it.
    """

    @property
    def needed_taps(self) -> tuple[str, ...]: ...

    @property
    def networks(self) -> Mapping[str, Network]: ...

    @property
    def coupled(self) -> bool: ...

    def value(self, outputs: Outputs, targets: Tensor) -> Tensor:
        """Energy of every image [B], differentiable, in at least fp32. ``targets``: int64 [B], 0-based."""
        ...

    def value_and_cotangents(self, outputs: Outputs, targets: Tensor) -> tuple[Tensor, Outputs]:
        """Energy [B] and, as ``Outputs`` of the same shapes, d energy_i / d outputs_i; no graph is kept."""
        ...


class LogitTerm:
    """What the terms on logits alone have in common."""

    @property
    def needed_taps(self) -> tuple[str, ...]:
        """None."""
        return ()

    @property
    def networks(self) -> Mapping[str, Network]:
        """None."""
        return {}

    @property
    def coupled(self) -> bool:
        """No."""
        return False


def _one_hot(logits: Tensor, targets: Tensor) -> Tensor:
    return torch.nn.functional.one_hot(targets, logits.shape[-1]).to(logits)


def _target_logit(logits: Tensor, targets: Tensor) -> Tensor:
    # A masked sum, not gather: the backward of gather is a scatter with reduction, which exporters refuse.
    return (logits * _one_hot(logits, targets)).sum(-1)


@dataclass(frozen=True, kw_only=True)
class FreeEnergy(LogitTerm):
    """−T·logsumexp(f/T): low where any class is certain; blind to which one. T > 0, in units of logits."""

    temperature: float = 1.0

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise ValueError(f"temperature must be positive, not {self.temperature}")

    def value(self, outputs: Outputs, targets: Tensor) -> Tensor:  # noqa: ARG002  the protocol's signature
        return -self.temperature * (wide(outputs.logits) / self.temperature).logsumexp(-1)

    def value_and_cotangents(self, outputs: Outputs, targets: Tensor) -> tuple[Tensor, Outputs]:
        # d/df of −T·logsumexp(f/T) is −softmax(f/T)
        cotangent = -(wide(outputs.logits) / self.temperature).softmax(-1)
        return self.value(outputs, targets).detach(), Outputs(logits=cotangent.detach())


@dataclass(frozen=True, kw_only=True)
class JointEnergy(LogitTerm):
    """−f_y: −log p(x, y) up to a constant."""

    def value(self, outputs: Outputs, targets: Tensor) -> Tensor:
        return -_target_logit(wide(outputs.logits), targets)

    def value_and_cotangents(self, outputs: Outputs, targets: Tensor) -> tuple[Tensor, Outputs]:
        cotangent = -_one_hot(wide(outputs.logits), targets)
        return self.value(outputs, targets).detach(), Outputs(logits=cotangent)


@dataclass(frozen=True, kw_only=True)
class CrossEntropy(LogitTerm):
    """logsumexp(f) − f_y, in nats."""

    def value(self, outputs: Outputs, targets: Tensor) -> Tensor:
        logits = wide(outputs.logits)
        return logits.logsumexp(-1) - _target_logit(logits, targets)

    def value_and_cotangents(self, outputs: Outputs, targets: Tensor) -> tuple[Tensor, Outputs]:
        logits = wide(outputs.logits).detach()
        one_hot = _one_hot(logits, targets)
        # softmax − one-hot, but p_y − 1 as −Σ_{j≠y} p_j: a certain target would cancel to zero
        others = logits.softmax(-1) * (1 - one_hot)
        cotangent = others - one_hot * others.sum(-1, keepdim=True)
        return self.value(outputs, targets).detach(), Outputs(logits=cotangent)


@dataclass(frozen=True, kw_only=True)
class Entropy(LogitTerm):
    """−Σ p·log p of p = softmax(f), in nats."""

    def value(self, outputs: Outputs, targets: Tensor) -> Tensor:  # noqa: ARG002  the protocol's signature
        log_p = wide(outputs.logits).log_softmax(-1)
        return -(log_p.exp() * log_p).sum(-1)

    def value_and_cotangents(self, outputs: Outputs, targets: Tensor) -> tuple[Tensor, Outputs]:
        log_p = wide(outputs.logits).detach().log_softmax(-1)
        value = self.value(outputs, targets).detach()
        # dH/df_j = −p_j (log p_j + H)
        return value, Outputs(logits=-log_p.exp() * (log_p + value[:, None]))


@dataclass(frozen=True, kw_only=True)
class WeightedSum:
    """Σ w_i·E_i. Weights of zero are allowed and cost nothing."""

    terms: tuple[EnergyTerm, ...]
    weights: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.terms) != len(self.weights) or not self.terms:
            raise ValueError(f"as many weights as terms, at least one: {len(self.terms)} and {len(self.weights)}")
        if not any(self.weights):
            raise ValueError("an energy whose weights are all zero guides nowhere")

    @property
    def needed_taps(self) -> tuple[str, ...]:
        """Those of every part, each once."""
        return tuple(dict.fromkeys(name for _, term in self.parts() for name in term.needed_taps))

    @property
    def networks(self) -> Mapping[str, Network]:
        """Those of every part."""
        return {name: network for _, term in self.parts() for name, network in term.networks.items()}

    @property
    def coupled(self) -> bool:
        """Whether a part is."""
        return any(term.coupled for _, term in self.parts())

    def parts(self) -> Sequence[tuple[float, EnergyTerm]]:
        """Weight and term of those that have a weight."""
        return [(weight, term) for weight, term in zip(self.weights, self.terms, strict=True) if weight]

    def value(self, outputs: Outputs, targets: Tensor) -> Tensor:
        parts = [weight * term.value(outputs, targets) for weight, term in self.parts()]
        return torch.stack(parts).sum(0)

    def value_and_cotangents(self, outputs: Outputs, targets: Tensor) -> tuple[Tensor, Outputs]:
        value = torch.zeros_like(wide(outputs.logits[:, 0]))
        logits = torch.zeros_like(wide(outputs.logits))
        taps: dict[str, Tensor] = {}
        for weight, term in self.parts():
            part, cotangents = term.value_and_cotangents(outputs, targets)
            value += weight * part
            logits += weight * cotangents.logits
            for name, tap in cotangents.taps.items():
                taps[name] = taps[name] + weight * tap if name in taps else weight * tap
        return value, Outputs(logits=logits, taps=taps)


def guidance_energy(*, free_weight: float = 1.0, class_weight: float = 1.0, temperature: float = 1.0) -> WeightedSum:
    """E = λ_f·(−T·logsumexp(f/T)) + λ_c·CE(f, y): the energy that guides a sample.

    The free term asks for the teacher's distribution, the class term for the class; at λ_f = λ_c = T = 1 the
    two normalisers cancel and E = −f_y.
    """
    return WeightedSum(terms=(FreeEnergy(temperature=temperature), CrossEntropy()), weights=(free_weight, class_weight))


def logit_weights(term: EnergyTerm) -> dict[str, float] | None:
    """Arguments of :func:`guidance_energy` that make ``term``; None where it holds anything else."""
    if not isinstance(term, WeightedSum):
        return None
    found = {"free_weight": 0.0, "class_weight": 0.0, "temperature": 1.0}
    for weight, part in term.parts():
        name = {FreeEnergy: "free_weight", CrossEntropy: "class_weight"}.get(type(part))
        if name is None or found[name]:
            return None
        found[name] = weight
        if isinstance(part, FreeEnergy):
            found["temperature"] = part.temperature
    return found


def refuse_coupled(term: EnergyTerm) -> None:
    """
    Raises:
        UserError: images would no longer depend on their own rows alone.
    """
    if term.coupled:
        raise UserError(
            "a coupled energy term (statistics of the batch) makes an image depend on the rows beside it, and samplers "
            "keep each image to its own row: use the per-image form (coupled=False)"
        )
