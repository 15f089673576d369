"""What the fast settings cost on the built-in world: ``python -m prism_fast.study.fidelity``.

The same rows (prompts, seeds), sampled unguided, by the published loop (level ``reference``, classifier-free guidance
and energy guidance at every step) and by each setting. A setting is worth its speed if the independent judge, which
never guides, sees at least 80 % of the published loop's gain in agreement.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from torch import Tensor

from prism_fast.config import canonical
from prism_fast.metrics.predictions import predict
from prism_fast.pipeline.load import load_pipeline
from prism_fast.prompts import PromptConfig
from prism_fast.sampling.config import GuidanceConfig, SamplerConfig
from prism_fast.sampling.guidance import GateThresholds
from prism_fast.study.gates import made_from, plan_of, sample_rows
from prism_fast.study.scale import pilot_gate
from prism_fast.study.scripts import out_file, write_figures
from prism_fast.synthesis.config import SynthesisConfig
from prism_fast.teachers.base import Teacher
from prism_fast.teachers.load import load_teacher

BATCH = 250
KEPT = 0.8

PUBLISHED = SamplerConfig(level="reference", guidance=GuidanceConfig())
"""20 steps, classifier-free guidance and the gradient through the KL decoder at every one of them."""
LAST = GuidanceConfig(start=0.5)
"""The gradient at the last 10 of 20 steps: earlier guidance is mostly undone by what follows."""
SHORT = replace(PUBLISHED, level="exact", guidance=LAST, cfg_stop=0.6)
"""And classifier-free guidance at the first 12."""
REUSED = replace(LAST, every=5, reuse_gradient=True)
"""The gradient at two of the 10 alone, the others going along the last one."""
FAST = replace(SHORT, level="fast", cfg_stop=0.5, guidance=replace(REUSED, start=0.3, scale=0.21))
"""At three of the last 14, CFG at the first 10, and 0.7 of the scale: an old gradient leads too far."""
FAST_REUSE = replace(SHORT, level="fast", guidance=REUSED, reuse_features=3)
TINY = replace(SHORT, level="fast", guidance=replace(LAST, decoder="tiny"))
SETTINGS = {
    "published loop": PUBLISHED,
    "exact": replace(PUBLISHED, level="exact"),
    "exact, gradient at steps 4 to 11 alone": replace(
        PUBLISHED, level="exact", guidance=GuidanceConfig(start=0.2, stop=0.6)
    ),
    "exact, gradient at the last 10 steps": replace(PUBLISHED, level="exact", guidance=LAST),
    "and CFG at the first 12": SHORT,
    "and reused gradients": replace(SHORT, level="fast", guidance=REUSED),
    "and reused features: fast-reuse": FAST_REUSE,
    "reused gradients at the last 14 steps, 0.7 of the scale: fast": FAST,
    "and reused features": replace(FAST, reuse_features=3),
    "tiny decoder, a gradient at each of the last 10": TINY,
    "tiny decoder, reused gradients and features": replace(
        TINY, reuse_features=3, guidance=replace(REUSED, decoder="tiny")
    ),
}


def agreements(teacher: Teacher, judge: Teacher, images: Tensor, classes: Tensor) -> dict[str, Tensor]:
    """Whether each classifier takes each image for its class, fp64 [N]."""
    both = {"teacher": teacher, "judge": judge}
    return {name: (predict(who, images, BATCH) == classes).double() for name, who in both.items()}


def gains(plain: dict[str, Tensor], setting: dict[str, Tensor]) -> dict[str, float]:
    """Mean gain over the unguided rows, with its standard error over the pairs."""
    found = {}
    for who, before in plain.items():
        change = setting[who] - before
        found[f"{who}_gain"] = round(float(change.mean()), 4)
        found[f"{who}_gain_standard_error"] = round(float(change.std()) / len(change) ** 0.5, 4)
    return found


def measure(
    pipe: Any, teacher: Teacher, judge: Teacher, config: SynthesisConfig, settings: dict[str, SamplerConfig]
) -> Iterator[dict[str, Any]]:
    """One row a setting, the unguided one first; ``judge_kept`` is a setting's judge gain over the first setting's."""
    plan, guidance = plan_of(pipe, config), GuidanceConfig()
    rows = [plan.row(index) for index in range(len(plan))]
    gate = pilot_gate(pipe, config, teacher, guidance.gate_quantile)

    def seen(name: str, sampler: SamplerConfig, thresholds: GateThresholds | None) -> dict[str, Tensor]:
        arm = replace(config, recipe=name, sampler=replace(sampler, compute_batch=config.sampler.compute_batch))
        return agreements(teacher, judge, *sample_rows(pipe, arm, rows, teacher, thresholds))

    plain = seen("unguided", replace(PUBLISHED, guidance=None), None)
    yield {"name": "unguided", **{f"{who}_agreement": round(float(x.mean()), 4) for who, x in plain.items()}}
    published = None
    for name, sampler in settings.items():
        found = seen(name, sampler, gate)
        agreement = {f"{who}_agreement": round(float(x.mean()), 4) for who, x in found.items()}
        row = {"name": name, **agreement, **gains(plain, found), "sampler": canonical(sampler)}
        published = row["judge_gain"] if published is None else published
        yield {**row, "judge_kept": round(row["judge_gain"] / published, 3) if published > 0 else None}


def main(arguments: list[str] | None = None) -> None:
    """Prints what each setting keeps."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--batch", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=out_file, help="JSON file for the figures")
    options = parser.parse_args(arguments)
    pipe, teacher, judge = load_pipeline("fashion"), load_teacher("fashion"), load_teacher("fashion-judge")
    config = SynthesisConfig(
        images=options.images,
        seed=options.seed,
        prompts=PromptConfig(sense="name", content="none", style="none"),
        sampler=SamplerConfig(compute_batch=options.batch),
    )
    table = []
    for row in measure(pipe, teacher, judge, config, SETTINGS):
        print("  ".join(f"{key} {value}" for key, value in row.items() if key != "sampler"), flush=True)
        table.append(row)
    if options.out:
        found = {"config": canonical(config), "settings": table, **made_from(pipe, teacher, judge)}
        write_figures(options.out, found)


if __name__ == "__main__":
    main()
