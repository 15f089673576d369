"""Energies on more than the teacher's logits, as graphs: batch-norm statistics and the divergence from a student."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import timm
import torch

from prism_fast.energy.batch_norm import BatchNormStatistics
from prism_fast.energy.student import StudentDivergence, Where
from prism_fast.energy.terms import CrossEntropy, EnergyTerm, Entropy, FreeEnergy, WeightedSum
from prism_fast.errors import UserError
from prism_fast.teachers import tensorrt
from prism_fast.teachers.asked import asked_of
from prism_fast.teachers.backend import BackendTeacher
from prism_fast.teachers.check import check_backend
from prism_fast.teachers.choice import make_backend
from prism_fast.teachers.eager import EagerTeacher
from prism_fast.teachers.joint import joint_module
from prism_fast.teachers.traced import trace
from prism_fast.teachers.truth import in_batches, relative, truth, wide_term
from tests.exports import exported
from tests.teachers.networks import random_classifier

SIZE = 32
TEACHERS = ("resnet18", "densenet121", "mobilenetv3_small_050")
"""Batch norm behind a convolution, before one, and as timm's layer with its activation inside."""
SMALL: dict[str, dict[str, Any]] = {
    "densenet121": {"growth_rate": 8, "block_config": (2, 2)},
    "mobilenetv3_small_050": {"shallow": True},
}
KINDS = ("statistics", "student", "both", "norm and agree")
TINY: dict[str, Any] = {"channels": [8, 8, 16, 16], "stem_width": 8}


def _term(teacher: EagerTeacher, kind: str, seed: int) -> WeightedSum:
    parts: list[tuple[float, EnergyTerm]] = [
        (0.5, FreeEnergy(temperature=2.0)), (1.5, CrossEntropy()), (-0.2, Entropy()),
    ]  # fmt: skip
    others = kind == "norm and agree"
    if kind != "student":
        statistics = BatchNormStatistics(running=teacher.batch_norms(), form="norm" if others else "squared")
        parts.append((0.7, statistics))
    if kind != "statistics":  # of another size and with another normalisation than the teacher
        student = random_classifier("resnet10t", seed + 1, SIZE - 8, mean=(0.1, 0.2, 0.3), **TINY)
        where: Where = "agree" if others else "all"
        parts.append((0.3, StudentDivergence(fingerprint=student.fingerprint, network=student, where=where)))
    return WeightedSum(terms=tuple(term for _, term in parts), weights=tuple(weight for weight, _ in parts))


def _graph(teacher: EagerTeacher, term: EnergyTerm, images: torch.Tensor, targets: torch.Tensor) -> Any:
    asked = asked_of(term)
    size = int(images.shape[2]), int(images.shape[3])
    module = joint_module(teacher, size, images.dtype, asked.further)
    one_hot = torch.nn.functional.one_hot(targets, teacher.num_classes).to(images)
    with torch.no_grad():
        return module(images, one_hot, images.new_tensor(asked.temperature), images.new_tensor(asked.weights))


@pytest.mark.parametrize("name", TEACHERS)
@pytest.mark.parametrize("kind", KINDS)
def test_the_graph_is_autograd_in_fp64(name: str, kind: str, seed: int) -> None:
    teacher = random_classifier(name, seed, SIZE, **SMALL.get(name, {}))
    term = _term(teacher, kind, seed)
    right = truth(teacher, 3, size=(40, 36), seed=seed, term=term)
    energy, gradient, _ = _graph(teacher, wide_term(term), right.images.double(), right.targets)
    torch.testing.assert_close(energy, right.energy, rtol=1e-10, atol=1e-10)
    # rounding in another order, times the depth; torch's hardsigmoid has a slope of 1/6 in single precision
    bound = 1e-6 if name.startswith("mobilenetv3") else 1e-9
    assert float((gradient - right.gradient).norm()) <= bound * float(right.gradient.norm())


@pytest.mark.usefixtures("shared_exports")
@pytest.mark.parametrize("backend", ["onnx", pytest.param("compiled", marks=pytest.mark.slow)])
def test_a_backend_has_them(backend: str, seed: int) -> None:
    teacher = random_classifier("resnet10t", seed, SIZE, **TINY)
    right = truth(teacher, 4, seed=seed, term=_term(teacher, "both", seed))
    verdict = check_backend(teacher, backend, right, batch=2)
    assert verdict.passed, verdict


