"""How long one denoising step of a pipeline takes: what a teacher's share is a share of."""

from __future__ import annotations

import statistics
import time
from typing import Any

import torch
from torch import Tensor

from prism_fast.pipeline.denoiser import Denoiser, added_conditions
from prism_fast.sampling.buffers import TIME_IDS, Sizes


@torch.no_grad()
def step_seconds(pipe: Any, batch: int, repeats: int = 5) -> float:
    """Median seconds of one call of the pipeline's UNet with classifier-free guidance, eager, for ``batch`` images."""
    sizes, denoiser, device = Sizes.of(pipe), Denoiser(pipe, 1.0), pipe.unet.device

    def random(*size: int) -> Tensor:
        return torch.randn(2 * batch, *size, device=device, dtype=pipe.unet.dtype)

    sample, text, step = random(*sizes.latents), random(*sizes.text), torch.tensor(500, device=device)
    added = added_conditions(random(sizes.pooled), random(TIME_IDS), cfg=True) if sizes.pooled else None
    times = []
    for _ in range(repeats + 1):
        begin = time.perf_counter()
        denoiser.predict(sample, step, text, added)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - begin)
    return statistics.median(times[1:])
