"""A set of images beside real ones: the figures, the ceiling, each class, and what may have been copied."""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from prism_fast.config import canonical, comma_separated
from prism_fast.errors import UserError
from prism_fast.metrics.comparison import Figure, Settings, agreement_figure, distance_figures, overlap_figures
from prism_fast.metrics.features import Observed, observe
from prism_fast.metrics.memorisation import CLOSE, memorisation, repeated
from prism_fast.metrics.prdc import DENSITY_NEIGHBOURS
from prism_fast.study.matched import Matched, match
from prism_fast.study.sets import drawn_with
from prism_fast.study.sources import Source, in_batches
from prism_fast.synthesis.place import local_folder
from prism_fast.teachers.ensemble import fingerprints
from prism_fast.teachers.extractors import Extractor, load_extractor, load_observer

if TYPE_CHECKING:
    from prism_fast.progress import ProgressFactory
    from prism_fast.study.evaluate_config import EvaluateConfig
    from prism_fast.teachers.base import Teacher

_log = logging.getLogger(__name__)

GENERATED, REFERENCE, CEILING = "generated", "reference", "real"
NEAREST = 12
UNRELATED = "imagenet"
"""Taken beside the judge where its package is installed: EfficientNet-Lite0, trained on other images."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Networks:
    """What looks at the images.

    Attributes:
        classifiers: teacher and judge, by these words.
        extractors: the judge's features first, then unrelated ones, by their names.
        judge: name of the judge among the extractors.
    """

    classifiers: dict[str, Teacher]
    extractors: dict[str, Extractor]
    judge: str


def load_networks(config: EvaluateConfig, device: torch.device) -> Networks:
    """Teacher, judge and extractors.

    Raises:
        UserError: one cannot be loaded, or features would be those of the teacher, or of the one that a set of shards
            was drawn with, or of a member of either.
    """
    teacher, judge = load_observer(config.teacher, device), load_observer(config.judge, device)
    guides = dict.fromkeys(drawn_with(local_folder(config.target), teacher), "the one that the images were drawn with")
    guides |= dict.fromkeys(fingerprints(teacher), "the teacher")

    def guide(network: Extractor) -> str | None:
        """What of the guides' is in a network."""
        return next((guides[each] for each in sorted(fingerprints(network)) if each in guides), None)

    if (found := guide(judge)) is not None:
        raise UserError(
            f"the judge, {config.judge}, is {found}, or has a network in common with it: guidance moves its features, "
            "so give another --judge"
        )
    extractors: dict[str, Extractor] = {config.judge: judge}
    for name in extractor_names(config.extractors):
        try:
            extractor = load_extractor(name, device)
        except UserError as error:
            if config.extractors != "auto":
                raise
            _log.info("no second extractor beside the judge: %s", error)
            continue
        if (found := guide(extractor)) is not None:
            if config.extractors != "auto":
                raise UserError(
                    f"extractor {name} is {found}, or has a network in common with it: guidance moves its features, so "
                    "leave it out of --extractors"
                )
            _log.info("no second extractor beside the judge: %s is %s; give --extractors", name, found)
            continue
        extractors[name] = extractor
    return Networks(classifiers={"teacher": teacher, "judge": judge}, extractors=extractors, judge=config.judge)


def extractor_names(text: str) -> list[str]:
    """The names in a setting: ``auto``, ``none``, or names with commas between them."""
    if text == "none":
        return []
    return [UNRELATED] if text == "auto" else comma_separated(text)


@dataclass(frozen=True, kw_only=True, eq=False)
class Comparison:
    """What was found, and what a report shows of it.

    Attributes:
        figures: everything, as JSON values.
        generated, reference: the two sources.
        matched: which of their images were compared.
        class_names: K names.
        nearest: the generated images that lie nearest to a real one: rows of the two sources, and the distance.
    """

    figures: dict[str, Any]
    generated: Source
    reference: Source
    matched: Matched
    class_names: tuple[str, ...]
    nearest: list[tuple[int, int, float]]


