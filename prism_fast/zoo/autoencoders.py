"""The generator's autoencoders: the KL one, and a small decoder distilled from it. Stored in fp16, used in fp32."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from prism_fast.zoo import networks
from prism_fast.zoo.config import ZooConfig
from prism_fast.zoo.fit import fit
from prism_fast.zoo.garments import Garments


def reconstruction_loss(out: Tensor, target: Tensor) -> Tensor:
    """|out - target| plus the same of horizontal and vertical differences, which keeps texture."""
    dx = (out.diff(dim=3) - target.diff(dim=3)).abs().mean()
    dy = (out.diff(dim=2) - target.diff(dim=2)).abs().mean()
    return (out - target).abs().mean() + dx + dy


def train_vae(config: ZooConfig, folder: Path, work: Path, device: torch.device) -> dict[str, Any]:
    """AutoencoderKL on garments and distractors; the scaling factor makes its latents unit variance."""
    data = Garments(config.vae_world)
    torch.manual_seed(config.seed)
    vae: Any = networks.build_vae().to(device)

    def loss(rng: np.random.Generator) -> Tensor:
        x = data.mixture(config.vae_batch, rng).to(device)
        posterior = vae.encode(x).latent_dist
        kl: Tensor = posterior.kl().mean()
        return reconstruction_loss(vae.decode(posterior.sample()).sample, x) + config.kl_weight * kl

    metrics = fit("vae", vae, loss, config.vae, work, seed=config.seed, identity=work.name)
    with torch.no_grad():
        x = torch.cat([data.mixture(config.vae_batch, np.random.default_rng([config.seed, 1, i])) for i in range(8)])
        x = x.to(device)
        latents = vae.encode(x).latent_dist.sample()
        metrics["l1"] = float((vae.decode(latents).sample - x).abs().mean() / 2)
    vae.register_to_config(scaling_factor=float(1 / latents.std()))
    vae.half().save_pretrained(folder / "pipeline" / "vae")
    return metrics


def train_tiny(config: ZooConfig, folder: Path, work: Path, device: torch.device) -> dict[str, Any]:
    """AutoencoderTiny's decoder, distilled from the KL decoder on scaled latents."""
    from diffusers import AutoencoderKL

    data = Garments(config.vae_world)
    vae = AutoencoderKL.from_pretrained(folder / "pipeline" / "vae").requires_grad_(False).to(device)
    torch.manual_seed(config.seed)
    tiny: Any = networks.build_tiny_vae().to(device)

    def loss(rng: np.random.Generator) -> Tensor:
        with torch.no_grad():
            latents = vae.encode(data.mixture(config.batch, rng).to(device)).latent_dist.sample()
            # Guidance decodes estimates of unfinished samples: noise teaches the decoder what those look like.
            strength = 0.3 * latents.std() * torch.rand(len(latents), 1, 1, 1, device=device)
            latents = latents + torch.randn_like(latents) * strength
            target = vae.decode(latents).sample
        return reconstruction_loss(tiny.decode(latents * vae.config.scaling_factor).sample, target)

    metrics = fit("tiny", tiny.decoder, loss, config.tiny, work, seed=config.seed, identity=work.name)
    tiny.half().save_pretrained(folder / "pipeline" / "vae_tiny")
    return metrics
