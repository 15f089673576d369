from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from prism_fast.energy.terms import CrossEntropy, EnergyTerm, Entropy, Outputs, guidance_energy
from prism_fast.errors import UserError
from prism_fast.teachers.eager import EagerTeacher

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)


class _Smooth(torch.nn.Module):
    """A small network without kinks, so that fp32 and fp64 gradients can be compared row by row."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 8, 3, stride=2)
        self.head = torch.nn.Linear(8, 5)

    def forward_features(self, x: Tensor) -> Tensor:
        return torch.nn.functional.gelu(self.conv(x))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        pooled = x.mean(dim=(2, 3))
        return pooled if pre_logits else self.head(pooled)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))


def _teacher(seed: int, dtype: torch.dtype = torch.float32, **options: Any) -> EagerTeacher:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = _Smooth().double()
    with torch.no_grad():
        model.head.weight *= 20
    settings: dict[str, Any] = {"mean": MEAN, "std": STD, "input_size": (12, 12), "num_classes": 5} | options
    return EagerTeacher(model, dtype=dtype, **settings)


def _batch(seed: int, size: int = 17) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(6, 3, size, size, generator=generator), torch.randint(5, (6,), generator=generator)


@pytest.mark.parametrize(
    "term", [guidance_energy(), guidance_energy(free_weight=0.2, temperature=3.0), Entropy()], ids=str
)
def test_energy_and_gradient_against_fp64_autograd(term: EnergyTerm, seed: int) -> None:
    """Truth: one fp64 autograd from torch's own resize to the energy."""
    images, targets = _batch(seed)
    truth = _teacher(seed, torch.float64)
    wide = images.double().requires_grad_()
    resized = torch.nn.functional.interpolate(wide, (12, 12), mode="bilinear", antialias=True)
    mean, std = (torch.tensor(v, dtype=torch.float64).view(1, 3, 1, 1) for v in (MEAN, STD))
    energy = term.value(Outputs(logits=truth.model((resized - mean) / std)), targets)
    (gradient,) = torch.autograd.grad(energy.sum(), wide)

    exact = truth.energy_and_grad(images.double(), targets, term)
    torch.testing.assert_close(exact.energy, energy.detach(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(exact.grad, gradient, rtol=1e-9, atol=1e-12)

    result = _teacher(seed).energy_and_grad(images, targets, term)
    assert result.energy.dtype == result.grad.dtype == torch.float32
    torch.testing.assert_close(result.energy.double(), energy.detach(), rtol=1e-5, atol=1e-5)
    error = (result.grad.double() - gradient).flatten(1).norm(dim=1) / gradient.flatten(1).norm(dim=1)
    assert error.max() < 1e-5
    assert result.finite.all() and not result.energy.requires_grad


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 0.1), (torch.float16, 0.02)])
def test_half_precision_gradients_point_the_same_way(dtype: torch.dtype, tolerance: float, seed: int) -> None:
    images, targets = _batch(seed)
    truth = _teacher(seed).energy_and_grad(images, targets, CrossEntropy())
    half = _teacher(seed, dtype).energy_and_grad(images, targets, CrossEntropy())
    assert half.grad.dtype == half.energy.dtype == torch.float32
    cosine = torch.nn.functional.cosine_similarity(half.grad.flatten(1), truth.grad.flatten(1))
    assert cosine.min() > 1 - tolerance


def test_fp16_cotangents_below_its_range_survive(seed: int) -> None:
    """A target already certain: the cross-entropy's cotangent is 1e-9, zero in plain fp16."""

    class Certain(_Smooth):
        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = super().forward(x)
            return logits + torch.tensor([20.0, 0, 0, 0, 0]).to(logits)

    def make(dtype: torch.dtype) -> EagerTeacher:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = Certain()
        return EagerTeacher(model, mean=MEAN, std=STD, input_size=(12, 12), num_classes=5, dtype=dtype)

    images, _ = _batch(seed)
    targets = torch.zeros(6, dtype=torch.int64)
    truth = make(torch.float64).energy_and_grad(images.double(), targets, CrossEntropy())
    half = make(torch.float16).energy_and_grad(images, targets, CrossEntropy())
    assert truth.grad.abs().max() < 6e-8  # below fp16's smallest number
    # scaled up: cosine_similarity floors the norms at 1e-8
    cosine = torch.nn.functional.cosine_similarity(half.grad.flatten(1).double() * 1e12, truth.grad.flatten(1) * 1e12)
    assert half.finite.all() and cosine.min() > 0.98


def test_images_are_independent(seed: int) -> None:
    images, targets = _batch(seed)
    teacher = _teacher(seed)
    result = teacher.energy_and_grad(images, targets, guidance_energy())
    turned = teacher.energy_and_grad(images.flip(0), targets.flip(0), guidance_energy())
    assert torch.equal(turned.grad.flip(0), result.grad)
    broken = images.clone()
    broken[2] = float("nan")
    partial = teacher.energy_and_grad(broken, targets, guidance_energy())
    assert partial.finite.tolist() == [True, True, False, True, True, True]
    assert torch.equal(partial.grad[3:], result.grad[3:]) and not partial.grad[2].any()


def test_outputs_and_features(seed: int) -> None:
    images, _ = _batch(seed)
    teacher = _teacher(seed)
    features = teacher.features(images)
    assert features.shape == (6, 8) and not features.requires_grad
    torch.testing.assert_close(teacher.model.head(features), teacher.outputs(images).logits)
    with pytest.raises(UserError, match="forward_features"):
        EagerTeacher(torch.nn.Conv2d(3, 4, 1), mean=MEAN, std=STD, input_size=(4, 4), num_classes=4).features(images)


def test_images_are_resized_in_fp32_inside_autocast(seed: int) -> None:
    """Mixed precision is the network's: eight bits of a resized image would be seven."""
    images = _batch(seed)[0]
    shown: list[Tensor] = []
    teacher = _teacher(seed)
    teacher.model.register_forward_pre_hook(lambda _, given: shown.append(given[0]))
    plain = teacher.outputs(images).logits
    with torch.autocast("cpu", torch.bfloat16):
        low = teacher.outputs(images).logits
    assert torch.equal(*shown) and shown[1].dtype == torch.float32
    assert low.dtype == torch.bfloat16 and torch.allclose(low.float(), plain, atol=0.1 * plain.abs().max().item())


def test_outputs_are_differentiable_where_gradients_are_enabled(seed: int) -> None:
    images, _ = _batch(seed)
    (gradient,) = torch.autograd.grad(_teacher(seed).outputs(images.requires_grad_()).logits.sum(), images)
    assert gradient.abs().sum() > 0


def test_fingerprint_changes_with_what_decides_the_energy(seed: int) -> None:
    base = _teacher(seed).fingerprint
    assert _teacher(seed).fingerprint == base and len(base) == 16
    others = [
        _teacher(seed + 1),
        _teacher(seed, mean=(0.4, 0.5, 0.61)),
        _teacher(seed, input_size=(13, 12)),
        _teacher(seed, interpolation="bicubic"),
        _teacher(seed, torch.bfloat16),
    ]
    assert len({base, *(teacher.fingerprint for teacher in others)}) == 6


def test_label_names_must_match(seed: int) -> None:
    with pytest.raises(UserError, match="5 classes but 2"):
        _teacher(seed, label_names=["a", "b"])
    assert _teacher(seed, label_names=list("abcde")).label_names == ("a", "b", "c", "d", "e")
