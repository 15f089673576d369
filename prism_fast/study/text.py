"""What the command line prints: short lines for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prism_fast.study.arms import ARMS, CEILING, DemoConfig

if TYPE_CHECKING:
    from prism_fast.distill.report import DistillReport
    from prism_fast.synthesis.tally import SynthesisReport

_WIDTH = 30


def percent(share: float | None, digits: int = 1) -> str:
    """``64.1 %``; a dash where there is none."""
    return "–" if share is None else f"{100 * share:.{digits}f} %"


def points(change: float, error: float | None = None) -> str:
    """``+12.3 points``, with ``± 1.2`` where the error is known."""
    return f"{100 * change:+.1f}" + (f" ± {100 * error:.1f}" if error is not None else "") + " points"


def duration(seconds: float) -> str:
    """``41 s`` or ``8 min 41 s``."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def demo_heading(config: DemoConfig) -> str:
    """What is about to run."""
    return f"prism_fast demo: {', '.join(config.arms)}; {config.images} images each, in {config.out}\n"


def stage_line(name: str, result: str, seconds: float, width: int = _WIDTH) -> str:
    """One finished stage."""
    return f"  {name:<{width}}{result}  ({duration(seconds)})"


def demo_summary(metrics: Mapping[str, Any], config: DemoConfig, report: Path, figures: Path) -> str:
    """The table of arms, what guidance did, and where to look."""
    rows = [["", "teacher agrees", "judge agrees", "precision", "recall", "student, real test"]]
    for arm in config.arms:
        covered = metrics["distribution"]["arms"][arm]
        rows.append(
            [
                ARMS[arm].title,
                percent(metrics["teacher_agreement"][arm]),
                percent(metrics["judge_agreement"][arm]),
                f"{covered['precision']:.2f}",
                f"{covered['recall']:.2f}",
                percent(metrics["student_accuracy"][arm]),
            ]
        )
    if config.full:
        rows.append(["real images (ceiling)", *["–"] * 4, percent(metrics["real_data_student_accuracy"])])
    of, beside = metrics["distribution"]["settings"], compared_images(metrics["distribution"])
    lines = ["", *aligned(rows), ""]
    lines.append(
        f"Precision and recall: features of {Path(of['extractor']).name}, k = {of['k_precision_recall']}, "
        f"{beside} ({of['reference']})."
    )
    students = metrics["student_accuracy"]
    lines.append(f"PRISM over plain: {points(students['prism'] - students['plain'])} of student accuracy.")
    if config.full:
        closed = metrics["gap_closed"]
        lines.append(f"Gap to the {CEILING}-data student closed: {percent(closed, 0)}.")
    pair = metrics["same_seeds"]["prism"]
    lines.append(
        f"Guidance alone, same {pair['images']} prompts and seeds: "
        + ", ".join(
            f"{who} {percent(pair[key]['unguided'])} → {percent(pair[key]['guided'])}"
            for who, key in (("teacher", "teacher_agreement"), ("judge", "judge_agreement"))
        )
        + "."
    )
    lines += ["", f"{duration(metrics['seconds'])} in all. Figures: {figures}", f"Report: {report}"]
    return "\n".join(lines)


def compared_images(distribution: Mapping[str, Any], grouping: str = "") -> str:
    """``2000 generated against 2000 real images``; where arms differ in these numbers, each one's.

    Args:
        distribution: of a demo's ``metrics.json``.
        grouping: what stands between thousands.
    """
    told = {}
    for arm, own in distribution["arms"].items():
        made, real = ({**distribution["settings"], **own}[f"{which}_images"] for which in ("generated", "real"))
        told[arm] = f"{made:{grouping}} generated against {real:{grouping}} real images"
    if len(set(told.values())) == 1:
        return next(iter(told.values()))
    return ", ".join(f"{ARMS[arm].title} {each}" for arm, each in told.items())


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """First column to the left, the others to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join(
            cell.ljust(width) if not column else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]


def synthesis_summary(report: SynthesisReport) -> str:
    """A finished set."""
    lines = []
    if report.made:
        rate = f" ({report.images_per_second:.1f} images/s)"
        lines.append(f"made {report.made} of {report.rows} rows in {duration(report.seconds)}{rate}")
    else:
        lines.append("nothing to do: the set was finished already")
    notes = [f"{_counted(report.rejected)} rows without an image"] if report.rejected else []
    notes += [f"{_counted(report.redrawn)} images drawn again"] if report.redrawn else []
    notes += [f"{report.skipped} of {report.guidances} guidances dropped"] if report.skipped else []
    notes += [f"{report.prompts_shortened} prompts cut to fit the tokenizer"] if report.prompts_shortened else []
    if notes:
        lines.append("; ".join(notes))
    lines.append(
        f"the teacher takes {percent(report.teacher_agreement)} of the {report.images} images for their class "
        f"(mean probability {report.teacher_probability:.2f})"
    )
    lines.append(f"wrote {report.shards} shard{'s' * (report.shards != 1)} to {report.out}")
    return "\n".join(lines)


def _counted(reasons: Mapping[str, int]) -> str:
    """``7 (energy 4, flat 3)``."""
    return f"{sum(reasons.values())} ({', '.join(f'{reason} {count}' for reason, count in sorted(reasons.items()))})"


def distill_summary(report: DistillReport) -> str:
    """A finished training run."""
    return (
        f"student of {report.parameters / 1e6:.2f} M parameters, {report.steps} steps on {report.images} images in "
        f"{duration(report.seconds)} ({report.images_per_s:g} images/s)\n"
        f"it agrees with its teacher on {percent(report.agreement)} of its last training views\n"
        f"wrote {report.student}; measure it on real images with: prism-fast evaluate {report.student}"
    )


def info_text(found: Mapping[str, Any]) -> str:
    """Versions, devices and back-ends."""
    versions = [f"{name} {version or 'missing'}" for name, version in found["versions"].items()]
    lines = ["versions", "  " + ", ".join(versions[:2]), "  " + ", ".join(versions[2:]), "", "devices"]
    for device in found["devices"]:
        memory = device["memory_bytes"]
        size = f", {memory / 2**30:.0f} GiB" if memory else ""
        lines.append(f"  {device['name']:<14}{device['description']}{size}")
    lines += ["", "back-ends"]
    for backend in found["backends"]:
        state = "usable" if backend["usable"] else "no"
        detail = backend["reason"] or backend["version"] or ""
        lines.append(f"  {backend['name']:<14}{state:<8}{detail}")
    usable = {backend["name"] for backend in found["backends"] if backend["usable"]}
    behind = {"onnx": {"onnxruntime"}, "tensorrt": {"tensorrt", "tensorrt-rtx"}}
    teachers = ["eager", "compiled", *(name for name, packages in behind.items() if packages & usable)]
    lines += ["", f"a teacher's gradient can be computed by: {', '.join(teachers)}"]
    return "\n".join(lines)
