"""The study's settings: a suite of methods, and the sizes that all of them share."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

from prism_fast.config import require, require_whole

PASSES, VIEWS, TEMPERATURE = 30, 10, 4.0
"""Of every student of the main table (docs/study/protocol.md)."""
CLASSES = 10
MIN_IMAGES = 2 * CLASSES
"""As many as nearest neighbours, the Vendi score of each class and a balanced reference need."""
SHIFTED_IMAGES = 1000
"""Real test images whose shifted versions the students of equal images see."""

QUICK: dict[str, Any] = {"seeds": 2, "images": 500, "trial_images": 100, "extractor_images": 200, "passes": 50}
"""What ``--quick`` makes smaller, where it is not given: not the number of trials, which decides who wins."""


@dataclass(frozen=True, kw_only=True)
class StudyConfig:
    """The study.

    Args:
        suite: ``fashion``: the main methods; ``fashion-full``: all of them, ablations, and numbers of images.
        quick: smaller, to see that it works; marked as not quotable wherever figures are shown.
        seeds: paired seeds 0, 1, ...; at least 2: one pair has no spread.
        images: in each training set of the table of equal images.
        out: folder of the results; running the same study into it again continues.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        pipeline: text-to-image pipeline: a built-in name, a local folder or a hub id.
        teacher: guides, labels and teaches.
        judge: an independent classifier; it measures, and decides nothing.
        second: another independent one, whose agreement decides with the diversity which settings are taken.
        extractor: an unrelated network: diversity of the trials, and the figures once more.
        extractor_images: of each set, at most, in that network's features.
        student: ``fashion-student`` or a timm architecture.
        steps: denoising steps, where a method has none of its own.
        batch: images a network call while sampling.
        pilot_images: unguided images of each class from which the guidance gate learns its thresholds.
        trial_images: of each setting that is tried.
        passes: of a student over ``images``; sets of other sizes get as many steps.
        more: the table of equal compute gives a cheap method at most so many times ``images``; 1 leaves it out.
    """

    suite: Literal["fashion", "fashion-full"] = "fashion"
    quick: bool = False
    seeds: int = 5
    images: int = 4000
    out: str = "runs/study"
    device: str = "auto"
    pipeline: str = "fashion"
    teacher: str = "fashion"
    judge: str = "fashion-judge"
    second: str = "fashion-second"
    extractor: str = "imagenet"
    extractor_images: int = 1000
    student: str = "fashion-student"
    steps: int = 12
    batch: int = 64
    pilot_images: int = 16
    trial_images: int = 500
    passes: int = PASSES
    more: float = 2.0

    def __post_init__(self) -> None:
        require(self.suite in ("fashion", "fashion-full"), "suite", self.suite, "fashion or fashion-full")
        require_whole(self, "seeds", 2, 1000)
        for name in ("images", "trial_images", "extractor_images"):
            require_whole(self, name, MIN_IMAGES, 10**6)
        for name in ("steps", "batch", "pilot_images", "passes"):
            require_whole(self, name, 1, 10**6)
        require(1 <= self.more <= 100, "more", self.more, "from 1 to 100")

    @property
    def student_batch(self) -> int:
        """Images a training step."""
        return 128

    @property
    def student_steps(self) -> int:
        """Of every student, whatever it learns from."""
        return self.passes * math.ceil(self.images / self.student_batch)
