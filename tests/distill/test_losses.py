"""Losses against fp64 definitions and their laws."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from prism_fast.distill.losses import agreement, distillation_loss, label_loss


def _logits(seed: int, rows: int = 6, classes: int = 7) -> Tensor:
    return 3 * torch.randn(rows, classes, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0, 20.0])
def test_is_the_scaled_divergence(temperature: float, seed: int) -> None:
    student, teacher = _logits(seed), _logits(seed + 1)
    p = (teacher.double() / temperature).softmax(1)
    q = (student.double() / temperature).softmax(1)
    expected = temperature**2 * (p * (p / q).log()).sum(1).mean()
    assert distillation_loss(student, teacher, temperature).mean().item() == pytest.approx(expected.item(), rel=1e-4)


def test_is_zero_only_for_equal_distributions(seed: int) -> None:
    teacher = _logits(seed)
    assert distillation_loss(teacher + 5, teacher, 4.0).mean().item() == pytest.approx(0, abs=1e-5)
    assert distillation_loss(_logits(seed + 1), teacher, 4.0).mean().item() > 1e-2


def test_high_temperature_matches_logits(seed: int) -> None:
    """T^2 KL -> |centred(z_s) - centred(z_t)|^2 / 2K (Hinton et al. 2015, section 2.1)."""
    student, teacher = _logits(seed), _logits(seed + 1)
    difference = (student - student.mean(1, keepdim=True)) - (teacher - teacher.mean(1, keepdim=True))
    limit = (difference**2).sum(1).mean() / (2 * 7)
    assert distillation_loss(student.double(), teacher.double(), 300.0).mean().item() == pytest.approx(
        limit.item(), rel=0.1
    )


def test_only_the_student_gets_a_gradient(seed: int) -> None:
    student, teacher = _logits(seed).requires_grad_(), _logits(seed + 1).requires_grad_()
    distillation_loss(student, teacher, 2.0).mean().backward()
    assert teacher.grad is None
    expected = 2.0 * ((student / 2).softmax(1) - (teacher / 2).softmax(1)).detach() / len(student)
    assert student.grad is not None and torch.allclose(student.grad, expected, atol=1e-5)


def test_half_precision_logits_give_an_fp32_loss(seed: int) -> None:
    student, teacher = _logits(seed), _logits(seed + 1)
    low = distillation_loss(student.bfloat16(), teacher.half(), 4.0).mean()
    assert low.dtype == torch.float32
    assert low.item() == pytest.approx(distillation_loss(student, teacher, 4.0).mean().item(), rel=0.1)


def test_label_loss_and_agreement() -> None:
    logits = torch.tensor([[2.0, 0.0], [0.0, 0.0]])
    expected = (torch.tensor(2.0).exp() + 1).log() - 2 + torch.tensor(2.0).log()
    assert label_loss(logits, torch.tensor([0, 1])).mean().item() == pytest.approx(expected.item() / 2)
    assert agreement(torch.eye(3), torch.tensor([0, 1, 0])).item() == pytest.approx(2 / 3)
    assert agreement(torch.eye(3), torch.eye(3)[[0, 2, 1]]).item() == pytest.approx(1 / 3)
