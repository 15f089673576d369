"""The report of a demo: what was measured, what it looks like, how to read it."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from html import escape
from typing import TYPE_CHECKING, Any

from prism_fast.study import page
from prism_fast.study.arms import ARMS, CEILING
from prism_fast.study.plots import Series, line_chart, ridges
from prism_fast.study.reading import conclusions
from prism_fast.study.samples import class_picture
from prism_fast.study.text import compared_images, duration, percent, points

if TYPE_CHECKING:
    from prism_fast.study.demo import Outcome

_COVER = ("precision", "recall", "density", "coverage")
_TITLE = "A student that never saw its teacher's data"


def report_html(outcome: Outcome) -> str:
    """The whole document."""
    metrics, config = outcome.metrics, outcome.config
    body = [
        f"<h1>{_TITLE}</h1>",
        f'<p class="soft">prism_fast demo: {config.images:,} synthetic images an arm, seed {config.seed}, measured on '
        f"the real Fashion-MNIST test set; {duration(metrics['seconds'])} of computing on "
        f"{escape(metrics['environment']['device'])}.</p>",
        page.tiles(_tiles(metrics, config.full)),
        *(f"<p>{text}</p>" for text in conclusions(metrics, config)),
        "<h2>Arms</h2>",
        _arms(outcome),
        _pair_table(metrics),
        "<h2>Unguided and guided, same seeds</h2>",
        _samples(outcome),
        "<h2>Energies</h2>",
        _energies(outcome),
        "<h2>Training</h2>",
        _training(outcome),
        "<h2>Settings</h2>",
        _settings(outcome),
    ]
    return page.page(f"prism_fast demo: {_TITLE.lower()}", body)


def _tiles(metrics: Mapping[str, Any], full: bool) -> list[tuple[str, str]]:
    students = metrics["student_accuracy"]
    items = [
        (percent(students["prism"]), "student of PRISM images, real test set"),
        (percent(students["plain"]), "student of plain images"),
        (f"{100 * (students['prism'] - students['plain']):+.1f}", "points between them"),
    ]
    if full:
        items.append((percent(metrics["real_data_student_accuracy"]), "student of as many real images"))
        items.append((percent(metrics["gap_closed"], 0), "of the gap from plain to real closed"))
    items.append((percent(metrics["teacher_accuracy"]), "teacher"))
    items.append((percent(metrics["judge_accuracy"]), "judge: independent, only measures"))
    return items


def _arms(outcome: Outcome) -> str:
    metrics, config = outcome.metrics, outcome.config
    head = ["training images", "student", "teacher agrees", "judge agrees", *_COVER]
    rows = []
    for arm in config.arms:
        covered = metrics["distribution"]["arms"][arm]
        cells = [
            f"{escape(ARMS[arm].title)}<small>{escape(ARMS[arm].about)}</small>",
            percent(metrics["student_accuracy"][arm]),
            percent(metrics["teacher_agreement"][arm]),
            percent(metrics["judge_agreement"][arm]),
            *(f"{covered[name]:.2f}" for name in _COVER),
        ]
        rows.append((cells, arm == "prism"))
    if config.full:
        ceiling = percent(metrics["real_data_student_accuracy"])
        rows.append(
            (
                ["real images<small>as many, from the teacher's own split: the ceiling</small>", ceiling, *["–"] * 6],
                False,
            )
        )
    settings, beside = metrics["distribution"]["settings"], compared_images(metrics["distribution"], ",")
    note = (
        '<p class="note">Agreement: share of the images that the classifier takes for the class asked for. Student: '
        "accuracy on the real test images, final weights. Precision and recall "
        f"(k = {settings['k_precision_recall']}), density and coverage (k = {settings['k_density_coverage']}): "
        f"features of {escape(settings['extractor'])}, {escape(beside)} ({escape(settings['reference'])}).</p>"
    )
    return page.table(head, rows) + note


def _pair_table(metrics: Mapping[str, Any]) -> str:
    rows = []
    for arm, pair in metrics["same_seeds"].items():
        cells = [f"{escape(ARMS[arm].title)}<small>{pair['images']:,} prompts and seeds</small>"]
        for who in ("teacher_agreement", "judge_agreement"):
            found = pair[who]
            gain = points(found["gain"], found["gain_standard_error"]).removesuffix(" points")
            cells.append(f"{100 * found['unguided']:.1f} → {100 * found['guided']:.1f}<small>{gain}</small>")
        ratio = pair["judge_gain_per_teacher_gain"]
        cells.append("–" if ratio is None else f"{ratio:.2f}")
        cells += [f"{pair[name]['unguided']:.2f} → {pair[name]['guided']:.2f}" for name in ("precision", "recall")]
        rows.append((cells, arm == "prism"))
    head = [
        "guidance alone",
        "teacher agrees, %",
        "judge agrees, %",
        "judge's gain per teacher's",
        "precision",
        "recall",
    ]
    return page.table(head, rows) + (
        '<p class="note">The same prompts and seeds, without → with guidance; ± one standard error over these pairs. '
        "Guidance follows the teacher, so its agreement must rise; where the judge's rises with it, the images got "
        "better, not merely agreeable to the teacher.</p>"
    )


def _samples(outcome: Outcome) -> str:
    pair = outcome.pairs["prism"]
    names = outcome.sets["prism"].class_names
    figures = []
    for index, name in enumerate(names):
        rows = pair.classes == index
        if not rows.any():
            continue
        picture = base64.b64encode(class_picture(pair, index)).decode()
        before, after = (percent(float(half.judge[rows].double().mean()), 0) for half in (pair.unguided, pair.guided))
        figures.append(
            f"<figure><figcaption><b>{escape(name)}</b> · judge agrees {before} → {after}</figcaption>"
            f'<img src="data:image/png;base64,{picture}" loading="lazy" '
            f'alt="{escape(name, quote=True)}: unguided above, guided below"></figure>'
        )
    intro = (
        "<p>Upper rows without guidance, lower rows with it: the same engineered prompts, the same noise. "
        'A green bar <i class="key"></i> under an image: the judge takes it for its class. The first images of each '
        "class, not a choice.</p>"
    )
    return intro + f'<div class="classes">{"".join(figures)}</div>'


def _energies(outcome: Outcome) -> str:
    arms = [(arm, ARMS[arm].title, outcome.sets[arm].energies) for arm in outcome.config.arms]
    pair = outcome.pairs["prism"]
    halves = [("unguided", "unguided", pair.unguided.energies), ("guided", "guided", pair.guided.energies)]
    label = "energy of the stored image (lower: the teacher recognises it)"
    return (
        "<p>The teacher's energy of every image, E = −logsumexp(f) + cross-entropy with its class. A bar marks the "
        "median.</p>"
        f'<div class="charts"><figure><h3>All arms</h3>{ridges(arms, label)}</figure>'
        f"<figure><h3>Same prompts and seeds</h3>{ridges(halves, label)}</figure></div>"
    )


def _training(outcome: Outcome) -> str:
    titles = {**{name: arm.title for name, arm in ARMS.items()}, CEILING: "real images"}
    charts = []
    for column, label, span in (
        ("loss", "T² KL(teacher ‖ student)", None),
        ("agreement", "agreement with the teacher", (0.0, 1.0)),
    ):
        series = [
            Series(
                name=name, title=titles[name], points=list(zip(run.history["step"], run.history[column], strict=True))
            )
            for name, run in outcome.students.items()
        ]
        charts.append(f"<figure>{line_chart(series, 'step', label, span)}</figure>")
    return (
        "<p>On training views of each arm's own images. The last weights are the ones measured; nothing was chosen on "
        f'real images.</p><div class="charts">{"".join(charts)}</div>'
    )


def _settings(outcome: Outcome) -> str:
    metrics = outcome.metrics
    parts = []
    for title, items in (
        ("Demo", {**metrics["config"], "commit": metrics["commit"] or "–"}),
        ("Environment", metrics["environment"]),
        ("Time", {name: duration(seconds) for name, seconds in metrics["stages_seconds"].items()}),
    ):
        values = page.definitions([(name, str(value)) for name, value in items.items()])
        parts.append(f"<details><summary>{title}</summary>{values}</details>")
    return "".join(parts) + (
        '<p class="note">Each folder beside this file keeps its own config.yaml; metrics.json has every figure.</p>'
    )
