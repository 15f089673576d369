"""What a set's ``_info.json`` claims, checked, in the form in which its shards are compared with it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prism_fast.config import content_hash
from prism_fast.data.manifest import MAX_CLASSES, Manifest, is_whole
from prism_fast.synthesis.config import MAX_IMAGES
from prism_fast.synthesis.filter_config import MAX_ATTEMPTS
from prism_fast.synthesis.plan import ClassOrder
from prism_fast.synthesis.shards import FORMAT_VERSION, INFO_FILE, LABEL_MEMBERS, describe_splits
from prism_fast.synthesis.soft import describe_logits
from prism_fast.synthesis.thresholds import saved_facts
from prism_fast.verification.fault import Faults


@dataclass(frozen=True, kw_only=True)
class PlannedRows:
    """Which rows the plan has: what can be known of it without the prompts.

    Args:
        images: rows of the set.
        shard_size: rows of a shard.
        seed: of the set.
        order: the class of each row.
        repeats: guidances of a guided step; None where ``_info.json`` does not say it, or draws differ in their steps.
        attempts: draws that a row may have.
        keeps_best: every row has all of them.
        max_energy: of each class: above it a filter rejects; empty where none does.
    """

    images: int
    shard_size: int
    seed: int
    order: ClassOrder
    repeats: int | None
    attempts: int = 1
    keeps_best: bool = False
    max_energy: tuple[float, ...] = ()

    def redraws(self, kept: Iterable[int]) -> int:
        """Draws beside the first ones of rows whose kept draws are these attempts, from 0."""
        return sum(self.attempts - 1 if self.keeps_best else attempt for attempt in kept)

    def of_shard(self, shard: int) -> range:
        """Numbers of a shard's rows."""
        return range(shard * self.shard_size, min((shard + 1) * self.shard_size, self.images))


@dataclass(frozen=True, kw_only=True)
class Claims:
    """What every shard of a set is compared with. Small, and sent to worker processes.

    Args:
        folder: of the set.
        num_classes: K.
        top_k: how many of the logits are kept; None: all.
        extensions: of a row's members, in order.
        config_hash: of the set; None where ``_info.json`` does not say it.
        plan: None where ``_info.json`` contradicts itself about it.
        filtered: whether images are rejected and drawn again.
    """

    folder: Path
    num_classes: int
    top_k: int | None
    extensions: tuple[str, ...]
    config_hash: str | None
    plan: PlannedRows | None
    filtered: bool


def claims_of(folder: Path, said: Manifest, faults: Faults) -> Claims:
    """Checks what ``_info.json`` says about the set; notes what is wrong with it.

    Args:
        folder: of the set.
        said: as :func:`prism_fast.data.manifest.read_set` read it.
        faults: of the set's own files.
    """
    info = said.info
    if info.get("format_version") != FORMAT_VERSION:
        faults.add(INFO_FILE, f"format_version is {_shown(info.get('format_version'))}, not {FORMAT_VERSION}")
    logits = describe_logits(said.num_classes, said.top_k)
    if info.get("logits") != logits:
        faults.add(INFO_FILE, f"logits are {_shown(info.get('logits'))}, not {logits}")
    config_hash = info.get("config_hash")
    if not isinstance(config_hash, str) or not _hash_fits(info):
        faults.add(INFO_FILE, "config_hash is not that of made_from and the thresholds: one of them was changed")
    return Claims(
        folder=folder,
        num_classes=said.num_classes,
        top_k=said.top_k,
        extensions=(said.image_format, *LABEL_MEMBERS),
        config_hash=config_hash if isinstance(config_hash, str) else None,
        plan=_planned(said, faults),
        filtered=_filter(info) is not None,
    )


def check_end(said: Manifest, images: Mapping[int, int], faults: Faults) -> None:
    """Whether ``complete`` and ``splits`` of ``_info.json`` fit the shards that are there.

    Args:
        said: what it says.
        images: images of each published shard whose statistics could be read.
        faults: of the set's own files.
    """
    complete, splits = said.info.get("complete"), said.info.get("splits")
    if not isinstance(complete, bool):
        faults.add(INFO_FILE, f"complete is {_shown(complete)}, not true or false")
    elif not complete:
        if splits != {}:
            faults.add(INFO_FILE, "splits name archives of a set that is not complete")
    elif len(images) == said.planned and splits != describe_splits(images):  # otherwise a shard's own fault says more
        faults.add(INFO_FILE, "splits do not name the archives and their numbers of images")


