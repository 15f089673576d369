"""The text-to-image generator: UNet and text encoder, trained together on cached latents.

The UNet is stored in fp16. The text encoder is stored in fp32: transformers loads a model in the precision it finds.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from prism_fast.config import replacing
from prism_fast.zoo import networks, world
from prism_fast.zoo.config import ZooConfig
from prism_fast.zoo.fit import fit
from prism_fast.zoo.garments import Garments, three_channels


def cache_latents(config: ZooConfig, folder: Path, work: Path, device: torch.device) -> Path:
    """Encodes a fixed draw of the world once: scaled latent means and deviations, and what captions need to know."""
    from diffusers import AutoencoderKL

    path = work / "latents.safetensors"
    if path.exists():
        return path
    data = Garments(config.world)
    vae = AutoencoderKL.from_pretrained(folder / "pipeline" / "vae").to(device)
    rng = np.random.default_rng([config.seed, 2])
    seen, rows, styles = data.draw(config.latent_garments, rng)
    others, kinds = data.draw_others(config.latent_distractors, rng)
    means, stds = [], []
    with torch.no_grad():
        for chunk in np.array_split(np.concatenate([seen, others]), (len(seen) + len(others)) // 250):
            posterior = vae.encode(three_channels(chunk).to(device)).latent_dist
            means.append((posterior.mean * vae.config.scaling_factor).cpu())
            stds.append((posterior.std * vae.config.scaling_factor).cpu())
    tensors = {
        "mean": torch.cat(means).contiguous(), "std": torch.cat(stds).contiguous(),
        "rows": torch.from_numpy(rows), "styles": torch.from_numpy(styles), "kinds": torch.from_numpy(kinds),
    }  # fmt: skip
    with replacing(path) as staged:  # a killed run leaves no half file that the next one would take for whole
        save_file(tensors, staged)
    return path


def train_unet(config: ZooConfig, folder: Path, work: Path, device: torch.device) -> dict[str, Any]:
    """UNet and text encoder together, on cached latents with captions drawn anew at every step."""
    from diffusers.models.attention_processor import AttnProcessor

    latents = load_file(cache_latents(config, folder, work, device))
    data = Garments(config.world)
    tokenizer: Any = networks.build_tokenizer(folder / "pipeline" / "tokenizer")
    torch.manual_seed(config.seed)
    unet, text = networks.build_unet().to(device), networks.build_text_encoder(len(tokenizer)).to(device)
    # On the CPU attention over 64 positions is faster unfused, and channels_last only together with the compiler.
    unet.set_attn_processor(AttnProcessor())
    unet.to(memory_format=torch.channels_last)
    predict, encode = torch.compile(unet), torch.compile(text)
    scheduler = networks.build_scheduler()
    model: Any = nn.ModuleDict({"unet": unet, "text": text})
    rows, styles, kinds = (latents[key].numpy() for key in ("rows", "styles", "kinds"))
    others = round(config.unet_batch * config.world.distractors)

    def captions(garments: NDArray[np.int64], things: NDArray[np.int64], rng: np.random.Generator) -> list[str]:
        texts = [
            world.garment_caption(int(data.labels[rows[i]]), data.levels[rows[i]], int(styles[i]), config.world, rng)
            for i in garments
        ]
        return texts + [world.distractor_caption(data.other_names[kinds[i]], config.world, rng) for i in things]

    def loss(rng: np.random.Generator) -> Tensor:
        garments = rng.integers(len(rows), size=config.unet_batch - others)
        things = rng.integers(len(kinds), size=others)
        picked = torch.from_numpy(np.concatenate([garments, things + len(rows)]))
        texts = captions(garments, things, rng)
        ids = tokenizer(texts, padding="max_length", max_length=networks.MAX_LENGTH, return_tensors="pt").input_ids
        x = latents["mean"][picked] + latents["std"][picked] * torch.randn(len(picked), 4, 8, 8)
        noise = torch.randn_like(x)
        # Stratified times: a batch covers the whole schedule, which lowers the variance of the loss.
        t = ((torch.arange(len(x)) + torch.rand(len(x))) / len(x) * 1000).long()[torch.randperm(len(x))]
        noisy = scheduler.add_noise(x, noise, t)
        velocity = scheduler.get_velocity(x, noise, t)
        out = predict(noisy.to(device), t.to(device), encoder_hidden_states=encode(ids.to(device))[0]).sample
        return F.mse_loss(out, velocity.to(device))

    metrics = fit("unet", model, loss, config.unet, work, seed=config.seed, identity=work.name)
    save_pipeline(unet.cpu(), text.cpu(), tokenizer, folder)
    (folder / "attributes.json").write_text(json.dumps(data.frequencies(), indent=1, sort_keys=True) + "\n")
    return metrics


def save_pipeline(unet: Any, text: Any, tokenizer: Any, folder: Path) -> None:
    """Writes the rest of the diffusers folder beside the VAE."""
    from diffusers import AutoencoderKL, StableDiffusionPipeline

    pipe = StableDiffusionPipeline(
        vae=AutoencoderKL.from_pretrained(folder / "pipeline" / "vae").half(),
        text_encoder=text,
        tokenizer=tokenizer,
        unet=unet.half(),
        scheduler=networks.build_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.save_pretrained(folder / "pipeline", safe_serialization=True)
