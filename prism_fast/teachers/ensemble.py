"""Several teachers as one: their energies are combined, each member keeping its own preprocessing and back-end."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import torch
from torch import Tensor

from prism_fast.config import content_hash
from prism_fast.energy.ensemble import EnsembleEnergy, Mode, member_tap, share_of
from prism_fast.energy.terms import EnergyTerm, Outputs
from prism_fast.errors import UserError
from prism_fast.teachers.base import Energy, Teacher
from prism_fast.teachers.taps import outputs_for
from prism_fast.wide import wide

if TYPE_CHECKING:
    from prism_fast.teachers.extractors import Extractor


class EnsembleTeacher:
    """Keeps the ``Teacher`` protocol. A term for a single teacher is asked of every member.

    Args:
        members: at least one, of the same classes in the same order, on one device.
        mode: ``mean``: the members' mean energy; ``worst``: the largest of them, with that member's gradient.

    Attributes:
        input_size: the largest of the members'.

    Raises:
        UserError: no member, or members that do not know the same classes.
    """

    def __init__(self, members: Sequence[Teacher], mode: Mode = "mean") -> None:
        if not members:
            raise UserError("an ensemble of teachers needs at least one")
        if mode not in get_args(Mode):
            raise UserError(f"an ensemble's energy is the mean or the worst of its members', not {mode!r}")
        self.members, self.mode = tuple(members), mode
        self.num_classes = members[0].num_classes
        self.label_names = _common_labels(self.members)
        self.input_size = max((member.input_size for member in members), key=lambda size: size[0] * size[1])
        self.fingerprint = content_hash(["ensemble", mode, *(member.fingerprint for member in members)])

    def outputs(self, images: Tensor) -> Outputs:
        """The mean of the members' logits [B, K], at least fp32: what labels an image. Differentiable."""
        return Outputs(logits=_mean([member.outputs(images).logits for member in self.members]))

    def tapped_outputs(self, images: Tensor, term: EnergyTerm) -> Outputs:
        """As :meth:`outputs`, with every member's logits and taps under its number. Differentiable."""
        taps: dict[str, Tensor] = {}
        logits = []
        for index, (member, own) in enumerate(zip(self.members, self._energy(term).terms, strict=True)):
            said = outputs_for(member, images, own)
            logits.append(said.logits)
            taps |= {member_tap(index, name): tap for name, tap in {"logits": said.logits, **said.taps}.items()}
        return Outputs(logits=_mean(logits), taps=taps)

    def features(self, images: Tensor) -> Tensor:
        """The members' pooled features side by side, [B, ΣD]."""
        return torch.cat([member.features(images) for member in self.members], 1)

    def energy_and_grad(self, images: Tensor, targets: Tensor, term: EnergyTerm) -> Energy:
        """The combined energy [B] and its gradient [B, 3, H, W]; not finite where a member's is not.

        Args:
            images: [B, 3, H, W] in [0, 1].
            targets: int64 [B].
            term: an ``EnsembleEnergy``, or a term on logits for every member, combined as ``mode`` says.
        """
        energy = self._energy(term)
        found = [
            member.energy_and_grad(images, targets, own) for member, own in zip(self.members, energy.terms, strict=True)
        ]
        energies = [one.energy for one in found]
        parts = [share_of(share, one.grad) for share, one in zip(energy.shares(energies), found, strict=True)]
        gradient = torch.stack(parts).sum(0)
        finite = torch.stack([one.finite for one in found]).all(0)
        return Energy(
            energy=energy.combine(energies),
            grad=torch.where(finite.view(-1, 1, 1, 1), gradient, 0.0),
            outputs=Outputs(logits=_mean([one.outputs.logits for one in found])),
            finite=finite,
        )

    def _energy(self, term: EnergyTerm) -> EnsembleEnergy:
        if not isinstance(term, EnsembleEnergy):
            own = (member._energy(term) if isinstance(member, EnsembleTeacher) else term for member in self.members)
            return EnsembleEnergy(terms=tuple(own), mode=self.mode)
        if len(term.terms) != len(self.members):
            raise UserError(f"an energy of {len(term.terms)} members, the ensemble has {len(self.members)}")
        return term


def fingerprints(network: Extractor) -> frozenset[str]:
    """That of a teacher or extractor and, of an ensemble, those of its members: two that share one share a network."""
    members = network.members if isinstance(network, EnsembleTeacher) else ()
    return frozenset({network.fingerprint}).union(*map(fingerprints, members))


def ensemble_names(name: str) -> tuple[Mode | None, list[str]]:
    """How and of whom an ensemble is made: ``A+B``, ``mean:A+B`` or ``worst:A+B``; None for a single teacher.

    A folder whose own name has a ``+`` is a single teacher.

    Raises:
        UserError: a name between two ``+`` is empty.
    """
    if Path(name.removeprefix("local-dir:")).expanduser().is_dir():
        return None, [name]
    for mode in get_args(Mode):
        if name.startswith(f"{mode}:"):
            return mode, _split(name.removeprefix(f"{mode}:"), name)
    return ("mean" if "+" in name else None), _split(name, name)


def _split(members: str, name: str) -> list[str]:
    names = [member.strip() for member in members.split("+")]
    if not all(names):
        raise UserError(f"teacher {name!r}: write an ensemble as A+B, mean:A+B or worst:A+B")
    return names


def _common_labels(members: Sequence[Teacher]) -> tuple[str, ...] | None:
    """
    Raises:
        UserError: other classes, or the same in another order.
    """
    counts = [member.num_classes for member in members]
    if len(set(counts)) > 1:
        raise UserError(f"the teachers of an ensemble know {counts} classes: take teachers of the same classes")
    named = [member.label_names for member in members if member.label_names is not None]
    for labels in named[1:]:
        differing = [pair for pair in zip(named[0], labels, strict=True) if pair[0] != pair[1]]
        if differing:
            raise UserError(
                f"the teachers of an ensemble name their classes differently ({differing[0][0]!r} and "
                f"{differing[0][1]!r}): take teachers with the same label_names in the same order"
            )
    return named[0] if named else None


def _mean(logits: Sequence[Tensor]) -> Tensor:
    return torch.stack([wide(each) for each in logits]).mean(0)
