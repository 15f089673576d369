"""The energy of several teachers: the mean of theirs, or the worst of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from prism_fast.energy.terms import EnergyTerm, Network, Outputs
from prism_fast.wide import wide

Mode = Literal["mean", "worst"]


def member_tap(member: int, name: str) -> str:
    """The name among an ensemble's taps of what its member calls ``name``; ``logits`` are its logits."""
    return f"{member}/{name}"


@dataclass(frozen=True, kw_only=True)
class EnsembleEnergy:
    """``mean``: 1/M Σ_m E_m; ``worst``: max_m E_m, whose gradient is that of the lowest m that reaches it.

    Energies are combined, not logits: a member that is unsure cannot be outvoted by a constant in another's logits.

    Args:
        terms: one for each member; they see its logits and taps alone.
        mode: how the energies are combined.
    """

    terms: tuple[EnergyTerm, ...]
    mode: Mode = "mean"

    def __post_init__(self) -> None:
        if not self.terms:
            raise ValueError("an ensemble has at least one member")
        if self.mode not in get_args(Mode):
            raise ValueError(f"mode must be mean or worst, not {self.mode!r}")

    @property
    def needed_taps(self) -> tuple[str, ...]:
        """Every member's logits and taps."""
        names = []
        for member, term in enumerate(self.terms):
            names += [member_tap(member, name) for name in ("logits", *term.needed_taps)]
        return tuple(names)

    @property
    def networks(self) -> Mapping[str, Network]:
        """Those of every member."""
        return {
            member_tap(member, name): network
            for member, term in enumerate(self.terms)
            for name, network in term.networks.items()
        }

    @property
    def coupled(self) -> bool:
        """Whether a member's is."""
        return any(term.coupled for term in self.terms)

    def value(self, outputs: Outputs, targets: Tensor) -> Tensor:
        return self.combine([term.value(said, targets) for term, said in self._members(outputs)])

    def value_and_cotangents(self, outputs: Outputs, targets: Tensor) -> tuple[Tensor, Outputs]:
        found = [term.value_and_cotangents(said, targets) for term, said in self._members(outputs)]
        energies = [energy for energy, _ in found]
        taps: dict[str, Tensor] = {}
        for member, (share, (_, cotangents)) in enumerate(zip(self.shares(energies), found, strict=True)):
            for name, cotangent in {"logits": cotangents.logits, **cotangents.taps}.items():
                taps[member_tap(member, name)] = share_of(share, cotangent)
        return self.combine(energies), Outputs(logits=torch.zeros_like(wide(outputs.logits)).detach(), taps=taps)

    def combine(self, energies: list[Tensor]) -> Tensor:
        """One energy [B] of the members' [B]; not finite where one of theirs is NaN."""
        stacked = torch.stack(energies)
        if self.mode == "mean":
            return stacked.mean(0)
        # where and a sum, not max: its backward is a scatter, which exporters refuse
        return torch.where(self._chosen(stacked), stacked, 0.0).sum(0)

    def shares(self, energies: list[Tensor]) -> Tensor:
        """[M, B]: d combined energy / d energy of each member."""
        stacked = torch.stack(energies).detach()
        if self.mode == "mean":
            return torch.full_like(stacked, 1 / len(energies))
        return self._chosen(stacked).to(stacked)

    def _chosen(self, stacked: Tensor) -> Tensor:
        """bool [M, B]: the first member that has the largest energy; NaN is larger than any number."""
        members = torch.arange(len(stacked), device=stacked.device)
        return members[:, None] == stacked.argmax(0)

    def _members(self, outputs: Outputs) -> list[tuple[EnergyTerm, Outputs]]:
        found: list[tuple[EnergyTerm, Outputs]] = []
        for member, term in enumerate(self.terms):
            taps = {name: outputs.taps[member_tap(member, name)] for name in term.needed_taps}
            found.append((term, Outputs(logits=outputs.taps[member_tap(member, "logits")], taps=taps)))
        return found


def share_of(share: Tensor, cotangent: Tensor) -> Tensor:
    """``cotangent`` [B, ...] times ``share`` [B]; zero where the share is, whatever stands there."""
    each = share.view(-1, *[1] * (cotangent.dim() - 1)).to(cotangent)
    return torch.where(each != 0, each * cotangent, 0.0)
