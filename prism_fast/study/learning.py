"""Students of the study: trained on labelled images wherever these come from, in memory where they fit."""

from __future__ import annotations

from torch import Tensor

from prism_fast.distill.config import DistillConfig
from prism_fast.distill.images import open_images
from prism_fast.distill.report import DistillReport
from prism_fast.distill.trainer import train
from prism_fast.progress import ProgressFactory
from prism_fast.study.sources import Source, labels_of
from prism_fast.teachers.base import Teacher


def learn(
    config: DistillConfig, source: Source, fingerprint: str, teacher: Teacher, progress: ProgressFactory
) -> DistillReport:
    """Trains a student.

    Args:
        config: its training; ``data`` only names the images.
        source: labelled images of one size.
        fingerprint: changes with any of these.
        teacher: answers.
        progress: of the training.

    Raises:
        UserError: images without classes, or of different sizes; what :func:`prism_fast.distill.trainer.train` refuses.
    """
    images = open_images(
        _Samples(source),
        teacher.num_classes,
        ram_bytes=int(config.ram_gib * 2**30),
        class_names=teacher.label_names,
        fingerprint=fingerprint,
    )
    return train(config, images, teacher, progress)


class _Samples:
    """A source as the trainer reads data: image, class, and no stored logits."""

    def __init__(self, source: Source) -> None:
        self._source, self._labels = source, labels_of(source).tolist()

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, row: int) -> tuple[Tensor, int, None]:
        return self._source.image(row), self._labels[row], None