def _planned(said: Manifest, faults: Faults) -> PlannedRows | None:
    info, found = said.info, Faults()
    made_from = info.get("made_from")
    if not isinstance(made_from, dict):
        made_from = {}
    images, size, counts = info.get("images"), info.get("shard_size"), info.get("counts")
    seed = made_from.get("seed")
    if not is_whole(images, 1, MAX_IMAGES) or not is_whole(size, 1, MAX_IMAGES) or not is_whole(seed, 0, 2**63 - 1):
        faults.add(INFO_FILE, "images, shard_size or made_from.seed is no such number")
        return None
    if not isinstance(counts, list) or not all(is_whole(count, 0, MAX_IMAGES) for count in counts):
        faults.add(INFO_FILE, "counts are not one number for each class")
        return None
    if len(counts) != said.num_classes or len(counts) > MAX_CLASSES or sum(counts) != images:
        found.add(INFO_FILE, f"counts are {len(counts)} numbers that add up to {sum(counts)}, for {images} images")
    if -(-images // size) != said.planned:
        found.add(INFO_FILE, f"{images} images in shards of {size} are not {said.planned} shards")
    told = {"images": images, "shard_size": size, "format": said.image_format, "soft_top_k": said.top_k}
    for name, value in told.items():
        if made_from.get(name) != value:
            found.add(INFO_FILE, f"{name} is {value}, in made_from {_shown(made_from.get(name))}")
    limits = _limits(info, said.num_classes, found)
    faults.take(found)
    if found.all():
        return None
    return PlannedRows(
        images=images,
        shard_size=size,
        seed=seed,
        order=ClassOrder(counts),
        repeats=_repeats(made_from),
        attempts=(_filter(info) or {"attempts": 1})["attempts"],
        keeps_best=(_filter(info) or {}).get("keep") == "best",
        max_energy=limits,
    )


def _filter(info: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The filter that ``made_from`` names; None where there is none that synthesis could have had."""
    made_from = info.get("made_from")
    found = made_from.get("filter") if isinstance(made_from, dict) else None
    sound = isinstance(found, dict) and is_whole(found.get("attempts"), 1, MAX_ATTEMPTS)
    return found if sound else None


def _limits(info: Mapping[str, Any], num_classes: int, faults: Faults) -> tuple[float, ...]:
    """The energy of each class above which images are rejected; empty where energies reject none."""
    chosen, learned = _filter(info) or {}, info.get("max_energy")
    if (chosen.get("energy_quantile") is None) != (learned is None):
        faults.add(INFO_FILE, f"max_energy is {_shown(learned)}, which is not what made_from.filter asks for")
        return ()
    limits = [chosen.get("max_energy")] * num_classes if learned is None else learned
    if limits == [None] * num_classes:
        return ()
    if not isinstance(limits, list) or len(limits) != num_classes or not all(map(_is_finite, limits)):
        faults.add(INFO_FILE, f"max_energy is {_shown(limits)}, not a finite number for each class")
        return ()
    return tuple(map(float, limits))


def _is_finite(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _repeats(made_from: Mapping[str, Any]) -> int | None:
    sampler = made_from.get("sampler")
    guidance = sampler.get("guidance") if isinstance(sampler, dict) else None
    repeats = guidance.get("repeats") if isinstance(guidance, dict) else None
    if isinstance(sampler, dict) and "image_to_image" in sampler:
        return None  # how many steps guide a draw depends on its strength, and replaced draws leave no trace
    return repeats if is_whole(repeats, 1, 1 << 20) else None


def _hash_fits(info: Mapping[str, Any]) -> bool:
    try:
        found = {"made_from": info["made_from"], "gate": info["gate"], **saved_facts(info)}
        return bool(content_hash(found) == info["config_hash"])
    except (KeyError, ValueError, TypeError, OverflowError, RecursionError):
        return False


def _shown(value: Any) -> str:
    """What a file says, cut to a line."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
