"""The pilot: unguided images of the plan's own prompts; gate and filter learn their thresholds from its energies.

No real image is involved: what counts as "in distribution already" is what the generator reaches unguided, at its
better end (``gate_quantile``).
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from prism_fast.errors import UserError
from prism_fast.progress import ProgressFactory
from prism_fast.sampling.batch import Sampler
from prism_fast.sampling.config import GuidanceConfig
from prism_fast.sampling.guidance import GateThresholds
from prism_fast.synthesis.config import SynthesisConfig
from prism_fast.synthesis.interruption import StopRequest
from prism_fast.synthesis.label import Labeller
from prism_fast.synthesis.place import Place
from prism_fast.synthesis.plan import Row, sampler_arguments
from prism_fast.synthesis.publish import Claim, ObjectClaim, claim, create_file, replace_file
from prism_fast.synthesis.record import json_number
from prism_fast.synthesis.shards import PARTIAL_FILE, PILOT_FILE
from prism_fast.synthesis.thresholds import Thresholds

KEEP_S = 30.0
_TURN_FILE = "pilot"


def pilot_energies(
    rows: Sequence[Row],
    sampler: Sampler,
    labeller: Labeller,
    compute_batch: int,
    stop: StopRequest,
    report: ProgressFactory,
    begun: Sequence[float] = (),
    keep: Callable[[Sequence[float]], None] | None = None,
) -> list[float]:
    """Guidance energies of the unguided images of ``rows``; NaN where the latents are not finite.

    Args:
        rows: :meth:`Plan.pilot_rows`.
        sampler: without guidance.
        labeller: with the energy that is to guide later.
        compute_batch: rows of a batch.
        stop: looked at between batches.
        report: progress.
        begun: energies of the first rows, from an earlier run.
        keep: gets what is there every :data:`KEEP_S` seconds, and when a stop is asked for.
    """
    energies = list(begun[: len(begun) // compute_batch * compute_batch])  # the same batches as without interruption
    kept_s = time.monotonic()
    with report(len(rows), "images", "pilot", len(energies)) as bar:
        for first in range(len(energies), len(rows), compute_batch):
            if keep is not None and energies and (stop.reason or time.monotonic() - kept_s > KEEP_S):
                keep(energies)
                kept_s = time.monotonic()
            stop.check()
            part = rows[first : first + compute_batch]
            prompts, classes, seeds = sampler_arguments(part)
            batch = sampler.sample(prompts, classes, seeds)
            labels = labeller(batch.images, classes)
            pairs = zip(labels.energy, batch.finite.tolist(), strict=True)
            energies += [energy if finite else math.nan for energy, finite in pairs]
            bar.update(len(part))
    return energies


def gate_thresholds(
    rows: Sequence[Row], energies: Sequence[float], num_classes: int, guidance: GuidanceConfig
) -> GateThresholds:
    """Thresholds of every class; those that no row shows get tau 0 and delta 1, which nothing reads."""
    shown = sorted({row.class_index for row in rows})
    place = {class_index: number for number, class_index in enumerate(shown)}
    found = GateThresholds.from_energies(
        energies, [place[row.class_index] for row in rows], len(shown), guidance.gate_quantile
    )
    tau, delta = [0.0] * num_classes, [1.0] * num_classes
    for class_index, number in place.items():
        tau[class_index], delta[class_index] = found.tau[number], found.delta[number]
    return GateThresholds(tau=tuple(tau), delta=tuple(delta))


def learn_thresholds(
    config: SynthesisConfig, rows: Sequence[Row], energies: Sequence[float], num_classes: int
) -> Thresholds:
    """What ``config`` takes from the energies of its pilot; one pilot serves guidance and filter."""
    guidance, gate, max_energy = config.sampler.guidance or GuidanceConfig(), None, None
    if config.has_gate:
        gate = gate_thresholds(rows, energies, num_classes, guidance)
    if config.filter is not None and config.filter.energy_quantile is not None:
        quantile = replace(guidance, gate_quantile=config.filter.energy_quantile)
        max_energy = gate_thresholds(rows, energies, num_classes, quantile).tau
    return Thresholds(gate=gate, max_energy=max_energy)


def pilot_turn(folder: Place) -> Claim | ObjectClaim | None:
    """The right to draw the folder's pilot, or None while another live run does; in an object store all have it."""
    return claim(folder / _TURN_FILE)


def save_pilot(folder: Place, key: str, thresholds: Thresholds, rows: Sequence[Row], energies: Sequence[float]) -> None:
    """Keeps a pilot in ``pilot.json``; one that is there already stays."""
    found = {
        "key": key,
        **thresholds.facts(),
        "classes": [row.class_index for row in rows],
        "energies": [json_number(energy) for energy in energies],
    }
    create_file(folder / PILOT_FILE, json.dumps(found, indent=1, allow_nan=False).encode() + b"\n")
    (folder / PARTIAL_FILE).unlink(missing_ok=True)


def save_partial(folder: Place, key: str, energies: Sequence[float]) -> None:
    """Keeps the first energies of a pilot that is not done."""
    found = {"key": key, "energies": [json_number(energy) for energy in energies]}
    replace_file(folder / PARTIAL_FILE, json.dumps(found, allow_nan=False).encode())


def load_partial(folder: Place, key: str) -> list[float]:
    """What an interrupted pilot of this configuration and environment left; nothing where there is none."""
    try:
        found = json.loads((folder / PARTIAL_FILE).read_bytes())
        energies = [math.nan if energy is None else float(energy) for energy in found["energies"]]
        return energies if found["key"] == key else []
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return []  # none, or our own hidden file was damaged: what it saved is made again


def load_pilot(folder: Place, key: str) -> Thresholds | None:
    """The thresholds of an earlier pilot in this folder, or None where there is none.

    Raises:
        UserError: the file is damaged, or of another configuration or environment.
    """
    path = folder / PILOT_FILE
    if not path.exists():
        return None
    try:
        found: dict[str, Any] = json.loads(path.read_bytes())
        same = found["key"] == key
        thresholds = Thresholds.from_facts(found)
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged ({error}): delete it, and the same command makes it again") from error
    if not same:
        raise UserError(
            f"{path} is of another configuration or environment: choose another output folder (or delete that file, "
            "if the run that made it is not needed)"
        )
    return thresholds
