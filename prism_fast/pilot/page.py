"""A pilot as one HTML file that needs nothing from outside."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from prism_fast.pilot.concern import percent
from prism_fast.pilot.text import CAVEAT, duration
from prism_fast.study.page import page, table, tiles

_STYLE = (
    "pre { background: var(--panel); padding: .8rem 1rem; overflow-x: auto; white-space: pre-wrap; } "
    ".picture { background: white; border: 1px solid var(--line); border-radius: 8px; padding: 1rem; overflow-x: auto }"
    " .picture img { max-width: 100%; height: auto; display: block; margin: 0 auto; } "
    ".concern { border-left: 4px solid #d07f24; background: var(--panel); padding: .6rem 1rem; margin: .9rem 0; } "
    ".concern p { margin: .3rem 0; max-width: none; }"
)


def pilot_page(found: Mapping[str, Any], matrix: bytes, samples: bytes) -> str:
    """The whole document; ``found`` is what the JSON file holds, the pictures are PNG."""
    body = [
        f"<style>{_STYLE}</style>",
        "<h1>Pilot</h1>",
        f'<p class="soft">{escape(_what(found))}</p>',
        tiles(_tiles(found)),
        "<h2>Warnings</h2>",
        *(_concern(one) for one in found["concerns"]),
        *([] if found["concerns"] else ["<p>None.</p>"]),
        "<h2>What the teacher says</h2>",
        "<p>A row for each class asked for, a column for each class that the teacher says; per cent of the row's "
        "images. Of many classes, those with the lowest agreement.</p>",
        _picture(matrix, "agreement matrix"),
        "<h2>Samples</h2>",
        "<p>Unguided. Green: the teacher takes the image for what was asked for; red: for something else.</p>",
        _picture(samples, "samples of each class"),
        "<h2>Proposal</h2>",
        *_proposal(found),
        f"<pre>{escape(found['command'])}</pre>",
        "<h2>Classes</h2>",
        "<p>τ and δ are the gate's thresholds that a synthesis with these settings freezes.</p>",
        _classes(found),
        *_preprocessing(found),
    ]
    return page("prism_fast pilot", body)


def _what(found: Mapping[str, Any]) -> str:
    config = found["config"]
    sampler, device = config["sampler"], found["environment"].get("device_name", found["environment"]["device"])
    return (
        f"Pipeline {config['pipeline']}, teacher {config['teacher']}, vocabulary {config['vocabulary']}, "
        f"{config['pilot_images']} images of each of {len(found['classes'])} classes, {sampler['scheduler']}, "
        f"{sampler['steps']} steps, {sampler['dtype']}, on {device}."
    )


def _tiles(found: Mapping[str, Any]) -> list[tuple[str, str]]:
    cost, memory, scales = found["cost"], found["memory"], found["scales"]
    guided = cost["guided_images_per_s"]
    speed = f"{cost['unguided_images_per_s']:.1f}" + ("" if guided is None else f" / {guided:.1f}")
    what = f"for {cost['images']} images and a pilot of {cost['pilot_images']}"
    price = [] if cost["cost"] is None else [(f"{cost['cost']:.2f}", f"cost, at {cost['price_per_hour']:g} an hour")]
    scale = None if scales is None else scales["scale"]
    return [
        (percent(found["agreement"]["share"]), f"the teacher agrees, ± {percent(found['agreement']['error'])}"),
        (str(len(found["concerns"])), "warning" if len(found["concerns"]) == 1 else "warnings"),
        ("–" if scale is None else f"{scale:g}", "proposed guidance scale"),
        (speed, "images/s, unguided" + ("" if guided is None else " / guided")),
        (duration(cost["hours"]), what),
        *price,
        (f"{memory.get('device_bytes', memory['process_bytes']) / 2**30:.1f} GiB", "peak memory"),
    ]


def _concern(one: Mapping[str, Any]) -> str:
    return (
        f'<div class="concern"><p><b>{escape(one["title"])}</b></p><p>{escape(one["evidence"])}</p>'
        f"<p><i>Cure:</i> {escape(one['cure'])}</p></div>"
    )


def _picture(content: bytes, what: str) -> str:
    data = b64encode(content).decode()
    return f'<div class="picture"><img alt="{escape(what)}" src="data:image/png;base64,{data}"></div>'


def _proposal(found: Mapping[str, Any]) -> list[str]:
    scales = found["scales"]
    if scales is None:
        return ["<p>No guided images were drawn, so no scale is proposed.</p>"]
    chosen = "No scale is proposed" if scales["scale"] is None else f"Scale {scales['scale']:g}"
    count = min(found["config"]["guided_images"], found["agreement"]["images"])
    text = f"<p><b>{escape(chosen)}</b>: {escape(scales['why'])}.</p>"
    caveat = "" if found["judge"] else f'<p class="soft">{escape(CAVEAT)}</p>'
    return [text, _scale_table(scales, found["judge"] is not None), caveat, f'<p class="note">{count} images, the same '
            "prompts and seeds at every scale; ± is one standard error of the paired differences.</p>"]  # fmt: skip


def _scale_table(scales: Mapping[str, Any], judged: bool) -> str:
    def cells(row: Mapping[str, Any]) -> list[str]:
        tried = row.get("kept") is not None
        return [
            f"{row['scale']:g}",
            percent(row["agreement"]),
            f"{percent(row['gain'], sign=True)} ± {percent(row['gain_error'])}" if tried else "–",
            f"{percent(row['robust_gain'], sign=True)} ± {percent(row['robust_gain_error'])}" if tried else "–",
            f"{row['kept']:.2f}" if tried else "–",
            f"{row['energy']:.3f}",
            *([percent(row["judge_agreement"])] if judged else []),
            ("yes" if row["passes"] else "no") if tried else "–",
        ]

    head = [
        "scale",
        "agreement",
        "gain",
        "gain under changes",
        "kept",
        "energy",
        *(["judge"] if judged else []),
        "passes",
    ]
    return table(head, [(cells(row), row["scale"] == scales["scale"]) for row in scales["table"]])


def _classes(found: Mapping[str, Any]) -> str:
    head = ("class", "agrees", "taken for", "energy", "τ", "δ")
    return table(head, [(_class(row), False) for row in found["classes"]])


def _class(row: Mapping[str, Any]) -> Sequence[str]:
    taken = ", ".join(f"{other['name']} {other['images']}" for other in row["taken_for"]) or "–"
    return [
        f"{escape(row['name'])} ({row['index']})",
        f"{row['agree']} of {row['images']}",
        escape(taken),
        *("–" if row[key] is None else f"{row[key]:.3f}" for key in ("energy", "tau", "delta")),
    ]


def _preprocessing(found: Mapping[str, Any]) -> list[str]:
    if not found["preprocessing"]:
        return []
    rows = [
        ([escape(one["name"]), percent(one['agreement']),
          *("–" if one[key] is None else f"{one[key]:.2f}" for key in ("free_energy", "cross_entropy"))], not place)
        for place, one in enumerate(found["preprocessing"])
    ]  # fmt: skip
    words = "<p>The same images, prepared for the teacher in other ways. A way is warned of where agreement is surely "
    return [
        "<h2>Other preprocessings</h2>",
        words
        + "higher than as configured and free energy surely lower; where inputs differ in size, the cross-entropy.</p>",
        table(("prepared", "agreement", "free energy", "cross-entropy"), rows),
    ]
