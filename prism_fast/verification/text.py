"""What a verification found, for people and for programs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from prism_fast.verification.repair import RepairReport
from prism_fast.verification.run import VerifyReport

_NAMED = 20
"""Foreign names that are shown."""


def report_text(report: VerifyReport) -> str:
    """The faults, a line each, then what else there is to know."""
    lines = [str(fault) for fault in report.faults]
    if report.missing:
        lines.append(f"still to be made: shard {_ranges(report.missing)}")
    if report.foreign:
        shown = ", ".join(repr(name) for name in report.foreign[:_NAMED])
        more = f" and {len(report.foreign) - _NAMED} more" if len(report.foreign) > _NAMED else ""
        lines.append(f"no files of the set, left alone: {shown}{more}")
    state = (
        "sound"
        if report.sound
        else f"{counted(len(report.faults), 'fault')}, {counted(len(report.damaged), 'damaged shard')}"
    )
    if report.sound and report.missing:
        state = "sound as far as it goes, not complete"
    size, rate = report.size_bytes / 1e6, report.size_bytes / 1e6 / max(report.seconds, 1e-9)
    lines.append(
        f"{report.folder}: {report.published} of {report.planned} shards, {report.images} images, {size:.1f} MB"
        f"{', images decoded' if report.deep else ''}: {state} ({report.seconds:.1f} s, {rate:.0f} MB/s)"
    )
    return "\n".join(lines)


def counted(number: int, noun: str) -> str:
    """``1 fault``, ``2 faults``."""
    return f"{number} {noun}{'s' * (number != 1)}"


def repair_text(report: RepairReport) -> str:
    """What was made again."""
    if not report.remade:
        return "no shard had to be made again"
    lines = [f"made again: shard {_ranges(report.remade)}"]
    if report.changed:
        lines.append(
            f"not the archive that the old statistics named: shard {_ranges(report.changed)} (they were damaged "
            "too, or the set does not say by which versions of Pillow and pyarrow it was written)"
        )
    return "\n".join(lines)


def report_json(report: VerifyReport, repaired: RepairReport | None) -> dict[str, Any]:
    """All of a report, as plain JSON types."""
    found: dict[str, Any] = {
        "folder": str(report.folder),
        "sound": report.sound,
        "complete": not report.missing and not report.damaged and report.planned > 0,
        "planned": report.planned,
        "published": report.published,
        "images": report.images,
        "bytes": report.size_bytes,
        "seconds": report.seconds,
        "deep": report.deep,
        "faults": [asdict(fault) for fault in report.faults],
        "damaged": list(report.damaged),
        "missing": list(report.missing),
        "foreign": list(report.foreign),
    }
    if repaired is not None:
        found["repair"] = {
            "remade": list(repaired.remade),
            "changed": list(repaired.changed),
            "after": report_json(repaired.after, None),
        }
    return found


def _ranges(numbers: Sequence[int]) -> str:
    """``0, 3-7, 9``."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and parts[-1][-1] == number - 1:
            parts[-1][1:] = [number]
        else:
            parts.append([number])
    return ", ".join("-".join(map(str, part)) for part in parts)
