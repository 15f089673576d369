"""Inputs of logit_energy and the comparison with its fp64 truth, shared by the tests of its back-ends."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from prism_fast.ops.logit_energy import logit_energy_ref

Outputs = tuple[Tensor, ...]
NAMES = ("stats", "cotangent", "indices", "probabilities", "remaining")


class Arguments(NamedTuple):
    logits: Tensor
    targets: Tensor
    temperature: float = 1.0
    free_weight: float = 1.0
    class_weight: float = 1.0
    topk: int = 0


def draw(
    shape: tuple[int, ...],
    dtype: torch.dtype = torch.float32,
    *,
    spread: float = 4.0,
    temperature: float = 1.0,
    weights: tuple[float, float] = (0.7, 1.3),
    topk: int = 3,
) -> Arguments:
    logits = (torch.randn(shape) * spread).to(dtype)
    return Arguments(logits, torch.randint(shape[-1], shape[-2:-1]), temperature, *weights, topk)


def truth_of(arguments: Arguments) -> Outputs:
    """The reference in fp64, ranked by the fp32 logits: members' means that are equal in fp32 are equals."""
    exact = logit_energy_ref(arguments.logits.double(), *arguments[1:])
    indices = logit_energy_ref(*arguments)[2]
    f = arguments.logits.double()
    p = (f.mean(0) if f.ndim == 3 else f).softmax(-1).where(exact[0][1].isfinite()[:, None], torch.nan)
    rest = p.scatter(-1, indices, 0).sum(-1).where(exact[0][1].isfinite(), torch.nan)
    return exact[0], exact[1], indices, p.gather(-1, indices), rest


def compare(operator: Callable[..., Outputs], arguments: Arguments) -> None:
    """Every output within twice the error of the same-dtype reference, plus one rounding of the output's scale.

    Both errors are the largest of the batch; a batch of few rows says little about the reference's own.
    """
    got, reference, truth = operator(*arguments), logit_energy_ref(*arguments), truth_of(arguments)
    assert torch.equal(got[2], truth[2]), "indices"
    rows: list[tuple[str, Tensor, Tensor, Tensor]] = []
    for name, mine, theirs, exact in zip(NAMES, got, reference, truth, strict=True):
        assert mine.shape == theirs.shape and mine.dtype == theirs.dtype, name
        assert mine.is_contiguous() and theirs.is_contiguous(), name
        if name == "stats":
            rows += [(f"stats[{i}]", mine[i], theirs[i], exact[i]) for i in range(7)]
        elif name != "indices":
            rows.append((name, mine, theirs, exact))
    for name, mine, theirs, exact in rows:
        special = ~exact.isfinite()
        assert torch.equal(mine.double()[special].nan_to_num(7.0), exact[special].nan_to_num(7.0)), name
        if special.all():
            continue
        error, budget = ((x.double() - exact)[~special].abs().max().item() for x in (mine, theirs))
        rounding = torch.finfo(mine.dtype).eps * exact[~special].abs().max().item() + 2**-52  # and the truth's own
        assert error <= 2 * budget + rounding, f"{name}: error {error:.3g}, the reference's {budget:.3g}"
