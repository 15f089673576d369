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


@pytest.mark.parametrize("name", ["teacher", "judge", "second"])
def test_timm_loads_the_classifiers(name):
    import timm

    model = timm.create_model(f"local-dir:{FOLDER / name}").eval()
    assert model(torch.zeros(1, 3, 48, 48)).shape == (1, 10)


def parameters(module):
    return sum(p.numel() for p in module.parameters())


def test_the_sizes_of_the_committed_networks_are_pinned():
    """Ratios of speed between versions mean something only while these stay."""
    from diffusers import AutoencoderTiny, StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(FOLDER / "pipeline", safety_checker=None, use_safetensors=True)
    assert parameters(pipe.unet) == 2_414_308
    assert parameters(pipe.vae) == 954_567
    assert parameters(pipe.text_encoder) == 181_536
    tiny = AutoencoderTiny.from_pretrained(FOLDER / "pipeline" / "vae_tiny", use_safetensors=True)
    assert parameters(tiny.decoder) == 40_435
    assert pipe.tokenizer.model_max_length == 24


@torch.no_grad()
def test_the_small_decoder_shows_what_the_full_one_shows():
    """On latents of pictures; the same latents decode to means of grey levels no further apart than a few of 255."""
    from prism_fast.pipeline.decoder import decode, load_decoder
    from prism_fast.pipeline.load import load_pipeline

    pipe = load_pipeline("fashion")
    y, x = torch.meshgrid(torch.linspace(-1, 1, 32), torch.linspace(-1, 1, 32), indexing="ij")
    boxes = torch.stack([((x.abs() < w) & (y.abs() < h)).float() for w in (0.3, 0.6) for h in (0.4, 0.8)])
    latents = pipe.vae.encode(boxes[:, None].expand(-1, 3, -1, -1) * 1.6 - 1).latent_dist.mean
    latents = latents * pipe.vae.config.scaling_factor
    full, small = (decode(load_decoder(pipe, name), latents) for name in ("kl", "tiny"))
    assert (full - small).abs().mean() < 0.05
    assert (full - full.flip(0)).abs().mean() > 0.05  # the bound means something: other pictures are further away


def test_the_classifiers_are_as_good_as_was_asked():
    components = json.loads((FOLDER / "zoo.json").read_text())["components"]
    assert components["teacher"]["metrics"]["test_accuracy"] >= 0.915
    assert components["judge"]["metrics"]["test_accuracy"] >= 0.90
    assert components["second"]["metrics"]["test_accuracy"] >= 0.90


def test_the_second_teacher_is_small_and_of_another_family():
    configs = [json.loads((FOLDER / name / "config.json").read_text()) for name in ("teacher", "judge", "second")]
    assert len({config["architecture"].rstrip("0123456789_") for config in configs}) == 3
    assert (FOLDER / "second" / "model.safetensors").stat().st_size <= 1.5e6


def test_the_second_teacher_is_a_name_and_knows_the_teachers_classes():
    from prism_fast.teachers.load import load_teacher

    teacher, judge, second = (load_teacher(name) for name in ("fashion", "fashion-judge", "fashion-second"))
    assert second.label_names == teacher.label_names == judge.label_names
    assert len({teacher.fingerprint, judge.fingerprint, second.fingerprint}) == 3


def test_the_teacher_is_within_its_budget():
    """At most 150 MFLOP forward and backward to the image, an image."""
    import timm
    from torch.utils.flop_counter import FlopCounterMode

    model = timm.create_model(f"local-dir:{FOLDER / 'teacher'}").eval().requires_grad_(False)
    with FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, 3, 48, 48, requires_grad=True)).sum().backward()
    assert counter.get_total_flops() <= 150e6
