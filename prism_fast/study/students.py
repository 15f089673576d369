"""Whether a student notices the fast settings: ``python -m prism_fast.study.students``.

The demo's ``prism`` arm, made twice for every seed: by the published schedule (both guidances at every step, the
gradient through the KL decoder) and by the ``prism-fast`` recipe. Same prompts, same seeds, same training; accuracy on
the real test set. The answer is the mean of the paired differences and the lower end of its one-sided 95 % interval
(Student's t over the seeds).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from prism_fast.config import canonical
from prism_fast.distill.trainer import distill
from prism_fast.metrics.statistics import paired_difference
from prism_fast.pipeline.load import load_pipeline
from prism_fast.progress import progress
from prism_fast.recipes import load_recipe
from prism_fast.recipes.fields import build, lay_over
from prism_fast.records import write_json
from prism_fast.study.arms import DemoConfig, distill_config, synthesis_config
from prism_fast.study.gates import made_from
from prism_fast.study.measure import measure_accuracy
from prism_fast.study.real import real_images
from prism_fast.study.scripts import out_file
from prism_fast.study.sources import MemorySource, Source
from prism_fast.synthesis.config import SynthesisConfig
from prism_fast.synthesis.job import synthesize
from prism_fast.teachers.load import load_teacher

PUBLISHED, FAST = "published", "fast"


def settings(demo: DemoConfig) -> dict[str, SynthesisConfig]:
    """The two ways to make the arm; level ``exact`` stands for ``reference``, whose images it makes."""
    every_step = {"sampler": {"level": "exact", "guidance": {"every": 1}}}
    published = lay_over(SynthesisConfig, canonical(synthesis_config(demo, "prism")), every_step, PUBLISHED)
    fast = lay_over(SynthesisConfig, published, load_recipe("prism-fast"), FAST)
    return {name: build(SynthesisConfig, fields) for name, fields in ((PUBLISHED, published), (FAST, fast))}


def accuracies(demo: DemoConfig, test: Source) -> dict[str, float]:
    """Accuracy on the real test set of the students of both ways, and what is in between is kept in ``demo.out``."""
    found = {}
    for name, config in settings(demo).items():
        synthesize(config, Path(demo.out) / name / "shards", progress=progress)
        report = distill(distill_config(demo, name), progress=progress)
        found[name] = measure_accuracy(load_teacher(str(report.student)), test, name)
    return found


def verdict(pairs: Sequence[dict[str, float]]) -> dict[str, Any]:
    """Mean of fast − published over at least two pairs, its standard error and lower bound, in points."""
    found = paired_difference([100 * pair[FAST] for pair in pairs], [100 * pair[PUBLISHED] for pair in pairs])
    return {
        "differences": [round(x, 3) for x in found.differences],
        "mean": round(found.mean, 3),
        "standard_error": round(found.standard_error, 3),
        "lower_bound": round(found.lower_bound, 3),
        "confidence": found.confidence,
    }


def main(arguments: list[str] | None = None) -> None:
    """Prints every pair, then the verdict."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5, help="pairs; at least 2")
    parser.add_argument("--images", type=int, default=DemoConfig().images, help="in each training set")
    parser.add_argument("--runs", type=Path, default=Path("runs/students"), help="sets and students; continues there")
    parser.add_argument("--out", type=out_file, help="JSON file for the figures")
    options = parser.parse_args(arguments)
    if options.seeds < 2:
        parser.error("--seeds must be 2 or more: one pair has no spread")
    test = MemorySource("test", *real_images("test"))
    pairs = []
    for seed in range(options.seeds):
        demo = DemoConfig(images=options.images, seed=seed, out=str(options.runs / f"seed-{seed}"))
        pairs.append(accuracies(demo, test))
        print(json.dumps({"seed": seed, **pairs[-1]}), flush=True)
    found = verdict(pairs)
    print(json.dumps(found))
    if options.out:
        configs = {name: canonical(config) for name, config in settings(DemoConfig(images=options.images)).items()}
        made = made_from(load_pipeline("fashion"), load_teacher("fashion"))
        write_json(options.out, {"pairs": pairs, **found, "configs": configs, **made})


if __name__ == "__main__":
    main()
