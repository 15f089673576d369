"""The study's settings: a suite of methods in a world, and the sizes that all of them share."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from prism_fast.config import DTYPES, comma_separated, require, require_whole
from prism_fast.synthesis.images import IMAGE_FORMATS, ImageFormat

PASSES, VIEWS, TEMPERATURE = 30, 10, 4.0
"""Of every student of the main table (docs/study/protocol.md)."""
NO_IMAGES = "none"
LOGS = "workers"
"""Where the text of all workers but the first is, in the study's folder."""
MIN_PER_CLASS = 2
"""As many as nearest neighbours, the Vendi score of each class and a balanced reference need."""
SHIFTED_IMAGES = 1000
"""Real test images whose shifted versions the students of equal images see."""

FULL = "-full"
"""How the names of suites end that have every method."""
Suite = Literal["fashion", "fashion-full", "imagenet", "imagenet-full"]
SUITES: tuple[str, ...] = get_args(Suite)

_WORLDS: Mapping[str, Mapping[str, Any]] = {
    "fashion": {},
    "imagenet": {
        "vocabulary": "imagenet-1k",
        "pipeline": "stable-diffusion-v1-5/stable-diffusion-v1-5",
        "teacher": "resnet34.tv_in1k",
        "judge": "convnext_tiny.fb_in1k",
        "second": "efficientnet_b0.ra_in1k",
        "student": "resnet18",
        "reference": "imagenet-val@data/imagenet/val",
        "real": "imagenet-train@data/imagenet/train",
        "images": 100_000,
        "trial_images": 5000,
        "extractor_images": 10_000,
        "pilot_images": 4,
        "steps": 25,
        "batch": 8,
        "dtype": "bfloat16",
        "decoder": "tiny@224",
        "tiny": "madebyollin/taesd",
        "format": "jpg",
        "passes": 100,
    },
}
_QUICK: Mapping[str, Mapping[str, Any]] = {
    "fashion": {
        "seeds": 2,
        "images": 100,
        "trial_images": 40,
        "extractor_images": 50,
        "pilot_images": 4,
        "passes": 25,
    },
    "imagenet": {
        "seeds": 2,
        "images": 4000,
        "trial_images": 2000,
        "extractor_images": 2000,
        "pilot_images": 1,
        "passes": 20,
    },
}


def world_of(suite: str) -> str:
    """``fashion`` or ``imagenet``."""
    return suite.removesuffix(FULL)


def usual(suite: str, quick: bool) -> dict[str, Any]:
    """Values of :class:`StudyConfig` that a suite has where others are not given.

    ``quick`` makes it smaller, but not the number of trials, which decides who wins.

    Raises:
        ValueError: no such suite.
    """
    require(suite in SUITES, "suite", suite, f"one of {', '.join(SUITES)}")
    world = world_of(suite)
    return {**_WORLDS[world], **(_QUICK[world] if quick else {})}


