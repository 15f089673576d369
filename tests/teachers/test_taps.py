"""The eager teacher with energies that read more than its logits."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from prism_fast.energy.batch_norm import BatchNormStatistics
from prism_fast.energy.student import StudentDivergence
from prism_fast.energy.terms import CrossEntropy, EnergyTerm, Outputs, WeightedSum, guidance_energy
from prism_fast.errors import UserError
from prism_fast.teachers import eager
from prism_fast.teachers.eager import EagerTeacher
from prism_fast.teachers.load import load_classifier
from prism_fast.teachers.taps import batch_norm_inputs, outputs_for
from tests.tiny import save_tiny_teacher

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)


class _Normed(torch.nn.Module):
    """Smooth, with two batch-norm layers whose statistics are not those of any image."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = torch.nn.Conv2d(3, 6, 3, stride=2), torch.nn.BatchNorm2d(6)
        self.conv2, self.bn2 = torch.nn.Conv2d(6, 8, 3), torch.nn.BatchNorm2d(8)
        self.head = torch.nn.Linear(8, 5)
        for layer in (self.bn1, self.bn2):
            layer.running_mean.normal_()
            layer.running_var.uniform_(0.2, 2.0)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.nn.functional.gelu(self.bn1(self.conv1(x)))
        x = torch.nn.functional.gelu(self.bn2(self.conv2(x)))
        logits: Tensor = 5 * self.head(x.mean((2, 3)))
        return logits


def _teacher(seed: int, dtype: torch.dtype = torch.float32, model: torch.nn.Module | None = None) -> EagerTeacher:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made = model or _Normed().double()
    return EagerTeacher(made, mean=MEAN, std=STD, input_size=(12, 12), num_classes=5, dtype=dtype)


