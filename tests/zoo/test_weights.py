"""The committed weights: frozen by hash, small, safetensors only, loadable by the libraries they are made for."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch

import prism_fast.zoo

FOLDER = Path(prism_fast.zoo.__file__).parent / "fashion"
LIMIT_BYTES = 16 * 2**20


def test_weights_are_the_recorded_ones():
    recorded = json.loads((FOLDER / "zoo.json").read_text())["sha256"]
    found = {
        str(path.relative_to(FOLDER)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(FOLDER.rglob("*.safetensors"))
    }
    assert found == recorded


def test_all_of_it_fits_and_nothing_is_a_pickle():
    files = [path for path in FOLDER.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= LIMIT_BYTES
    assert {path.suffix for path in files} <= {".json", ".safetensors", ".txt", ".npz"}


def test_attribute_frequencies_are_shares():
    table = json.loads((FOLDER / "attributes.json").read_text())
    assert len(table) == 10
    for shares in table.values():
        assert sum(shares.values()) == pytest.approx(1, abs=1e-4)


def test_diffusers_loads_and_samples():
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(FOLDER / "pipeline", safety_checker=None, use_safetensors=True)
    pipe.set_progress_bar_config(disable=True)
    images = pipe("boot", num_inference_steps=2, generator=torch.Generator().manual_seed(0), output_type="np").images
    assert images.shape == (1, 32, 32, 3)


@pytest.mark.parametrize("name", ["teacher", "judge"])
def test_timm_loads_the_classifiers(name):
    import timm

    model = timm.create_model(f"local-dir:{FOLDER / name}").eval()
    assert model(torch.zeros(1, 3, 48, 48)).shape == (1, 10)


def test_the_teacher_is_within_its_budget():
    """At most 150 MFLOP forward and backward to the image, an image."""
    import timm
    from torch.utils.flop_counter import FlopCounterMode

    model = timm.create_model(f"local-dir:{FOLDER / 'teacher'}").eval().requires_grad_(False)
    with FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, 3, 48, 48, requires_grad=True)).sum().backward()
    assert counter.get_total_flops() <= 150e6
