"""Figures of the throughput benchmark: one row a contender, and the tables that are printed of them."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from bench.contenders import Contender
from bench.course import Measured
from bench.phases import PhaseTime
from bench.record import percentiles


@dataclass(frozen=True, kw_only=True)
class Row:
    """One contender. Ratios are of images_per_s; None where what they compare with was not run.

    Args:
        name: as :func:`bench.contenders.contenders` has it.
        batch: images of a network call.
        images_per_s: images of a call over its median seconds; ``seconds_p20`` and so on are of a call.
        ratio_to_naive_batch1: ``ratio_to_naive_same_batch`` and ``ratio_to_same_schedule`` likewise.
        guidance_overhead: median seconds with guidance over those without, at the same CFG schedule;
            ``guidance_memory_overhead`` is the same of peak memory.
        tflop_per_s: floating point operations in 10¹² a second, all phases together.
        peak_share: that over the measured matrix product's.
        peak_memory_bytes: of the device, or resident main memory.
        phases: where it is ours; ``phases_seconds`` is their sum for a batch.
    """

    name: str
    batch: int
    images_per_s: float
    seconds_p20: float
    seconds_p50: float
    seconds_p80: float
    ratio_to_naive_batch1: float | None
    ratio_to_naive_same_batch: float | None
    ratio_to_same_schedule: float | None
    guidance_overhead: float | None
    guidance_memory_overhead: float | None
    tflop_per_s: float
    peak_share: float
    peak_memory_bytes: int
    phases: tuple[PhaseTime, ...]
    phases_seconds: float | None


def rows(them: dict[str, Contender], found: dict[Contender, Measured], peak: float) -> list[Row]:
    """Of those that have been measured."""
    rate = {name: _rate(found[one]) for name, one in them.items() if one in found}

    def ratio(name: str, other: str) -> float | None:
        return rate[name] / rate[other] if other in rate else None

    made = []
    for name, mine_rate in rate.items():
        mine, unguided = found[them[name]], found.get(them[name].unguided)
        times = percentiles(mine.seconds)
        guided = them[name].config.guidance is not None and unguided is not None
        tflop_per_s = mine.tflop / times.p50
        row = Row(
            name=name,
            batch=mine.batch,
            images_per_s=mine_rate,
            seconds_p20=times.p20,
            seconds_p50=times.p50,
            seconds_p80=times.p80,
            ratio_to_naive_batch1=ratio(name, "naive-batch1"),
            ratio_to_naive_same_batch=ratio(name, "naive"),
            ratio_to_same_schedule=ratio(name, "same-schedule"),
            guidance_overhead=_rate(unguided) / mine_rate if guided and unguided else None,
            guidance_memory_overhead=mine.peak_bytes / unguided.peak_bytes if guided and unguided else None,
            tflop_per_s=tflop_per_s,
            peak_share=tflop_per_s * 1e12 / peak,
            peak_memory_bytes=mine.peak_bytes,
            phases=mine.phases,
            phases_seconds=sum(phase.seconds for phase in mine.phases) if mine.phases else None,
        )
        made.append(row)
    return made


def _rate(measured: Measured) -> float:
    return measured.images / statistics.median(measured.seconds)


def table(made: Sequence[Row]) -> str:
    """Both tables, as text: rows, and the phases of those that are ours."""

    def times(ratio: float | None) -> str:
        return "-" if ratio is None else f"{ratio:.2f}x"

    columns = ("batch 1", "naive", "schedule", "guidance", "memory")
    lines = [f"{'':18} {'batch':>5} {'images/s':>9} " + " ".join(f"{name:>8}" for name in columns), ""]
    lines[0] += f" {'TFLOP/s':>8} {'peak':>5} {'GiB':>6}"
    for row in made:
        ratios = (row.ratio_to_naive_batch1, row.ratio_to_naive_same_batch, row.ratio_to_same_schedule)
        cells = " ".join(f"{times(x):>8}" for x in (*ratios, row.guidance_overhead, row.guidance_memory_overhead))
        work = f"{row.tflop_per_s:8.3g} {row.peak_share:5.0%} {row.peak_memory_bytes / 2**30:6.2f}"
        lines.append(f"{row.name:18} {row.batch:5} {row.images_per_s:9.4g} {cells} {work}")
    for row in (row for row in made if row.phases_seconds is not None):
        lines += ["", f"{row.name:18} {'uses':>5} {'images/s':>9} {'ms':>8} {'share':>8} {'TFLOP/s':>8} {'peak':>5}"]
        total = row.batch / row.images_per_s
        for phase in row.phases:
            speed = f"{phase.tflop_per_s:8.3g} {phase.peak_share:5.0%}"
            spent = f"{phase.seconds * 1e3:8.1f} {phase.seconds / total:8.1%}"
            lines.append(f"  {phase.name:16} {phase.uses:5} {phase.images_per_s:9.4g} {spent} {speed}")
        summed = row.phases_seconds or 0.0
        lines.append(f"  {'sum of phases':32} {summed * 1e3:8.1f} {summed / total:8.1%}")
        lines.append(f"  {'measured whole':32} {total * 1e3:8.1f}")
    return "\n".join(lines)
