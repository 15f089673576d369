"""``prism-fast pilot``: draws, looks, proposes, and keeps what came out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from prism_fast.config import canonical, content_hash, environment, make_own_folder, replacing
from prism_fast.data.sources import load_source_models
from prism_fast.errors import UserError
from prism_fast.pilot.agreement import Agreement, agreement
from prism_fast.pilot.checks import (
    find_alike,
    find_flat,
    find_foreign,
    find_permutation,
    find_senses,
    find_unusable,
    unusable,
)
from prism_fast.pilot.classes import choose_classes
from prism_fast.pilot.concern import Concern
from prism_fast.pilot.config import PilotConfig
from prism_fast.pilot.cost import cost, peak_memory
from prism_fast.pilot.draw import Drawn, draw, spread
from prism_fast.pilot.page import pilot_page
from prism_fast.pilot.pictures import matrix_picture, samples_picture
from prism_fast.pilot.preprocessing import CHECKED, Tried, find_preprocessing, try_ways
from prism_fast.pilot.proposal import command, with_scale
from prism_fast.pilot.scales import Chosen, Eye, decide, slope_of, try_scales
from prism_fast.progress import ProgressFactory, silent
from prism_fast.prompts import PromptList, Vocabulary, build_prompts, load_vocabulary
from prism_fast.records import read_kept, write_json
from prism_fast.sampling.batch import Sampler
from prism_fast.sampling.guidance import GateThresholds
from prism_fast.study.page import write_page
from prism_fast.synthesis.config import identity
from prism_fast.synthesis.models import Models
from prism_fast.synthesis.pilot import gate_thresholds
from prism_fast.synthesis.plan import Plan, Row
from prism_fast.synthesis.record import json_number
from prism_fast.teachers.base import Teacher
from prism_fast.teachers.eager import EagerTeacher
from prism_fast.teachers.load import load_teacher

FIGURES, PAGE, MATRIX, SAMPLES = "pilot.json", "pilot.html", "agreement.png", "samples.png"
SYNTHESIS_OUT = "runs/images"


@dataclass(frozen=True, kw_only=True)
class World:
    """What a pilot looks at.

    Args:
        vocabulary: the classes of the teacher.
        prompts: of them.
        models: pipeline and teacher.
        judge: a second classifier, or None.
        classes: indices of the classes looked at; those without prompts are not among them.
        promptless: those.
    """

    vocabulary: Vocabulary
    prompts: PromptList
    models: Models
    judge: Teacher | None
    classes: Sequence[int]
    promptless: Sequence[int] = ()


def pilot(config: PilotConfig, out: str, progress: ProgressFactory = silent) -> dict[str, Any]:
    """The figures, as ``pilot.json`` has them; where it holds this very pilot already, nothing is drawn.

    Raises:
        UserError: something cannot be loaded or does not fit, or ``out`` holds something else.
    """
    folder = Path(out)
    world = load_world(config)
    head = {
        "config": canonical(config),
        "pipeline": world.models.pipeline_fingerprint,
        "teacher": world.models.teacher.fingerprint,
        "judge": None if world.judge is None else world.judge.fingerprint,
        "environment": environment(world.models.device, config.sampler.dtype),
    }
    if world.models.decoder_fingerprint is not None:
        head["guidance_decoder"] = world.models.decoder_fingerprint
    if world.models.tokens is not None:
        head["tokens"] = world.models.tokens.fingerprint
    fields = ("images", "classes", "pilot_images", "guided_images", "scales", "price_per_hour")
    own = {"set": identity(config.planned()), **{name: canonical(getattr(config, name)) for name in fields}}
    key = content_hash(
        {**head, "config": own, "prompts": world.prompts.fingerprint, "vocabulary": list(world.vocabulary.names)}
    )
    if (folder / FIGURES).exists():
        return read_kept(folder / FIGURES, key, "this pilot")
    make_own_folder(folder, "this pilot")
    found, drawn, seen = look(config, world, progress)
    found = {"identity": key, **head, **found}
    pictures = {
        MATRIX: matrix_picture(seen, world.vocabulary.names),
        SAMPLES: samples_picture(drawn, seen, world.vocabulary.names),
    }
    for name, content in pictures.items():
        with replacing(folder / name) as staged:
            staged.write_bytes(content)
    write_page(pilot_page(found, pictures[MATRIX], pictures[SAMPLES]), folder / PAGE)
    write_json(folder / FIGURES, found)
    return found


def load_world(config: PilotConfig) -> World:
    """
    Raises:
        UserError: something cannot be loaded, or teacher, judge and vocabulary do not have the same number of classes.
    """
    vocabulary = load_vocabulary(config.vocabulary)
    chosen = choose_classes(config.classes, vocabulary)
    models = load_source_models(config.planned())
    judge = None if config.judge is None else load_teacher(config.judge, models.device)
    for what, one in (("teacher", models.teacher), ("judge", judge)):
        if one is not None and one.num_classes != len(vocabulary):
            raise UserError(
                f"{what} {getattr(config, what)!r} knows {one.num_classes} classes, vocabulary {config.vocabulary!r} "
                f"names {len(vocabulary)}: give the vocabulary that it was trained on, in its order"
            )
    prompts = build_prompts(vocabulary, config.prompts, models.fits)
    have = set(prompts.class_indices())
    classes = [c for c in chosen if c in have]
    if not classes:
        raise UserError("the prompt list has no prompts of any of these classes: make it again, or leave classes out")
    return World(
        vocabulary=vocabulary, prompts=prompts, models=models, judge=judge, classes=classes,
        promptless=[c for c in chosen if c not in have],
    )  # fmt: skip


def look(
    config: PilotConfig, world: World, progress: ProgressFactory = silent
) -> tuple[dict[str, Any], Drawn, Agreement]:
    """Draws and judges; the figures without their head, the images and the agreement.

    Raises:
        UserError: the sampler does not fit the pipeline, or the teacher's logits are not finite.
    """
    models, names, total = world.models, world.vocabulary.names, len(world.vocabulary)
    plan = Plan(config.drawn(frozenset(world.classes), total), world.vocabulary, world.prompts)
    rows, size = plan.pilot_rows(), config.sampler.compute_batch
    checked = spread(len(rows), len(world.classes), CHECKED)
    again = spread(len(rows), len(world.classes), config.guided_images)
    sampler = models.make_sampler(replace(config.sampler, guidance=None), None)
    drawn = draw(rows, sampler, models.teacher, config.guidance, size, {*checked, *again}, progress)
    seen = agreement(drawn.asked, drawn.said, drawn.finite, world.classes, total)
    tried = _ways(models.teacher, drawn, checked)
    reasons = dict.fromkeys(world.promptless, "no prompts") | unusable(seen, drawn)
    concerns = find_concerns(drawn, seen, tried, reasons, names, total)
    gate = _gate(rows, drawn, total, config)
    scales = _scales(config, world, drawn, checked, again, gate, progress)
    planned = with_scale(config.planned(), None if scales is None else scales.scale)
    shown = min(config.images, total)
    found = {
        "classes": _class_rows(seen, drawn, gate, reasons, names),
        "agreement": {"share": seen.share, "error": seen.error, "images": int(seen.images.sum())},
        "matrix": [[world.classes[r], c, int(seen.counts[r, c])] for r, c in seen.counts.nonzero().tolist()],
        "concerns": [canonical(asdict(one)) for one in concerns],
        "preprocessing": [
            {"name": one.way.name, "agreement": float(one.agrees.double().mean()),
             "free_energy": json_number(float(one.free.mean())), "cross_entropy": json_number(float(one.cross.mean()))}
            for one in tried
        ],
        "gate": None if gate is None else {"quantile": config.guidance.gate_quantile, **_gate_lists(gate)},
        "scales": None if scales is None else {"scale": scales.scale, "why": scales.why, "table": list(scales.table)},
        "memory": peak_memory(models.device),
        "cost": cost(
            config.images,
            config.pilot_images * shown if config.planned().needs_pilot else 0,
            drawn.seconds_per_image,
            None if scales is None else _guided_s(scales),
            config.price_per_hour,
        ),
        "command": command(planned, SYNTHESIS_OUT),
    }  # fmt: skip
    return found, drawn, seen


def find_concerns(
    drawn: Drawn, seen: Agreement, tried: Sequence[Tried], reasons: dict[int, str], names: Sequence[str], total: int
) -> list[Concern]:
    """All warnings, causes before what follows from them.

    Where one cause explains everything (images that are none, wrong preprocessing, a teacher that recognises nothing),
    single classes are not named beside it; nor are classes that a permutation explains.
    """
    flat, alike = find_flat(drawn, names), find_alike(drawn, names)
    preprocessing = find_preprocessing(tried) if tried else None
    permuted = find_permutation(drawn, seen, names)
    broken = [one for one in (flat, alike, preprocessing, permuted) if one is not None]
    foreign = None if broken else find_foreign(seen, 1 / total)
    known = set(permuted.classes) if permuted else set()
    general = foreign or preprocessing or (alike and not alike.classes)
    senses = [] if general else [one for one in find_senses(seen, names) if not known & set(one.classes)]
    left = {c: why for c, why in reasons.items() if c not in known}
    fewer = find_unusable(left, len({*seen.classes, *reasons}), names, bool(general or flat))
    return [*broken, *(one for one in (foreign, *senses, fewer) if one is not None)]


def _ways(teacher: Any, drawn: Drawn, checked: Sequence[int]) -> list[Tried]:
    """Other preprocessings, on finite images; none where the teacher is no single network."""
    numbers = [number for number in checked if drawn.finite[number]]
    if not isinstance(teacher, EagerTeacher) or not numbers:
        return []
    return try_ways(teacher, *drawn.kept(numbers), batch=64)


def _gate(rows: Sequence[Row], drawn: Drawn, total: int, config: PilotConfig) -> GateThresholds | None:
    """What a synthesis would freeze, of the classes that have a finite energy."""
    finite = drawn.finite
    able = set(drawn.asked[finite].tolist())
    numbers = [number for number, row in enumerate(rows) if row.class_index in able]
    if not numbers:
        return None
    return gate_thresholds([rows[n] for n in numbers], [drawn.energies[n] for n in numbers], total, config.guidance)


def _scales(
    config: PilotConfig,
    world: World,
    drawn: Drawn,
    checked: Sequence[int],
    again: Sequence[int],
    gate: GateThresholds | None,
    progress: ProgressFactory,
) -> Chosen | None:
    """The rows at each scale; None where nothing guides, nothing is to be tried, or nothing is finite."""
    guidance = config.sampler.guidance
    numbers = [number for number in again if drawn.finite[number]]
    if guidance is None or not config.scales or gate is None or not numbers:
        return None

    def ready(scale: float) -> Sampler:
        sampler = replace(config.sampler, guidance=replace(guidance, scale=scale))
        return world.models.make_sampler(sampler, gate if guidance.gate == "pilot" else None)

    teacher, rows = world.models.teacher, [drawn.rows[number] for number in numbers]
    images, classes = drawn.kept(numbers)
    eye = Eye(teacher, world.judge, guidance, classes)
    unguided = eye.look(0.0, images, drawn.seconds_per_image)
    with progress(len(rows) * len(config.scales), "images", "guided", 0) as bar:
        guided = try_scales(rows, config.scales, ready, eye, config.sampler.compute_batch, bar)
    every = sorted({*numbers, *(number for number in checked if drawn.finite[number])})
    return decide([unguided, *guided], slope_of(teacher, *drawn.kept(every)))


def _guided_s(scales: Chosen) -> float:
    """Seconds an image, median over the scales: a scale changes no work."""
    seconds = sorted(float(row["seconds_per_image"] or 0) for row in scales.table[1:])
    return seconds[len(seconds) // 2]


def _gate_lists(gate: GateThresholds) -> dict[str, list[float]]:
    return {"tau": list(gate.tau), "delta": list(gate.delta)}


def _class_rows(
    seen: Agreement, drawn: Drawn, gate: GateThresholds | None, reasons: Mapping[int, str], names: Sequence[str]
) -> list[dict[str, Any]]:
    energies = torch.tensor(drawn.energies, dtype=torch.float64)
    rows = []
    for row, c in enumerate(seen.classes):
        own = energies[(drawn.asked == c) & drawn.finite]
        rows.append({
            "index": c, "name": names[c], "images": int(seen.images[row]), "agree": int(seen.hits[row]),
            "taken_for": [{"index": other, "name": names[other], "images": n} for other, n in seen.others(row)],
            "energy": float(own.mean()) if len(own) else None,
            "tau": gate.tau[c] if gate and len(own) else None, "delta": gate.delta[c] if gate and len(own) else None,
            "unusable": reasons.get(c),
        })  # fmt: skip
    return rows
