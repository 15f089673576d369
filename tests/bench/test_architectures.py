"""The real sizes are the published ones: parameters are counted without any memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from bench.architectures import ARCHITECTURES, random_pipeline
from prism_fast.pipeline.load import latent_shape
from prism_fast.pipeline.text import max_prompt_tokens
from prism_fast.sampling.config import SamplerConfig
from prism_fast.teachers.architectures import random_teacher

# As counted in the published weights. Stable Diffusion 1 and 2 share their VAE.
UNET_1, UNET_2, VAE, TEXT_1, TEXT_2 = 859_520_964, 865_910_724, 83_653_863, 123_060_480, 340_387_840


def _size(network: Any) -> int:
    return sum(weight.numel() for weight in network.parameters())


@pytest.mark.parametrize(
    ("name", "unet", "text", "latents"),
    [("sd15", UNET_1, TEXT_1, 64), ("sd21", UNET_2, TEXT_2, 96), ("sd-turbo", UNET_2, TEXT_2, 64)],
)
def test_real_sizes(name: str, unet: int, text: int, latents: int, tmp_path: Path) -> None:
    pipe = random_pipeline(name, tmp_path, torch.device("meta"), torch.bfloat16)
    assert (_size(pipe.unet), _size(pipe.vae), _size(pipe.text_encoder)) == (unet, VAE, text)
    assert latent_shape(pipe) == (4, latents, latents) and max_prompt_tokens(pipe) == 77
    assert pipe.unet.dtype == pipe.vae.dtype == torch.bfloat16 and not pipe.unet.training
    assert pipe.vae_scale_factor * latents == ARCHITECTURES[name].pixels
    assert (tmp_path / "vae_tiny/diffusion_pytorch_model.safetensors").is_file()
    it = ARCHITECTURES[name]
    SamplerConfig(steps=it.steps, cfg_scale=it.cfg_scale, **it.sampler)


def test_a_random_teacher_has_the_fused_gradients_preprocessing() -> None:
    teacher = random_teacher("resnet18", torch.device("cpu"), torch.float32)
    assert teacher.interpolation == "bilinear" and teacher.num_classes == 1000
