"""A row's provenance, as its ``.json`` member and (without the trace) the shard's ``.parquet`` keep it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from prism_fast.synthesis.plan import Row

if TYPE_CHECKING:
    from prism_fast.sampling.batch import SampleBatch


@dataclass(frozen=True, kw_only=True)
class Labels:
    """The teacher's verdict on n images.

    Args:
        logits: fp16 [n, K] at T = 1.
        energy: the guidance energy E of each image and its class.
        free_energy: −T·logsumexp(f/T), T of the guidance.
        class_energy: cross-entropy with the class, in nats.
        probability: softmax probability of the class.
        top1: the teacher's own choice.
        top1_probability: its softmax probability.
    """

    logits: NDArray[np.float16]
    energy: list[float]
    free_energy: list[float]
    class_energy: list[float]
    probability: list[float]
    top1: list[int]
    top1_probability: list[float]


def batch_records(
    rows: Sequence[Row],
    batch: SampleBatch,
    labels: Labels,
    reasons: Sequence[str],
    config_hash: str,
    mixed: bool = False,
) -> list[dict[str, Any]]:
    """One record a row. Every record of a set has the same keys and types, so that tables can be made of them.

    Args:
        rows, batch, labels: what was asked for, what was drawn, what the teacher says.
        reasons: why each image is rejected; empty where it is kept.
        config_hash: of the set.
        mixed: rows of the set may have a partner: every record says which, or null.
    """
    skipped = batch.skipped.tolist()
    return [
        {
            "index": row.index,
            "seed": row.seed,
            "attempt": row.attempt,
            "class_index": row.class_index,
            "class_name": row.class_name,
            "prompt": row.prompt.prompt,
            "sense": row.prompt.sense,
            "content": row.prompt.content,
            "style": row.prompt.style,
            "source": row.prompt.source,
            "energy": labels.energy[place],
            "free_energy": labels.free_energy[place],
            "class_energy": labels.class_energy[place],
            "teacher_probability": labels.probability[place],
            "teacher_top1": labels.top1[place],
            "skipped": skipped[place],
            "compute_batch": batch.compute_batch,
            "accepted": not reasons[place],
            "reason": reasons[place],
            "guidance": _trace(batch, place),
            **({"mix": _mix(row)} if mixed else {}),
            "config_hash": config_hash,
        }
        for place, row in enumerate(rows)
    ]


def _mix(row: Row) -> dict[str, Any] | None:
    return None if row.mix is None else {"partner": row.mix.partner, "box": [significant(x) for x in row.mix.box]}


def _trace(batch: SampleBatch, place: int) -> dict[str, Any]:
    """Guidance of one row, at the steps that guided it: a gate that is not a number says that the step did not."""
    energy, gate = batch.energy[:, place].tolist(), batch.gate[:, place].tolist()
    guided = [number for number, value in enumerate(gate) if not math.isnan(value)]
    return {
        "steps": [batch.guided_steps[number] for number in guided],
        "energy": [json_number(energy[number]) for number in guided],
        "gate": [json_number(gate[number]) for number in guided],
    }


def json_number(value: float) -> float | None:
    """JSON has no NaN: what was dropped for one leaves null."""
    return significant(value) if math.isfinite(value) else None


def significant(value: float) -> float:
    """Six significant digits: what fp32 arithmetic is worth, and half the text in a shard's ``.json``."""
    return float(f"{value:.6g}")
