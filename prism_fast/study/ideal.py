"""What a generator that drew its world perfectly would measure: ``python -m prism_fast.study.ideal``.

Real images of split G, rendered and shifted as the world says, stand in for samples: those that a bare name asks for
(``plain``) and those that the oracle's prompts ask for (``oracle``), as they are and through the pipeline's VAE. What
is missed here no training of the generator can reach; what is lost between here and the generator's own samples is
its fidelity. Reads real images, so it is no part of the method. Needs the ``zoo`` extra, for the icons.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Iterator
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor

from prism_fast.data.fashion_mnist import load_split
from prism_fast.distill.trainer import distill_images
from prism_fast.errors import UserError
from prism_fast.metrics.accuracy import accuracy
from prism_fast.metrics.features import features
from prism_fast.metrics.prdc import prdc
from prism_fast.pipeline.load import load_pipeline
from prism_fast.progress import progress
from prism_fast.study.arms import CEILING, DemoConfig, distill_config
from prism_fast.study.gates import balanced, made_from, reconstruct
from prism_fast.study.measure import measure_accuracy
from prism_fast.study.real import real_images
from prism_fast.study.scripts import out_file, write_figures
from prism_fast.study.sources import MemorySource, Source
from prism_fast.teachers.base import Teacher
from prism_fast.teachers.load import load_teacher
from prism_fast.zoo import world
from prism_fast.zoo.distractors import jitter
from prism_fast.zoo.fashion_captions import NAMES, OTHER_SENSES
from prism_fast.zoo.garments import Garments

COMPARED = 1000
"""Images compared with as many of split V, as for the gates; all where an arm has fewer."""


def perfect(source: Garments, arm: str, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """``count`` images uint8 [N, 3, 32, 32] of the world itself, and their classes int64 [N], one class after another.

    Args:
        source: split G.
        arm: ``plain``: what captions of nothing but a class name show; ``oracle``: photos with the true frequencies.
        count: how many.
        seed: of the draw.
    """
    config, rng = source.config, np.random.default_rng([seed, 3])
    bare = arm == "plain"
    shown = config if bare else dataclasses.replace(config, style_weights=(1.0, 0.0, 0.0, 0.0))
    classes = np.arange(count) % len(NAMES)
    images = np.zeros((count, world.SIZE, world.SIZE), dtype=np.float32)
    for label, name in enumerate(NAMES):
        places = np.flatnonzero(classes == label)
        rows = np.flatnonzero(source.labels == label)
        weights = source.weights[rows] / source.weights[rows].sum() if bare else None
        seen, _ = world.garments(source.images[rng.choice(rows, size=len(places), p=weights)], shown, rng)
        if bare and name in OTHER_SENSES:
            other = rng.random(len(places)) < config.other_sense
            pool = source.others[name]
            seen[other] = jitter(pool[rng.integers(len(pool), size=int(other.sum()))], rng)
        images[places] = seen
    pixels = torch.from_numpy((images * 255).round().clip(0, 255).astype(np.uint8))
    return pixels[:, None].expand(-1, 3, -1, -1).contiguous(), torch.from_numpy(classes)


def student_accuracy(images: Tensor, classes: Tensor, teacher: Teacher, reference: Source) -> float:
    """Of a student distilled on these images as the demo does it."""
    with TemporaryDirectory() as folder:
        config = dataclasses.replace(
            distill_config(DemoConfig(images=len(images)), CEILING), data="perfect samples", out=f"{folder}/student"
        )
        report = distill_images(config, images, classes, teacher, progress=progress)
        return measure_accuracy(load_teacher(str(report.student)), reference, "student")


def measure(
    pipe: Any, teacher: Teacher, judge: Teacher, count: int, compared: int
) -> Iterator[tuple[str, dict[str, float]]]:
    """Names and figures of both arms, before and after the VAE.

    Args:
        pipe, teacher, judge: the built-in ones.
        count: images an arm.
        compared: of them, the first so many are compared with as many of split V; at most ``count``.

    Raises:
        UserError: there are not as many real images of each class.
    """
    real = features(judge, balanced(*load_split("V"), compared))
    reference = MemorySource("V", *real_images("V"))
    source = Garments(world.WorldConfig())
    for arm in ("plain", "oracle"):
        images, classes = perfect(source, arm, count, 0)
        for name, shown in ((arm, images), (f"{arm}, through the VAE", reconstruct(pipe, images))):
            overlap = prdc(real, features(judge, shown[:compared]))
            yield (
                name,
                {
                    "teacher_agreement": accuracy(teacher, shown, classes).value,
                    "judge_agreement": accuracy(judge, shown, classes).value,
                    "precision": overlap.precision,
                    "recall": overlap.recall,
                    "coverage": overlap.coverage,
                    "student_on_V": student_accuracy(shown, classes, teacher, reference),
                },
            )


def main(arguments: list[str] | None = None) -> None:
    """Prints the figures of both arms, before and after the VAE."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=DemoConfig().images, help="images an arm")
    parser.add_argument("--pipeline", default="fashion")
    parser.add_argument("--out", type=out_file, help="JSON file")
    options = parser.parse_args(arguments)
    pipe, teacher, judge = load_pipeline(options.pipeline), load_teacher("fashion"), load_teacher("fashion-judge")
    compared = min(COMPARED, options.images)
    arms: dict[str, dict[str, float]] = {}
    try:
        for name, figures in measure(pipe, teacher, judge, options.images, compared):
            arms[name] = figures
            print(name, {key: round(value, 3) for key, value in figures.items()}, flush=True)
    except UserError as error:
        parser.error(str(error))
    if options.out:
        found = {"images": options.images, "compared": compared, "arms": arms, **made_from(pipe, teacher, judge)}
        write_figures(options.out, found)


if __name__ == "__main__":
    main()
