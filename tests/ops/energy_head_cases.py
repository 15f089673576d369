"""Inputs of energy_head, the comparison with its fp64 truth, and the laws that each of its back-ends keeps."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from prism_fast.ops.energy_head import energy_head_ref
from prism_fast.ops.logit_energy import logit_energy_ref
from tests.ops.accuracy import assert_as_accurate

Operator = Callable[..., tuple[Tensor, Tensor]]


class Arguments(NamedTuple):
    features: Tensor
    weight: Tensor
    bias: Tensor | None
    targets: Tensor
    temperature: float = 1.0
    free_weight: float = 0.7
    class_weight: float = 1.3


def draw(
    shape: tuple[int, int, int], dtype: torch.dtype = torch.float32, *, spread: float = 4.0, **options: Any
) -> Arguments:
    """(B, K, D), logits of about ``spread``."""
    batch, classes, width = shape
    weight = torch.randn(classes, width) * spread / width**0.5
    targets = torch.randint(classes, (batch,))
    drawn = Arguments(torch.randn(batch, width).to(dtype), weight.to(dtype), torch.randn(classes).to(dtype), targets)
    return drawn._replace(**options)


def draw_exact(shape: tuple[int, int, int], *, spread: float = 4.0, **options: Any) -> Arguments:
    """As ``draw`` in fp32, of few enough bits that fp32 forms every logit exactly: what is left is the softmax's error.

    Where two logits nearly tie, the ratio of two logits' roundings, which is anything, would decide a comparison.
    """
    drawn = draw(shape, spread=spread)
    step = 2.0 ** math.floor(math.log2(spread) - 6)
    x, w, b = (drawn.features * 4).round() / 4, (drawn.weight / step).round() * step, (drawn.bias / step).round() * step
    return drawn._replace(**{"features": x, "weight": w, "bias": b} | options)


def in_fp64(arguments: Arguments) -> tuple[Tensor, Tensor]:
    x, w, b, *rest = arguments
    return energy_head_ref(x.double(), w.double(), None if b is None else b.double(), *rest)


def by_torch(arguments: Arguments) -> tuple[Tensor, Tensor]:
    """What torch does in that dtype, which sets the budget.

    In fp32 the reference. In half the model's own classifier, whose logits are half, and cotangent @ weight in half:
    the reference, which is fp32 inside, would hold the kernel to more than its coefficients, half for the tensor cores.
    """
    x, w, b, *rest = arguments
    if x.dtype == torch.float32:
        return energy_head_ref(*arguments)
    logits = torch.nn.functional.linear(x, w, None if b is None else b.to(x.dtype))
    stats, cotangent, *_ = logit_energy_ref(logits, *rest, topk=0)
    return stats[0], (cotangent @ w).float()


def compare(operator: Operator, arguments: Arguments) -> None:
    for got, reference, truth in zip(operator(*arguments), by_torch(arguments), in_fp64(arguments), strict=True):
        assert got.is_contiguous()
        assert_as_accurate(got, reference, truth)


def check_special_rows(operator: Operator) -> None:
    for temperature in (2.0, 1.0):
        x, w, b, y, *rest = draw_exact((32, 70, 16), temperature=temperature)
        ordinary = operator(x, w, b, y, *rest)
        x[1, 3], x[4, 0], x[7, 8] = torch.nan, torch.inf, -torch.inf
        got = operator(x, w, b, y, *rest)
        kept = [i for i in range(32) if i not in (1, 4, 7)]
        for new, old in zip(got, ordinary, strict=True):
            assert torch.equal(new[kept], old[kept]) and new[[1, 4, 7]].isnan().all()

    b[:40], b[69] = -torch.inf, -torch.inf  # classes of probability 0, whole tiles of them, one a target
    y[:] = 50
    y[2] = 33
    energy, gradient = operator(*draw_exact((32, 70, 16))._replace(weight=w, bias=b, targets=y))
    others = [i for i in range(32) if i != 2]
    assert energy[2] == torch.inf and energy[others].isfinite().all() and gradient.isfinite().all()
    x = draw_exact((32, 70, 16)).features
    arguments = Arguments(x, w, b, y, 1.0, 0.7, 0.0)  # the free energy does not see the target
    compare(operator, arguments)
    for worst in (torch.nan, torch.inf):
        one = torch.zeros_like(b)
        one[40] = worst
        assert all(t.isnan().all() for t in operator(*arguments._replace(bias=one)))
    nothing = operator(*arguments._replace(bias=torch.full_like(b, -torch.inf)))
    assert nothing[0].isnan().all() and nothing[1].isnan().all()


def check_weights_of_zero(operator: Operator) -> None:
    for temperature in (1.0, 2.0):
        drawn = draw_exact((48, 33, 16), temperature=temperature)
        both, free, classed, none = (
            operator(*drawn._replace(free_weight=f, class_weight=c)) for f, c in ((1, 1), (1, 0), (0, 1), (0, 0))
        )
        for a, b, c, zero in zip(both, free, classed, none, strict=True):
            torch.testing.assert_close(a, b + c, rtol=1e-5, atol=1e-5)
            assert (zero == 0).all()
        compare(operator, drawn._replace(free_weight=0.0))
        compare(operator, drawn._replace(class_weight=0.0))
        if temperature == 1:  # the terms cancel but for the target's own row of the weights
            w_y = drawn.weight[drawn.targets]
            torch.testing.assert_close(both[1], -w_y, rtol=1e-5, atol=1e-5)


def check_certain_rows(operator: Operator) -> None:
    """Logits up to a thousand apart, a target that is certain and one that is hopeless: p_y − 1 must not cancel."""
    for spread in (1e-3, 30.0, 1e3):
        drawn = draw_exact((16, 97, 19), spread=spread)
        logits = drawn.features @ drawn.weight.T + drawn.bias
        for targets in (drawn.targets, logits.argmax(-1), logits.argmin(-1)):
            compare(operator, drawn._replace(targets=targets))
    x = torch.eye(4)[:1].expand(3, 4)
    w = torch.zeros(3, 4)
    w[1, 0] = 12.0  # the others have exp(−12) each
    w[0, 1], w[2, 1] = 1.0, 2.0
    y = torch.ones(3, dtype=torch.int64)
    _, gradient = operator(x, w, None, y, 1.0, 0.0, 1.0)
    exact = in_fp64(Arguments(x, w, None, y, 1.0, 0.0, 1.0))[1]
    torch.testing.assert_close(gradient, exact.float(), rtol=1e-5, atol=0)


def check_layouts(operator: Operator) -> None:
    x, w, b, y, *rest = drawn = draw((5, 37, 11))
    expected = operator(*drawn)
    wide = torch.full((10, 40), torch.nan)
    wide[::2, 3:14] = x
    tall = torch.full((74, 20), torch.nan)
    tall[1::2, 5:16] = w
    spaced = torch.stack([b, b + 1], 1)[:, 0]
    for features in (wide[::2, 3:14], x.T.contiguous().T):
        for weight in (tall[1::2, 5:16], w.T.contiguous().T):
            got = operator(features, weight, spaced, torch.stack([y, y], 1)[:, 0], *rest)
            for mine, theirs in zip(got, expected, strict=True):
                torch.testing.assert_close(mine, theirs)
    compare(operator, draw_exact((32, 37, 11))._replace(bias=None))
    zero = operator(x, w, torch.zeros(37), y, *rest)
    assert all(map(torch.equal, operator(x, w, None, y, *rest), zero))
    assert [t.shape for t in operator(x[:0], w, b, y[:0], *rest)] == [(0,), (0, 11)]
    half = draw((5, 37, 11), torch.bfloat16)
    got = operator(*half._replace(bias=half.bias.float()))  # fp32 beside half weights
    assert all(map(torch.equal, got, operator(*half)))


LAWS = [check_special_rows, check_weights_of_zero, check_certain_rows, check_layouts]
