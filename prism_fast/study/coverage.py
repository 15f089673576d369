"""What prompts do to how much of the real images is covered: ``python -m prism_fast.study.coverage``.

The same number of images of the built-in pipeline for each way of asking, at several seeds: bare class names, one
template, the template with the gloss, and the built-in list, which also says the attributes that the pipeline's
captions know. Precision, recall, density and coverage are those of the judge's features against as many real test
images (docs/distill.md); they depend on how many there are, so several numbers are looked at.

As the recipe ``prism-fast`` draws, but without guidance: guidance pulls images of any prompt toward what the teacher
knows, and would hide part of what the prompts do.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from prism_fast.config import canonical
from prism_fast.pipeline.load import load_pipeline
from prism_fast.recipes import load_recipe
from prism_fast.recipes.fields import build, default_fields, lay_over
from prism_fast.study.gates import made_from, plan_of, sample_rows
from prism_fast.study.measure import measure_accuracy, measure_distribution
from prism_fast.study.real import real_images
from prism_fast.study.scripts import out_file, write_figures
from prism_fast.study.sources import MemorySource, Source
from prism_fast.synthesis.config import SynthesisConfig
from prism_fast.teachers.base import Teacher
from prism_fast.teachers.load import load_teacher

JUDGE = "fashion-judge"
ARMS: Mapping[str, Mapping[str, str]] = {
    "class names": {"sense": "name", "content": "none", "style": "none"},
    "one template": {"sense": "name", "content": "none", "style": "photo"},
    "template and gloss": {"sense": "gloss", "content": "none", "style": "photo"},
    "the list": {"sense": "gloss", "content": "uniform", "style": "photo"},
}
"""Options of the prompts; each arm says more than the one before it."""
FIGURES = ("judge_agreement", "precision", "recall", "density", "coverage")


def config_of(arm: str, images: int, seed: int, batch: int) -> SynthesisConfig:
    """The recipe ``prism-fast`` with an arm's prompts, unguided."""
    fields = default_fields(SynthesisConfig)
    for above in (
        load_recipe("prism-fast"),
        {"recipe": arm, "images": images, "seed": seed, "prompts": {**ARMS[arm], "seed": seed}},
        {"sampler": {"compute_batch": batch, "guidance": None}},
    ):
        fields = lay_over(SynthesisConfig, fields, above, "study of coverage")
    return build(SynthesisConfig, fields)


def measure(
    pipe: Any, judge: Teacher, reference: Source, counts: Sequence[int], seeds: Sequence[int], batch: int
) -> Iterator[dict[str, Any]]:
    """One row a seed, an arm and a number of images: of the largest number, the first ones."""
    for seed in seeds:
        for arm in ARMS:
            config = config_of(arm, max(counts), seed, batch)
            plan = plan_of(pipe, config)
            rows = [plan.row(index) for index in range(len(plan))]
            images, classes = sample_rows(pipe, config, rows)
            for count in counts:
                shown = MemorySource(arm, images[:count], classes[:count])
                yield {
                    "arm": arm,
                    "seed": seed,
                    "images": count,
                    "prompts": len({row.prompt for row in rows[:count]}),
                    "judge_agreement": measure_accuracy(judge, shown),
                    **measure_distribution(judge, JUDGE, shown, reference, seed),
                }


def means(table: Sequence[Mapping[str, Any]], arm: str, images: int) -> dict[str, float]:
    """Each figure of an arm at a number of images, mean over the seeds."""
    rows = [row for row in table if (row["arm"], row["images"]) == (arm, images)]
    return {name: round(statistics.fmean(row[name] for row in rows), 4) for name in FIGURES}


def gains(table: Sequence[Mapping[str, Any]], low: str, high: str, images: int) -> dict[str, dict[str, float]]:
    """Of each figure, what arm ``high`` has over arm ``low``: mean over the seeds, the least of them, and the most."""
    found = {}
    for name in FIGURES:
        by_arm = {
            arm: {row["seed"]: row[name] for row in table if (row["arm"], row["images"]) == (arm, images)}
            for arm in (low, high)
        }
        changes = [by_arm[high][seed] - before for seed, before in by_arm[low].items()]
        found[name] = {
            "mean": round(statistics.fmean(changes), 4),
            "least": round(min(changes), 4),
            "most": round(max(changes), 4),
        }
    return found


def main(arguments: list[str] | None = None) -> None:
    """Prints every row, and what each arm gains over the one before it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, nargs="+", default=[500, 1000, 2000], help="images an arm and seed")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--batch", type=int, default=100)
    parser.add_argument("--out", type=out_file, help="JSON file for the figures")
    options = parser.parse_args(arguments)
    pipe, judge = load_pipeline("fashion"), load_teacher(JUDGE)
    reference = MemorySource("test", *real_images("test"))
    table = []
    for row in measure(pipe, judge, reference, options.images, options.seeds, options.batch):
        print("  ".join(f"{key} {value}" for key, value in row.items() if key != "settings"), flush=True)
        table.append(row)
    names = list(ARMS)
    pairs = [*itertools.pairwise(names), (names[0], names[-1])]
    summary = [
        {
            "images": count,
            "means": {arm: means(table, arm, count) for arm in ARMS},
            "gains": {f"{high} over {low}": gains(table, low, high, count) for low, high in pairs},
        }
        for count in options.images
    ]
    print(json.dumps(summary, indent=1))
    if options.out:
        config = canonical(config_of(names[-1], max(options.images), options.seeds[0], options.batch))
        result = {"config": config, "rows": table, "summary": summary, **made_from(pipe, judge)}
        write_figures(options.out, result)


if __name__ == "__main__":
    main()
