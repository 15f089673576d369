"""Images that are rejected and drawn again: which, how often, and that nothing else changes with them."""

from __future__ import annotations

import json
import math
import os
import signal
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from prism_fast.data.shards import ShardSet
from prism_fast.errors import UserError
from prism_fast.keyed import seed_of
from prism_fast.sampling.batch import SampleBatch
from prism_fast.sampling.config import GuidanceConfig
from prism_fast.study.text import synthesis_summary
from prism_fast.synthesis import worker
from prism_fast.synthesis.config import SynthesisConfig
from prism_fast.synthesis.filter_config import DISAGREEMENT, ENERGY, FLAT, NOT_FINITE, FilterConfig
from prism_fast.synthesis.filtering import NO_FILTER, Filter
from prism_fast.synthesis.flat import deviations, flat
from prism_fast.synthesis.interruption import Interrupted
from prism_fast.synthesis.models import Models
from prism_fast.synthesis.record import Labels
from prism_fast.synthesis.tar import scan_tar
from tests.synthesis.doubles import (
    PLAIN,
    STEPS,
    SeedSampler,
    contents,
    darkened,
    filtered,
    models,
    run,
    small_config,
)

ROWS = 23


# What is rejected


def labels_of(**fields: list[Any]) -> Labels:
    count = len(next(iter(fields.values())))
    zeros: dict[str, Any] = {name: [0.0] * count for name in ("energy", "free_energy", "class_energy", "probability")}
    usual = {"logits": np.zeros((count, 3), np.float16), "top1": [0] * count, "top1_probability": [1.0] * count}
    return Labels(**{**zeros, **usual, **fields})


def noise(seed: int, count: int) -> torch.Tensor:
    return torch.randint(0, 256, (count, 3, 8, 8), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def reasons(config: FilterConfig, labels: Labels, classes: list[int], seed: int, **fields: Any) -> list[str]:
    count = len(classes)
    return Filter(config=config, **fields).reasons(
        noise(seed, count), torch.ones(count, dtype=torch.bool), classes, labels
    )


def test_energies_above_the_threshold(seed: int) -> None:
    labels = labels_of(energy=[0.5, 0.5000001, -3.0])
    assert reasons(FilterConfig(max_energy=0.5), labels, [0, 0, 0], seed) == ["", ENERGY, ""]
    learned = {"max_energy": (0.4, 0.6, -4.0)}
    assert reasons(FilterConfig(energy_quantile=0.5), labels, [0, 1, 2], seed, **learned) == [ENERGY, "", ENERGY]


def test_a_teacher_that_is_sure_of_another_class(seed: int) -> None:
    labels = labels_of(top1=[0, 1, 1, 1], top1_probability=[0.9, 0.9, 0.5, 0.4])
    assert reasons(FilterConfig(doubt=0.5), labels, [0, 0, 0, 1], seed) == ["", DISAGREEMENT, "", ""]
    assert reasons(FilterConfig(doubt=0.0), labels, [0, 0, 0, 1], seed) == ["", DISAGREEMENT, DISAGREEMENT, ""]
    assert reasons(FilterConfig(doubt=1.0), labels, [0, 0, 0, 1], seed) == [""] * 4


def test_black_and_one_colour_are_flat_and_pictures_are_not(seed: int) -> None:
    images = noise(seed, 6)
    images[1] = 0
    images[2] = torch.tensor([250, 200, 3], dtype=torch.uint8)[:, None, None]  # yellow: flat, and no grey
    images[3] = 128 + (images[3] % 3)  # rounding noise
    images[4] = 0
    images[4, :, :4] = 9  # dark, but a picture
    assert flat(images).tolist() == [False, True, True, True, False, False]
    centred = images.double() - images.double().mean((2, 3), keepdim=True)
    assert torch.allclose(deviations(images), centred.square().mean((1, 2, 3)).sqrt(), atol=1e-9)
    assert torch.equal(deviations(images)[3:4], deviations(images[3:4]))
    found = Filter(config=FilterConfig()).reasons(
        images, torch.ones(6, dtype=torch.bool), [0] * 6, labels_of(energy=[0] * 6)
    )
    assert found == ["", FLAT, FLAT, FLAT, "", ""]


def test_nothing_is_rejected_unasked_but_numbers_that_are_not_finite() -> None:
    images = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)
    labels = labels_of(energy=[9e9, 9e9], top1=[1, 1])
    assert NO_FILTER.reasons(images, torch.tensor([True, False]), [0, 0], labels) == ["", NOT_FINITE]
    assert not NO_FILTER.redraws


