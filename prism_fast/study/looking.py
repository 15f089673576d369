"""What is seen of a method's images: agreement of three classifiers, and figures against real ones in two features."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from prism_fast.config import resolve_device
from prism_fast.errors import UserError
from prism_fast.metrics.comparison import Figure, Settings, distance_figures, overlap_figures
from prism_fast.metrics.features import Observed, features, observe
from prism_fast.metrics.prdc import prdc
from prism_fast.metrics.vendi import class_diversity
from prism_fast.prompts.vocabulary import load_vocabulary
from prism_fast.study.matched import Matched, match
from prism_fast.study.measure import measure_accuracy
from prism_fast.study.real import class_rows
from prism_fast.study.sources import BATCH, Source, in_batches, labels_of
from prism_fast.study.study_config import StudyConfig
from prism_fast.teachers.base import Teacher
from prism_fast.teachers.ensemble import fingerprints
from prism_fast.teachers.extractors import Extractor, load_extractor, load_observer
from prism_fast.teachers.load import load_teacher

REFERENCE_SEED = 0
"""Decides which real images all sets are compared with."""
CLASSIFIERS = ("teacher", "judge", "second")
CURVE = tuple(range(1, 11))
"""k of the curves of precision and recall."""
_CACHED = 8
"""Images a call, of 224 pixels: a CPU's caches hold their maps, which makes it 1.6 times as fast as with 250."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Eyes:
    """The networks that look at images.

    Attributes:
        teacher, judge, second: the classifiers.
        extractor: an unrelated network.
    """

    teacher: Teacher
    judge: Teacher
    second: Teacher
    extractor: Extractor

    @classmethod
    def load(cls, config: StudyConfig) -> Eyes:
        """The networks that a study names.

        Raises:
            UserError: one cannot be loaded, knows other classes, or shares a network with another.
        """
        device = resolve_device(config.device)
        names = {"teacher": config.teacher, "judge": config.judge, "second": config.second}
        classifiers = {
            who: (load_teacher if who == "teacher" else load_observer)(name, device) for who, name in names.items()
        }
        extractor = load_extractor(config.extractor, device)
        seen: dict[str, str] = {}
        for who, network in (*classifiers.items(), ("extractor", extractor)):
            for other in (seen.setdefault(each, who) for each in sorted(fingerprints(network))):
                if other != who:
                    raise UserError(
                        f"{other} and {who} are one network, or have one in common; what measures must not guide or "
                        "choose: give another"
                    )
        classes = len(load_vocabulary(config.vocabulary))
        for who, classifier in classifiers.items():
            if classifier.num_classes != classes:
                raise UserError(
                    f"the {who} knows {classifier.num_classes} classes, the vocabulary {config.vocabulary} has "
                    f"{classes}: give another"
                )
        return cls(**classifiers, extractor=extractor)

    @property
    def classifiers(self) -> dict[str, Teacher]:
        """By role."""
        return {who: getattr(self, who) for who in CLASSIFIERS}

    @property
    def num_classes(self) -> int:
        """K, of all three classifiers."""
        return self.teacher.num_classes

    def fingerprints(self) -> dict[str, str]:
        """Of the weights, by role."""
        return {who: getattr(self, who).fingerprint for who in (*CLASSIFIERS, "extractor")}

    def trial(self, shown: Source) -> tuple[float, float]:
        """Agreement of the second teacher, and diversity, of labelled images."""
        seen = _seen(self.extractor, shown, torch.arange(len(shown)))
        return measure_accuracy(self.second, shown), class_diversity(seen, labels_of(shown))


