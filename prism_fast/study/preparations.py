"""What methods of the study are drawn from beside the generator: inverted images, learned words, a student."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from prism_fast.config import canonical, resolve_device
from prism_fast.inversion.config import InversionConfig
from prism_fast.inversion.run import invert
from prism_fast.keyed import seed_of
from prism_fast.progress import ProgressFactory
from prism_fast.recipes.fields import Fields
from prism_fast.study.learning import learn
from prism_fast.study.sources import ShardSource
from prism_fast.study.student_config import student_config
from prism_fast.study.study_config import StudyConfig
from prism_fast.synthesis.config import SynthesisConfig
from prism_fast.synthesis.job import synthesize
from prism_fast.teachers.load import load_teacher
from prism_fast.tokens.config import TokensConfig
from prism_fast.tokens.run import learn_tokens

QUICK_PER_CLASS = 2
"""Images of each class that a quick study inverts, and that its first students learn from, and images of a step of its
words: of as many as the study has, these alone would take most of its time."""
QUICK_STEPS = 15
"""In a quick study, of learned words and of first students, for the same reason."""
_SHARED = ("pipeline", "vocabulary", "teacher", "seed", "device")
"""Fields that the study decides."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """What a preparation is for.

    Attributes:
        study: the study.
        folder: its own, kept between runs.
        seed: of the sets that follow.
        config: what a set of the method is drawn from, by its ``images``, ``seed`` and what was ``prepared``.
        bars: progress.
    """

    study: StudyConfig
    folder: Path
    seed: int
    config: Callable[..., SynthesisConfig]
    bars: ProgressFactory


@dataclass(frozen=True, kw_only=True)
class Preparation:
    """Made once for all sets of a method and a seed. Its seconds count in each of them.

    Attributes:
        make: makes what is missing, of which a killed run may have left a part, and returns fields that are laid over
            the recipe.
        made_of: settings that decide what it makes, the study's and the seed aside.
    """

    make: Callable[[Request], Fields]
    made_of: Fields = field(default_factory=dict)


def inverted_images(settings: InversionConfig) -> Preparation:
    """Images inverted from the study's teacher, for rows to start from.

    Args:
        settings: how; teacher, seed and device are the study's.
    """
    return Preparation(make=partial(_invert, settings), made_of=_made_of(settings))


def learned_words(settings: TokensConfig) -> Preparation:
    """A word for each class, learned with the study's pipeline and teacher.

    Args:
        settings: how; pipeline, vocabulary, teacher, seed and device are the study's.
    """
    return Preparation(make=partial(_learn_words, settings), made_of=_made_of(settings))


def first_student(per_class: int, steps: int) -> Preparation:
    """A student of the study's kind, for an energy that asks for one; of images of the method without that term.

    Args:
        per_class: images of each class that it learns from; the sets that follow have other ones.
        steps: of its training, at most the study's.
    """
    made_of = {"per_class": per_class, "steps": steps}
    return Preparation(make=partial(_train_first_student, per_class, steps), made_of=made_of)


# Functions of the module, with their settings bound: methods are handed to other processes.


def _invert(settings: InversionConfig, request: Request) -> Fields:
    study, folder = request.study, request.folder / "images"
    config = replace(settings, teacher=study.teacher, seed=request.seed, device=study.device)
    if study.quick:
        config = replace(config, per_class=min(QUICK_PER_CLASS, config.per_class))
    invert(config, folder, request.bars)
    return {"sampler": {"image_to_image": {"source": str(folder)}}}


def _learn_words(settings: TokensConfig, request: Request) -> Fields:
    study, path = request.study, request.folder / "tokens.safetensors"
    request.folder.mkdir(parents=True, exist_ok=True)
    config = replace(
        settings,
        pipeline=study.pipeline,
        vocabulary=study.vocabulary,
        teacher=study.teacher,
        seed=request.seed,
        device=study.device,
    )
    if study.quick:
        few = min(QUICK_PER_CLASS, config.batch)
        config = replace(config, steps=min(QUICK_STEPS, config.steps), batch=few)
    learn_tokens(config, path, request.bars)
    return {"sampler": {"tokens": str(path)}}


def _train_first_student(per_class: int, steps: int, request: Request) -> Fields:
    alone = {"sampler": {"guidance": {"student": None, "student_weight": 0.0, "student_after": 0}}}
    study, seed = request.study, seed_of(request.seed, "first student")
    shards = request.folder / "shards"
    each, most = (min(QUICK_PER_CLASS, per_class), min(QUICK_STEPS, steps)) if study.quick else (per_class, steps)
    teacher = load_teacher(study.teacher, resolve_device(study.device))
    config = request.config(images=each * teacher.num_classes, seed=seed, prepared=alone)
    synthesize(config, shards, progress=request.bars)
    training = student_config(
        study, "images without a student", request.folder / "student", seed, min(most, study.student_steps)
    )
    images = ShardSource(shards)
    report = learn(training, images, images.set.fingerprint, teacher, request.bars)
    return {"sampler": {"guidance": {"student": str(report.student), "student_after": 0}}}


def _made_of(settings: InversionConfig | TokensConfig) -> Fields:
    return {name: value for name, value in canonical(settings).items() if name not in _SHARED}