# What becomes of the rows


class Draws:
    """What the draws of (row, attempt) are, found by sampling each by itself."""

    def __init__(self, config: SynthesisConfig, share: float) -> None:
        self.share, self.sampler = share, SeedSampler(config.sampler, None, spoil=darkened(share))

    def black(self, index: int, attempt: int) -> bool:
        return not self.sampler.sample(["x"], [index % 3], [seed_of(0, index, attempt)]).images[0, :, 2:].any()

    def attempts(self, index: int, limit: int) -> int:
        """The attempt that is kept; ``limit`` where none is."""
        return next((attempt for attempt in range(limit) if not self.black(index, attempt)), limit)


def tables(folder: Path) -> list[dict[str, Any]]:
    return [row for path in sorted(folder.glob("*.parquet")) for row in pq.read_table(path).to_pylist()]


@pytest.mark.parametrize("share", [0.0, 0.3, 0.7, 1.0])
def test_rejected_rows_are_drawn_again_from_their_next_seeds(tmp_path: Path, share: float) -> None:
    config = filtered(tmp_path)
    draws = Draws(config, share)
    report = run(config, tmp_path / "out", models(spoil=darkened(share)))
    expected = [draws.attempts(i, 3) for i in range(ROWS)]
    rows = tables(tmp_path / "out")
    assert [row["index"] for row in rows] == list(range(ROWS))
    assert [row["accepted"] for row in rows] == [attempt < 3 for attempt in expected]
    assert [row["attempt"] for row in rows] == [min(attempt, 2) for attempt in expected]
    assert [row["seed"] for row in rows] == [seed_of(0, row["index"], row["attempt"]) for row in rows]
    assert {row["reason"] for row in rows if not row["accepted"]} <= {FLAT}
    kept = [i for i in range(ROWS) if expected[i] < 3]
    members = [m.name for path in sorted((tmp_path / "out").glob("*.tar")) for m in scan_tar(path)]
    assert members == [f"{i:09d}.{ext}" for i in kept for ext in ("png", "cls", "label", "soft", "json")]
    redrawn = sum(min(attempt, 2) for attempt in expected)
    lost = ROWS - len(kept)
    assert report.rejected == ({FLAT: lost} if lost else {}) and report.redrawn == ({FLAT: redrawn} if redrawn else {})
    assert (report.rows, report.images) == (ROWS, len(kept))
    assert report.guidances == (ROWS + redrawn) * len(STEPS)
    for n in range(3):
        stats = json.loads((tmp_path / f"out/shard-{n:06d}.json").read_text())
        own = [row for row in rows if row["index"] // 10 == n]
        assert stats["rows"] == stats["images"] + sum(stats["rejected"].values()) == len(own)
        assert sum(stats["redrawn"].values()) == sum(row["attempt"] for row in own)
    if share == 0.3:
        assert redrawn > 0 and kept  # the doubles' noise does not change from run to run
        text = synthesis_summary(report)
        assert f"{redrawn} (flat {redrawn}) images drawn again" in text
        shards = ShardSet(tmp_path / "out")
        assert [shards.record(place)["index"] for place in range(len(shards))] == kept


def test_an_image_does_not_depend_on_what_is_drawn_again_with_it(tmp_path: Path) -> None:
    """Other shards and other batches bring other rows together: every row keeps its image, label and energies."""
    seen = {}
    for name, changes in {
        "one": {"shard_size": 10}, "two": {"shard_size": 23},
        "three": {"sampler": replace(PLAIN, compute_batch=7, guidance=GuidanceConfig(gate="none"))},
    }.items():  # fmt: skip
        run(filtered(tmp_path, **changes), tmp_path / name, models(spoil=darkened(0.4)))
        shards = ShardSet(tmp_path / name)
        seen[name] = [
            (shards.record(i)["index"], shards.record(i)["attempt"], shards.record(i)["energy"], *map(str, sample))
            for i in range(len(shards))
            for sample in [[part.numpy().tobytes() if hasattr(part, "numpy") else part for part in shards.sample(i)]]
        ]
    assert seen["one"] == seen["two"] == seen["three"]


def test_redraws_are_batched_and_batches_stay_inside_shards(tmp_path: Path) -> None:
    batches: list[list[int]] = []
    config = filtered(tmp_path)
    made = models(before=lambda seeds: batches.append(list(seeds)), spoil=darkened(0.4))
    report = run(config, tmp_path / "out", made)
    drawn = [(row["index"], a) for row in tables(tmp_path / "out") for a in range(row["attempt"] + 1)]
    home = {seed_of(0, index, attempt): index // 10 for index, attempt in drawn}
    assert Counter(seed for batch in batches for seed in batch) == dict.fromkeys(home, 1)
    assert all(len({home[seed] for seed in batch}) == 1 and len(batch) <= 4 for batch in batches)
    for shard in range(3):  # all full but the last few, which wait for no more than their own redraws
        sizes = [len(batch) for batch in batches if home[batch[0]] == shard]
        assert sum(size < 4 for size in sizes) <= config.filter.attempts  # type: ignore[union-attr]
    assert sum(report.redrawn.values()) == len(drawn) - ROWS


def test_few_rows_are_held_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Redraws go first: what waits for them is some batches, and not the shard."""
    most = 0

    class Watched(worker.RowOrder):
        def settle(self, record: Any, sample: Any) -> None:
            nonlocal most
            super().settle(record, sample)
            most = max(most, len(self._held))

    monkeypatch.setattr(worker, "RowOrder", Watched)
    config = filtered(tmp_path, images=300, shard_size=300)
    run(config, tmp_path / "out", models(spoil=darkened(0.3)))
    assert 0 < most <= 2 * config.filter.attempts * 4  # type: ignore[union-attr]


def broken_first_draws(batch: SampleBatch) -> SampleBatch:
    latents = batch.latents.clone()
    latents[batch.images[:, 0, 1, 1] % 3 == 0] = math.nan
    return replace(batch, latents=latents)


def test_numbers_that_are_not_finite_are_drawn_again_too(tmp_path: Path) -> None:
    config = filtered(tmp_path, filter=FilterConfig(attempts=30, flat=False))
    report = run(config, tmp_path / "out", models(spoil=broken_first_draws))
    assert (report.images, report.rejected) == (ROWS, {}) and report.redrawn[NOT_FINITE] > 0
    with pytest.raises(UserError, match="hold numbers that are not finite"):
        run(replace(config, filter=FilterConfig(attempts=1)), tmp_path / "once", models(spoil=broken_first_draws))


def test_dropped_guidances_of_replaced_draws_are_counted(tmp_path: Path) -> None:
    def spoil(batch: SampleBatch) -> SampleBatch:
        return darkened(0.5)(replace(batch, skipped=torch.ones_like(batch.skipped)))

    config = filtered(tmp_path, sampler=replace(PLAIN, guidance=GuidanceConfig(gate="none", max_bad_rate=1.0)))
    report = run(config, tmp_path / "out", models(spoil=spoil))
    assert report.skipped == ROWS + sum(report.redrawn.values()) > ROWS


# Thresholds from the pilot


def test_one_pilot_serves_guidance_and_filter(tmp_path: Path) -> None:
    config = small_config(tmp_path, filter=FilterConfig(attempts=2, energy_quantile=0.75, max_rejected=1.0))
    unguided: list[int] = []
    made = models()
    watched = replace(
        made,
        make_sampler=lambda c, g: SeedSampler(c, g, before=unguided.extend if c.guidance is None else None),
    )
    run(config, tmp_path / "out", watched)
    assert len(unguided) == 6  # two of each class, once
    pilot, info = (json.loads((tmp_path / "out" / name).read_text()) for name in ("pilot.json", "_info.json"))
    assert info["gate"] == pilot["gate"] is not None
    own = [[e for e, k in zip(pilot["energies"], pilot["classes"], strict=True) if k == c] for c in range(3)]
    assert info["max_energy"] == pilot["max_energy"] == pytest.approx([np.quantile(e, 0.75) for e in own])
    rows = tables(tmp_path / "out")
    for row in rows:
        assert row["accepted"] == (row["energy"] <= info["max_energy"][row["class_index"]])
    assert {row["accepted"] for row in rows} == {True, False}
    again = run(config, tmp_path / "out")
    assert again.made == 0


def test_a_filter_alone_can_need_the_pilot(tmp_path: Path) -> None:
    config = small_config(tmp_path, sampler=PLAIN, filter=FilterConfig(attempts=9, energy_quantile=1.0))
    run(config, tmp_path / "out")
    info = json.loads((tmp_path / "out/_info.json").read_text())
    assert info["gate"] is None and len(info["max_energy"]) == 3
    before = contents(tmp_path / "out")
    (tmp_path / "out/shard-000001.tar").unlink()
    run(config, tmp_path / "out")  # its thresholds come out of _info.json
    assert contents(tmp_path / "out") == before


def test_learned_limits_are_in_the_hash(tmp_path: Path) -> None:
    config = small_config(tmp_path, sampler=PLAIN, filter=FilterConfig(energy_quantile=1.0))
    run(config, tmp_path / "out")
    path = tmp_path / "out/_info.json"
    info = json.loads(path.read_text())
    path.write_text(json.dumps({**info, "max_energy": [0.0, 0.0, 0.0]}))
    with pytest.raises(UserError, match="was changed"):
        run(config, tmp_path / "out")


# Stopping


def test_a_filter_that_rejects_most_stops_the_run_and_says_what_to_loosen(tmp_path: Path) -> None:
    config = filtered(tmp_path, filter=FilterConfig(attempts=2, max_energy=-1e6))
    for _ in range(2):  # again: the same complaint, not one shard more
        with pytest.raises(UserError, match=r"10 of 10 rows .*10 for energy; filter.max_rejected .*50%.*loosen filter"):
            run(config, tmp_path / "out")
        assert [f"shard-{n:06d}.json" in contents(tmp_path / "out") for n in range(3)] == [True, False, False]
    more = replace(config, filter=FilterConfig(attempts=2, max_energy=-1e6, max_rejected=1.0))
    report = run(more, tmp_path / "out")
    assert (report.images, report.rejected, report.redrawn) == (0, {ENERGY: ROWS}, {ENERGY: ROWS})


def test_final_rejections_by_a_filter_are_no_broken_pipeline(tmp_path: Path) -> None:
    config = filtered(tmp_path, filter=FilterConfig(attempts=1))
    draws = Draws(config, 0.2)
    lost = sum(draws.black(i, 0) for i in range(ROWS))
    assert lost > 0.01 * ROWS
    assert run(config, tmp_path / "out", models(spoil=darkened(0.2))).rejected == {FLAT: lost}


@pytest.mark.parametrize("stop_at", [1, 3, 5, 8])
def test_a_signal_between_redraws_and_the_same_command_continues(tmp_path: Path, stop_at: int) -> None:
    config = filtered(tmp_path)
    run(config, tmp_path / "whole", models(spoil=darkened(0.4)))
    batches = 0

    def before(seeds: Sequence[int]) -> None:
        nonlocal batches
        batches += 1
        if batches == stop_at:
            os.kill(os.getpid(), signal.SIGTERM)

    def stopping() -> Models:
        return models(before, darkened(0.4))

    with pytest.raises(Interrupted):
        run(config, tmp_path / "out", stopping())
    assert batches == stop_at
    run(config, tmp_path / "out", models(spoil=darkened(0.4)))
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_sets_without_a_filter_say_nothing_of_one(tmp_path: Path) -> None:
    run(small_config(tmp_path), tmp_path / "out")
    assert "redrawn" not in json.loads((tmp_path / "out/shard-000000.json").read_text())
    info = json.loads((tmp_path / "out/_info.json").read_text())
    assert "max_energy" not in info and "filter" not in info["made_from"]
    with pytest.raises(UserError, match="another configuration: filter"):
        run(filtered(tmp_path, sampler=small_config(tmp_path).sampler), tmp_path / "out")
