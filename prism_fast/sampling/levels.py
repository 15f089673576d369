"""The sampler that a configuration's level names."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from prism_fast.errors import UserError
from prism_fast.pipeline.load import is_xl
from prism_fast.sampling.config import SamplerConfig
from prism_fast.sampling.guidance import GateThresholds
from prism_fast.sampling.halving import HalvingSampler
from prism_fast.sampling.image_to_image import ImageToImageSampler, Sources
from prism_fast.sampling.pending import QueuingSampler
from prism_fast.sampling.pixels import image_size
from prism_fast.sampling.start import StartingSampler
from prism_fast.teachers.base import Teacher


def make_sampler(
    pipe: Any,
    config: SamplerConfig,
    teacher: Teacher | None = None,
    gate: GateThresholds | None = None,
    sources: Sources | None = None,
) -> QueuingSampler:
    """``ReferenceSampler`` at level ``reference``, else ``FastSampler``. Arguments and errors are theirs.

    On CUDA its batch is halved where memory runs out.

    Args:
        pipe, config, teacher, gate: theirs.
        sources: what rows start from; with ``config.image_to_image``.

    Raises:
        UserError: as they do, or there are no sources.
    """
    if config.image_to_image is not None and sources is None:
        raise UserError("sampler.image_to_image: this command has no images to start from: leave image_to_image out")

    def started(sampler: StartingSampler) -> QueuingSampler:
        if config.image_to_image is None or sources is None:
            return sampler
        return ImageToImageSampler(sampler, config, sources, image_size(pipe, None, None, xl=is_xl(pipe)))

    if config.level == "reference":
        from prism_fast.sampling.reference import ReferenceSampler

        return started(ReferenceSampler(pipe, config, teacher, gate))
    from prism_fast.sampling.fast import FastSampler

    def make(batch: int) -> QueuingSampler:
        return started(FastSampler(pipe, replace(config, compute_batch=batch), teacher, gate))

    if pipe.unet.device.type != "cuda":
        return make(config.compute_batch)
    return HalvingSampler(make, config.compute_batch)
