"""The torch.compile back-end: forward, energy and pullback in one compiled function, without autograd at run time."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor
from torch.export.passes import move_to_device_pass

from prism_fast.teachers.asked import Further
from prism_fast.teachers.backend import Runner
from prism_fast.teachers.eager import EagerTeacher
from prism_fast.teachers.export import joint_program
from prism_fast.teachers.joint import cotangent_scale, logit_terms, preprocess_of
from prism_fast.teachers.preprocess import Preprocess


def joint_function(model: Any, preprocess: Preprocess, dtype: torch.dtype) -> Runner:
    """Energy and gradient through ``torch.func.vjp``: ATen operators alone, which a compiler sees whole."""

    def run(images: Tensor, targets: Tensor, temperature: Tensor, weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        logits, pull, *_ = torch.func.vjp(lambda x: model(preprocess(x).to(dtype)), images)
        logits = logits.float()
        energy, cotangent = logit_terms(logits, targets, temperature, weights)
        scale = cotangent_scale([cotangent]) if dtype == torch.float16 else None
        (gradient,) = pull((cotangent if scale is None else cotangent * scale[:, None]).to(dtype))
        return energy, gradient if scale is None else gradient / scale[:, None, None, None], logits

    return run


def make_runner(teacher: EagerTeacher, size: tuple[int, int], further: Further) -> Runner:
    """Compiles at the first call, and again for every other batch size.

    Terms on the inside of the network, or of two networks, are compiled from the graph that is exported: a compiler
    does not see through hooks.

    Raises:
        UserError: that graph cannot be made.
    """
    if not further.kinds:
        preprocess = preprocess_of(teacher).to(teacher.device)
        return cast("Runner", torch.compile(joint_function(teacher.model, preprocess, teacher.dtype), dynamic=False))
    program = joint_program(teacher, size, teacher.dtype, further)
    if teacher.device.type != "cpu":  # constants and conversions inside are of the CPU, where it was traced
        program = move_to_device_pass(program, teacher.device)
    return cast("Runner", torch.compile(program.module(), dynamic=False))
