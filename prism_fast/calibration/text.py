"""What ``calibrate`` prints."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

_HEAD = ("", "cosine", "energy", "gain kept", "ms/image", "speed")


def calibration_text(found: Mapping[str, Any], figures: Path, page: Path) -> str:
    """The table, the proposal, and where the rest is."""
    slow = found["reference"]["seconds_per_image"]
    rows: list[tuple[str, ...]] = [_HEAD]
    for name, share in (("unguided", "0 %"), ("reference", "100 %")):
        rows.append((name, "–", f"{found[name]['energy']:.3f}", share, *_time(found[name], slow)))
    for one in (found["exact"], *found["options"], *found["combinations"]):
        energy = "–" if one["energy"] is None else f"{one['energy']:.3f}"
        mark = "" if one["passes"] else "  below"
        rows.append((one["name"], _cosine(one), energy, _kept(one), *_time(one, slow), mark))
    width = [max(len(row[column]) for row in rows) for column in range(len(_HEAD))]
    lines = []
    for row in rows:
        cells = [cell.ljust(w) if not place else cell.rjust(w) for place, (cell, w) in enumerate(zip(row, width))]  # noqa: B905
        lines.append(("  ".join(cells) + "".join(row[len(_HEAD) :])).rstrip())
    lines += [f"left out: {name}: {reason}" for name, reason in found["left_out"].items()]
    chosen = found["proposal"]
    bound = 100 * found["fidelity"]
    lines += [
        "",
        f"fastest that keeps {bound:g} % of the energy gain and of the direction ({found['images']} images):",
        f"{chosen['name']}: {_kept(chosen)} of the gain, {chosen['speed_up']:.1f} times the speed of reference",
        "",
        f"    {chosen['flags']}",
        "",
        *(f"    {line}" for line in chosen["yaml"].splitlines()),
        "",
        f"{'holds this calibration already' if found.get('kept') else 'figures'}: {figures}; page: {page}",
    ]
    return "\n".join(lines)


def _cosine(one: Mapping[str, Any]) -> str:
    return "–" if one["cosine"] is None else f"{one['cosine']:.3f}"


def _kept(one: Mapping[str, Any]) -> str:
    if one["energy_kept"] is None:
        return "–"
    error = "" if one["energy_kept_error"] is None else f" ± {100 * one['energy_kept_error']:.0f}"
    return f"{100 * one['energy_kept']:.0f}{error} %"


def _time(one: Mapping[str, Any], slow: float) -> tuple[str, str]:
    return f"{1000 * one['seconds_per_image']:.1f}", f"{slow / one['seconds_per_image']:.1f}x"
