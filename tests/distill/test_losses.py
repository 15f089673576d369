"""Losses against fp64 definitions and their laws."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from prism_fast.distill.batches import TrainingBatch
from prism_fast.distill.config import DistillConfig, LossConfig
from prism_fast.distill.learner import Answer
from prism_fast.distill.losses import (
    agreement,
    contrast_loss,
    distillation_loss,
    energy_weights,
    free_energy,
    hint_loss,
    label_loss,
    standardize,
    training_loss,
)


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


def test_standardized_logits_forget_shift_and_scale(seed: int) -> None:
    student, teacher = _logits(seed), _logits(seed + 1)
    z = standardize(student.double())
    assert torch.allclose(z.mean(1), torch.zeros(6, dtype=torch.float64), atol=1e-12)
    assert torch.allclose(z.std(1, correction=0), torch.ones(6, dtype=torch.float64))
    one = distillation_loss(student, teacher, 2.0, True)
    assert torch.allclose(distillation_loss(3 * student - 7, 0.5 * teacher + 1, 2.0, True), one, rtol=1e-3, atol=1e-5)
    assert torch.allclose(one, distillation_loss(standardize(student), standardize(teacher), 2.0))
    assert (distillation_loss(3 * teacher, teacher, 2.0) > 1e-3).all()


def test_equal_logits_are_standardized_without_a_division_by_zero() -> None:
    flat = torch.full((2, 5), 3.0, requires_grad=True)
    z = standardize(flat)
    z.square().sum().backward()
    assert flat.grad is not None and flat.grad.isfinite().all() and z.abs().max() < 1e-3


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.9])
def test_label_smoothing(smoothing: float, seed: int) -> None:
    logits, labels = _logits(seed).double(), torch.arange(6)
    wanted = (1 - smoothing) * torch.nn.functional.one_hot(labels, 7) + smoothing / 7
    expected = -(wanted * logits.log_softmax(1)).sum(1)
    # fp32 rounds the largest logit, from which a small loss is a difference
    rounding = 4 * torch.finfo(torch.float32).eps * float(logits.abs().max())
    assert torch.allclose(label_loss(logits, labels, smoothing).double(), expected, rtol=1e-5, atol=rounding)


def test_hints_pull_the_student_alone(seed: int) -> None:
    student, teacher = _logits(seed).requires_grad_(), _logits(seed + 1).requires_grad_()
    loss = hint_loss(student, teacher)
    assert torch.allclose(loss.double(), ((student.double() - teacher.double()) ** 2).mean(1), rtol=1e-5)
    loss.sum().backward()
    assert teacher.grad is None and student.grad is not None and student.grad.abs().sum() > 0


def test_contrast_is_the_chance_of_ones_own(seed: int) -> None:
    one, other = _logits(seed).double(), _logits(seed + 1).double()
    unit = [x / x.norm(dim=1, keepdim=True) for x in (one, other)]
    similar = (unit[0] @ unit[1].T / 0.2).exp()
    expected = -(similar.diagonal() / similar.sum(1)).log()
    assert torch.allclose(contrast_loss(one, other, 0.2).double(), expected, rtol=1e-5)
    assert torch.allclose(contrast_loss(5 * one, other, 0.2), contrast_loss(one, other, 0.2), rtol=1e-5)
    assert contrast_loss(one, one, 0.01).max() < 0.1
    order = torch.randperm(6, generator=torch.Generator().manual_seed(seed))
    assert torch.allclose(contrast_loss(one[order], other[order], 0.2), contrast_loss(one, other, 0.2)[order])


def test_low_energies_count_more(seed: int) -> None:
    logits = _logits(seed).double()
    energy = free_energy(logits)
    assert torch.allclose(energy.double(), -logits.exp().sum(1).log(), rtol=1e-5)
    weights = energy_weights(energy, energy, 2.0)
    assert weights.mean().item() == pytest.approx(1, rel=1e-5)
    assert torch.equal(weights.argsort(descending=True), energy.argsort())
    assert (weights[0] / weights[1]).item() == pytest.approx(((energy[1] - energy[0]) / 2).exp().item(), rel=1e-4)
    assert torch.allclose(energy_weights(energy, energy, 1e5), torch.ones(6), atol=1e-3)
    halves = torch.cat([energy_weights(part, energy, 2.0) for part in energy.split(3)])
    assert torch.allclose(halves, weights)  # as two ranks or two parts of a step have them
    assert energy_weights(energy - 1e4, energy - 1e4, 2.0).isfinite().all()


def _batch(seed: int, with_logits: bool = True) -> TrainingBatch:
    logits = _logits(seed + 1) if with_logits else None
    return TrainingBatch(images=torch.zeros(6, 3, 1, 1), labels=torch.arange(6), logits=logits)


def test_the_terms_add_up(seed: int) -> None:
    loss = LossConfig(soft=0.5, hard=2.0, label_smoothing=0.1, features="hint", features_weight=3.0)
    config = DistillConfig(data="set", out="run", loss=loss)
    batch, said, pair = _batch(seed), _logits(seed), (_logits(seed + 2), _logits(seed + 3))
    soft = distillation_loss(said, _logits(seed + 1), 4.0)
    total = 0.5 * soft + 2 * label_loss(said, batch.labels, 0.1) + 3 * hint_loss(*pair)
    assert training_loss(config, Answer(said, pair), batch, None).item() == pytest.approx(total.mean().item(), rel=1e-5)
    weight = torch.tensor([6.0, 0, 0, 0, 0, 0])
    assert training_loss(config, Answer(said, pair), batch, weight).item() == pytest.approx(total[0].item(), rel=1e-5)


def test_without_a_teacher_only_the_labels_are_learned(seed: int) -> None:
    config = DistillConfig(data="set", out="run", targets="labels", loss=LossConfig(label_smoothing=0.2))
    batch, said = _batch(seed, with_logits=False), _logits(seed)
    expected = label_loss(said, batch.labels, 0.2).mean().item()
    assert training_loss(config, Answer(said, None), batch, None).item() == pytest.approx(expected)
