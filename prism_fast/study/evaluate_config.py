"""Settings of ``prism-fast evaluate``; light, because the command line reads them before anything is computed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from prism_fast.config import MAX_COUNT, require_whole


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """What to measure.

    Args:
        target: a classifier (built-in name, folder of a student or teacher, ``hf-hub:ORG/NAME``), a shard set, or a
            folder of images or of a folder of them for each class.
        teacher: for images: whose agreement with the classes is measured; its features are never used.
        judge: for images: the independent classifier whose agreement and features are used.
        reference: real images: ``test`` or a split ``T``, ``G``, ``J``, ``V`` of Fashion-MNIST (V is for tuning), a
            folder of images, a shard set, or ``imagenet-train``, ``imagenet-val``, ``imagenet-v2``, ``imagenet-a``,
            ``imagenet-r`` or ``imagenet-sketch`` with ``@FOLDER`` behind it, the folder as their archives unpack.
        allow_partial: whether such a folder of ImageNet's may lack classes or images.
        shifts: of a classifier: also measure it on shifted versions of the real images.
        beside: of a classifier: others, with commas between them, that see the same images; differences have intervals.
        extractors: further features: names with commas between them, classifiers or ``inception@FOLDER``; ``auto``:
            ``imagenet`` where its package is installed; ``none``.
        images: at most so many of the set, or, of a classifier, of the real images; None: all.
        searched: real images that are searched for copies, in the judge's features.
        resamples: of the intervals; 0: no intervals.
        set_resamples: of the intervals of distances, each of which takes a third of a second at 1,280 features.
        distances: what nearest neighbours are found in; ``float32`` takes a third of the time, and verdicts that its
            rounding may have decided are counted.
        seed: decides which images are compared.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
    """

    target: str
    teacher: str = "fashion"
    judge: str = "fashion-judge"
    reference: str = "test"
    allow_partial: bool = False
    shifts: bool = False
    beside: str | None = None
    extractors: str = "auto"
    images: int | None = None
    searched: int = 50_000
    resamples: int = 1000
    set_resamples: int = 50
    distances: Literal["float64", "float32"] = "float64"
    seed: int = 0
    device: str = "auto"

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"seed is {self.seed}; it must be 0 or more and below 2**63")
        require_whole(self, "images", 1, MAX_COUNT)
        for name in ("searched", "resamples", "set_resamples"):
            require_whole(self, name, 0, MAX_COUNT)
