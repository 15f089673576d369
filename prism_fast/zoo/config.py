"""Everything that decides the built-in weights."""

from __future__ import annotations

from dataclasses import dataclass, field

from prism_fast.zoo.fit import FitConfig
from prism_fast.zoo.world import WorldConfig


@dataclass(frozen=True, kw_only=True)
class ZooConfig:
    """Seed, world and optimisation of every component.

    Attributes:
        batch, vae_batch, unet_batch: images of a step; VAE and UNet have their own.
        kl_weight: of the VAE's KL term, beside a mean absolute error.
        latent_garments, latent_distractors: images drawn and encoded once for the UNet.
    """

    seed: int = 0
    world: WorldConfig = field(default_factory=WorldConfig)
    vae: FitConfig = field(default_factory=lambda: FitConfig(steps=2_200, lr=2e-3))
    teacher: FitConfig = field(default_factory=lambda: FitConfig(steps=2_600, lr=3e-3, weight_decay=0.05, ema=0.99))
    judge: FitConfig = field(default_factory=lambda: FitConfig(steps=1_100, lr=4e-3, weight_decay=0.05, ema=0.99))
    tiny: FitConfig = field(default_factory=lambda: FitConfig(steps=1_000, lr=3e-3))
    unet: FitConfig = field(default_factory=lambda: FitConfig(steps=5_000, lr=1.5e-3, ema=0.998))
    batch: int = 128
    vae_batch: int = 32
    unet_batch: int = 96
    kl_weight: float = 1e-5
    latent_garments: int = 60_000
    latent_distractors: int = 15_000
