"""The parts of the fast loop, each called alone: how long it takes, how often a batch uses it, how many operations."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from bench.record import measure
from prism_fast.ops.guided_step import guided_step
from prism_fast.ops.image_norms import image_norms
from prism_fast.ops.predict_x0 import predict_x0
from prism_fast.pipeline.decoder import decode, to_uint8
from prism_fast.pipeline.text import encode_prompts
from prism_fast.sampling.fast import FastSampler
from prism_fast.sampling.noise import draw_noise
from prism_fast.sampling.step_kind import StepKind

PHASES = ("text", "unet", "guidance decode", "teacher", "step", "final decode", "transfer")
"""In the order in which a batch passes them."""


@dataclass(frozen=True, kw_only=True)
class Phase:
    """One call of the loop.

    Args:
        name: one of :data:`PHASES`; several calls share one, such as the UNet with and without its unconditional half.
        call: does it once, for a whole batch.
        uses: how often a batch does.
        captured: it runs inside a CUDA graph in the loop.
    """

    name: str
    call: Callable[[], object]
    uses: int
    captured: bool = True


@dataclass(frozen=True, kw_only=True)
class PhaseTime:
    """A phase in one batch, all uses together.

    Args:
        name: one of :data:`PHASES`.
        uses: calls for a batch.
        seconds: of all of them.
        images_per_s: what the sampler would reach if it did nothing else.
        tflop: floating point operations of all of them, in 10¹²: products and sums of matrix products, convolutions
            and attention, as ``torch.utils.flop_counter`` counts them.
        tflop_per_s: in 10¹² a second.
        peak_share: of the measured matrix product's rate.
    """

    name: str
    uses: int
    seconds: float
    images_per_s: float
    tflop: float
    tflop_per_s: float
    peak_share: float


def phases(sampler: FastSampler, prompts: Sequence[str]) -> list[Phase]:
    """What a batch of ``sampler`` consists of; in the same order for samplers that differ in their batch alone.

    Args:
        sampler: its networks and buffers are what the calls use.
        prompts: [B], as many as its ``compute_batch``.
    """
    buffers, batch = sampler._buffers, len(prompts)
    rows = sampler._rows(prompts, [0] * batch, range(batch))
    sampler._fill(rows, draw_noise(rows.seeds, sampler._sizes.latents, draws=sampler.draws))
    calls = Counter((kind.cfg, kind.features) for kind in sampler._kinds)
    found = [Phase(name="text", call=partial(encode_prompts, sampler._pipe, prompts, batch), uses=1, captured=False)]
    inputs = buffers.sample.clone()
    # whole networks first: they leave the features that the others take up
    for (cfg, features), uses in sorted(calls.items(), key=lambda item: item[0][1] == "kept"):
        kind = StepKind(cfg, "none", features)
        found.append(Phase(name="unet", call=partial(sampler._predict, kind, inputs), uses=uses))
    found += _guidance(sampler)
    found += _steps(sampler, inputs)
    images = to_uint8(decode(sampler._decoder, buffers.sample))
    found.append(Phase(name="final decode", call=lambda: to_uint8(decode(sampler._decoder, buffers.sample)), uses=1))
    transfer = partial(_transfer, images, buffers.sample)
    return [*found, Phase(name="transfer", call=transfer, uses=1, captured=False)]


def _transfer(images: Tensor, latents: Tensor) -> tuple[Tensor, Tensor]:
    return images.cpu(), latents.to("cpu", copy=True)


def _guidance(sampler: FastSampler) -> list[Phase]:
    """The way to a gradient: images to the decoder's latents and back, and the teacher between."""
    uses = sum(kind.gradient == "new" for kind in sampler._kinds)
    gradient, buffers = sampler._gradient, sampler._buffers
    if gradient is None or not uses:
        return []
    decoder, start = sampler._guidance_decoder, buffers.sample.clone()
    raw = decoder.raw(start).detach()
    along = torch.ones_like(raw)

    def back_and_forth() -> Tensor:
        latents = start.detach().requires_grad_()
        with torch.enable_grad():
            made = decoder.raw(latents)
        (pulled,) = torch.autograd.grad(made, latents, along)
        return pulled

    teacher = Phase(name="teacher", call=lambda: gradient(raw, buffers.targets), uses=uses)
    return [Phase(name="guidance decode", call=back_and_forth, uses=uses), teacher]


