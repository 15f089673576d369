"""How fast each back-end computes energies and gradients."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass

import torch

from prism_fast.energy.terms import guidance_energy
from prism_fast.teachers.choice import make_backend
from prism_fast.teachers.eager import EagerTeacher
from prism_fast.teachers.truth import sample_images


@dataclass(frozen=True, kw_only=True)
class Timing:
    """One back-end's speed.

    Attributes:
        name: of the back-end.
        images_per_s: energies and gradients, from the median time of a call.
        first_s: seconds of the first call: export, compilation, building.
        ratio_to_eager: how many times as fast as eager, timed in turn with it.
    """

    name: str
    images_per_s: float
    first_s: float
    ratio_to_eager: float


def time_backends(
    teacher: EagerTeacher,
    names: list[str],
    batch: int,
    size: tuple[int, int] | None = None,
    provider: str | None = None,
    repeats: int = 10,
) -> list[Timing]:
    """Back-ends side by side: in every round each is timed once, so that drift of the machine hits all of them.

    ``provider`` is ONNX Runtime's; None: the device's own.

    Raises:
        UserError: one of them is not usable here.
    """
    images = sample_images(batch, size or teacher.input_size, 0).to(teacher.device)
    targets = torch.arange(batch, device=teacher.device) % teacher.num_classes
    term = guidance_energy()
    made = {name: make_backend(teacher, name, batch=batch, provider=provider) for name in names}

    def call(name: str) -> float:
        _wait(teacher.device)
        begin = time.perf_counter()
        made[name].energy_and_grad(images, targets, term)
        _wait(teacher.device)
        return time.perf_counter() - begin

    first = {name: call(name) for name in names}
    for name in names:
        call(name)
    rounds = [{name: call(name) for name in names} for _ in range(repeats)]
    median = {name: statistics.median(found[name] for found in rounds) for name in names}
    eager = median.get("eager")
    return [
        Timing(
            name=name,
            images_per_s=batch / median[name],
            first_s=first[name],
            ratio_to_eager=float("nan") if eager is None else eager / median[name],
        )
        for name in names
    ]


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
