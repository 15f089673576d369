"""How the default guidance scale is chosen, without real images or the judge: ``python -m prism_fast.study.scale``.

The rule of docs/study/protocol.md. A gain in teacher agreement that small changes of the image (shift, flip, blur) undo
is adversarial: it moved the teacher, not the picture. But such changes cost genuine images something too. How much is
read off the unguided images: ``slope`` is how much more often the teacher's agreement survives on images it agrees with
than it appears on those it does not. A scale is kept when its gain under the changes is at least 0.8 of slope times its
gain on the images as they are; the largest kept scale is chosen.
"""

from __future__ import annotations

import argparse
import dataclasses
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from prism_fast.config import canonical
from prism_fast.errors import UserError
from prism_fast.metrics.predictions import predict
from prism_fast.pipeline.load import load_pipeline
from prism_fast.prompts import PromptConfig
from prism_fast.sampling.config import GuidanceConfig, SamplerConfig
from prism_fast.sampling.energy import guidance_term
from prism_fast.sampling.guidance import GateThresholds
from prism_fast.study.gates import made_from, plan_of, sample_rows
from prism_fast.study.scripts import out_file, write_figures
from prism_fast.synthesis.config import SynthesisConfig
from prism_fast.teachers.base import Teacher
from prism_fast.teachers.load import load_teacher
from prism_fast.teachers.taps import outputs_for

SCALES = (0.05, 0.1, 0.2, 0.3)
KEPT = 0.8
VIEWS = 4
BATCH = 250


def changed(images: Tensor, seed: int) -> Tensor:
    """Each image [N, 3, H, W] in [0, 1] shifted by up to two pixels, flipped or not, and slightly blurred."""
    source = torch.Generator().manual_seed(seed)
    n, _, height, width = images.shape
    flip = torch.rand(n, generator=source) < 0.5
    images = torch.where(flip[:, None, None, None], images.flip(3), images)
    padded = F.pad(images, (2, 2, 2, 2), mode="replicate")
    shift = torch.randint(0, 5, (n, 2), generator=source).tolist()
    moved = torch.stack([p[:, y : y + height, x : x + width] for p, (y, x) in zip(padded, shift, strict=True)])
    kernel = torch.tensor([0.25, 0.5, 0.25])
    blur = (kernel[:, None] * kernel).expand(3, 1, 3, 3)
    return F.conv2d(F.pad(moved, (1, 1, 1, 1), mode="replicate"), blur, groups=3)


def agreements(teacher: Teacher, images: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
    """Of uint8 images [N, 3, H, W]: whether the teacher agrees, and on what share of changed copies; each [N]."""
    x = images.float() / 255
    changes = [predict(teacher, changed(x, view), BATCH) == classes for view in range(VIEWS)]
    return (predict(teacher, images, BATCH) == classes).double(), torch.stack(changes).double().mean(0)


def survival_slope(clean: Tensor, robust: Tensor) -> float:
    """Mean robust agreement of images [N] that the teacher agrees with, minus that of the others.

    Raises:
        UserError: the teacher agrees with all of them or with none.
    """
    agrees = clean > 0
    if agrees.all() or not agrees.any():
        raise UserError("the teacher agrees with all unguided images or with none: take more, or another pipeline")
    return float(robust[agrees].mean() - robust[~agrees].mean())


def pilot_gate(pipe: Any, config: SynthesisConfig, teacher: Teacher, quantile: float) -> GateThresholds:
    """Gate thresholds from unguided images of the plan's pilot rows."""
    plan = plan_of(pipe, config)
    images, classes = sample_rows(pipe, config, plan.pilot_rows())
    term = guidance_term(GuidanceConfig(), teacher)
    with torch.no_grad():
        energies = term.value(outputs_for(teacher, images.float() / 255, term), classes)
    return GateThresholds.from_energies(energies, classes, teacher.num_classes, quantile)


def sweep(pipe: Any, teacher: Teacher, config: SynthesisConfig, guidance: GuidanceConfig) -> list[dict[str, float]]:
    """One row a scale, unguided (0) first: clean and robust agreement of the same plan rows, and what was kept."""
    gate = pilot_gate(pipe, config, teacher, guidance.gate_quantile)
    plan = plan_of(pipe, config)
    rows = [plan.row(index) for index in range(len(plan))]
    table: list[dict[str, float]] = []
    for scale in (0.0, *SCALES):
        guided = dataclasses.replace(guidance, scale=scale) if scale else None
        sampler = dataclasses.replace(config.sampler, guidance=guided)
        arm = dataclasses.replace(config, recipe=f"s = {scale}", sampler=sampler)
        clean, robust = agreements(teacher, *sample_rows(pipe, arm, rows, teacher, gate))
        row = {"scale": scale, "agreement": float(clean.mean()), "robust_agreement": float(robust.mean())}
        if not scale:
            row["slope"] = survival_slope(clean, robust)
        table.append(row)
    return [table[0], *({**row, "kept": kept(table[0], row)} for row in table[1:])]


def kept(plain: dict[str, float], row: dict[str, float]) -> float:
    """The robust gain over the one that genuine images would have at this gain; 0 where nothing was gained."""
    clean, robust = (row[key] - plain[key] for key in ("agreement", "robust_agreement"))
    return robust / (plain["slope"] * clean) if clean > 0 and plain["slope"] > 0 else 0.0


def choose(table: list[dict[str, float]]) -> float:
    """The largest scale that is kept; 0 where none is."""
    return max((row["scale"] for row in table[1:] if row["kept"] >= KEPT), default=0.0)


def main(arguments: list[str] | None = None) -> None:
    """Prints the sweep and the scale that the rule chooses."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=300)
    parser.add_argument("--pipeline", default="fashion")
    parser.add_argument("--teacher", default="fashion")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--out", type=out_file, help="JSON file for the sweep")
    options = parser.parse_args(arguments)
    pipe, teacher = load_pipeline(options.pipeline), load_teacher(options.teacher)
    config = SynthesisConfig(
        images=options.images,
        prompts=PromptConfig(sense="name", content="none", style="none"),
        sampler=SamplerConfig(steps=options.steps, compute_batch=100),
    )
    table = sweep(pipe, teacher, config, GuidanceConfig())
    for row in table:
        print("  ".join(f"{key} {value:.3f}" for key, value in row.items()))
    print(f"chosen scale: {choose(table)}")
    if options.out:
        found = {"config": canonical(config), "sweep": table, "chosen": choose(table), **made_from(pipe, teacher)}
        write_figures(options.out, found)


if __name__ == "__main__":
    main()
