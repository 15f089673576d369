"""The report of ``prism-fast evaluate``: one page of every figure, each class, and the images behind them."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prism_fast.config import canonical
from prism_fast.metrics.comparison import FRECHET, KERNEL, OVERLAPS
from prism_fast.metrics.prdc import PRDC
from prism_fast.study import page
from prism_fast.study.compared import CEILING, GENERATED
from prism_fast.study.samples import paired_rows
from prism_fast.study.text import percent

if TYPE_CHECKING:
    from prism_fast.study.compared import Comparison
    from prism_fast.study.evaluate_config import EvaluateConfig

COLUMNS = 8
CLASSES = 12
"""How many classes are shown with their images; all are in the table."""

_AGREEMENTS = ("teacher_agreement", "judge_agreement")
TITLES = {**{metric: metric for metric in PRDC}, FRECHET: "Fréchet distance", KERNEL: "kernel distance × 1000"}
"""Of columns, by figure."""
Row = Mapping[str, Any]


def page_html(found: Comparison, config: EvaluateConfig) -> str:
    """The whole document.

    Raises:
        UserError: an image cannot be read again.
    """
    figures = found.figures
    title = f"{Path(figures['target']).resolve().name} beside real images"
    rows: list[Row] = figures["figures"]
    whole = [row for row in rows if row["class_name"] is None]
    body = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="soft">{figures["images"]:,} images of {escape(figures["target"])}, {figures["compared"]:,} of them '
        f"compared with as many of {escape(figures['reference'])}, seed {config.seed}.</p>",
        page.tiles(_tiles(whole, figures)),
        "<h2>Overlap with real images</h2>",
        _overlap(whole, figures, labelled=found.matched.classes is not None),
        *_classes(found, rows),
        "<h2>Copies</h2>",
        _copies(found),
        *_samples(found),
        "<h2>Settings</h2>",
        page.definitions([(name, str(value)) for name, value in canonical(config).items()]),
    ]
    return page.page(title, body)


def _pick(rows: Sequence[Row], of: str, metric: str, extractor: str | None = None) -> Row | None:
    """The first figure of its kind."""
    found = (row for row in rows if (row["of"], row["metric"]) == (of, metric))
    return next((row for row in found if extractor in (None, row["extractor"])), None)


def _tiles(rows: Sequence[Row], figures: Mapping[str, Any]) -> list[tuple[str, str]]:
    items = []
    for metric in ("precision", "recall"):
        made, real = (_pick(rows, of, metric, figures["headline"]) for of in (GENERATED, CEILING))
        if made is not None and real is not None:
            items.append((f"{made['value']:.2f}", f"{metric} in judge features; real images: {real['value']:.2f}"))
    for metric, who in zip(_AGREEMENTS, ("the teacher agrees", "the judge agrees"), strict=True):
        made = _pick(rows, GENERATED, metric)
        if made is not None:
            items.append((percent(made["value"]), f"{who} with the class asked for"))
    copies = figures["copies"]
    items.append((str(copies["same_pixels_as_real"]), f"copies among {copies['real_images']:,} real images"))
    return items


def _overlap(whole: Sequence[Row], figures: Mapping[str, Any], labelled: bool) -> str:
    extractors = dict.fromkeys(row["extractor"] for row in whole if row["metric"] == "precision")
    lines = []
    for extractor in extractors:
        for of, what in ((GENERATED, "generated"), (CEILING, "real, in their place")):
            found = [_pick(whole, of, metric, extractor) for metric in OVERLAPS]
            cells = [f"{what}<small>features of {escape(extractor)}</small>", *map(_cell, found)]
            lines.append((cells, of == GENERATED and extractor == figures["headline"]))
    head = ["", *(_head(_pick(whole, GENERATED, metric), metric) for metric in OVERLAPS)]
    ties = sum(row["ties"] or 0 for row in whole)
    note = (
        f'<p class="note">N = {figures["compared"]:,} images on either side{", as many of each class" * labelled}; '
        f"against {escape(figures['reference'])}. The second row of each pair compares other real images with the same "
        "ones: what a perfect generator would get. Small print: 95 % bootstrap intervals. Distances grow as N falls, "
        f"and are comparable at equal N alone. Rounding may have decided {ties} verdicts.</p>"
    )
    agreements = []
    for of, what in ((GENERATED, "generated"), (CEILING, "real")):
        found = [_pick(whole, of, metric) for metric in _AGREEMENTS]
        if found[0] is not None and found[1] is not None:
            name = f"{what}<small>{found[0]['count']:,} images</small>"
            agreements.append(([name, *(_cell(row, share=True) for row in found)], of == GENERATED))
    if not agreements:
        return page.table(head, lines) + note
    titles = [f"{who} agrees" for who in ("teacher", "judge")]
    return page.table(head, lines) + note + page.table(["", *titles], agreements)


def _head(row: Row | None, metric: str) -> str:
    k = "" if row is None or row["k"] is None else f" (k = {row['k']})"
    return f"{TITLES.get(metric, metric)}{k}"


def _cell(row: Row | None, share: bool = False, digits: int = 3) -> str:
    """A figure above its interval."""
    if row is None:
        return "–"
    ends = _ends(row, share, digits)
    return _said(row, row["value"], share, digits) + (f"<small>{ends}</small>" if ends else "")


def _ends(row: Row, share: bool, digits: int) -> str:
    """Of a figure's interval; nothing where it has none."""
    ends = row["interval"]
    return "" if ends is None else " – ".join(_said(row, ends[end], share, digits) for end in ("low", "high"))


