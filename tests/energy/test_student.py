from __future__ import annotations

import pytest
import torch
from torch import Tensor

from prism_fast.energy.student import StudentDivergence, Where, student_tap
from prism_fast.energy.terms import CrossEntropy, Outputs, WeightedSum

NAME = "0123456789abcdef"
TAP = student_tap(NAME)


def _case(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    teacher, student = 4 * torch.randn(2, 5, 7, generator=generator, dtype=torch.float64)
    return teacher, student, torch.randint(7, (5,), generator=generator)


@pytest.mark.parametrize("where", ["all", "agree"])
@pytest.mark.parametrize("weights", [(0.0, 1.0), (0.7, 2.0)])
def test_cotangents_are_the_fp64_gradient(weights: tuple[float, float], where: Where, seed: int) -> None:
    teacher, student, targets = _case(seed)
    student[:2] = teacher[:2] + student[:2] / 100  # the first choices of two images at least are the same
    term = WeightedSum(terms=(CrossEntropy(), StudentDivergence(fingerprint=NAME, where=where)), weights=weights)
    outputs = Outputs(logits=teacher.requires_grad_(), taps={TAP: student.requires_grad_()})
    expected = term.value(outputs, targets)
    gradients = torch.autograd.grad(expected.sum(), [teacher, student])
    value, cotangents = term.value_and_cotangents(outputs, targets)
    torch.testing.assert_close(value, expected.detach(), rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(cotangents.logits, gradients[0], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(cotangents.taps[TAP], gradients[1], rtol=1e-12, atol=1e-12)
    assert not value.requires_grad and not cotangents.logits.requires_grad and not cotangents.taps[TAP].requires_grad


def test_it_is_minus_the_divergence(seed: int) -> None:
    teacher, student, targets = _case(seed)
    value = StudentDivergence(fingerprint=NAME).value(Outputs(logits=teacher, taps={TAP: student}), targets)
    kl = torch.nn.functional.kl_div(student.log_softmax(1), teacher.log_softmax(1), reduction="none", log_target=True)
    torch.testing.assert_close(value, -kl.sum(1))
    assert (value < 0).all()  # disagreement is low energy


def test_only_images_of_one_first_choice_count(seed: int) -> None:
    teacher, student, targets = _case(seed)
    student[:2], student[2] = teacher[:2] * 0.7, -teacher[2]
    outputs = Outputs(logits=teacher, taps={TAP: student})
    agree = teacher.argmax(1) == student.argmax(1)
    assert agree[:2].all() and not agree[2]
    every, every_along = StudentDivergence(fingerprint=NAME).value_and_cotangents(outputs, targets)
    value, along = StudentDivergence(fingerprint=NAME, where="agree").value_and_cotangents(outputs, targets)
    torch.testing.assert_close(value, torch.where(agree, every, 0.0))
    torch.testing.assert_close(along.taps[TAP], torch.where(agree[:, None], every_along.taps[TAP], 0.0))
    assert not along.logits[~agree].any() and along.logits[agree].any()


def test_where_they_agree_there_is_nothing_to_gain(seed: int) -> None:
    teacher, _, targets = _case(seed)
    outputs = Outputs(logits=teacher, taps={TAP: teacher + 3.0})
    value, cotangents = StudentDivergence(fingerprint=NAME).value_and_cotangents(outputs, targets)
    assert value.abs().max() < 1e-13 and cotangents.logits.abs().max() < 1e-13
    assert cotangents.taps[TAP].abs().max() < 1e-13


def test_extreme_logits_stay_finite() -> None:
    logits = torch.tensor([[3e4, -3e4, 0.0], [-6e4, -6e4, -6e4]], dtype=torch.float16)
    for outputs in (Outputs(logits=logits, taps={TAP: logits.flip(1)}), Outputs(logits=logits, taps={TAP: logits})):
        value, cotangents = StudentDivergence(fingerprint=NAME).value_and_cotangents(outputs, torch.tensor([1, 0]))
        assert value.dtype == torch.float32 and value.isfinite().all()
        assert cotangents.logits.isfinite().all() and cotangents.taps[TAP].isfinite().all()
