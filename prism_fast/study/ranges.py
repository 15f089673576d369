"""What other settings would give: ``python -m prism_fast.study.ranges``.

The range of PRISM's trials was moved after students of some settings had been seen on split V (docs/study/protocol.md).
Here is that look, for anyone to repeat, and beside it the same look at rivals whose classifier-free guidance is lowered
in the same way. One set and one student of each setting, drawn and trained as those of the study's seed 0, and measured
on split V, never on the test set. What is best on V is ``oracle-tuned``: it is told, and decides nothing.

It is resumed like the study, and the same command started again beside it shares the work.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping, Sequence
from typing import Any

from prism_fast.config import comma_separated
from prism_fast.errors import UserError
from prism_fast.progress import ProgressFactory, progress
from prism_fast.study.commit import commit
from prism_fast.study.experiment import Experiment, Say
from prism_fast.study.helpers import divided_threads, helpers, workers_of
from prism_fast.study.methods import PLAIN, PRISM, Method
from prism_fast.study.results import figure
from prism_fast.study.scripts import known_names, out_file, write_figures
from prism_fast.study.study_config import StudyConfig

SPLIT = "V"


def _plain(name: str, about: str, cfg_scale: float, attempts: int = 1) -> Method:
    fields: dict[str, Any] = {"sampler": {"cfg_scale": cfg_scale}}
    if attempts > 1:
        fields["filter"] = {"attempts": attempts}
    return Method(name=name, about=about, recipe="plain-reject" if attempts > 1 else PLAIN, fields=fields)


def _prism(name: str, about: str, scale: float, cfg_scale: float, **guidance: float) -> Method:
    fields = {"sampler": {"cfg_scale": cfg_scale, "guidance": {"scale": scale, **guidance}}}
    return Method(name=name, about=about, recipe=PRISM, fields=fields)


SETTINGS = (
    _plain("plain-cfg-3", "bare class names, CFG 3", 3.0),
    _plain("plain-cfg-1.5", "CFG 1.5", 1.5),
    _plain("plain-cfg-1", "CFG 1", 1.0),
    _plain("best-of-2-cfg-1.5", "best of 2 draws, CFG 1.5", 1.5, attempts=2),
    _plain("best-of-4-cfg-1.5", "best of 4 draws, CFG 1.5", 1.5, attempts=4),
    _plain("best-of-4-cfg-1", "best of 4 draws, CFG 1", 1.0, attempts=4),
    _prism("prism-first", "scale 0.45, CFG 3: what its first trials chose", 0.45, 3.0),
    _prism("prism-wide-gate", "scale 0.3, CFG 2, gate at the pilot's 75 % quantile", 0.3, 2.0, gate_quantile=0.75),
    _prism("prism-chosen", "scale 0.3, CFG 1.5: what its trials choose", 0.3, 1.5),
    _prism("prism-cfg-1", "scale 0.3, CFG 1", 0.3, 1.0),
)


def settings_named(names: str) -> tuple[Method, ...]:
    """Settings by their names, between commas; all of them where none is named.

    Raises:
        UserError: an unknown name.
    """
    by_name = {method.name: method for method in SETTINGS}
    return tuple(by_name[name] for name in known_names("--settings", comma_separated(names), by_name))


def look(
    config: StudyConfig, settings: tuple[Method, ...], say: Say, bars: ProgressFactory = progress
) -> dict[str, Any]:
    """Draws sets, trains and measures students, or finds them; everything for the JSON file.

    Args:
        config: of the study, of which seed 0 is taken and of real images the splits.
        settings: what is looked at, beside real images.
        say: where lines of text go.
        bars: progress of the long parts.

    Raises:
        UserError: a folder of other settings, or a setting that failed.
    """
    workers = workers_of(config)
    with divided_threads(workers):
        study = Experiment(config, say, bars, settings, workers)
        with helpers(config, settings, workers, say):
            found = study.run()
    if found.failures:
        raise UserError("; ".join(f"{name}: {why}" for name, why in found.failures.items()))
    images = len(study.test)
    about = {method.name: method for method in settings}
    rows = []
    for row in found.rows:
        if row["seed"] > 0:
            continue  # of real images there is one of each seed
        accuracy = row["student_accuracy"]
        named = about.get(row["recipe"])
        rows.append(
            {
                "setting": row["recipe"],
                "about": named.about if named else f"as many real images of split {config.real}",
                "fields": named.fields if named else None,
                **{name: value for name, value in row.items() if name not in ("recipe", "table")},
                "standard_error": round(math.sqrt(accuracy * (1 - accuracy) / images), 6),
                **{metric: figure(row, metric, study.gallery.headline) for metric in ("precision", "recall")},
            }
        )
    return {
        "rows": rows,
        "real": {"split": config.reference, "images": images},
        "compared_images": study.gallery.counts(),
        "clock": study.clock,
        "weights": study.weights,
        "environment": study.environment,
        "commit": commit(),
    }


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows as text."""
    lines = [f"{'setting':18s} {'% of ' + SPLIT:>14s}  {'judge':>6s} {'second':>6s}  {'precision':>9s} {'recall':>6s}"]
    for row in rows:
        accuracy, error, judge, second = (
            100 * row[key] for key in ("student_accuracy", "standard_error", "judge_agreement", "second_agreement")
        )
        lines.append(
            f"{row['setting']:18s} {accuracy:7.2f} ± {error:4.2f}  {judge:6.1f} {second:6.1f}  "
            f"{row['precision']:9.3f} {row['recall']:6.3f}"
        )
    return "\n".join(lines)


def study_of(out: str, images: int) -> StudyConfig:
    """The study's sizes; of the real images, T for the ceiling and V to measure on."""
    few = min(images, StudyConfig().extractor_images)
    return StudyConfig(
        out=out, images=images, extractor_images=few, seeds=2, further_seeds=1, reference=SPLIT, more=1.0
    )


def main(arguments: list[str] | None = None) -> None:
    """Prints the table and writes the JSON file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=4000, help="in each set; the steps follow from them")
    parser.add_argument("--settings", default="", metavar="NAMES", help="between commas; left out: all of them")
    parser.add_argument("--runs", default="runs/ranges", help="sets and students; continues there")
    parser.add_argument("--out", type=out_file, default="docs/study/ranges.json", help="JSON file for the figures")
    options = parser.parse_args(arguments)
    try:
        found = look(study_of(options.runs, options.images), settings_named(options.settings), print)
        write_figures(options.out, found)
    except UserError as error:
        parser.error(str(error))
    print(table(found["rows"]))


if __name__ == "__main__":
    main()
