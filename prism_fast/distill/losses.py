"""What the student minimises. Every loss takes logits and returns a scalar in fp32."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def distillation_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T^2 KL(p_teacher || p_student) with p = softmax(logits / T), mean over the batch.

    Hinton et al. 2015 (arXiv 1503.02531), section 2: T^2 keeps the gradient's size about the same whatever T is.

    Args:
        student: logits [B,K].
        teacher: logits [B,K]; no gradient goes into them.
        temperature: T > 0.
    """
    log_student = functional.log_softmax(student.float() / temperature, dim=1)
    log_teacher = functional.log_softmax(teacher.detach().float() / temperature, dim=1)
    divergence = functional.kl_div(log_student, log_teacher, reduction="batchmean", log_target=True)
    return temperature**2 * divergence


def label_loss(student: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy -log p_student(label), mean over the batch; logits [B,K], class indices int64 [B]."""
    return functional.cross_entropy(student.float(), labels)


def agreement(student: Tensor, target: Tensor) -> Tensor:
    """Share of rows whose largest logit is the target's class; target: logits [B,K] or class indices [B]."""
    wanted = target.argmax(1) if target.ndim == 2 else target
    return (student.argmax(1) == wanted).to(torch.float32).mean()
