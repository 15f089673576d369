"""How the default guidance scale is chosen, without real images or the judge: ``python -m prism_fast.study.scale``.

The rule of docs/study/protocol.md: the largest scale whose gain in teacher agreement under small changes of the
image (shift, flip, blur) is at least 0.8 of its gain on the images as they are. A gain that such changes undo is
adversarial: it moved the teacher, not the picture.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from prism_fast.energy.terms import guidance_energy
from prism_fast.metrics.agreement import agreement
from prism_fast.pipeline.load import load_pipeline
from prism_fast.prompts import PromptConfig
from prism_fast.sampling.config import GuidanceConfig, SamplerConfig
from prism_fast.sampling.reference import GateThresholds
from prism_fast.study.gates import plan_of, sample_rows
from prism_fast.synthesis.config import SynthesisConfig
from prism_fast.teachers.base import Teacher
from prism_fast.teachers.load import load_teacher

SCALES = (0.05, 0.1, 0.2, 0.3)
KEPT = 0.8
VIEWS = 4


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


def robust_agreement(teacher: Teacher, images: Tensor, classes: Tensor) -> float:
    """Mean teacher agreement over :data:`VIEWS` changed copies of uint8 images [N, 3, H, W]."""
    x = images.float() / 255
    return sum(agreement(teacher, changed(x, view), classes).value for view in range(VIEWS)) / VIEWS


def pilot_gate(pipe: Any, config: SynthesisConfig, teacher: Teacher, quantile: float) -> GateThresholds:
    """Gate thresholds from unguided images of the plan's pilot rows."""
    plan = plan_of(pipe, config)
    images, classes = sample_rows(pipe, config, plan.pilot_rows())
    with torch.no_grad():
        energies = guidance_energy().value(teacher.outputs(images.float() / 255), classes)
    return GateThresholds.from_energies(energies, classes, teacher.num_classes, quantile)


def sweep(pipe: Any, teacher: Teacher, config: SynthesisConfig, guidance: GuidanceConfig) -> list[dict[str, float]]:
    """One row a scale, unguided (0) first: clean and robust agreement of the same plan rows."""
    gate = pilot_gate(pipe, config, teacher, guidance.gate_quantile)
    plan = plan_of(pipe, config)
    rows = [plan.row(index) for index in range(len(plan))]
    table = []
    for scale in (0.0, *SCALES):
        guided = dataclasses.replace(guidance, scale=scale) if scale else None
        sampler = dataclasses.replace(config.sampler, guidance=guided)
        arm = dataclasses.replace(config, recipe=f"s = {scale}", sampler=sampler)
        images, classes = sample_rows(pipe, arm, rows, teacher, gate)
        table.append(
            {
                "scale": scale,
                "agreement": agreement(teacher, images, classes).value,
                "robust_agreement": robust_agreement(teacher, images, classes),
            }
        )
    return table


def choose(table: list[dict[str, float]]) -> float:
    """The largest scale whose robust gain is at least :data:`KEPT` of its clean gain; 0 where none is."""
    plain, *guided = table
    chosen = 0.0
    for row in guided:
        clean, robust = (row[key] - plain[key] for key in ("agreement", "robust_agreement"))
        if clean > 0 and robust >= KEPT * clean:
            chosen = row["scale"]
    return chosen


def main(arguments: list[str] | None = None) -> None:
    """Prints the sweep and the scale that the rule chooses."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=300)
    parser.add_argument("--pipeline", default="fashion")
    parser.add_argument("--teacher", default="fashion")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--out", type=Path, help="JSON file for the sweep")
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
        options.out.write_text(json.dumps({"sweep": table, "chosen": choose(table)}, indent=2) + "\n")


if __name__ == "__main__":
    main()