@pytest.mark.usefixtures("shared_exports")
def test_one_graph_for_each_energy_and_the_weights_are_inputs(seed: int) -> None:
    teacher = random_classifier("resnet10t", seed, SIZE, **TINY)
    made = make_backend(teacher, "onnx")
    assert isinstance(made, BackendTeacher)
    images, targets = torch.rand(3, 3, SIZE, SIZE), torch.tensor([0, 3, 6])
    for kind, graphs in (("statistics", 1), ("student", 2), ("both", 3), ("norm and agree", 4)):
        term = _term(teacher, kind, seed)
        heavier = replace(term, weights=(*term.weights[:-1], 2 * term.weights[-1]))
        for each in (term, heavier):
            found, right = (one.energy_and_grad(images, targets, each) for one in (made, teacher))
            torch.testing.assert_close(found.energy, right.energy, rtol=1e-4, atol=1e-4)
            assert float((found.grad - right.grad).flatten(1).norm(dim=1).median()) < 1e-3
        assert len(made._runners) == graphs


@pytest.mark.usefixtures("shared_exports")
def test_running_statistics_that_are_not_the_teachers_are_another_graph(seed: int) -> None:
    teacher = random_classifier("resnet10t", seed, SIZE, **TINY)
    made = make_backend(teacher, "onnx")
    own = teacher.batch_norms()
    moved = {name: replace(each, mean=each.mean + 1) for name, each in own.items()}
    images, targets = torch.rand(2, 3, SIZE, SIZE), torch.tensor([0, 1])
    for running in (own, moved):
        term = BatchNormStatistics(running=running)
        found, right = (one.energy_and_grad(images, targets, term) for one in (made, teacher))
        torch.testing.assert_close(found.energy, right.energy, rtol=1e-4, atol=1e-4)


def _rounded_factors(teacher: EagerTeacher) -> EagerTeacher:
    """The same classifier, its batch norms as one factor and one summand a channel, in the weights' precision.

    A graph has them like that. Eager batch norm keeps them in fp32, and that they are rounded shifts the energies of
    all images alike.
    """
    for norm in (each for each in teacher.model.modules() if isinstance(each, torch.nn.BatchNorm2d)):
        assert norm.running_mean is not None and norm.running_var is not None
        factor = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
        summand = norm.bias.double() - norm.running_mean.double() * factor
        norm.weight.data.copy_(factor)
        norm.bias.data.copy_(summand)
        norm.running_mean.zero_()
        norm.running_var.fill_(1.0)
        norm.eps = 0.0
    return teacher


def test_fp16_inside_is_as_near_as_eager_fp16(seed: int) -> None:
    def network(dtype: torch.dtype = torch.float32) -> EagerTeacher:
        smooth = {**TINY, "act_layer": torch.nn.SiLU, "stem_type": "deep_tiered", "avg_down": True}
        return random_classifier("resnet10t", seed, SIZE, dtype=dtype, **smooth)

    teacher = network(torch.float16)
    term = _term(network(), "both", seed)
    right = truth(teacher, 32, dtype="float16", seed=seed, term=term)
    errors = []
    for one in (teacher, _rounded_factors(network(torch.float16)), make_backend(teacher, "onnx")):
        energy, gradient = in_batches(one.energy_and_grad, right.images, right.targets, term, 8)
        away = (energy - right.energy).square().mean().sqrt()
        errors.append([float(away), float(relative(gradient, right.gradient).median())])
    eager, rounded, ours = errors
    assert all(mine <= 2 * max(one, other) for mine, one, other in zip(ours, eager, rounded, strict=True)), errors


@pytest.mark.parametrize("kind", KINDS)
def test_tensorrt_builds_it(kind: str, seed: int) -> None:
    teacher = random_classifier("resnet10t", seed, SIZE, **TINY)
    model = exported(teacher, further=asked_of(_term(teacher, kind, seed)).further).model
    assert len(tensorrt.build(model, tensorrt.Profile.around(4), (8, 6), "tensorrt-rtx")) > 10_000


def test_what_no_graph_has_is_refused(seed: int) -> None:
    teacher = random_classifier("resnet10t", seed, SIZE, **TINY)
    running = teacher.batch_norms()
    statistics = BatchNormStatistics(running=running)
    with pytest.raises(UserError, match="BatchNormStatistics is not among the terms"):
        asked_of(BatchNormStatistics(running=running, coupled=True))
    with pytest.raises(UserError, match="each once"):
        asked_of(WeightedSum(terms=(statistics, statistics), weights=(1.0, 2.0)))
    with pytest.raises(UserError, match="student as a plain classifier"):
        asked_of(StudentDivergence(fingerprint="0" * 16))
    with pytest.raises(UserError, match="runs 0 times"):
        trace(timm.create_model("resnet10t", num_classes=7).eval(), (SIZE, SIZE), ["bn:elsewhere"])
