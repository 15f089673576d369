"""Graphs that would have another gradient than the network: found before anybody is guided by them."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm

from prism_fast.energy.student import StudentDivergence
from prism_fast.errors import UserError
from prism_fast.teachers.asked import asked_of
from prism_fast.teachers.choice import choose, why_not
from prism_fast.teachers.eager import EagerTeacher
from prism_fast.teachers.export import export
from prism_fast.teachers.proof import prove, why_unprovable
from tests.teachers.networks import random_classifier

SIZE = 16


class Tripled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:  # type: ignore[override]
        return 3 * g


class Small(torch.nn.Module):
    """A convolution, something done to its result, a linear layer."""

    def __init__(self, middle: Any, convolution: torch.nn.Module | None = None) -> None:
        super().__init__()
        self.convolution = convolution or torch.nn.Conv2d(3, 6, 3)
        self.middle, self.head = middle, torch.nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.middle(F.silu(self.convolution(x))).mean((2, 3)))


def _teacher(model: torch.nn.Module) -> EagerTeacher:
    return EagerTeacher(model, mean=(0.4,) * 3, std=(0.2,) * 3, input_size=(SIZE, SIZE), num_classes=5)


def _undiffed(x: Tensor) -> Tensor:
    with torch.no_grad():
        size = x.square().mean((1, 2, 3), keepdim=True).sqrt()
    return x / size


STOPS = {
    "detach": lambda x: x / x.square().mean((1, 2, 3), keepdim=True).sqrt().detach(),
    "no_grad": _undiffed,
    "function": Tripled.apply,
}


@pytest.mark.parametrize("stop", STOPS)
def test_a_network_that_stops_or_replaces_gradients_stays_eager(stop: str, caplog: pytest.LogCaptureFixture) -> None:
    teacher = _teacher(Small(STOPS[stop]))
    with caplog.at_level(logging.INFO, "prism_fast"):
        assert choose(teacher) == "eager"
    assert "not onnx: " in caplog.text
    expected = "has no gradient rule" if stop == "detach" else "another gradient than autograd"
    with pytest.raises(UserError, match=expected):
        export(teacher)
    with pytest.raises(UserError, match="the back-end onnx is not usable"):
        choose(teacher, "onnx")


@pytest.mark.parametrize(
    ("what", "model"),
    [
        ("no gradient rule for how Small uses", Small(lambda x: F.max_pool2d(x, 2, dilation=2))),
        ("no gradient rule for how Small uses", Small(lambda x: x, torch.nn.Conv2d(3, 6, 3, stride=2, dilation=2))),
        ("aten::cumsum, which has no gradient rule", Small(lambda x: torch.cumsum(x, 2))),
    ],
)
def test_what_no_rule_covers_is_named(what: str, model: torch.nn.Module) -> None:
    assert what in str(why_unprovable(_teacher(model)))
    assert why_not(_teacher(model), "compiled") is None


@pytest.mark.parametrize(
    "convolution",
    [
        torch.nn.Conv2d(3, 6, 3, padding="same"),
        torch.nn.Sequential(weight_norm(torch.nn.Conv2d(3, 6, 3)), torch.nn.BatchNorm2d(6)),
    ],
)
def test_unusual_convolutions(convolution: torch.nn.Module) -> None:
    prove(_teacher(Small(lambda x: x, convolution.eval())))


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "swin_t", "vgg11_bn", "regnet_y_400mf"])
def test_torchvisions_networks(name: str, seed: int) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = torchvision.models.get_model(name, weights=None, num_classes=5)
    prove(EagerTeacher(model, mean=(0.4,) * 3, std=(0.2,) * 3, input_size=(64, 64), num_classes=5))


def test_a_student_without_rules_is_found_too(seed: int) -> None:
    teacher, student = random_classifier("resnet10t", seed, SIZE), _teacher(Small(lambda x: torch.cumsum(x, 2)))
    further = asked_of(StudentDivergence(fingerprint=student.fingerprint, network=student)).further
    assert why_not(teacher, "onnx") is None and "cumsum" in str(why_not(teacher, "onnx", further))
    assert "cumsum" in str(why_not(teacher, "compiled", further)) and choose(teacher, "auto", further) == "eager"


def test_a_network_is_asked_once(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    teacher = random_classifier("resnet10t", seed, SIZE)
    prove(teacher)
    monkeypatch.setattr("prism_fast.teachers.proof._prove", lambda *_: pytest.fail("asked again"))
    prove(teacher)


def test_bfloat16_is_not_for_onnx_runtime(seed: int) -> None:
    teacher = random_classifier("resnet10t", seed, SIZE, dtype=torch.bfloat16)
    assert "bfloat16" in str(why_not(teacher, "onnx")) and choose(teacher) == "eager"
