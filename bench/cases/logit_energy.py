"""Energies, cotangent and top-5 of a batch of logits, an ensemble of three among them. No public kernel gives these."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from bench.case import Case, Outputs, bytes_of, triton_or_torch

SIZES = [(4096, 1000), (64, 1000), (3, 4096, 1000), (256, 21841)]
"""(B, K) or (M, B, K)"""
SMOKE = [(5, 17), (2, 5, 17)]


def expression(logits: Tensor, targets: Tensor, t: float, wf: float, wc: float, k: int) -> Outputs:
    """All outputs of logit_energy by hand: topk instead of a stable sort, p_y − 1 and 1 − Σ as they cancel."""
    f = logits.float().mean(0) if logits.ndim == 3 else logits.float()
    log_p = f.log_softmax(-1)
    p = log_p.exp()
    target = f.gather(-1, targets[:, None])[:, 0]
    free = -t * (f / t).logsumexp(-1)
    cross_entropy = -log_p.gather(-1, targets[:, None])[:, 0]
    entropy = -(p * log_p).sum(-1)
    top, indices = p.topk(max(2, k), dim=-1)
    one_hot = torch.nn.functional.one_hot(targets, f.shape[-1])
    cotangent = wc * (p - one_hot) - wf * (f / t).softmax(-1)
    if logits.ndim == 3:
        cotangent = (cotangent / logits.shape[0]).expand(logits.shape)
    stats = [wf * free + wc * cross_entropy, free, -target, cross_entropy, entropy, top[:, 0], top[:, 0] - top[:, 1]]
    probabilities = top[:, :k]
    cotangent = cotangent.to(logits.dtype).contiguous()
    return torch.stack(stats), cotangent, indices[:, :k], probabilities, 1 - probabilities.sum(-1)


def verify(got: Outputs, want: Outputs) -> None:
    tolerance = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}[got[1].dtype]
    for place in (0, 1, 3, 4):  # not the indices: topk leaves the order of equals open
        torch.testing.assert_close(got[place], want[place], atol=tolerance, rtol=tolerance)


def cases(device: torch.device, sizes: Sequence[tuple[int, ...]] = SIZES) -> Iterator[Case]:
    from prism_fast.ops.logit_energy import NATIVE

    backend = "csrc" if device.type in NATIVE else triton_or_torch(device)
    for shape in sizes:
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            logits = (torch.randn(shape) * 4).to(device, dtype)
            targets = torch.randint(shape[-1], shape[-2:-1], device=device)
            arguments = (logits, targets, 2.0, 1.0, 0.7, 5)
            outputs = torch.ops.prism_fast.logit_energy(*arguments)
            yield Case(
                name="logit_energy",
                shape=shape,
                dtype=dtype,
                arguments=arguments,
                op=torch.ops.prism_fast.logit_energy,
                expression=expression,
                verify=verify,
                moved_bytes=bytes_of(logits, targets, *outputs),
                backend=backend,
            )