def _steps(sampler: FastSampler, inputs: Tensor) -> list[Phase]:
    """Everything of a step that is not a network, on copies of what it changes."""
    buffers, scale = sampler._buffers, sampler.config.cfg_scale
    sample, history = buffers.sample.clone(), buffers.history.clone()
    noise = buffers.noise if sampler._noisy else None
    energy = torch.zeros(len(sample), device=sample.device)
    found = []
    for (cfg, gradient), uses in Counter((kind.cfg, kind.gradient) for kind in sampler._kinds).items():
        prediction = sampler._predict(StepKind(cfg, "none", "all" if sampler._split is None else "new"), inputs)
        prediction = prediction.clone()

        def step(prediction: Tensor = prediction, gradient: str = gradient) -> None:
            guidance = {}
            if gradient == "new":
                x0 = predict_x0(sample, prediction, sampler._table, buffers.step, scale)
                guidance = {"gradient": x0, "rms": image_norms(x0), "energy": energy}
            elif gradient == "kept":
                guidance = {"gradient": buffers.gradient, "rms": energy, "energy": energy}
            guided_step(sample, prediction, sampler._table, buffers.step, history, scale, noise=noise, **guidance)

        found.append(Phase(name="step", call=step, uses=uses))
    return found


class _NoModules:
    """In place of the counter's own tracker, whose hooks refuse ``autograd.grad`` with respect to a leaf."""

    parents = frozenset({"Global"})

    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None: ...


def count_flop(parts: Sequence[Phase]) -> list[int]:
    """Floating point operations of one call of each. Attention is counted as the two matrix products that it is."""
    found = []
    for part in parts:
        counter: Any = FlopCounterMode(display=False)
        counter.mod_tracker = _NoModules()
        with counter, sdpa_kernel(SDPBackend.MATH):
            part.call()
        found.append(int(counter.get_total_flops()))
    return found


def time_phases(
    parts: Sequence[Phase], flop: Sequence[int], batch: int, device: torch.device, peak: float
) -> tuple[PhaseTime, ...]:
    """Times of all phases of a batch.

    Args:
        parts: of a sampler at its batch.
        flop: floating point operations of one call of each, for one image.
        batch: images.
        device: where they run.
        peak: floating point operations a second of a matrix product.
    """
    uses, seconds, work = Counter[str](), Counter[str](), Counter[str]()
    for part, operations in zip(parts, flop, strict=True):
        once = measure(part.call, device, budget_s=0.1, least=3, capture=part.captured).p50
        uses[part.name] += part.uses
        seconds[part.name] += part.uses * once  # type: ignore[assignment]  # typeshed counts in whole numbers alone
        work[part.name] += part.uses * operations * batch
    return tuple(
        PhaseTime(
            name=name,
            uses=uses[name],
            seconds=float(seconds[name]),
            images_per_s=batch / seconds[name],
            tflop=work[name] / 1e12,
            tflop_per_s=work[name] / seconds[name] / 1e12,
            peak_share=work[name] / seconds[name] / peak,
        )
        for name in PHASES
        if name in uses
    )


_SLOW_S = 0.2
"""A matrix product that takes longer is the largest that is tried."""


def matmul_peak(device: torch.device, dtype: torch.dtype) -> float:
    """Floating point operations a second of the fastest square matrix product of a few sizes.

    On a CPU also of those in fp32: one without bf16 multiplies matrices of it at a hundredth of that rate, but
    convolves them in its fp32 units.
    """
    kinds = {dtype} if device.type == "cuda" else {dtype, torch.float32}
    return max(_matmul_rate(device, kind) for kind in kinds)


def _matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    rates = []
    for size in (4096, 8192) if device.type == "cuda" else (512, 1024, 2048):
        a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
        times = measure(partial(torch.matmul, a, b), device, budget_s=0.5, least=5)
        rates.append(2 * size**3 / times.p20)
        if times.p20 > _SLOW_S:
            break
    return max(rates)
