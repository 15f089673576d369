"""``prism-fast calibrate``: measures, proposes, and keeps what came out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import yaml

from prism_fast.calibration.config import CalibrateConfig
from prism_fast.calibration.measure import Bench, Drawn, Measured
from prism_fast.calibration.options import EXACT, Option, decoder_fingerprints, find_options
from prism_fast.calibration.page import calibration_page
from prism_fast.calibration.proposal import flags, propose, settings
from prism_fast.config import (
    canonical,
    check_new_file,
    content_hash,
    environment,
    resolve_device,
    resolve_dtype,
)
from prism_fast.errors import UserError
from prism_fast.pipeline.load import load_pipeline, pipeline_fingerprint
from prism_fast.pipeline.text import prompt_fits
from prism_fast.pipeline.tokens import load_tokens, with_tokens
from prism_fast.progress import ProgressFactory, silent
from prism_fast.prompts import build_prompts, load_vocabulary
from prism_fast.records import read_kept, write_json
from prism_fast.sampling.config import SamplerConfig
from prism_fast.sampling.energy import student_fingerprint
from prism_fast.sampling.guidance import GateThresholds
from prism_fast.sampling.levels import make_sampler
from prism_fast.sampling.schedules import build_schedule
from prism_fast.sampling.serving import resolved
from prism_fast.sampling.step_kind import step_kinds
from prism_fast.study.page import write_page
from prism_fast.synthesis.config import identity
from prism_fast.synthesis.interruption import StopRequest
from prism_fast.synthesis.label import Labeller
from prism_fast.synthesis.pilot import gate_thresholds, pilot_energies
from prism_fast.synthesis.plan import Plan
from prism_fast.teachers.base import Teacher
from prism_fast.teachers.load import load_teacher

NAME = "calibration"
_NETWORKS = 128


def places(out: str) -> tuple[Path, Path]:
    """The JSON file and the page: ``out`` is the former's name or a folder for both."""
    path = Path(out)
    figures = path if path.suffix == ".json" else path / f"{NAME}.json"
    return figures, figures.with_suffix(".html")


def calibrate(config: CalibrateConfig, out: str, progress: ProgressFactory = silent) -> dict[str, Any]:
    """The figures, as the JSON file has them; where it holds this very calibration already, nothing is measured.

    Raises:
        UserError: something cannot be loaded or does not fit, guidance gains nothing, or another file is in the way.
    """
    figures, page = places(out)
    device = resolve_device(config.device)
    there = figures.exists() or figures.is_symlink()
    for path in () if there else (figures, page):
        check_new_file(path)
    vocabulary = load_vocabulary(config.vocabulary)
    plain = load_pipeline(config.pipeline, device, resolve_dtype(config.sampler.dtype))
    tokens = None if config.sampler.tokens is None else load_tokens(config.sampler.tokens)
    pipe = with_tokens(plain, tokens)
    teacher = load_teacher(config.teacher, device)
    config = replace(config, sampler=resolved(config.sampler, teacher))
    synthesis = config.synthesis()
    if teacher.num_classes != len(vocabulary):
        raise UserError(
            f"teacher {config.teacher!r} knows {teacher.num_classes} classes, vocabulary {config.vocabulary!r} names "
            f"{len(vocabulary)}: give the vocabulary that the teacher was trained on, in its order"
        )
    prompts = build_prompts(vocabulary, config.prompts, prompt_fits(pipe))
    options, left_out = find_options(pipe, synthesis.sampler, teacher.input_size)
    steps = [float(step) for step in build_schedule(pipe.scheduler, synthesis.sampler, device).timesteps]
    options = _changing(options, config, len(steps))
    head = {
        "config": canonical(config),
        "pipeline": pipeline_fingerprint(plain),
        "teacher": teacher.fingerprint,
        "environment": environment(device, config.sampler.dtype),
    }
    decoders = decoder_fingerprints(pipe, options)
    if decoders:
        head["decoders"] = decoders
    student = student_fingerprint(config.guidance)
    own: dict[str, Any] = {"student": student} if student is not None else {}
    own |= {"set": identity(synthesis), "fidelity": config.fidelity, "options": [option.name for option in options]}
    if tokens is not None:
        own["tokens"] = tokens.fingerprint
    key = content_hash({**head, "config": own, "prompts": prompts.fingerprint})
    if there:
        found = read_kept(figures, key, "this calibration")
        if not page.exists() and not page.is_symlink():
            write_page(calibration_page(found), page)
        return found
    plan = Plan(synthesis, vocabulary, prompts)
    gate = _gate(pipe, teacher, config, plan, progress) if synthesis.needs_pilot else None
    with _many_networks(synthesis.sampler, device):
        bench = Bench(pipe, teacher, synthesis.sampler, [plan.row(index) for index in range(len(plan))], gate)
        measured = _measure(bench, options, config.fidelity, progress)
    found = {"identity": key, **head, "timesteps": steps, "left_out": left_out, **measured}
    write_json(figures, found)
    write_page(calibration_page(found), page)
    return found


