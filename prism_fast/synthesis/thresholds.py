"""What a set has learned from its pilot, frozen into its hash. Light to import."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prism_fast.sampling.guidance import GateThresholds

_FACTS = ("gate", "max_energy")


@dataclass(frozen=True, kw_only=True)
class Thresholds:
    """None where nothing needs it.

    Args:
        gate: of the guidance.
        max_energy: of the filter, for each class.
    """

    gate: GateThresholds | None = None
    max_energy: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if self.max_energy is not None and not all(map(math.isfinite, self.max_energy)):
            raise ValueError("max_energy must be finite")

    def facts(self) -> dict[str, Any]:
        """As they are hashed and saved. A set without a filter has no word of one: it may be from before there were."""
        gate = None if self.gate is None else {"tau": list(self.gate.tau), "delta": list(self.gate.delta)}
        return {"gate": gate} | ({} if self.max_energy is None else {"max_energy": list(self.max_energy)})

    @classmethod
    def from_facts(cls, facts: Mapping[str, Any]) -> Thresholds:
        """From :meth:`facts`, after JSON.

        Raises:
            ValueError, KeyError, TypeError: they are none.
        """
        from prism_fast.sampling.guidance import GateThresholds

        gate, limits = facts["gate"], facts.get("max_energy")
        return cls(
            gate=None if gate is None else GateThresholds(tau=gate["tau"], delta=gate["delta"]),
            max_energy=None if limits is None else tuple(limits),
        )


def saved_facts(content: Mapping[str, Any]) -> dict[str, Any]:
    """Those of a file's keys that are thresholds."""
    return {name: content[name] for name in _FACTS if name in content}
