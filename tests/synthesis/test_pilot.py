"""The pilot: energies of unguided images, and what of them may set a threshold."""

from __future__ import annotations

import json
import math
import os
import signal
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from prism_fast.errors import UserError
from prism_fast.progress import silent
from prism_fast.prompts.prompt_list import Prompt
from prism_fast.sampling.batch import SampleBatch
from prism_fast.sampling.config import GuidanceConfig
from prism_fast.synthesis.interruption import Interrupted, StopRequest
from prism_fast.synthesis.label import Labeller
from prism_fast.synthesis.pilot import PARTIAL_FILE, PILOT_FILE, gate_thresholds, load_pilot, pilot_energies, save_pilot
from prism_fast.synthesis.plan import Row
from prism_fast.synthesis.thresholds import Thresholds
from tests.synthesis.doubles import ColourTeacher, SeedSampler, contents, models, run, small_config


def rows_of(classes: list[int]) -> list[Row]:
    prompt = Prompt(class_index=0, prompt="x", sense="", content="", style="", source="template")
    return [Row(index=i, seed=i, class_index=c, class_name="x", prompt=prompt) for i, c in enumerate(classes)]


def test_an_image_of_nan_sets_no_threshold(tmp_path: Path) -> None:
    """It is black and has an energy like any other: that must not move the gate, and stands as null in the file."""

    def spoil(batch: SampleBatch) -> SampleBatch:
        latents = batch.latents.clone()
        latents[0] = math.nan
        return replace(batch, latents=latents)

    config = small_config(tmp_path).sampler
    rows = rows_of([0, 1, 0, 0])
    labeller = Labeller(ColourTeacher(), None, config.compute_batch)
    sampler = SeedSampler(config, None, spoil=spoil)
    energies = pilot_energies(rows, sampler, labeller, config.compute_batch, StopRequest(), silent)
    assert [math.isnan(energy) for energy in energies] == [True, False, False, False]

    gate = gate_thresholds(rows, energies, 3, GuidanceConfig())
    assert gate.tau[0] == pytest.approx(np.quantile([energies[2], energies[3]], GuidanceConfig().gate_quantile))
    thresholds = Thresholds(gate=gate, max_energy=(0.5, -1.0, 0.0))
    save_pilot(tmp_path, "key", thresholds, rows, energies)
    assert json.loads((tmp_path / PILOT_FILE).read_text())["energies"][0] is None
    assert load_pilot(tmp_path, "key") == thresholds


def test_a_class_without_a_finite_energy_is_named() -> None:
    with pytest.raises(UserError, match="none of the 1 pilot images of class 1 is finite: the pipeline does not work"):
        gate_thresholds(rows_of([0, 1]), [0.5, math.nan], 3, GuidanceConfig())


def watched(before: Any) -> Any:
    """Models whose unguided sampler calls ``before`` with the seeds of each batch."""
    made = models()
    return replace(made, make_sampler=lambda config, gate: SeedSampler(config, gate, before=before))


@pytest.mark.parametrize("damage", [False, True])
def test_an_interrupted_pilot_goes_on_where_it_was(tmp_path: Path, damage: bool) -> None:
    config = small_config(tmp_path, pilot_images=6)  # 18 rows, batches of 4
    run(config, tmp_path / "whole")
    seen: list[int] = []

    def stop_in_the_third_batch(seeds: Sequence[int]) -> None:
        seen.extend(seeds)
        if len(seen) == 12:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted):
        run(config, tmp_path / "out", watched(stop_in_the_third_batch))
    assert [path.name for path in (tmp_path / "out").iterdir()] == [PARTIAL_FILE]
    if damage:
        (tmp_path / "out" / PARTIAL_FILE).write_text("{")
    again: list[int] = []
    run(config, tmp_path / "out", watched(again.extend))
    assert (again[:6] == seen[:6]) is damage  # nothing is made twice, unless what was kept is lost
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_a_kept_pilot_of_another_configuration_is_not_used(tmp_path: Path) -> None:
    config = small_config(tmp_path, pilot_images=6)
    run(config, tmp_path / "whole")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / PARTIAL_FILE).write_text(json.dumps({"key": "another", "energies": [0.0] * 8}))
    run(config, tmp_path / "out")
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