def _measure(bench: Bench, options: Sequence[Option], fidelity: float, progress: ProgressFactory) -> dict[str, Any]:
    total = bench.images * (2 + 2 * (1 + len(options)))
    with progress(total, "images", "calibrate", 0) as bar:
        bar.note("unguided")
        unguided = bench.unguided(bar.update)
        bar.note("reference")
        reference, walks = bench.reference(bar.update)
        singles = []
        for option in (EXACT, *options):
            bar.note(option.name)
            singles.append(bench.measure(option, unguided, reference, walks, bar.update))

    def combined(option: Option) -> Measured:
        with progress(2 * bench.images, "images", option.name, 0) as bar:
            return bench.measure(option, unguided, reference, walks, bar.update)

    proposal = propose(singles[0], singles[1:], fidelity, combined)
    chosen, pasted = proposal.chosen, settings(proposal.chosen.option)
    return {
        "images": bench.images,
        "fidelity": fidelity,
        "unguided": _drawn(unguided),
        "reference": _drawn(reference),
        "exact": _row(singles[0], fidelity),
        "options": [_row(one, fidelity) for one in singles[1:]],
        "combinations": [_row(one, fidelity) for one in proposal.tried],
        "proposal": {
            **_row(chosen, fidelity),
            "flags": flags(pasted),
            "yaml": yaml.safe_dump(pasted, sort_keys=False),
            "speed_up": round(reference.seconds_per_image / chosen.seconds_per_image, 3),
        },
    }


def _many_networks(sampler: SamplerConfig, device: torch.device) -> AbstractContextManager[object]:
    """Every option may compile networks of its own; dynamo gives up on a function after a few, silently for us."""
    if sampler.compile == "off" or (sampler.compile == "auto" and device.type != "cuda"):
        return nullcontext()
    import torch._dynamo

    patched: AbstractContextManager[object] = torch._dynamo.config.patch(recompile_limit=_NETWORKS)
    return patched


def _changing(options: Sequence[Option], config: CalibrateConfig, steps: int) -> list[Option]:
    """Those that change a step: of a short schedule some intervals hold the same steps."""
    base = config.synthesis().sampler
    kinds = step_kinds(base, steps)
    return [one for one in options if "decoder" in one.knobs or step_kinds(one.applied(base), steps) != kinds]


def _gate(
    pipe: Any, teacher: Teacher, config: CalibrateConfig, plan: Plan, progress: ProgressFactory
) -> GateThresholds:
    base = config.synthesis().sampler
    sampler = make_sampler(pipe, replace(base, guidance=None))
    label, rows = Labeller(teacher, base.guidance, base.compute_batch), plan.pilot_rows()
    energies = pilot_energies(rows, sampler, label, base.compute_batch, StopRequest(), progress)
    return gate_thresholds(rows, energies, len(plan.counts), config.guidance)


def _drawn(drawn: Drawn) -> dict[str, Any]:
    return {"energy": round(drawn.energy, 6), "seconds_per_image": drawn.seconds_per_image}


def _row(one: Measured, fidelity: float) -> dict[str, Any]:
    def rounded(value: float | None) -> float | None:
        return round(value, 6) if value is not None and math.isfinite(value) else None

    return {
        "name": one.option.name,
        "knobs": list(one.option.knobs),
        "settings": settings(one.option),
        "energy": rounded(one.energy),
        "energy_kept": rounded(one.kept),
        "energy_kept_error": rounded(one.kept_error),
        "cosine": rounded(one.cosine),
        "cosines": [rounded(value) for value in one.cosines],
        "step_cosines": [rounded(value) for value in one.step_cosines],
        "seconds_per_image": one.seconds_per_image,
        "passes": one.passes(fidelity),
    }
