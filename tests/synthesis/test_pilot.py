"""The pilot: energies of unguided images, and what of them may set a threshold."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from prism_fast.errors import UserError
from prism_fast.progress import silent
from prism_fast.prompts.prompt_list import Prompt
from prism_fast.sampling.config import GuidanceConfig
from prism_fast.sampling.reference import SampleBatch
from prism_fast.synthesis.interruption import StopRequest
from prism_fast.synthesis.label import Labeller
from prism_fast.synthesis.pilot import PILOT_FILE, gate_thresholds, load_pilot, pilot_energies, save_pilot
from prism_fast.synthesis.plan import Row
from tests.synthesis.doubles import ColourTeacher, SeedSampler, small_config


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
    save_pilot(tmp_path, "key", gate, rows, energies)
    assert json.loads((tmp_path / PILOT_FILE).read_text())["energies"][0] is None
    assert load_pilot(tmp_path, "key") == gate


def test_a_class_without_a_finite_energy_is_named() -> None:
    with pytest.raises(UserError, match="no usable energy for class 1: raise pilot_images"):
        gate_thresholds(rows_of([0, 1]), [0.5, math.nan], 3, GuidanceConfig())
