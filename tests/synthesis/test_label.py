from __future__ import annotations

import math

import pytest
import torch

from prism_fast.errors import UserError
from prism_fast.sampling.config import GuidanceConfig
from prism_fast.synthesis.label import Labeller
from prism_fast.synthesis.record import significant
from tests.synthesis.doubles import ColourTeacher


def images(seed: int, count: int) -> torch.Tensor:
    return torch.randint(0, 256, (count, 3, 8, 8), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def test_labels_are_those_of_the_logits_in_double_precision(seed: int) -> None:
    guidance = GuidanceConfig(free_weight=0.5, class_weight=2.0, temperature=3.0)
    found = Labeller(ColourTeacher(), guidance, 8)(images(seed, 5), [0, 1, 2, 0, 1])
    f = 10 * (images(seed, 5).double() / 255).mean((2, 3))
    targets = torch.tensor([0, 1, 2, 0, 1])
    free = -3 * (f / 3).logsumexp(1)
    cross = torch.nn.functional.cross_entropy(f, targets, reduction="none")
    for mine, truth in (
        (found.free_energy, free), (found.class_energy, cross), (found.energy, 0.5 * free + 2 * cross),
        (found.probability, (-cross).exp()),
    ):  # fmt: skip
        assert torch.allclose(torch.tensor(mine, dtype=torch.float64), truth, rtol=1e-5, atol=1e-6)
    assert found.top1 == f.argmax(1).tolist()
    assert found.logits.dtype.str == "<f2" and found.logits.shape == (5, 3)
    assert torch.allclose(torch.from_numpy(found.logits).double(), f, rtol=2**-11)


def test_every_call_has_the_one_shape(seed: int) -> None:
    teacher = ColourTeacher()
    labeller = Labeller(teacher, None, 8)
    for count in (1, 5, 8):
        labeller(images(seed, count), [0] * count)
    assert teacher.shapes == [(8, 3, 8, 8)] * 3


def test_a_label_does_not_depend_on_the_other_rows(seed: int) -> None:
    labeller, made = Labeller(ColourTeacher(), None, 8), images(seed, 8)
    whole, part = labeller(made, [1] * 8), labeller(made[2:4], [1] * 2)
    assert whole.energy[2:4] == part.energy and (whole.logits[2:4] == part.logits).all()


@pytest.mark.parametrize("scale", [math.nan, math.inf, 1e6])
def test_logits_that_cannot_be_stored_are_refused(seed: int, scale: float) -> None:
    with pytest.raises(UserError, match="not finite in fp16"):
        Labeller(ColourTeacher(scale=scale), None, 4)(images(seed, 2), [0, 1])


def test_significant_digits() -> None:
    assert [significant(v) for v in (1.23456789, -1234567.8, 3.0, 1e-20)] == [1.23457, -1234570.0, 3.0, 1e-20]