def compare(
    config: EvaluateConfig,
    generated: Source,
    reference: Source,
    networks: Networks,
    device: torch.device,
    progress: ProgressFactory,
) -> Comparison:
    """Every figure of a set of images against a real one.

    Raises:
        UserError: too few images, classes that the networks do not know, or a damaged set.
    """
    for source in (generated, reference):
        _check_classes(source, networks)
    sides = [len(each) if each.classes is None else each.classes for each in (generated, reference)]
    matched = match(sides[0], sides[1], config.images, config.seed, minimum=DENSITY_NEIGHBOURS + 1)
    # the images that are compared come first; a limit is on everything that is looked at
    made_rows = (
        matched.generated if config.images is not None else _first(matched.generated, len(generated), config.seed)
    )
    real_rows = torch.cat([matched.reference, matched.ceiling])
    looked = Looked(
        matched=matched,
        made_rows=made_rows,
        real_rows=_first(real_rows, len(reference), config.seed)[: max(len(real_rows), config.searched)],
        made=observe(
            in_batches(generated, made_rows, "generated images", progress), networks.extractors, networks.classifiers
        ),
        real=observe(
            in_batches(reference, real_rows, "real images", progress), networks.extractors, networks.classifiers
        ),
    )
    settings = Settings(
        extractor=config.judge,
        reference=reference.name,
        resamples=config.resamples,
        set_resamples=min(config.resamples, config.set_resamples),
        seed=config.seed,
        device=device,
        dtype={"float64": torch.float64, "float32": torch.float32}[config.distances],
    )
    names = _class_names(networks)
    figures = [figure for name in networks.extractors for figure in _overall(looked, replace(settings, extractor=name))]
    figures += _agreements(config, looked, (generated, reference), settings, names)
    figures += _by_class(looked, settings, names)
    copies, nearest = _copies(looked, reference, networks, settings, progress)
    return Comparison(
        figures={
            "target": generated.name,
            "fingerprint": generated.fingerprint,
            "images": len(generated),
            "reference": reference.name,
            "real_images": len(reference),
            "compared": len(matched),
            "headline": config.judge,
            "networks": {
                name: network.fingerprint
                for name, network in {**networks.extractors, config.teacher: networks.classifiers["teacher"]}.items()
            },
            "figures": [{"name": figure.name, **canonical(figure)} for figure in figures],
            "copies": copies,
        },
        generated=generated,
        reference=reference,
        matched=matched,
        class_names=names,
        nearest=nearest,
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class Looked:
    """All that was seen of the images.

    Attributes:
        matched: which are compared.
        made_rows: of the generated source, those of ``made``; the compared ones first.
        real_rows: of the reference; those of ``real`` first, the rest is searched for copies.
        made, real: what was seen.
    """

    matched: Matched
    made_rows: Tensor
    real_rows: Tensor
    made: Observed
    real: Observed

    def features(self, extractor: str) -> dict[str, Tensor]:
        """N features each of the compared sets."""
        count = len(self.matched)
        real = self.real.features[extractor]
        return {
            GENERATED: self.made.features[extractor][:count],
            REFERENCE: real[:count],
            CEILING: real[count : 2 * count],
        }


def _first(rows: Tensor, count: int, seed: int) -> Tensor:
    """All row numbers below ``count``, those of ``rows`` first and the others in random order."""
    rest = torch.ones(count, dtype=torch.bool)
    rest[rows] = False
    others = rest.nonzero()[:, 0]
    return torch.cat([rows, others[torch.randperm(len(others), generator=torch.Generator().manual_seed(seed))]])


def _overall(looked: Looked, settings: Settings) -> list[Figure]:
    """Of the generated images, and of the real ones in their place."""
    parts = looked.features(settings.extractor)
    return [
        figure
        for of in (GENERATED, CEILING)
        for figures in (overlap_figures, distance_figures)
        for figure in figures(parts[of], parts[REFERENCE], settings, of)
    ]


def _agreements(
    config: EvaluateConfig,
    looked: Looked,
    sources: tuple[Source, Source],
    settings: Settings,
    names: tuple[str, ...],
) -> list[Figure]:
    """Of teacher and judge with the classes, where these are known: over all and by class."""
    found = []
    seen = (looked.made_rows, looked.made), (looked.real_rows[: len(looked.real)], looked.real)
    for of, source, (rows, observed) in zip((GENERATED, CEILING), sources, seen, strict=True):
        if source.classes is None:
            continue
        classes = source.classes[rows]
        for who, name in (("teacher", config.teacher), ("judge", config.judge)):
            own, predicted = replace(settings, extractor=name), observed.predictions[who]
            found.append(agreement_figure(predicted, classes, own, who, of))
            for index in classes.unique().tolist():
                there = classes == index
                found.append(agreement_figure(predicted[there], classes[there], own, who, of, names[index]))
    return found


def _by_class(looked: Looked, settings: Settings, names: tuple[str, ...]) -> list[Figure]:
    """All but agreements within each class that has enough images, in the judge's features."""
    classes, parts = looked.matched.classes, looked.features(settings.extractor)
    if classes is None:
        return []
    large = [index for index, n in enumerate(torch.bincount(classes).tolist()) if n > DENSITY_NEIGHBOURS]
    return [
        figure
        for index in large
        for of in (GENERATED, CEILING)
        for figures in (overlap_figures, distance_figures)
        for figure in figures(
            parts[of][classes == index], parts[REFERENCE][classes == index], settings, of, names[index]
        )
    ]


def _copies(
    looked: Looked, reference: Source, networks: Networks, settings: Settings, progress: ProgressFactory
) -> tuple[dict[str, Any], list[tuple[int, int, float]]]:
    """What repeats itself, and what is as near to a real image as few real ones are, in the judge's features."""
    real, digests = looked.real.features[networks.judge], looked.real.digests
    further = looked.real_rows[len(looked.real) :]
    if len(further):
        judge = {networks.judge: networks.extractors[networks.judge]}
        more = observe(in_batches(reference, further, "search for copies", progress), judge)
        real, digests = torch.cat([real, more.features[networks.judge]]), digests + more.digests
    made = looked.made.features[networks.judge]
    found = memorisation(real.to(settings.device), made, dtype=settings.dtype)
    order = found.distances.argsort()[:NEAREST].tolist()
    nearest = [
        (int(looked.made_rows[row]), int(looked.real_rows[found.places[row]]), float(found.distances[row]))
        for row in order
    ]
    return {
        "extractor": networks.judge,
        "reference": reference.name,
        "generated_images": len(made),
        "real_images": len(real),
        "same_pixels_as_another": int(repeated(looked.made.digests).sum()),
        "same_pixels_as_real": int(repeated(looked.made.digests, digests).sum()),
        "close_share_of_real": CLOSE,
        "close_distance": found.close,
        "as_close_to_real": found.near_real,
        "as_close_to_generated": found.near_generated,
        "authenticity": found.authenticity,
        "nearest": [{"row": row, "real_row": real_row, "distance": far} for row, real_row, far in nearest],
    }, nearest


def _class_names(networks: Networks) -> tuple[str, ...]:
    """The judge's, with the class's number where two are called the same."""
    judge = networks.classifiers["judge"]
    names = judge.label_names or tuple(map(str, range(judge.num_classes)))
    counts = Counter(names)
    return tuple(f"{name} ({index})" if counts[name] > 1 else name for index, name in enumerate(names))


def _check_classes(source: Source, networks: Networks) -> None:
    if source.classes is None:
        return
    most = int(source.classes.max()) + 1
    for who, classifier in networks.classifiers.items():
        if most > classifier.num_classes:
            raise UserError(
                f"{source.name} has images of class {most - 1}, but the {who} knows {classifier.num_classes} classes: "
                f"give a --{who} of these classes"
            )
