"""The student while it learns: its logits and, where a loss asks for them, features beside the teacher's."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from prism_fast.distill.config import LossConfig
from prism_fast.distill.students import Student
from prism_fast.errors import UserError

EMBEDDING = 128
"""Numbers of an embedding that is contrasted, as in the code of Tian et al. 2020."""


class Answer(NamedTuple):
    """What a student says about a batch: logits [B,K]; two matrices [B,D] that a features term compares, or None."""

    logits: Tensor
    pair: tuple[Tensor, Tensor] | None


class Learner(nn.Module):
    """A student and the learned maps of a features term, which are not part of what is saved as the student.

    Args:
        student: the classifier.
        loss: says which features term there is.
        teacher_width: D of the teacher's features; None where no term needs them.

    Raises:
        UserError: the student does not tell its features from its logits.
    """

    def __init__(self, student: Student, loss: LossConfig, teacher_width: int | None) -> None:
        super().__init__()
        self.student = student
        self.maps = nn.ModuleDict()
        if loss.features == "none":
            return
        if teacher_width is None:
            raise TypeError("a features term without the teacher's features")
        width = _width(student)
        if loss.features == "hint":
            self.maps["student"] = nn.Linear(width, teacher_width)
        else:
            self.maps["student"] = nn.Linear(width, EMBEDDING)
            self.maps["teacher"] = nn.Linear(teacher_width, EMBEDDING)

    def forward(self, images: Tensor, features: Tensor | None = None) -> Answer:
        """Of images [B,3,H,W] in [0,1] and the teacher's features of them [B,D]."""
        if not len(self.maps) or features is None:
            return Answer(self.student(images), None)
        logits, pooled = self.student.with_features(images)
        other = self.maps["teacher"](features) if "teacher" in self.maps else features
        return Answer(logits, (self.maps["student"](pooled), other))


@torch.no_grad()
def _width(student: Student) -> int:
    """D of a student's features, whose classifier makes its logits of them."""
    model = student.model
    if not all(hasattr(model, name) for name in ("forward_features", "forward_head", "get_classifier")):
        raise UserError("loss.features needs a student with features of its own, as timm's models have: take one")
    side = student.spec.input_size
    student.eval()
    example = torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(0))
    logits, pooled = student.with_features(example)
    if pooled.ndim != 2 or not torch.allclose(logits, student(example), rtol=1e-3, atol=1e-4):
        raise UserError(
            f"student {student.spec.architecture!r} does not make its logits of its pooled features alone: "
            "take another student, or loss.features none"
        )
    return pooled.shape[1]
