"""Counts of a set: those of each shard, which its ``.json`` keeps, and their sums, which decide whether to go on."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from prism_fast.errors import UserError
from prism_fast.synthesis.filter_config import NOT_FINITE, OPTIONS
from prism_fast.synthesis.place import Place

MAX_REJECTED = 0.01
"""Largest share of rows that are not finite. More means that the pipeline does not work in its dtype."""

_CHECKED = ("guidances", "skipped", "rows")
"""Figures that decide whether a run goes on."""


@dataclass(frozen=True, kw_only=True)
class SynthesisReport:
    """What a run left behind.

    Args:
        out: the set's folder.
        config_hash: of the set.
        images: in the set.
        rows: planned; images and rejected rows.
        rejected: rows without an image, by reason.
        redrawn: draws that another one of the same row has replaced, by reason.
        shards: in the set.
        made: rows that this run made; fewer than ``rows`` where it continued an earlier one.
        seconds: that this run took, models loaded.
        prompts_shortened: prompts of the list that were cut to fit the tokenizer.
        guidances: gradients asked for, over all images.
        skipped: of them dropped, for a zero or non-finite energy or gradient.
        teacher_agreement: share of images whose class is the teacher's first choice.
        teacher_probability: mean probability of the image's class.
        energy: mean guidance energy.
    """

    out: Place
    config_hash: str
    images: int
    rows: int
    rejected: Mapping[str, int]
    redrawn: Mapping[str, int]
    shards: int
    made: int
    seconds: float
    prompts_shortened: int
    guidances: int
    skipped: int
    teacher_agreement: float
    teacher_probability: float
    energy: float

    @property
    def images_per_second(self) -> float:
        """Of this run."""
        return self.made / self.seconds if self.seconds > 0 else 0.0


def shard_stats(
    shard: int,
    records: Sequence[Mapping[str, Any]],
    guidances: int,
    config_hash: str,
    replaced: Sequence[Mapping[str, Any]] | None = None,
) -> dict[str, Any]:
    """Statistics of a shard, without those of its files. Its rows are its images and its rejected rows.

    Args:
        shard: its number.
        records: of its rows, see :mod:`prism_fast.synthesis.record`.
        guidances: gradients asked for, over all draws.
        config_hash: of the set.
        replaced: records of draws that another one of the same row has replaced; None where there is no filter.
    """
    kept = [record for record in records if record["accepted"]]
    return {
        "shard": shard,
        "config_hash": config_hash,
        "first_row": records[0]["index"],
        "rows": len(records),
        "images": len(kept),
        "rejected": _reasons(record for record in records if not record["accepted"]),
        **({} if replaced is None else {"redrawn": _reasons(replaced)}),
        "guidances": guidances,
        "skipped": sum(record["skipped"] for record in (*records, *(replaced or ()))),
        "teacher_agreed": sum(record["teacher_top1"] == record["class_index"] for record in kept),
        "teacher_probability_sum": math.fsum(record["teacher_probability"] for record in kept),
        "energy_sum": math.fsum(record["energy"] for record in kept),
    }


def _reasons(records: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    """How many records have each reason."""
    return dict(sorted(Counter(record["reason"] for record in records).items()))


class Tally:
    """Sums over published shards.

    Args:
        max_bad_rate: largest share of dropped guidances.
        max_rejected: largest share of rows that filters leave without an image.
    """

    def __init__(self, max_bad_rate: float, max_rejected: float = 1.0) -> None:
        self.shards: dict[int, Mapping[str, Any]] = {}
        self._max_bad_rate, self._max_rejected = max_bad_rate, max_rejected
        self._sums: Counter[str] = Counter()  # kept up to date, as is the next: every shard asks for them
        self._rejected: Counter[str] = Counter()

    def add(self, shard: int, stats: Mapping[str, Any]) -> None:
        """Counts a shard, once."""
        before = self.shards.get(shard, {})
        self._sums.subtract({key: before.get(key, 0) for key in _CHECKED})
        self._rejected.subtract(before.get("rejected", {}))
        self.shards[shard] = {key: value for key, value in stats.items() if key != "files"}
        self._sums.update({key: stats[key] for key in _CHECKED})
        self._rejected.update(stats["rejected"])

    def check(self) -> None:
        """Stops a run whose guidance or pipeline does not work. What is published stays.

        Raises:
            UserError: too many guidances dropped, or too many rows without an image: broken ones, or filtered ones.
        """
        guidances, skipped = self.total("guidances"), self.total("skipped")
        if guidances and skipped / guidances > self._max_bad_rate:
            raise UserError(
                f"{skipped} of {guidances} guidances were dropped for a zero or non-finite energy or gradient "
                f"({skipped / guidances:.1%}; guidance.max_bad_rate allows {self._max_bad_rate:.1%}): allow "
                "more and the same command goes on, or use another sampler.dtype or teacher and another folder. The "
                "shards made so far record each; they stay"
            )
        rows, rejected = self.total("rows"), self._rejected.copy()
        broken = rejected.pop(NOT_FINITE, 0)
        if broken > MAX_REJECTED * rows:
            raise UserError(
                f"{broken} of {rows} images hold numbers that are not finite: the pipeline does not work in this "
                "sampler.dtype; try bfloat16 or float32, in another folder. The shards made so far record each and stay"
            )

        filtered = rejected.total()
        if filtered > self._max_rejected * rows:
            counts = ", ".join(f"{count} for {reason}" for reason, count in rejected.most_common())
            raise UserError(
                f"filters leave {filtered} of {rows} rows without an image ({counts}; filter.max_rejected allows "
                f"{self._max_rejected:.0%}): allow more and the same command goes on, or loosen "
                f"{OPTIONS[rejected.most_common(1)[0][0]]}, in another folder. The shards made so far stay"
            )

    def reasons(self, key: str) -> Counter[str]:
        """Sum of one figure that is counted by reason."""
        summed: Counter[str] = Counter()
        for stats in self.shards.values():
            summed.update(stats.get(key, {}))
        return summed

    def total(self, key: str) -> Any:
        """Sum of one figure."""
        if key in _CHECKED:
            return self._sums[key]
        values = [stats[key] for stats in self.shards.values()]
        return math.fsum(values) if key.endswith("_sum") else sum(values)

    def report(self, out: Place, config_hash: str, made: int, seconds: float, shortened: int) -> SynthesisReport:
        """The report of a run that made ``made`` rows in ``seconds``."""
        images = self.total("images")
        mean = {
            key: self.total(key) / images if images else math.nan
            for key in ("teacher_agreed", "teacher_probability_sum", "energy_sum")
        }
        return SynthesisReport(
            out=out,
            config_hash=config_hash,
            images=images,
            rows=self.total("rows"),
            rejected=dict(self.reasons("rejected")),
            redrawn=dict(self.reasons("redrawn")),
            shards=len(self.shards),
            made=made,
            seconds=seconds,
            prompts_shortened=shortened,
            guidances=self.total("guidances"),
            skipped=self.total("skipped"),
            teacher_agreement=mean["teacher_agreed"],
            teacher_probability=mean["teacher_probability_sum"],
            energy=mean["energy_sum"],
        )
