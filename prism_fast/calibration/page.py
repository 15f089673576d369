"""A calibration as one HTML file: cosines against the timestep, and time against what is kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from prism_fast.calibration.options import KNOBS
from prism_fast.study.page import definitions, page, table
from prism_fast.study.plots import Mark, Series, line_chart, scatter_chart

_COLOURS = ("#2b66d0", "#d07f24", "#12907f", "#8a5bc9", "#c14f6c", "#8a7a2c", "#5b8fb9", "#9a5b3c")
"""Told apart on light and on dark paper."""
_FLOOR = -0.2
_PLACES = ("levels", *KNOBS, "together")


def calibration_page(found: Mapping[str, Any]) -> str:
    """The whole document; ``found`` is what the JSON file holds."""
    chosen = found["proposal"]
    every = [found["exact"], *found["options"], *found["combinations"]]
    body = [
        f"<style>{_colours()}</style>",
        "<h1>Calibration</h1>",
        f'<p class="soft">{escape(_what(found))}</p>',
        "<h2>Proposal</h2>",
        f"<p><b>{escape(chosen['name'])}</b>: {100 * (chosen['energy_kept'] or 0):.0f} % of the energy gain, "
        f"{chosen['speed_up']:.1f} times the speed of level reference.</p>",
        f"<pre>{escape(chosen['yaml'])}</pre>",
        "<h2>Time and energy gain kept</h2>",
        "<p>To the left is faster, higher is closer to level reference. The dashed line is the fidelity asked for. "
        f"What keeps less than {100 * _FLOOR:.0f} % stands at the lower edge; a point says its name under the pointer."
        "</p>",
        f'<div class="wide">{_scatter(found, every)}</div>',
        "<h2>Direction of the gradient, step by step</h2>",
        "<p>Cosine of the option's gradient and level reference's, from the same sample; median over the images. "
        "Timestep 1000 is pure noise. Steps that an option leaves unguided have no cosine.</p>",
        f'<div class="charts">{"".join(_cosines(found, knob) for knob in KNOBS)}</div>',
        "<h2>Figures</h2>",
        _table(found, every),
        *([definitions([(f"left out: {k}", v) for k, v in found["left_out"].items()])] if found["left_out"] else []),
    ]
    return page("prism_fast calibration", body)


def _colours() -> str:
    shown = "".join(f".arm-c{place} {{ --c: {colour}; }} " for place, colour in enumerate(_COLOURS))
    return shown + (
        "svg .dot { fill: var(--c); fill-opacity: .75; stroke: var(--paper); } "
        "svg .dot.main { stroke: var(--ink); stroke-width: 2; fill-opacity: 1; } "
        "svg .bound { stroke: var(--soft); stroke-dasharray: 4 4; } "
        ".wide { max-width: 44rem; } .charts { grid-template-columns: repeat(auto-fit, minmax(22rem, 1fr)); } "
        "pre { background: var(--panel); padding: .8rem 1rem; overflow-x: auto; }"
    )


def _what(found: Mapping[str, Any]) -> str:
    config = found["config"]
    sampler = config["sampler"]
    device = found["environment"].get("device_name", found["environment"]["device"])
    return (
        f"Pipeline {config['pipeline']}, teacher {config['teacher']}, {found['images']} images, "
        f"{sampler['scheduler']}, {sampler['steps']} steps, {sampler['dtype']}, on {device}."
    )


def _group(one: Mapping[str, Any]) -> str:
    return "levels" if not one["knobs"] else one["knobs"][0] if len(one["knobs"]) == 1 else "together"


def _colour(group: str) -> str:
    return f"c{_PLACES.index(group)}"


def _cosines(found: Mapping[str, Any], knob: str) -> str:
    own = [one for one in found["options"] if _group(one) == knob]
    series = [
        Series(
            name=f"c{place % len(_COLOURS)}",
            title=one["name"],
            points=[(t, c) for t, c in zip(found["timesteps"], one["cosines"], strict=True) if c is not None],
        )
        for place, one in enumerate(own)
    ]
    if not any(line.points for line in series):
        return ""
    lowest = min(0.8, *(y for line in series for _, y in line.points))
    chart = line_chart(series, "timestep", "cosine", (lowest - 0.02, 1.02))
    return f"<figure><h3>{escape(knob)}</h3>{chart}</figure>"


def _scatter(found: Mapping[str, Any], every: Sequence[Mapping[str, Any]]) -> str:
    marks = [
        Mark(
            name=_colour(_group(one)),
            title=one["name"],
            x=1000 * one["seconds_per_image"],
            y=max(one["energy_kept"], _FLOOR),
            main=one["name"] == found["proposal"]["name"],
        )
        for one in every
        if one["energy_kept"] is not None
    ]
    for name, kept in (("unguided", 0.0), ("reference", 1.0)):
        marks.append(Mark(name=_colour("levels"), title=name, x=1000 * found[name]["seconds_per_image"], y=kept))
    groups = [group for group in _PLACES if any(mark.name == _colour(group) for mark in marks)]
    shown = [Series(name=_colour(group), title=group, points=()) for group in groups]
    labelled = {"unguided", "reference", "exact", found["proposal"]["name"]}
    return scatter_chart(marks, "ms an image", "energy gain kept", found["fidelity"], labelled, shown)


def _table(found: Mapping[str, Any], every: Sequence[Mapping[str, Any]]) -> str:
    slow = found["reference"]["seconds_per_image"]

    def cells(one: Mapping[str, Any]) -> list[str]:
        def text(value: float | None, form: str) -> str:
            return "–" if value is None else format(value, form)

        return [
            escape(one["name"]),
            text(one["cosine"], ".3f"),
            text(one["energy"], ".3f"),
            text(one["energy_kept"], ".1%"),
            text(one["energy_kept_error"], ".1%"),
            f"{1000 * one['seconds_per_image']:.1f}",
            f"{slow / one['seconds_per_image']:.1f}x",
            "yes" if one["passes"] else "no",
        ]

    levels = [
        ([name, "–", f"{found[name]['energy']:.3f}", share, "–", f"{1000 * found[name]['seconds_per_image']:.1f}",
          f"{slow / found[name]['seconds_per_image']:.1f}x", "–"], False)
        for name, share in (("unguided", "0.0%"), ("reference", "100.0%"))
    ]  # fmt: skip
    head = ("option", "cosine", "energy", "gain kept", "± (1 s.e.)", "ms an image", "speed", "passes")
    return table(head, [*levels, *((cells(one), one["name"] == found["proposal"]["name"]) for one in every)])