@dataclass(frozen=True, kw_only=True)
class StudyConfig:
    """The study.

    Args:
        suite: ``fashion``: the main methods; ``fashion-full``: all of them, ablations, and numbers of images;
            ``imagenet``, ``imagenet-full``: the same on ImageNet.
        quick: smaller, to see that it works; marked as not quotable wherever figures are shown.
        seeds: paired seeds 0, 1, ...; at least 2: one pair has no spread.
        images: in each training set of the table of equal images.
        out: folder of the results; running the same study into it again continues.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        workers: processes that share the work on the CPU, and its threads; None: one for each thread, at most eight.
        vocabulary: the classes: a built-in name, or a file of names.
        reference: real images that students are tested on and sets compared with: ``test`` (Fashion-MNIST's), a folder
            with a folder for each class, or ``imagenet-val@FOLDER``.
        real: real images of the teacher's kind, for the ceiling: ``T`` (the teacher's own split of Fashion-MNIST), a
            folder, or ``imagenet-train@FOLDER``; ``none`` leaves the ceiling out.
        allow_partial: whether a folder of ImageNet's may lack classes or images.
        pipeline: text-to-image pipeline: a built-in name, a local folder or a hub id.
        teacher: guides, labels and teaches.
        judge: an independent classifier; it measures, and decides nothing.
        second: another independent one, whose agreement decides with the diversity which settings are taken.
        extractor: an unrelated network: diversity of the trials, and the figures once more.
        extractor_images: of each set, at most, in that network's features.
        student: ``fashion-student`` or a timm architecture.
        steps: denoising steps, where a method has none of its own.
        batch: images a network call while sampling.
        dtype: of the UNet while sampling: ``float32``, ``bfloat16`` or ``float16``.
        decoder: what the teacher looks through while it guides, ``sampler.guidance.decoder``; not where a method has
            its paper's own steps.
        tiny: folder or hub id of the AutoencoderTiny of such a decoder.
        format: of the image files: ``png``, ``webp`` or ``jpg``.
        pilot_images: unguided images of each class from which the guidance gate learns its thresholds.
        trial_images: of each setting that is tried.
        passes: of a student over ``images``; sets of other sizes get as many steps.
        further_seeds: of these, how many the ablations, further methods and numbers of images of a ``-full`` suite
            have; None: all.
        every_seed: ablations and further methods, with commas between them, that have all the seeds none the less.
        more: the table of equal compute gives a cheap method at most so many times ``images``; 1 leaves it out.
        report_only: tables and report of what there is of a study in ``out``, which may be running; nothing is made.
    """

    suite: Suite = "fashion"
    quick: bool = False
    seeds: int = 5
    images: int = 4000
    out: str = "runs/study"
    device: str = "auto"
    workers: int | None = None
    vocabulary: str = "fashion"
    reference: str = "test"
    real: str = "T"
    allow_partial: bool = False
    pipeline: str = "fashion"
    teacher: str = "fashion"
    judge: str = "fashion-judge"
    second: str = "fashion-second"
    extractor: str = "imagenet"
    extractor_images: int = 1000
    student: str = "fashion-student"
    steps: int = 12
    batch: int = 64
    dtype: str = "float32"
    decoder: str = "kl"
    tiny: str | None = None
    format: ImageFormat = "png"
    pilot_images: int = 16
    trial_images: int = 500
    passes: int = PASSES
    further_seeds: int | None = None
    every_seed: str | None = None
    more: float = 2.0
    report_only: bool = False

    def __post_init__(self) -> None:
        require(self.suite in SUITES, "suite", self.suite, f"one of {', '.join(SUITES)}")
        require_whole(self, "seeds", 2, 1000)
        if self.further_seeds is not None:
            require_whole(self, "further_seeds", 1, self.seeds)
        for name in ("images", "trial_images", "extractor_images"):
            require_whole(self, name, MIN_PER_CLASS, 10**7)
        for name in ("steps", "batch", "pilot_images", "passes"):
            require_whole(self, name, 1, 10**6)
        if self.workers is not None:
            require_whole(self, "workers", 1, 1000)
        require(self.dtype in DTYPES, "dtype", self.dtype, f"one of {', '.join(DTYPES)}")
        require(self.format in IMAGE_FORMATS, "format", self.format, f"one of {', '.join(IMAGE_FORMATS)}")
        require(1 <= self.more <= 100, "more", self.more, "from 1 to 100")

    @property
    def full(self) -> bool:
        """Whether every method is compared, and numbers of images are."""
        return self.suite.endswith(FULL)

    @property
    def further(self) -> int:
        """Seeds of the ablations, further methods and numbers of images."""
        return self.seeds if self.further_seeds is None else self.further_seeds

    @property
    def everywhere(self) -> list[str]:
        """The ablations and further methods of ``every_seed``."""
        return comma_separated(self.every_seed or "")

    @property
    def student_batch(self) -> int:
        """Images a training step."""
        return 128

    @property
    def student_steps(self) -> int:
        """Of every student, whatever it learns from."""
        return self.passes * math.ceil(self.images / self.student_batch)
