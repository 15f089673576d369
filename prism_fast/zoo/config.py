"""Everything that decides the built-in weights."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prism_fast.config import canonical
from prism_fast.errors import UserError
from prism_fast.zoo.fit import FitConfig
from prism_fast.zoo.world import WorldConfig


@dataclass(frozen=True, kw_only=True)
class ZooConfig:
    """Seed, world and optimisation of every component.

    Attributes:
        world: what the UNet learns.
        vae_world: what the VAE and the tiny decoder learn: wider exposures, so that no sample leaves what they know.
        batch, vae_batch, unet_batch: images of a step; VAE and UNet have their own.
        kl_weight: of the VAE's KL term, beside a mean absolute error.
        latent_garments, latent_distractors: images drawn and encoded once for the UNet.
    """

    seed: int = 0
    world: WorldConfig = field(default_factory=WorldConfig)
    vae_world: WorldConfig = field(
        default_factory=lambda: WorldConfig(background=0.25, gamma=(0.6, 1.6), head_attributes=2, head_share=0.3)
    )
    vae: FitConfig = field(default_factory=lambda: FitConfig(steps=2_200, lr=2e-3))
    teacher: FitConfig = field(default_factory=lambda: FitConfig(steps=3_600, lr=3e-3, weight_decay=0.05, ema=0.99))
    judge: FitConfig = field(default_factory=lambda: FitConfig(steps=1_100, lr=4e-3, weight_decay=0.05, ema=0.99))
    second: FitConfig = field(default_factory=lambda: FitConfig(steps=4_500, lr=4e-3, weight_decay=0.05, ema=0.99))
    tiny: FitConfig = field(default_factory=lambda: FitConfig(steps=1_000, lr=3e-3))
    unet: FitConfig = field(default_factory=lambda: FitConfig(steps=15_000, lr=1.5e-3, ema=0.999))
    batch: int = 128
    vae_batch: int = 32
    unet_batch: int = 96
    kl_weight: float = 1e-5
    latent_garments: int = 60_000
    latent_distractors: int = 15_000

    def identity(self, component: str, folder: Path) -> dict[str, Any]:
        """What decides one component's weights: its own settings, and the hash of the VAE where it builds on that.

        Raises:
            UserError: it builds on the VAE, and ``folder`` has none.
        """
        keys = ["seed", component, *_SETTINGS[component]]
        found = {key: canonical(getattr(self, key)) for key in keys}
        if component in _ON_VAE:
            weights = folder / "pipeline" / "vae" / "diffusion_pytorch_model.safetensors"
            if not weights.exists():
                raise UserError(f"{component} builds on the VAE, and {weights} is missing: train vae first")
            found["vae_sha256"] = hashlib.sha256(weights.read_bytes()).hexdigest()
        return found


_SETTINGS = {
    "vae": ("vae_world", "vae_batch", "kl_weight"),
    "teacher": ("batch",),
    "judge": ("batch",),
    "second": ("batch",),
    "tiny": ("vae_world", "batch"),
    "unet": ("world", "unet_batch", "latent_garments", "latent_distractors"),
}
_ON_VAE = ("tiny", "unet")