def _said(row: Row, value: float, share: bool, digits: int) -> str:
    if share:
        return percent(value)
    return {FRECHET: f"{value:.2f}", KERNEL: f"{1000 * value:.2f}"}.get(row["metric"], f"{value:.{digits}f}")


def _classes(found: Comparison, rows: Sequence[Row]) -> list[str]:
    by_class: dict[str, list[Row]] = {name: [] for name in found.class_names}
    for row in rows:
        if row["class_name"] is not None:
            by_class[row["class_name"]].append(row)
    lines = []
    for name, own in by_class.items():
        if not own:
            continue
        cells = [escape(name), *(_cell(_pick(own, GENERATED, metric), share=True) for metric in _AGREEMENTS)]
        count = None
        for metric in OVERLAPS:
            made, real = (_pick(own, of, metric) for of in (GENERATED, CEILING))
            if made is None or real is None:
                cells.append("–")
                continue
            count, ends = made["count"], _ends(real, share=False, digits=2)
            beside = f"real {_said(real, real['value'], share=False, digits=2)}{f' ({ends})' * bool(ends)}"
            cells.append(f"{_cell(made, digits=2)}<small>{beside}</small>")
        cells[0] += "" if count is None else f"<small>N = {count:,}</small>"
        lines.append((cells, False))
    if not lines:
        return []
    note = (
        f'<p class="note">Within each class, in features of {escape(found.figures["headline"])}. Small print: 95 % '
        "bootstrap intervals, and what other real images of the class get. The lowest of many classes lies lower, and "
        "the highest higher, than it would in another draw. A dash: too few images, for the Fréchet distance no more "
        "than features.</p>"
    )
    return ["<h2>Classes</h2>", page.table(["", "teacher agrees", "judge agrees", *TITLES.values()], lines) + note]


def _copies(found: Comparison) -> str:
    copies = found.figures["copies"]
    pairs = found.nearest[:COLUMNS]
    shown = picture(
        [found.generated.image(row) for row, _, _ in pairs],
        [found.reference.image(row) for _, row, _ in pairs],
        "generated images above the real ones nearest to them",
    )
    return (
        f"<p>{copies['same_pixels_as_another']:,} of {copies['generated_images']:,} images have the pixels of another, "
        f"{copies['same_pixels_as_real']:,} those of one of {copies['real_images']:,} real images. "
        f"{percent(copies['as_close_to_real'])} lie as near to a real image as "
        f"{percent(copies['close_share_of_real'], 0)} of the real ones do to another; "
        f"{percent(copies['as_close_to_generated'])} lie as near to another generated one. "
        f"Authenticity {percent(copies['authenticity'])}: farther from the nearest real image than that one is from "
        f"the real one next to it (features of {escape(copies['extractor'])}).</p>"
        f"<figure><figcaption>The generated images nearest to a real one, above it</figcaption>{shown}</figure>"
        '<p class="note">What a generator has learned by heart shows against the images it was trained on; others give '
        "the shares to expect.</p>"
    )


def _samples(found: Comparison) -> list[str]:
    classes = found.matched.classes
    if classes is None:
        shown = [("", range(min(COLUMNS, len(found.matched))))]
    else:
        present = classes.unique().tolist()[:CLASSES]
        places = {index: (classes == index).nonzero()[:COLUMNS, 0].tolist() for index in present}
        shown = [(found.class_names[index], rows) for index, rows in places.items()]
    figures = []
    for name, rows in shown:
        made = [found.generated.image(int(found.matched.generated[row])) for row in rows]
        real = [found.reference.image(int(found.matched.reference[row])) for row in rows]
        shown_pair = picture(made, real, f"{name}: generated above, real below")
        figures.append(f"<figure><figcaption><b>{escape(name)}</b></figcaption>{shown_pair}</figure>")
    return [
        "<h2>Images</h2>",
        "<p>Generated images above, real ones below; the first that were compared, not a choice.</p>",
        f'<div class="classes">{"".join(figures)}</div>',
    ]


def picture(above: Sequence[Any], below: Sequence[Any], what: str) -> str:
    """Two rows of images uint8 [3,H,W] as HTML; ``what`` says what they show."""
    data = base64.b64encode(paired_rows(above, below)).decode()
    return f'<img src="data:image/png;base64,{data}" loading="lazy" alt="{escape(what, quote=True)}">'
