"""The report of ``prism-fast evaluate --shifts``: accuracy against severity, one panel a shift, and the images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prism_fast.config import canonical
from prism_fast.metrics.shifts import SEVERITIES, SHIFTS, shifted
from prism_fast.study import page
from prism_fast.study.evaluation_page import picture
from prism_fast.study.plots import Series, line_chart
from prism_fast.study.robustness import points_between
from prism_fast.study.text import percent

if TYPE_CHECKING:
    from prism_fast.study.evaluate_config import EvaluateConfig
    from prism_fast.study.robustness import Robustness

COLOURS = ("prism", "real", "eda", "dpe", "oracle", "random-direction", "plain")
"""The page's names of colours, for the classifiers in order."""

Figures = Mapping[str, Any]


def robustness_html(found: Robustness, figures: Figures, config: EvaluateConfig) -> str:
    """The whole document.

    Args:
        found: of which images are shown.
        figures: of classifiers on shifted images, as :func:`prism_fast.study.robustness.robustness_figures` gives them.
        config: shown at the end.

    Raises:
        UserError: an image cannot be read again.
    """
    every = [figures, *figures["beside"]]
    title = f"{Path(figures['classifier']).name} on shifted images"
    among = "" if figures["among_classes"] is None else f", among its {figures['among_classes']} classes"
    body = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="soft">{escape(figures["classifier"])} on {figures["images"]:,} real images '
        f"({escape(figures['reference'])}{among}), seed {config.seed}.</p>",
        page.tiles(
            [
                (percent(figures["accuracy"]), "accuracy on the images as they are"),
                (percent(figures["shifted_accuracy"]), f"mean over {len(SHIFTS)} shifts of {SEVERITIES} severities"),
            ]
        ),
        "<h2>Accuracy against severity</h2>",
        "<p>Severity 0 is the image as it is. The pictures show the first two images at severities 0 to 5.</p>",
        f'<div class="charts">{"".join(_panel(kind, found, every, config) for kind in SHIFTS)}</div>',
        "<h2>Accuracies</h2>",
        _accuracies(every),
        *_differences(figures),
        "<h2>Severities</h2>",
        page.definitions([(kind, _strengths(kind)) for kind in SHIFTS]),
        "<h2>Settings</h2>",
        page.definitions([(name, str(value)) for name, value in canonical(config).items()]),
    ]
    return page.page(title, body)


def _series(every: Sequence[Figures], kind: str) -> list[Series]:
    """One line a classifier, in percent."""
    return [
        Series(
            name=COLOURS[place % len(COLOURS)],
            title=each["classifier"],
            points=[
                (float(severity), 100 * value)
                for severity, value in enumerate([each["accuracy"], *each["shifts"][kind]["by_severity"]])
            ],
        )
        for place, each in enumerate(every)
    ]


def _panel(kind: str, found: Robustness, every: Sequence[Figures], config: EvaluateConfig) -> str:
    rows = range(min(2, len(found.reference)))
    strips = [
        [
            shifted(found.reference.image(row)[None], kind, severity, [row], config.seed)[0]
            for severity in range(SEVERITIES + 1)
        ]
        for row in rows
    ]
    shown = picture(strips[0], strips[-1], f"{kind}, severities 0 to {SEVERITIES}")
    chart = line_chart(_series(every, kind), f"severity of {kind}", "accuracy, %", (0.0, 100.0))
    return f"<figure><figcaption><b>{escape(kind)}</b></figcaption>{shown}{chart}</figure>"


def _accuracies(every: Sequence[Figures]) -> str:
    rows = [
        (
            [
                escape(each["classifier"]),
                percent(each["accuracy"]),
                percent(each["shifted_accuracy"]),
                *(percent(each["shifts"][kind]["accuracy"]) for kind in SHIFTS),
            ],
            place == 0,
        )
        for place, each in enumerate(every)
    ]
    note = '<p class="note">Of a shift: the mean over its five severities.</p>'
    return page.table(["", "unshifted", "shifted", *SHIFTS], rows) + note


def _differences(figures: Figures) -> list[str]:
    """A column for each classifier beside the first; nothing where there is none."""
    others = figures["beside"]
    if not others:
        return []
    titles = {"accuracy": "unshifted", "shifted_accuracy": "shifted"}
    rows = [
        ([titles.get(name, name), *(points_between(other["difference"][name]) for other in others)], name in titles)
        for name in others[0]["difference"]
    ]
    head = ["", *(f"less {other['classifier']}" for other in others)]
    note = (
        '<p class="note">In brackets: 95 % bootstrap intervals of the paired difference; images are resampled, each '
        "with what both classifiers say of it. They tell nothing of another training of either.</p>"
    )
    return [f"<h2>{escape(figures['classifier'])} beside others, in points</h2>", page.table(head, rows) + note]


def _strengths(kind: str) -> str:
    shift = SHIFTS[kind]
    return f"{', '.join(f'{strength:g}' for strength in shift.strengths)} ({shift.unit})"