class Gallery:
    """Real images, and their features, that every set is compared with.

    Args:
        config: of the study.
        eyes: the networks.
        test: real images.
    """

    def __init__(self, config: StudyConfig, eyes: Eyes, test: Source) -> None:
        self._eyes, self._test, self._device = eyes, test, resolve_device(config.device)
        self._settings: dict[str, Settings] = {}
        self._matched: dict[str, Matched] = {}
        self._real: dict[str, tuple[Tensor, Tensor]] = {}
        self._networks: dict[str, Extractor] = {config.judge: eyes.judge, config.extractor: eyes.extractor}
        self.headline = config.judge
        for name, limit in ((config.judge, config.images), (config.extractor, config.extractor_images)):
            asked = torch.arange(min(limit, config.images)) % eyes.num_classes
            self._matched[name] = match(asked, labels_of(test), None, REFERENCE_SEED, minimum=len(CURVE) + 1)
            self._settings[name] = Settings(
                extractor=name, reference=test.name, resamples=0, seed=REFERENCE_SEED, device=self._device
            )

    def counts(self) -> dict[str, int]:
        """N of each extractor."""
        return {name: len(matched) for name, matched in self._matched.items()}

    def widths(self) -> dict[str, int]:
        """How many numbers the features of an image are, of each extractor."""
        first = torch.arange(1)
        return {name: _seen(network, self._test, first).shape[1] for name, network in self._networks.items()}

    def figures(self, shown: Source) -> dict[str, Any]:
        """Agreements of labelled images, and of N of them figures in both features."""
        classes, every = labels_of(shown), torch.arange(len(shown))
        seen = self._observed(shown, every)
        found: dict[str, Any] = _agreements(seen, classes)
        found["figures"] = []
        for name in self._matched:
            rows = self._rows(name, classes)
            near = seen.features[name][rows] if name in seen.features else _seen(self._networks[name], shown, rows)
            found["figures"] += self._against(name, near, "generated")
        return found

    @cached_property
    def ceiling(self) -> dict[str, Any]:
        """The same of real images in the generated ones' place: one answer for every seed."""
        rows = self._matched[self.headline].ceiling
        found: dict[str, Any] = _agreements(self._observed(self._test, rows), labels_of(self._test)[rows])
        found["figures"] = [
            figure for name in self._matched for figure in self._against(name, self._features(name)[1], "real")
        ]
        return found

    def curve(self, shown: Source | None) -> list[dict[str, float]]:
        """Precision and recall in the judge's features for every k; of other real images where none are given."""
        reference, other = self._features(self.headline)
        if shown is not None:
            rows = self._rows(self.headline, labels_of(shown))
            other = _seen(self._networks[self.headline], shown, rows)
        found = []
        for k in CURVE:
            overlap = prdc(reference.to(self._device), other, neighbours=k)
            found.append({"k": k, "precision": round(overlap.precision, 6), "recall": round(overlap.recall, 6)})
        return found

    def _observed(self, shown: Source, rows: Tensor) -> Observed:
        """What the three classifiers say, and the judge's features: every image is decoded once for all of them."""
        judge = {self.headline: self._networks[self.headline]}
        return observe(in_batches(shown, rows), judge, self._eyes.classifiers)

    def _rows(self, name: str, classes: Tensor) -> Tensor:
        """Rows of a set, as many of each class as the reference has that it is compared with in these features.

        They hang on the classes alone: all sets of a seed show the same rows.

        Raises:
            UserError: the set has too few images of a class.
        """
        present, sizes = labels_of(self._test)[self._matched[name].reference].unique(return_counts=True)
        return class_rows(classes, dict(zip(present.tolist(), sizes.tolist(), strict=True)), REFERENCE_SEED)

    def _features(self, name: str) -> tuple[Tensor, Tensor]:
        """Of the reference and of the ceiling."""
        if name not in self._real:
            matched, network = self._matched[name], self._networks[name]
            self._real[name] = (
                _seen(network, self._test, matched.reference),
                _seen(network, self._test, matched.ceiling),
            )
        return self._real[name]

    def _against(self, name: str, shown: Tensor, of: str) -> list[dict[str, Any]]:
        reference, settings = self._features(name)[0], self._settings[name]
        found = overlap_figures(shown, reference, settings, of) + distance_figures(shown, reference, settings, of)
        return [_row(figure) for figure in found]


def _row(figure: Figure) -> dict[str, Any]:
    """A figure as ``results.json`` has it."""
    return {
        "metric": figure.metric,
        "extractor": figure.extractor,
        "value": round(figure.value, 6),
        "k": figure.k,
        "count": figure.count,
        "reference": figure.reference,
        "subset_size": figure.subset_size,
        "ties": figure.ties,
    }


def _agreements(seen: Observed, classes: Tensor) -> dict[str, float]:
    """Shares of images that each classifier takes for the class asked for, int64 [N]."""
    return {
        f"{who}_agreement": round(float((said == classes).double().mean()), 6) for who, said in seen.predictions.items()
    }


def _seen(network: Extractor, shown: Source, rows: Tensor) -> Tensor:
    """Features of rows int64 [N], in batches that suit network and device."""
    side = max(getattr(network, "input_size", (0, 0)))
    cached = side >= 128 and getattr(network, "device", torch.device("cpu")).type == "cpu"
    batch = _CACHED if cached else BATCH
    return features(network, in_batches(shown, rows, batch=batch), batch)
