"""The approximations that are measured, each as a change of a sampler's configuration."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from prism_fast.errors import UserError
from prism_fast.pipeline.decoder import decoder_fingerprint, load_decoder
from prism_fast.pipeline.feature_reuse import SplitUNet
from prism_fast.pipeline.load import latent_shape
from prism_fast.sampling.config import GuidanceConfig, SamplerConfig

KNOBS = ("decoder", "every", "interval", "CFG interval", "features")
"""Options of different knobs can be combined."""

_SHARES = ((0.25, 1.0), (0.5, 1.0), (0.0, 0.75), (0.0, 0.5), (0.25, 0.75))
"""Intervals, as shares of the interval that the sampler has; 0 is pure noise."""


@dataclass(frozen=True, kw_only=True)
class Option:
    """One approximation, or several together.

    Args:
        name: for people, unique.
        knobs: what it changes, names out of :data:`KNOBS`; none is level ``exact`` itself.
        sampler: fields of ``SamplerConfig`` that it sets.
        guidance: fields of ``GuidanceConfig`` that it sets.
    """

    name: str
    knobs: tuple[str, ...] = ()
    sampler: Mapping[str, Any] = field(default_factory=dict)
    guidance: Mapping[str, Any] = field(default_factory=dict)

    def applied(self, base: SamplerConfig) -> SamplerConfig:
        """``base`` with this option at level ``fast``."""
        guidance = dataclasses.replace(base.guidance or GuidanceConfig(), **self.guidance)
        return dataclasses.replace(base, **self.sampler, level="fast", guidance=guidance)

    def together(self, other: Option) -> Option:
        """Both at once; they have no knob in common."""
        return Option(
            name=f"{self.name} + {other.name}",
            knobs=(*self.knobs, *other.knobs),
            sampler={**self.sampler, **other.sampler},
            guidance={**self.guidance, **other.guidance},
        )


EXACT = Option(name="exact")


def find_options(pipe: Any, base: SamplerConfig, teacher_size: tuple[int, int]) -> tuple[list[Option], dict[str, str]]:
    """The options there are for this pipeline, and what is left out and why.

    Args:
        pipe: a loaded pipeline.
        base: the sampler that they approximate.
        teacher_size: (height, width) of what the teacher sees.

    Raises:
        UserError: the tiny decoder that ``base`` names cannot be used.
    """
    options, left_out = [], {}
    tiny = base.guidance.tiny if base.guidance is not None else None
    if tiny is not None:
        load_decoder(pipe, "tiny", tiny)  # what was asked for by name is not left out
    for name in _decoder_names(pipe, teacher_size):
        try:
            load_decoder(pipe, name, tiny)
        except UserError as error:
            left_out[name] = str(error)
        else:
            where = {"tiny": tiny} if tiny is not None and name.startswith("tiny") else {}
            options.append(Option(name=name, knobs=("decoder",), guidance={"decoder": name, **where}))
    options += _schedules(base)
    try:
        SplitUNet(pipe.unet)
    except UserError as error:
        left_out["features"] = str(error)
    else:
        options += [
            Option(name=f"features every {k}", knobs=("features",), sampler={"reuse_features": k}) for k in (2, 3)
        ]
    return options, left_out


def decoder_fingerprints(pipe: Any, options: Sequence[Option]) -> dict[str, str]:
    """Of the decoders that are not the pipeline's own, by their kind."""
    found = {}
    for option in options:
        kind = option.guidance.get("decoder", "kl").partition("@")[0]
        value = None if kind in found else decoder_fingerprint(pipe, kind, option.guidance.get("tiny"))
        if value is not None:
            found[kind] = value
    return found


def _decoder_names(pipe: Any, teacher_size: tuple[int, int]) -> list[str]:
    factor = int(pipe.vae_scale_factor)
    full = max(latent_shape(pipe)[1:]) * factor
    sizes = {full // 2, full // 4, max(teacher_size)}
    kept = sorted((size for size in sizes if 2 * factor <= size < full and size % factor == 0), reverse=True)
    return [f"kl@{size}" for size in kept] + ["tiny", *(f"tiny@{size}" for size in kept), "linear"]


def _schedules(base: SamplerConfig) -> Iterator[Option]:
    guidance = base.guidance or GuidanceConfig()
    for k in (2, 3):
        for reused in (False, True):
            every = guidance.every * k
            name = f"gradient every {every}" + (", reused" if reused else "")
            yield Option(name=name, knobs=("every",), guidance={"every": every, "reuse_gradient": reused})
    for start, stop in _inside(guidance.start, guidance.stop):
        name = f"guidance {start:g} to {stop:g}"
        yield Option(name=name, knobs=("interval",), guidance={"start": start, "stop": stop})
    if base.cfg_scale > 1:
        for start, stop in _inside(base.cfg_start, base.cfg_stop):
            name = f"CFG {start:g} to {stop:g}"
            yield Option(name=name, knobs=("CFG interval",), sampler={"cfg_start": start, "cfg_stop": stop})


def _inside(start: float, stop: float) -> list[tuple[float, float]]:
    width = stop - start
    return [(round(start + low * width, 4), round(start + high * width, 4)) for low, high in _SHARES]
