from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from prism_fast.energy.batch_norm import BatchNormStatistics
from prism_fast.energy.ensemble import EnsembleEnergy, Mode
from prism_fast.energy.terms import CrossEntropy, EnergyTerm, WeightedSum, guidance_energy
from prism_fast.errors import UserError
from prism_fast.teachers.eager import EagerTeacher
from prism_fast.teachers.ensemble import EnsembleTeacher, ensemble_names
from prism_fast.teachers.fused import ContractGradient, FusedGradient, raw_gradient
from prism_fast.teachers.load import load_classifier, load_teacher
from prism_fast.teachers.taps import outputs_for
from tests.tiny import save_tiny_teacher

MODES: tuple[Mode, ...] = ("mean", "worst")
TARGETS = torch.tensor([3, 1, 4, 1, 5])


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Of two classifiers; the second sees larger images."""
    return [
        save_tiny_teacher(tmp_path_factory.mktemp("teacher"), seed=number, size=size)
        for number, size in enumerate((32, 40))
    ]


@pytest.fixture(scope="module")
def members(folders: list[Path]) -> list[EagerTeacher]:
    return [load_classifier(str(folder)) for folder in folders]


def _images(seed: int) -> Tensor:
    return torch.rand(5, 3, 36, 36, generator=torch.Generator().manual_seed(seed))


def _own_terms(members: list[EagerTeacher]) -> tuple[EnergyTerm, ...]:
    return tuple(
        WeightedSum(terms=(CrossEntropy(), BatchNormStatistics(running=member.batch_norms())), weights=(1.0, 3.0))
        for member in members
    )


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("own", [False, True])
def test_energies_are_combined_not_logits(members: list[EagerTeacher], mode: Mode, own: bool, seed: int) -> None:
    images, teacher = _images(seed), EnsembleTeacher(members, mode)
    terms = _own_terms(members) if own else (guidance_energy(),) * 2
    term = EnsembleEnergy(terms=terms, mode=mode) if own else terms[0]
    found = teacher.energy_and_grad(images, TARGETS, term)
    alone = [member.energy_and_grad(images, TARGETS, each) for member, each in zip(members, terms, strict=True)]
    energies = torch.stack([one.energy for one in alone])
    if mode == "mean":
        energy, gradient = energies.mean(0), (alone[0].grad + alone[1].grad) / 2
    else:
        worst = (energies[1] > energies[0]).view(-1, 1, 1, 1)
        energy, gradient = energies.max(0).values, torch.where(worst, alone[1].grad, alone[0].grad)
    torch.testing.assert_close(found.energy, energy)
    torch.testing.assert_close(found.grad, gradient)
    assert found.finite.all()

    leaf = images.clone().requires_grad_()  # the energy's own value says the same
    combined = EnsembleEnergy(terms=terms, mode=mode)
    value = combined.value(outputs_for(teacher, leaf, combined), TARGETS)
    (straight,) = torch.autograd.grad(value.sum(), leaf)
    torch.testing.assert_close(found.energy, value.detach(), rtol=1e-4, atol=1e-5)
    error = (found.grad - straight).flatten(1).norm(dim=1) / straight.flatten(1).norm(dim=1)
    assert error.median() < 1e-4


def test_labels_are_the_mean_of_the_logits(members: list[EagerTeacher], seed: int) -> None:
    images, teacher = _images(seed), EnsembleTeacher(members, "worst")
    first, second = (member.outputs(images).logits for member in members)
    torch.testing.assert_close(teacher.outputs(images).logits, (first + second) / 2)
    torch.testing.assert_close(
        teacher.energy_and_grad(images, TARGETS, guidance_energy()).outputs.logits, (first + second) / 2
    )
    assert teacher.features(images).shape == (5, sum(member.features(images).shape[1] for member in members))
    assert teacher.num_classes == 10 and teacher.input_size == (40, 40)
    assert teacher.label_names == members[0].label_names


def test_the_fingerprint_is_of_members_and_mode(members: list[EagerTeacher]) -> None:
    made = [
        EnsembleTeacher(members), EnsembleTeacher(members, "worst"), EnsembleTeacher(members[:1]),
        EnsembleTeacher(members[::-1]), members[0],
    ]  # fmt: skip
    assert len({teacher.fingerprint for teacher in made}) == 5
    assert EnsembleTeacher(members).fingerprint == made[0].fingerprint and len(made[0].fingerprint) == 16


@pytest.mark.parametrize("mode", MODES)
def test_what_one_member_cannot_say_is_not_finite(members: list[EagerTeacher], mode: Mode, seed: int) -> None:
    images, teacher = _images(seed), EnsembleTeacher(members, mode)
    whole = teacher.energy_and_grad(images, TARGETS, guidance_energy())
    images[2] = float("nan")
    found = teacher.energy_and_grad(images, TARGETS, guidance_energy())
    assert found.finite.tolist() == [True, True, False, True, True] and not found.grad[2].any()
    assert torch.equal(found.grad[:2], whole.grad[:2]) and torch.equal(found.grad[3:], whole.grad[3:])


def test_an_ensemble_in_an_ensemble(members: list[EagerTeacher], seed: int) -> None:
    images, inner = _images(seed), EnsembleTeacher(members, "worst")
    teacher = EnsembleTeacher([inner, members[0]])
    found = teacher.energy_and_grad(images, TARGETS, guidance_energy())
    alone = [one.energy_and_grad(images, TARGETS, guidance_energy()).energy for one in (inner, members[0])]
    torch.testing.assert_close(found.energy, (alone[0] + alone[1]) / 2)
    term = EnsembleEnergy(terms=(EnsembleEnergy(terms=(guidance_energy(),) * 2, mode="worst"), guidance_energy()))
    value = term.value(outputs_for(teacher, images, term), TARGETS)
    torch.testing.assert_close(found.energy, value.detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "mode", "members"),
    [
        ("fashion", None, ["fashion"]),
        ("a+b", "mean", ["a", "b"]),
        ("mean:a+b", "mean", ["a", "b"]),
        ("worst:hf-hub:o/a + ./b+c", "worst", ["hf-hub:o/a", "./b", "c"]),
        ("worst:a", "worst", ["a"]),
    ],
)
def test_names(name: str, mode: str | None, members: list[str]) -> None:
    assert ensemble_names(name) == (mode, members)


def test_loading(folders: list[Path], tmp_path: Path, seed: int) -> None:
    first, second = map(str, folders)
    found = load_teacher(f"worst:{first}+{second}")
    assert isinstance(found, EnsembleTeacher) and found.mode == "worst" and len(found.members) == 2
    assert isinstance(load_teacher(first), EagerTeacher)
    plus = save_tiny_teacher(tmp_path / "a+b", seed=seed)
    for name in (str(plus), f"local-dir:{plus}"):
        assert isinstance(load_teacher(name), EagerTeacher)
    for name in (f"{first}+", "+", "worst:", f"{first}++{second}"):
        with pytest.raises(UserError, match=r"write an ensemble as A\+B"):
            load_teacher(name)
    with pytest.raises(UserError, match="no such teacher folder"):
        load_teacher(f"{first}+./nowhere")


def test_members_must_know_the_same_classes(members: list[EagerTeacher], tmp_path: Path) -> None:
    fewer = load_classifier(str(save_tiny_teacher(tmp_path, num_classes=7)))
    with pytest.raises(UserError, match=r"know \[10, 7\] classes"):
        EnsembleTeacher([members[0], fewer])

    class Other:
        num_classes, input_size, fingerprint = 10, (8, 8), "other"
        label_names: Any = tuple(f"class {index}" for index in (0, 2, 1, 3, 4, 5, 6, 7, 8, 9))

    other: Any = Other()
    with pytest.raises(UserError, match="name their classes differently \\('class 1' and 'class 2'\\)"):
        EnsembleTeacher([members[0], other])
    other.label_names = None
    assert EnsembleTeacher([other, members[0]]).label_names == members[0].label_names
    with pytest.raises(UserError, match="at least one"):
        EnsembleTeacher([])
    with pytest.raises(UserError, match="mean or the worst"):
        EnsembleTeacher(members, "best")  # type: ignore[arg-type]
    term = EnsembleEnergy(terms=(guidance_energy(),))
    with pytest.raises(UserError, match="an energy of 1 members, the ensemble has 2"):
        EnsembleTeacher(members).energy_and_grad(torch.rand(1, 3, 8, 8), TARGETS[:1], term)


def test_which_gradient(members: list[EagerTeacher]) -> None:
    """Fused where the fused operation has the whole energy; what is coupled nowhere."""
    running = members[0].batch_norms()
    more = WeightedSum(terms=(CrossEntropy(), BatchNormStatistics(running=running)), weights=(1.0, 1.0))
    coupled = WeightedSum(terms=(BatchNormStatistics(running=running, coupled=True),), weights=(1.0,))
    cases: list[tuple[Any, EnergyTerm, type]] = [
        (members[0], guidance_energy(), FusedGradient),
        (members[0], more, ContractGradient),
        (EnsembleTeacher(members), guidance_energy(), ContractGradient),
    ]
    for teacher, term, kind in cases:
        assert isinstance(raw_gradient(teacher, low=-1.0, high=1.0, term=term), kind)
    with pytest.raises(UserError, match="rows beside it"):
        raw_gradient(members[0], low=-1.0, high=1.0, term=coupled)
