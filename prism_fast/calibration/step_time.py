"""How long one denoising step of a pipeline takes: what a teacher's share is a share of."""

from __future__ import annotations

import statistics
import time
from typing import Any

import torch


@torch.no_grad()
def step_seconds(pipe: Any, batch: int, repeats: int = 5) -> float:
    """Median seconds of one call of the pipeline's UNet with classifier-free guidance, eager, for ``batch`` images."""
    config, rows, device = pipe.unet.config, 2 * batch, pipe.unet.device
    side = config.sample_size
    sample = torch.randn(rows, config.in_channels, side, side, device=device, dtype=pipe.unet.dtype)
    text = torch.randn(
        rows, pipe.tokenizer.model_max_length, config.cross_attention_dim, device=device, dtype=pipe.unet.dtype
    )
    step = torch.tensor(500, device=device)
    times = []
    for _ in range(repeats + 1):
        begin = time.perf_counter()
        pipe.unet(sample, step, encoder_hidden_states=text, return_dict=False)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - begin)
    return statistics.median(times[1:])
