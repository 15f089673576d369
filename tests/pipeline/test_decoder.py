from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from prism_fast.errors import UserError
from prism_fast.pipeline.decoder import decode, load_decoder, to_uint8
from tests.tiny import tiny_pipeline


@pytest.fixture(scope="module")
def pipe() -> Any:
    return tiny_pipeline(0)


def _latents(seed: int) -> torch.Tensor:
    return torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(seed))


def test_kl_is_the_pipelines_own_decoding(pipe: Any, seed: int) -> None:
    latents = _latents(seed)
    images = decode(load_decoder(pipe), latents)
    raw = pipe.vae.decode(latents / pipe.vae.config.scaling_factor).sample
    expected = pipe.image_processor.postprocess(raw, output_type="np")
    assert torch.equal(images, torch.from_numpy(expected).permute(0, 3, 1, 2))
    pil = pipe.image_processor.postprocess(raw, output_type="pil")
    stored = to_uint8(images).permute(0, 2, 3, 1)
    assert (stored[0].numpy() == np.asarray(pil[0])).all()


def test_the_backward_agrees_with_fp64_differences(seed: int) -> None:
    pipe = tiny_pipeline(0)
    pipe.vae.double()
    decoder = load_decoder(pipe)
    latents = _latents(seed).double().requires_grad_()
    weight = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(seed + 1), dtype=torch.float64)
    (gradient,) = torch.autograd.grad((decode(decoder, latents) * weight).sum(), latents)
    direction = torch.randn_like(latents)
    with torch.no_grad():
        values = [(decode(decoder, latents + h * direction) * weight).sum() for h in (1e-6, -1e-6)]
    slope = (values[0] - values[1]) / 2e-6
    torch.testing.assert_close((gradient * direction).sum(), slope, rtol=1e-4, atol=1e-4)


def test_images_are_clamped_and_the_gradient_is_zero_outside(pipe: Any, seed: int) -> None:
    latents = (60 * _latents(seed)).requires_grad_()
    images = decode(load_decoder(pipe), latents)
    assert images.min() >= 0 and images.max() <= 1
    outside = (images <= 0) | (images >= 1)
    assert outside.any()
    (gradient,) = torch.autograd.grad((images * outside).sum(), latents)
    assert not gradient.any()


def test_half_precision_decoders_give_fp32_images(seed: int) -> None:
    pipe = tiny_pipeline(0)
    pipe.vae.to(torch.bfloat16)
    assert decode(load_decoder(pipe), _latents(seed)).dtype == torch.float32


def test_tiny_decoder(pipe: Any, tmp_path: Path, seed: int) -> None:
    from diffusers import AutoencoderTiny

    tiny = AutoencoderTiny(
        encoder_block_out_channels=(8, 8, 8), decoder_block_out_channels=(8, 8, 8),
        num_encoder_blocks=(1, 1, 1), num_decoder_blocks=(1, 1, 1),
    )  # fmt: skip
    tiny.save_pretrained(tmp_path, safe_serialization=True)
    decoder = load_decoder(pipe, "tiny", tmp_path)
    assert decoder.name == "tiny"
    latents = _latents(seed)
    expected = (tiny.eval().decode(latents).sample / 2 + 0.5).clamp(0, 1).detach()
    torch.testing.assert_close(decode(decoder, latents), expected)
    next(tmp_path.glob("*.safetensors")).rename(tmp_path / "diffusion_pytorch_model.bin")
    with pytest.raises(UserError, match=r"\.bin"):
        load_decoder(pipe, "tiny", tmp_path)


def test_unknown_and_missing_decoders(pipe: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="kl"):
        load_decoder(pipe, "k1")
    with pytest.raises(UserError, match="no tiny decoder"):
        load_decoder(pipe, "tiny", tmp_path)


def test_rounding_is_half_to_even() -> None:
    # diffusers rounds with numpy, half to even
    values = torch.tensor([0.0, 0.5 / 255, 1.5 / 255, 1.0], dtype=torch.float64)
    assert to_uint8(values).tolist() == [0, 0, 2, 255]
