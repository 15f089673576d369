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
# stabilityai/stable-diffusion-xl-base-1.0 and, but for its size, stabilityai/sdxl-turbo: unet/config.json
_UNET_XL = {
    "cross_attention_dim": 2048,
    "attention_head_dim": (5, 10, 20),
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
# OpenCLIP ViT-bigG, the second of an SDXL's encoders: text_encoder_2/config.json
_TEXT_XL = {
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "num_attention_heads": 20,
    "hidden_act": "gelu",
    "projection_dim": 1280,
}
# An SDXL's, where it differs: vae/config.json
_VAE_XL = {"scaling_factor": 0.13025, "force_upcast": True}
# Stable Diffusion 1 and 2: vae/config.json
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
    """A published Stable Diffusion, SDXL among them.

    Args:
        hub: where its weights are.
        pixels: width and height of an image.
        unet: what differs from diffusers' default ``UNet2DConditionModel``, which is Stable Diffusion 1's otherwise.
        text: of its ``CLIPTextConfig``.
        second_text: of an SDXL's second one; None for others.
        vae: what differs from Stable Diffusion 1's.
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
    second_text: Mapping[str, Any] | None = None
    vae: Mapping[str, Any] = field(default_factory=dict)
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
    "sdxl": Architecture(
        hub="stabilityai/stable-diffusion-xl-base-1.0",
        pixels=1024,
        unet={**_UNET_XL, "sample_size": 128},
        text=_TEXT_1,
        second_text=_TEXT_XL,
        vae=_VAE_XL,
        scheduler=("EulerDiscreteScheduler", {**_BETAS, "timestep_spacing": "leading"}),
        cfg_scale=5.0,
    ),
    "sdxl-turbo": Architecture(
        hub="stabilityai/sdxl-turbo",
        pixels=512,
        unet={**_UNET_XL, "sample_size": 64},
        text=_TEXT_1,
        second_text=_TEXT_XL,
        vae=_VAE_XL,
        scheduler=("EulerAncestralDiscreteScheduler", {**_BETAS, "timestep_spacing": "trailing"}),
        steps=4,
        cfg_scale=1.0,
        sampler={"scheduler": "euler", "spacing": "trailing"},
    ),
}


def random_pipeline(name: str, folder: Path, device: torch.device, dtype: torch.dtype) -> Any:
    """A pipeline of the architecture ``name`` with weights from torch's generator, in eval mode.

    Args:
        name: of :data:`ARCHITECTURES`.
        folder: where its small decoder goes (``AutoencoderTiny``, 10 MB), for ``load_decoder`` to find.
        device: where the networks are made.
        dtype: of the networks; the VAE of a pipeline in fp16 stays in fp32, as ``load_pipeline`` has it.
    """
    import diffusers
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

    it, tokenizer = ARCHITECTURES[name], _tokenizer()
    scheduler, options = it.scheduler
    parts: dict[str, Any] = {
        "tokenizer": tokenizer,
        "scheduler": getattr(diffusers, scheduler)(**options),
        "feature_extractor": None,
    }
    with device:
        parts["unet"] = diffusers.UNet2DConditionModel(**it.unet).to(dtype)
        vae = diffusers.AutoencoderKL(**{**_VAE, **it.vae}, sample_size=it.pixels)
        parts["vae"] = vae.to(torch.float32 if dtype == torch.float16 else dtype)
        parts["text_encoder"] = CLIPTextModel(_text_config(it.text, tokenizer)).to(dtype)
        if it.second_text is not None:
            parts["text_encoder_2"] = CLIPTextModelWithProjection(_text_config(it.second_text, tokenizer)).to(dtype)
    for network in (part for part in parts.values() if isinstance(part, torch.nn.Module)):
        network.to(device=device).eval().requires_grad_(False)
    if it.second_text is None:
        pipe = diffusers.StableDiffusionPipeline(**parts, safety_checker=None, requires_safety_checker=False)
    else:
        pipe = diffusers.StableDiffusionXLPipeline(**parts, tokenizer_2=tokenizer, add_watermarker=False)
    pipe.set_progress_bar_config(disable=True)
    # madebyollin/taesd and madebyollin/taesdxl: config.json, all of them diffusers' defaults
    diffusers.AutoencoderTiny().save_pretrained(folder / "vae_tiny", safe_serialization=True)
    pipe.register_to_config(_name_or_path=str(folder))
    return pipe


def _text_config(values: Mapping[str, Any], tokenizer: Any) -> Any:
    from transformers import CLIPTextConfig

    return CLIPTextConfig(
        **values,
        max_position_embeddings=POSITIONS,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def _tokenizer() -> Any:
    from transformers import CLIPTokenizer

    import prism_fast.zoo

    folder = Path(str(prism_fast.zoo.__file__)).parent / "fashion/pipeline/tokenizer"
    return CLIPTokenizer.from_pretrained(str(folder), model_max_length=POSITIONS)
