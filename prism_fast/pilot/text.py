"""What ``pilot`` prints."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from textwrap import wrap
from typing import Any

from prism_fast.pilot.concern import percent

CAVEAT = (
    "The scale is chosen by the teacher alone. Its energy falls under an adversarial step too; the rule asks only "
    "whether the gain in agreement survives small changes of the image. --judge NAME lets a second classifier object."
)
_WORST = 12
"""Classes and warnings that are printed; the page has all."""


def pilot_text(found: Mapping[str, Any], out: str) -> str:
    """Agreement, warnings, proposals, cost, and where the rest is."""
    once = ", once the warnings are dealt with" if found["concerns"] else ""
    return "\n".join([
        *_agreement(found), "", *_concerns(found), "", *_scales(found), "", *_cost(found), "",
        f"the synthesis{once}:", "", f"    {found['command']}", "", _where(found, Path(out)),
    ])  # fmt: skip


def _agreement(found: Mapping[str, Any]) -> list[str]:
    total = found["agreement"]
    head = (
        f"the teacher agrees with {percent(total['share'])} ± {percent(total['error'])} of {total['images']} unguided "
        f"images of {len(found['classes'])} classes"
    )
    rows = sorted(found["classes"], key=lambda one: one["agree"] / max(1, one["images"]))[:_WORST]
    width = max(len(row["name"]) for row in rows)
    more = f" (the {_WORST} lowest)" if len(found["classes"]) > _WORST else ""
    lines = [f"{head}{more}", ""]
    for row in rows:
        taken = ", ".join(f"{other['name']} {other['images']}" for other in row["taken_for"])
        gate = "" if row["tau"] is None else f"  tau {row['tau']:8.3f}  delta {row['delta']:7.3f}"
        count = f"{row['agree']:3d} of {row['images']:<3d}"
        lines.append(f"  {row['name']:<{width}}  {count}{gate}  {taken}".rstrip())
    return lines


def _concerns(found: Mapping[str, Any]) -> list[str]:
    if not found["concerns"]:
        return ["no warnings"]
    lines = [f"{len(found['concerns'])} warning{'s' if len(found['concerns']) > 1 else ''}:"]
    for one in found["concerns"][:_WORST]:
        lines += ["", f"  WARNING: {one['title']}"]
        lines += _folded(one["evidence"]) + _folded(f"cure: {one['cure']}")
    rest = len(found["concerns"]) - _WORST
    return [*lines, "", f"  {rest} more are in the page and in pilot.json"] if rest > 0 else lines


def _folded(text: str) -> list[str]:
    return wrap(text, 114, initial_indent="    ", subsequent_indent="    ")


def _scales(found: Mapping[str, Any]) -> list[str]:
    scales = found["scales"]
    if scales is None:
        return ["no guided images were drawn"]
    lines = ["  scale  agreement  under changes   kept   energy" + ("   judge" if found["judge"] else "")]
    for row in scales["table"]:
        kept = "     –" if row.get("kept") is None else f"{row['kept']:6.2f}"
        judge = "" if row["judge_agreement"] is None else f"  {percent(row['judge_agreement']):>6}"
        mark = "" if row.get("passes", True) else "  not kept"
        lines.append(
            f"  {row['scale']:5g}  {percent(row['agreement']):>9}  {percent(row['robust_agreement']):>13}  {kept}  "
            f"{row['energy']:7.3f}{judge}{mark}"
        )
    chosen = "no scale is proposed" if scales["scale"] is None else f"proposed scale: {scales['scale']:g}"
    lines += ["", f"{chosen}: {scales['why']}"]
    return lines if found["judge"] else [*lines, CAVEAT]


def _cost(found: Mapping[str, Any]) -> list[str]:
    cost, memory = found["cost"], found["memory"]
    guided = "" if cost["guided_images_per_s"] is None else f", {cost['guided_images_per_s']:.2f} guided"
    device = f", {memory['device_bytes'] / 2**30:.2f} GiB of the device" if "device_bytes" in memory else ""
    price = "" if cost["cost"] is None else f", {cost['cost']:.2f} at {cost['price_per_hour']:g} an hour"
    return [
        f"images/s: {cost['unguided_images_per_s']:.2f} unguided{guided}; "
        f"peak memory: {memory['process_bytes'] / 2**30:.2f} GiB{device}",
        f"{cost['images']} images and a pilot of {cost['pilot_images']}: {duration(cost['hours'])}{price}",
    ]


def duration(hours: float) -> str:
    """``12.3 hours``, or minutes where that is less than one."""
    return f"{hours:.3g} hours" if hours >= 1 else f"{60 * hours:.2g} minutes"


def _where(found: Mapping[str, Any], out: Path) -> str:
    kept = "holds this pilot already" if found.get("kept") else "figures"
    return f"{kept}: {out / 'pilot.json'}; page: {out / 'pilot.html'}; pictures: agreement.png, samples.png"
