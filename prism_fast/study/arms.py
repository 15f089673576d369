"""The arms of the study, and every size of it: what differs between arms is one recipe, all else is shared."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prism_fast.data.augment_config import AugmentConfig
from prism_fast.distill.config import DistillConfig
from prism_fast.recipes import load_recipe
from prism_fast.recipes.fields import build, default_fields, lay_over
from prism_fast.synthesis.config import SynthesisConfig

# The sizes, chosen so that the demo of two arms takes at most ten minutes on two CPU cores.
IMAGES = 2000
STEPS = 12
GUIDANCE_EVERY = 2
COMPUTE_BATCH = 64
PAIRED_IMAGES = 300
"""Rows made with and without guidance where no arm is the other half: what guidance alone does, on the same seeds."""
MIN_IMAGES = 6
"""One more than the neighbours that density and coverage ask for."""
PILOT_IMAGES = 16
EPOCHS = 30
VIEWS = 10
"""Different views of each image; the teacher labels each of them once."""

CEILING = "real"


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One way to make the training set.

    Attributes:
        name: also its folder and its key in ``metrics.json``.
        title: for the report.
        about: one sentence.
        unguided: the arm with the same rows (prompts, seeds) and no guidance.
    """

    name: str
    title: str
    about: str
    unguided: str | None = None


ARMS = {
    arm.name: arm
    for arm in (
        Arm(name="plain", title="plain", about="bare class names, no guidance"),
        Arm(name="eda", title="EDA only", about="bare class names, guided by the teacher's energy", unguided="plain"),
        Arm(
            name="random-direction",
            title="random direction",
            about="bare class names, moved as far as EDA in a random direction",
            unguided="plain",
        ),
        Arm(name="dpe", title="prompts only", about="glosses, varied attributes, photo style; no guidance"),
        Arm(name="prism", title="PRISM", about="those prompts and the guidance", unguided="dpe"),
        Arm(name="oracle", title="oracle prompts", about="prompts with the true attribute frequencies, no guidance"),
    )
}
"""In the order of the report."""

DEFAULT_ARMS = ("plain", "prism")
FULL_ARMS = tuple(ARMS)


@dataclass(frozen=True, kw_only=True)
class DemoConfig:
    """The demo.

    Args:
        full: every arm, and the student that learned from real images.
        images: in each arm's training set.
        out: folder of the results; running the same demo into it again continues.
        seed: 0 <= seed < 2**63; of images, prompts' order and students.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        pipeline: text-to-image pipeline: a built-in name, a local folder or a hub id.
        teacher: guides, labels and teaches.
        judge: an independent classifier; it measures and never guides.
        student: ``fashion-student`` or a timm architecture.
        steps: denoising steps.
        guidance_every: every k-th step is guided.
        batch: images a network call while sampling.
        pilot_images: unguided images of each class from which the guidance gate learns its thresholds.
        paired_images: rows that are also made without guidance, to compare same seeds.
        epochs: passes of the student over its set.
    """

    full: bool = False
    images: int = IMAGES
    out: str = "runs/demo"
    seed: int = 0
    device: str = "auto"
    pipeline: str = "fashion"
    teacher: str = "fashion"
    judge: str = "fashion-judge"
    student: str = "fashion-student"
    steps: int = STEPS
    guidance_every: int = GUIDANCE_EVERY
    batch: int = COMPUTE_BATCH
    pilot_images: int = PILOT_IMAGES
    paired_images: int = PAIRED_IMAGES
    epochs: int = EPOCHS

    def __post_init__(self) -> None:
        for name in ("images", "paired_images"):
            if getattr(self, name) < MIN_IMAGES:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be {MIN_IMAGES} or more")
        for name in self.arms:  # every size is checked before the first image is made
            synthesis_config(self, name)
            distill_config(self, name)

    @property
    def arms(self) -> tuple[str, ...]:
        """Names of the arms to run."""
        return FULL_ARMS if self.full else DEFAULT_ARMS


def synthesis_config(demo: DemoConfig, arm: str) -> SynthesisConfig:
    """What an arm's training set is made from: the recipe of its name, with the demo's sizes."""
    shared: dict[str, Any] = {
        "pipeline": demo.pipeline,
        "teacher": demo.teacher,
        "images": demo.images,
        "seed": demo.seed,
        "device": demo.device,
        "pilot_images": demo.pilot_images,
        "sampler": {"steps": demo.steps, "compute_batch": demo.batch},
    }
    recipe = load_recipe(arm)
    if recipe["sampler"]["guidance"] is not None:
        shared["sampler"]["guidance"] = {"every": demo.guidance_every}
    fields = default_fields(SynthesisConfig)
    for source, above in ((f"recipe {arm}", recipe), ("demo", shared)):
        fields = lay_over(SynthesisConfig, fields, above, source)
    return build(SynthesisConfig, fields)


def paired_config(demo: DemoConfig, arm: str) -> SynthesisConfig:
    """The first rows of a guided arm without the guidance: same prompts, same seeds."""
    fields = default_fields(SynthesisConfig)
    for above in (
        load_recipe(arm),
        {"pipeline": demo.pipeline, "teacher": demo.teacher, "seed": demo.seed, "device": demo.device},
        {"images": min(demo.paired_images, demo.images)},
        {"sampler": {"steps": demo.steps, "compute_batch": demo.batch, "guidance": None}},
    ):
        fields = lay_over(SynthesisConfig, fields, above, "demo")
    return build(SynthesisConfig, fields)


def distill_config(demo: DemoConfig, arm: str) -> DistillConfig:
    """How an arm's student learns; the same for every arm, the ceiling included."""
    folder = Path(demo.out) / arm
    return DistillConfig(
        data=f"real images of split T ({demo.images})" if arm == CEILING else str(folder / "shards"),
        out=str(folder / "student"),
        student=demo.student,
        teacher=demo.teacher,
        epochs=demo.epochs,
        augment=AugmentConfig(views=VIEWS),
        seed=demo.seed,
        device=demo.device,
        checkpoint_every=100,  # a minute's work: the demo is short, and often stopped by hand
    )
