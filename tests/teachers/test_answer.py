"""What a classifier may answer. Networks in small, each wrong in one way."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from torch import Tensor, nn

from prism_fast.errors import UserError
from prism_fast.teachers.answer import check_answer


def check(network: nn.Module, classes: int | None = None) -> int:
    return check_answer(network.eval().requires_grad_(False), (8, 8), classes, "teacher X", "the settings")


def classifier(*last: nn.Module, classes: int = 5, scale: float = 3.0) -> nn.Sequential:
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, classes), *last)
    nn.init.normal_(network[1].weight, std=scale)
    return network


class Functional(nn.Module):
    """The activation is a function, which no list of modules shows."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.body, self.function = classifier(), function

    def forward(self, images: Tensor) -> Tensor:
        return self.function(self.body(images))


def test_logits_pass() -> None:
    assert check(classifier()) == 5
    assert check(classifier(classes=7), 7) == 7


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (nn.Conv2d(1, 1, 3), "cannot take images of 8x8 pixels .*channels.*correct the settings"),
        (nn.Conv2d(3, 1, 9), "cannot take images of 8x8 pixels"),
        (nn.Identity(), r"answers 4 images with shape \(4, 3, 8, 8\), expected one logit for each of its classes"),
        (nn.Flatten(0), r"with shape \(768,\)"),
        (Functional(lambda x: {"logits": x}), r"answers with a dict: it has to return its logits"),
        (Functional(lambda x: x.detach()), "lets no gradient through to the image"),
    ],
)
def test_what_is_no_classifier(network: nn.Module, message: str) -> None:
    with pytest.raises(UserError, match=message):
        check(network)


def test_the_number_of_classes_is_the_expected_one() -> None:
    with pytest.raises(UserError, match=r"shape \(4, 5\), expected one logit for each of its 10 classes"):
        check(classifier(), 10)


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (lambda: classifier(nn.Softmax(1)), "ends in a softmax .*made of logits"),
        (lambda: Functional(lambda x: x.softmax(1)), "ends in a softmax .*made of logits"),
        (lambda: classifier(nn.LogSoftmax(1)), "ends in a log-softmax .*made of logits"),
        (lambda: Functional(lambda x: x.log_softmax(1)), "ends in a log-softmax"),
        (lambda: classifier(nn.Sigmoid()), "ends in a sigmoid, .*a multi-label teacher has no energy"),
        (lambda: classifier(nn.Sigmoid(), nn.Dropout(), nn.Identity()), "ends in a sigmoid"),
        (lambda: classifier(nn.Hardsigmoid()), "ends in a sigmoid"),
        (lambda: Functional(lambda x: x.sigmoid()), "ends in a sigmoid"),
        (lambda: Functional(lambda x: x.sigmoid().view(len(x), -1).double()), "ends in a sigmoid"),
        (lambda: classifier(classes=1), "has one output, as sigmoid teachers"),
        (lambda: Functional(lambda x: x / 0), "not finite: its weights are damaged"),
    ],
)
def test_no_logits(network: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        check(network())


def test_sigmoids_inside_are_no_concern() -> None:
    """As gates are: the last word is the linear layer's."""
    network = nn.Sequential(nn.Flatten(), nn.Sigmoid(), nn.Linear(192, 5))
    nn.init.normal_(network[2].weight, std=3.0)
    assert check(network) == 5
    assert not network[1]._forward_hooks


def test_what_only_looks_like_a_sigmoid_is_told(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert check(Functional(lambda x: x.tanh() / 2 + 0.5)) == 5
    assert "between 0 and 1" in caplog.text
