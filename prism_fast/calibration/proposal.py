"""Which options together are the fastest that still keep what was asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from prism_fast.calibration.measure import Measured
from prism_fast.calibration.options import Option


@dataclass(frozen=True, kw_only=True)
class Proposal:
    """What to sample with.

    Args:
        chosen: the fastest that passes; level ``exact`` itself where no option does.
        tried: the combinations that were measured on the way.
    """

    chosen: Measured
    tried: tuple[Measured, ...]


def propose(
    exact: Measured, options: Sequence[Measured], fidelity: float, measure: Callable[[Option], Measured]
) -> Proposal:
    """Starts from the fastest option that passes and adds others, fastest first, as long as that passes and is faster.

    Args:
        exact: level ``exact``.
        options: single options, measured.
        fidelity: share of energy gain and direction to keep.
        measure: measures a combination.
    """
    passing = [one for one in options if one.passes(fidelity) and one.seconds_per_image < exact.seconds_per_image]
    passing.sort(key=lambda one: one.seconds_per_image)
    best, tried = exact, []
    for one in passing:
        if set(one.option.knobs) & set(best.option.knobs):
            continue
        found = measure(best.option.together(one.option)) if best is not exact else one
        tried += [found] if found is not one else []
        if found.passes(fidelity) and found.seconds_per_image < best.seconds_per_image:
            best = found
    return Proposal(chosen=best, tried=tuple(tried))


def settings(option: Option) -> dict[str, Any]:
    """What to put into a configuration: ``{"sampler": {...}}``."""
    sampler: dict[str, Any] = {"level": "fast" if option.knobs else "exact", **option.sampler}
    return {"sampler": sampler | ({"guidance": dict(option.guidance)} if option.guidance else {})}


def flags(fields: Mapping[str, Any], prefix: str = "--") -> str:
    """The same on a command line."""
    parts = []
    for name, value in fields.items():
        if isinstance(value, Mapping):
            parts.append(flags(value, f"{prefix}{name}."))
        else:
            parts.append(f"{prefix}{name} {str(value).lower() if isinstance(value, bool) else value}")
    return " ".join(parts)
