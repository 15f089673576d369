"""How the students of the study are trained: all alike, whatever their images (docs/study/protocol.md)."""

from __future__ import annotations

from pathlib import Path

from prism_fast.data.augment_config import AugmentConfig
from prism_fast.distill.config import DistillConfig
from prism_fast.study.study_config import TEMPERATURE, VIEWS, StudyConfig


def student_config(study: StudyConfig, data: str, out: Path, seed: int, steps: int | None = None) -> DistillConfig:
    """The training of a student.

    Args:
        study: the shared sizes.
        data: names its images.
        out: the run's folder.
        seed: of its first weights and its batches.
        steps: of the optimiser; None: as many as every student of the tables has.
    """
    return DistillConfig(
        data=data,
        out=str(out),
        student=study.student,
        teacher=study.teacher,
        temperature=TEMPERATURE,
        steps=study.student_steps if steps is None else steps,
        batch=study.student_batch,
        augment=AugmentConfig(views=VIEWS),
        seed=seed,
        device=study.device,
        checkpoint_every=100,
    )
