"""Image-to-image: which image a row starts from, and from how much of it. Light to import: no torch.

SDEdit (Meng et al. 2022, arXiv 2108.01073): a source is noised to the level of a step in the middle of the trajectory,
and the steps from there on are taken. ``strength`` is what diffusers calls so: the share of the steps that are taken.
"""

from __future__ import annotations

from dataclasses import dataclass

from prism_fast.errors import UserError
from prism_fast.keyed import seed_of

TOO_WEAK = "strength {strength} of {steps} steps is no step: take a strength of at least {least:.3g}, or more steps"


@dataclass(frozen=True, kw_only=True)
class ImageToImageConfig:
    """Rows start from images of their classes instead of from noise alone.

    Args:
        source: those images: a set of our shards, or a folder with a folder of images for each class.
        strengths: shares of the steps that are taken, each above 0 and at most 1; at 1 hardly anything of the source is
            left. A row has one of them, by its seed alone.
    """

    source: str | None = None
    strengths: tuple[float, ...] = (0.5,)

    def __post_init__(self) -> None:
        strengths = self.strengths
        if not isinstance(strengths, list | tuple) or not strengths:
            raise ValueError(f"image_to_image.strengths must be a list of numbers like [0.3, 0.7], not {strengths!r}")
        for strength in strengths:
            number = isinstance(strength, int | float) and not isinstance(strength, bool)
            if not (number and 0 < strength <= 1):
                raise ValueError(f"image_to_image.strengths must be above 0 and at most 1, not {strength!r}")
        if len(set(strengths)) < len(strengths):
            raise ValueError(f"image_to_image.strengths has a strength twice: {list(strengths)}")
        object.__setattr__(self, "strengths", tuple(float(strength) for strength in strengths))


def first_step(strength: float, steps: int) -> int:
    """The first step that is taken, as ``StableDiffusionImg2ImgPipeline.get_timesteps`` of diffusers rounds it.

    Raises:
        UserError: none would be.
    """
    taken = min(int(steps * strength), steps)
    if taken < 1:
        raise UserError(TOO_WEAK.format(strength=strength, steps=steps, least=1 / steps))
    return steps - taken


def strength_of(config: ImageToImageConfig, seed: int) -> float:
    """The strength of the row with this seed: each is as likely as the others."""
    return config.strengths[seed_of(seed, "strength") % len(config.strengths)]


def source_of(count: int, class_index: int, seed: int) -> int:
    """Which of the ``count`` sources of its class the row with this seed starts from: each is as likely as the others.

    Independent of its strength and of its noise.
    """
    return seed_of(seed, "source", class_index) % count
