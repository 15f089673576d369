"""The torch.compile back-end: forward, energy and pullback in one compiled function, without autograd at run time."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from prism_fast.teachers.backend import Runner
from prism_fast.teachers.eager import EagerTeacher
from prism_fast.teachers.joint import cotangent_scale, logit_terms
from prism_fast.teachers.preprocess import Preprocess


def joint_function(model: Any, preprocess: Preprocess, dtype: torch.dtype) -> Runner:
    """Energy and gradient through ``torch.func.vjp``: ATen operators alone, which a compiler sees whole."""

    def run(images: Tensor, targets: Tensor, temperature: Tensor, weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        logits, pull, *_ = torch.func.vjp(lambda x: model(preprocess(x).to(dtype)), images)
        logits = logits.float()
        energy, cotangent = logit_terms(logits, targets, temperature, weights)
        scale = cotangent_scale(cotangent) if dtype == torch.float16 else None
        (gradient,) = pull((cotangent if scale is None else cotangent * scale[:, None]).to(dtype))
        return energy, gradient if scale is None else gradient / scale[:, None, None, None], logits

    return run


def make_runner(teacher: EagerTeacher, size: tuple[int, int]) -> Runner:  # noqa: ARG001  a compilation finds the size
    """Compiles at the first call, and again for every other batch size."""
    preprocess = Preprocess(teacher.input_size, teacher.mean, teacher.std, teacher.interpolation).to(teacher.device)
    compiled: Runner = torch.compile(joint_function(teacher.model, preprocess, teacher.dtype), dynamic=False)
    return compiled
