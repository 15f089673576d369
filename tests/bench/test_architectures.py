"""The real sizes are the published ones: parameters are counted without any memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from bench.architectures import ARCHITECTURES, random_pipeline
from prism_fast.pipeline.denoiser import Denoiser, added_conditions
from prism_fast.pipeline.feature_reuse import SplitUNet, features_shape
from prism_fast.pipeline.load import latent_shape
from prism_fast.pipeline.text import max_prompt_tokens
from prism_fast.sampling.buffers import Sizes, check_sizes
from prism_fast.sampling.config import SamplerConfig
from prism_fast.teachers.architectures import random_teacher

# As counted in the published weights. All have a VAE of one size.
UNET_1, UNET_2, UNET_XL, VAE = 859_520_964, 865_910_724, 2_567_463_684, 83_653_863
TEXT_1, TEXT_2, TEXT_XL = 123_060_480, 340_387_840, 694_659_840


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


@pytest.mark.parametrize(("name", "latents"), [("sdxl", 128), ("sdxl-turbo", 64)])
def test_an_xls_real_sizes(name: str, latents: int, tmp_path: Path) -> None:
    pipe = random_pipeline(name, tmp_path, torch.device("meta"), torch.float16)
    found = [_size(network) for network in (pipe.unet, pipe.vae, pipe.text_encoder, pipe.text_encoder_2)]
    assert found == [UNET_XL, VAE, TEXT_1, TEXT_XL]
    sizes = Sizes.of(pipe)
    assert sizes == Sizes(latents=(4, latents, latents), text=(77, 2048), pooled=1280)
    check_sizes(pipe, sizes)
    Denoiser(pipe, 5.0)
    assert pipe.vae_scale_factor * latents == ARCHITECTURES[name].pixels and pipe.vae.config.force_upcast
    assert pipe.text_encoder_2.dtype == torch.float16 and pipe.vae.dtype == torch.float32
    assert features_shape(pipe.unet, sizes.latents) == (640, latents, latents)
    it = ARCHITECTURES[name]
    SamplerConfig(steps=it.steps, cfg_scale=it.cfg_scale, **it.sampler)
    images = torch.empty(1, 4, latents, latents, device="meta", dtype=torch.float16)
    pooled, ids = (torch.empty(2, size, device="meta", dtype=torch.float16) for size in (1280, 6))
    text = torch.empty(1, 77, 2048, device="meta", dtype=torch.float16)
    added = added_conditions(pooled, ids, cfg=False)
    with torch.no_grad():
        whole, features = SplitUNet(pipe.unet).whole(images, torch.empty(1, device="meta"), text, added)
        outer = SplitUNet(pipe.unet).outer(images, torch.empty(1, device="meta"), text, features, added)
    assert whole.shape == outer.shape == images.shape
    assert tuple(features.shape[1:]) == features_shape(pipe.unet, sizes.latents)


def test_a_random_teacher_has_the_fused_gradients_preprocessing() -> None:
    teacher = random_teacher("resnet18", torch.device("cpu"), torch.float32)
    assert teacher.interpolation == "bilinear" and teacher.num_classes == 1000
