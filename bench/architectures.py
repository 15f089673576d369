"""Pipelines of the real sizes, with random weights where there are none at hand: speed does not ask what they know.

The values are those of the configuration files that the models' authors publish on the hub, named at each; what is
diffusers' or transformers' default is left out. The tokenizer is the built-in pipeline's, whose words are the prompts'.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

POSITIONS = 77
"""Tokens that CLIP's text encoders take."""

_BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
_CHANNELS = (320, 640, 1280, 1280)

# stable-diffusion-v1-5/stable-diffusion-v1-5: unet/config.json
_UNET_1 = {"sample_size": 64, "cross_attention_dim": 768, "attention_head_dim": 8, "block_out_channels": _CHANNELS}
# stabilityai/stable-diffusion-2-1 and stabilityai/sd-turbo: unet/config.json
_UNET_2 = {
    "cross_attention_dim": 1024,
    "attention_head_dim": (5, 10, 20, 20),
    "block_out_channels": _CHANNELS,
    "use_linear_projection": True,
}
# openai/clip-vit-large-patch14, which Stable Diffusion 1.5 has: text_encoder/config.json
_TEXT_1 = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
# OpenCLIP ViT-H without its last layer, which Stable Diffusion 2 has: text_encoder/config.json
_TEXT_2 = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 23,
    "num_attention_heads": 16,
    "hidden_act": "gelu",
}
# All of them: vae/config.json
_VAE = {
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "latent_channels": 4,
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "scaling_factor": 0.18215,
}


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """A published Stable Diffusion.

    Args:
        hub: where its weights are.
        pixels: width and height of an image.
        unet: what differs from diffusers' default ``UNet2DConditionModel``, which is Stable Diffusion 1's otherwise.
        text: of its ``CLIPTextConfig``.
        scheduler: class name, and what differs from its defaults.
        steps: that it is made for.
        cfg_scale: that it is made for; at 1 there is no unconditional half.
        sampler: other fields of the ``SamplerConfig`` that it is made for.
    """

    hub: str
    pixels: int
    unet: Mapping[str, Any]
    text: Mapping[str, Any]
    scheduler: tuple[str, Mapping[str, Any]]
    steps: int = 20
    cfg_scale: float = 7.5
    sampler: Mapping[str, Any] = field(default_factory=dict)


ARCHITECTURES = {
    "sd15": Architecture(
        hub="stable-diffusion-v1-5/stable-diffusion-v1-5",
        pixels=512,
        unet=_UNET_1,
        text=_TEXT_1,
        scheduler=("PNDMScheduler", {**_BETAS, "skip_prk_steps": True}),
    ),
    "sd21": Architecture(
        hub="stabilityai/stable-diffusion-2-1",
        pixels=768,
        unet={**_UNET_2, "sample_size": 96, "upcast_attention": True},
        text=_TEXT_2,
        scheduler=(
            "DDIMScheduler",
            {**_BETAS, "prediction_type": "v_prediction", "clip_sample": False, "set_alpha_to_one": False},
        ),
    ),
    "sd-turbo": Architecture(
        hub="stabilityai/sd-turbo",
        pixels=512,
        unet={**_UNET_2, "sample_size": 64},
        text=_TEXT_2,
        scheduler=("EulerDiscreteScheduler", {**_BETAS, "timestep_spacing": "trailing"}),
        steps=4,
        cfg_scale=1.0,
        sampler={"scheduler": "euler", "spacing": "trailing"},
    ),
}
REFUSED = {"sdxl": "the sampler does not support SDXL's UNet and two text encoders yet: take sd15, sd21 or sd-turbo"}


def random_pipeline(name: str, folder: Path, device: torch.device, dtype: torch.dtype) -> Any:
    """A ``StableDiffusionPipeline`` of the architecture ``name`` with weights from torch's generator, in eval mode.

    Args:
        name: of :data:`ARCHITECTURES`.
        folder: where its small decoder goes (``AutoencoderTiny``, 10 MB), for ``load_decoder`` to find.
        device: where the networks are made.
        dtype: of the networks; the VAE of a pipeline in fp16 stays in fp32, as ``load_pipeline`` has it.
    """
    import diffusers
    from transformers import CLIPTextConfig, CLIPTextModel

    it = ARCHITECTURES[name]
    tokenizer = _tokenizer()
    text = CLIPTextConfig(
        **it.text,
        max_position_embeddings=POSITIONS,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    vae_dtype = torch.float32 if dtype == torch.float16 else dtype
    with device:
        unet = diffusers.UNet2DConditionModel(**it.unet)
        vae = diffusers.AutoencoderKL(**_VAE, sample_size=it.pixels)
        encoder = CLIPTextModel(text)
    for network, own in ((unet, dtype), (encoder, dtype), (vae, vae_dtype)):
        network.to(device=device, dtype=own).eval().requires_grad_(False)
    scheduler, options = it.scheduler
    pipe = diffusers.StableDiffusionPipeline(
        vae=vae,
        text_encoder=encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=getattr(diffusers, scheduler)(**options),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    # madebyollin/taesd: config.json, all of it diffusers' defaults
    diffusers.AutoencoderTiny().save_pretrained(folder / "vae_tiny", safe_serialization=True)
    pipe.register_to_config(_name_or_path=str(folder))
    return pipe


def _tokenizer() -> Any:
    from transformers import CLIPTokenizer

    import prism_fast.zoo

    folder = Path(str(prism_fast.zoo.__file__)).parent / "fashion/pipeline/tokenizer"
    return CLIPTokenizer.from_pretrained(str(folder), model_max_length=POSITIONS)