def _batch(seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(6, 3, 17, 17, generator=generator), torch.randint(5, (6,), generator=generator)


def _statistics(teacher: EagerTeacher, coupled: bool = False) -> BatchNormStatistics:
    return BatchNormStatistics(running=teacher.batch_norms(), coupled=coupled)


def _whole(teacher: EagerTeacher, student: EagerTeacher) -> WeightedSum:
    divergence = StudentDivergence(fingerprint=student.fingerprint, network=student)
    return WeightedSum(terms=(guidance_energy(), _statistics(teacher), divergence), weights=(1.0, 2.0, 0.5))


def _truth(teacher: EagerTeacher, images: Tensor, targets: Tensor, term: EnergyTerm) -> tuple[Tensor, Tensor]:
    """Energies and gradient by autograd through the term's value."""
    leaf = images.detach().to(torch.promote_types(images.dtype, torch.float32)).requires_grad_()
    energy = term.value(outputs_for(teacher, leaf, term), targets)
    (gradient,) = torch.autograd.grad(energy.sum(), leaf)
    return energy.detach(), gradient


@pytest.mark.parametrize("coupled", [False, True])
def test_batch_norm_statistics_against_autograd_without_hooks(coupled: bool, seed: int) -> None:
    teacher = _teacher(seed, torch.float64)
    images, targets = _batch(seed)
    model, leaf = teacher.model, images.double().requires_grad_()
    first = model.conv1(teacher._prepared(leaf))
    second = model.conv2(torch.nn.functional.gelu(model.bn1(first)))
    term = _statistics(teacher, coupled)
    assert term.needed_taps == ("bn:bn1", "bn:bn2")
    said = Outputs(logits=model(teacher._prepared(leaf)), taps={"bn:bn1": first, "bn:bn2": second})
    energy = term.value(said, targets)
    (gradient,) = torch.autograd.grad(energy.sum(), leaf)
    found = teacher.energy_and_grad(images.double(), targets, term)
    torch.testing.assert_close(found.energy, energy.detach(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found.grad, gradient, rtol=1e-10, atol=1e-13)
    assert found.finite.all()


def test_all_terms_are_pulled_back_together(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    teacher, student = _teacher(seed, torch.float64), _teacher(seed + 1, torch.float64)
    images, targets = _batch(seed)
    term = _whole(teacher, student)
    energy, gradient = _truth(teacher, images.double(), targets, term)
    calls, pull = [], torch.autograd.grad
    monkeypatch.setattr(eager.torch.autograd, "grad", lambda *given: calls.append(len(given[0])) or pull(*given))
    exact = teacher.energy_and_grad(images.double(), targets, term)
    assert calls == [4]  # logits, two layers, the student's logits
    torch.testing.assert_close(exact.energy, energy, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(exact.grad, gradient, rtol=1e-10, atol=1e-12)

    teacher, student = _teacher(seed), _teacher(seed + 1)
    result = teacher.energy_and_grad(images, targets, _whole(teacher, student))
    assert result.energy.dtype == result.grad.dtype == torch.float32 and not result.outputs.taps
    error = (result.grad.double() - gradient).flatten(1).norm(dim=1) / gradient.flatten(1).norm(dim=1)
    assert error.max() < 1e-4


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 0.1), (torch.float16, 0.02)])
@pytest.mark.parametrize("weight", [1.0, 1e-6, 1e4])
def test_half_precision(dtype: torch.dtype, tolerance: float, weight: float, seed: int) -> None:
    """Whatever the size of the energy: the scale is taken out again, and is that of the largest cotangent."""
    images, targets = _batch(seed)
    teacher, half = _teacher(seed), _teacher(seed, dtype)
    truth = teacher.energy_and_grad(
        images, targets, WeightedSum(terms=(_statistics(teacher), CrossEntropy()), weights=(weight, weight))
    )
    found = half.energy_and_grad(
        images, targets, WeightedSum(terms=(_statistics(half), CrossEntropy()), weights=(weight, weight))
    )
    assert found.grad.dtype == torch.float32 and found.finite.all()
    ours, exact = (one.grad.flatten(1).double() / weight for one in (found, truth))
    assert torch.nn.functional.cosine_similarity(ours, exact).min() > 1 - tolerance
    torch.testing.assert_close(ours.norm(dim=1), exact.norm(dim=1), rtol=0.1, atol=0)


def test_images_are_independent(seed: int) -> None:
    teacher, student = _teacher(seed), _teacher(seed + 1)
    images, targets = _batch(seed)
    term = _whole(teacher, student)
    result = teacher.energy_and_grad(images, targets, term)
    other = images.clone()
    other[3:] = other[3:].flip(2) * 0.5
    changed = teacher.energy_and_grad(other, targets, term)
    assert torch.equal(changed.grad[:3], result.grad[:3]) and torch.equal(changed.energy[:3], result.energy[:3])
    other[4] = float("nan")
    broken = teacher.energy_and_grad(other, targets, term)
    assert broken.finite.tolist() == [True] * 4 + [False, True] and not broken.grad[4].any()
    assert torch.equal(broken.grad[:3], result.grad[:3])


def test_constant_images_have_a_finite_gradient(seed: int) -> None:
    teacher = _teacher(seed)
    found = teacher.energy_and_grad(torch.full((2, 3, 12, 12), 0.5), torch.tensor([0, 1]), _statistics(teacher))
    assert found.finite.all()


def test_descending_the_statistics_brings_them_nearer(seed: int) -> None:
    teacher = _teacher(seed)
    images, targets = _batch(seed)
    term = _statistics(teacher)
    before = teacher.energy_and_grad(images, targets, term)
    step = 1e-2 * before.grad / before.grad.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    after = teacher.energy_and_grad(images - step, targets, term)
    assert (after.energy < before.energy).all()


def test_logits_alone_take_the_old_way(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    teacher = _teacher(seed)
    images, targets = _batch(seed)
    expected = teacher.energy_and_grad(images, targets, guidance_energy())

    def nowhere(*_: Any) -> Iterator[Any]:
        raise AssertionError("hooks for a term on logits")

    monkeypatch.setattr(eager, "batch_norm_inputs", nowhere)
    again = teacher.energy_and_grad(images, targets, guidance_energy())
    assert torch.equal(again.grad, expected.grad)


def test_hooks_do_not_stay(seed: int) -> None:
    teacher = _teacher(seed)
    images, targets = _batch(seed)
    teacher.energy_and_grad(images, targets, _statistics(teacher))
    with (
        pytest.raises(UserError, match="no tap 'bn:nowhere'"),
        batch_norm_inputs(teacher.model, ["bn:bn1", "bn:nowhere"]),
    ):
        pass
    assert not any(module._forward_pre_hooks for module in teacher.model.modules())


def test_what_a_teacher_cannot_give_is_said(seed: int) -> None:
    images, targets = _batch(seed)
    teacher = _teacher(seed)
    with pytest.raises(UserError, match="no tap 'student:0123"):
        teacher.energy_and_grad(images, targets, StudentDivergence(fingerprint="0123456789abcdef"))

    class Twice(_Normed):
        def forward(self, x: Tensor) -> Tensor:
            self.bn1(self.conv1(x))
            return super().forward(x)

    twice = _teacher(seed, model=Twice())
    with pytest.raises(UserError, match="bn:bn1 runs more than once"):
        twice.energy_and_grad(images, targets, _statistics(twice))

    class LogitsAlone:
        def outputs(self, images: Tensor) -> Outputs:
            return Outputs(logits=images.mean((2, 3)))

    alone: Any = LogitsAlone()
    assert outputs_for(alone, images, CrossEntropy()).logits.shape == (6, 3)
    with pytest.raises(UserError, match="LogitsAlone gives logits alone, and this energy needs bn:bn1"):
        outputs_for(alone, images, _statistics(teacher))


def test_layers_of_a_timm_model(tmp_path: Path, seed: int) -> None:
    teacher = load_classifier(str(save_tiny_teacher(tmp_path, seed=seed)))
    names = list(teacher.batch_norms())
    assert "bn:bn1" in names and "bn:layer1.0.bn1" in names and len(names) > 8
    images = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(seed))
    term = _statistics(teacher)
    energy, gradient = _truth(teacher, images, torch.zeros(3, dtype=torch.int64), term)
    found = teacher.energy_and_grad(images, torch.zeros(3, dtype=torch.int64), term)
    torch.testing.assert_close(found.energy, energy, rtol=1e-5, atol=1e-6)
    error = (found.grad - gradient).flatten(1).norm(dim=1) / gradient.flatten(1).norm(dim=1)
    assert error.max() < 1e-4
