"""What a set of images is made from: everything that decides one of its bytes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from prism_fast.config import canonical
from prism_fast.prompts.prompt_config import PromptConfig
from prism_fast.sampling.config import LATER_OPTIONS, SamplerConfig
from prism_fast.synthesis.filter_config import FilterConfig
from prism_fast.synthesis.images import IMAGE_FORMATS, ImageFormat
from prism_fast.synthesis.mix_config import MixConfig

DEFAULT_IMAGES = 1000
MAX_IMAGES = 10**9
"""Row numbers have nine digits in the members' names."""

_PLACES = ("device", "pipeline", "teacher", "vocabulary", "recipe")
"""Fields that say where something lies or what it is called, not what it is."""


@dataclass(frozen=True, kw_only=True)
class SynthesisConfig:
    """A synthesis run.

    Args:
        pipeline: text-to-image pipeline: a built-in name, a local folder or a hub id.
        teacher: classifier that guides and labels: a built-in name, a local folder, ``hf-hub:ORG/NAME``, timm's name or
            ``module:factory@WEIGHTS``; ``A+B`` or ``worst:A+B``: the mean or the worst of several.
        vocabulary: the classes: a built-in name, or a ``.csv``, ``.json`` or ``teacher.yaml`` file of names.
        recipe: name of the published method that the other fields follow; for the record only.
        images: how many, shared out evenly over the classes: row i shows class i mod K.
        counts: images of each class instead, in the vocabulary's order; ``images`` becomes their sum.
        seed: 0 <= seed < 2**63; of the images and of the order of the prompts.
        shard_size: images in a shard.
        format: of the image files; ``png`` and ``webp`` are lossless, ``jpg`` is at quality 95.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        prompts: which prompts to make, or a file of them.
        sampler: how a prompt becomes an image, guidance included.
        pilot_images: unguided images of each class from which the guidance gate and the filter learn their thresholds.
        filter: which images are rejected and drawn again; ``None`` keeps every image whose numbers are finite.
        mix: latent CutMix; ``None``: every image is its own row's.
        soft_top_k: how many of the teacher's logits are kept, the largest ones; ``None`` keeps all.
    """

    pipeline: str = "fashion"
    teacher: str = "fashion"
    vocabulary: str = "fashion"
    recipe: str = "prism"
    images: int = DEFAULT_IMAGES
    counts: tuple[int, ...] | None = None
    seed: int = 0
    shard_size: int = 500
    format: ImageFormat = "png"
    device: str = "auto"
    prompts: PromptConfig = field(default_factory=PromptConfig)
    sampler: SamplerConfig = field(default_factory=SamplerConfig)
    pilot_images: int = 16
    filter: FilterConfig | None = None
    mix: MixConfig | None = None
    soft_top_k: int | None = None

    def __post_init__(self) -> None:
        if self.counts is not None:
            self._sum_counts(tuple(self.counts))
        for name, top in (("images", MAX_IMAGES), ("shard_size", 10**6), ("pilot_images", 10**6)):
            value = getattr(self, name)
            if not _whole(value, 1, top):
                raise ValueError(f"{name} must be a whole number from 1 to {top}, not {value!r}")
        if -(-self.images // self.shard_size) > 10**6:
            raise ValueError(f"{self.images} images in shards of {self.shard_size} are over a million shards")
        if not _whole(self.seed, 0, 2**63 - 1):
            raise ValueError(f"seed must be a whole number, 0 <= seed < 2**63, not {self.seed!r}")
        if self.soft_top_k is not None and not _whole(self.soft_top_k, 1, 10**6):
            raise ValueError(f"soft_top_k must be a whole number from 1, or null, not {self.soft_top_k!r}")
        if self.mix is not None and self.sampler.image_to_image is not None:
            raise ValueError(
                "mix and sampler.image_to_image do not go together: a batch begins at one step, partners at any: "
                "leave one out"
            )
        if self.filter is not None and self.filter.min_cosine is not None and self.sampler.image_to_image is None:
            raise ValueError(
                "filter.min_cosine compares with the image that a row starts from: it needs sampler.image_to_image"
            )
        if self.format not in IMAGE_FORMATS:
            raise ValueError(f"format must be one of {', '.join(IMAGE_FORMATS)}, not {self.format!r}")

    @property
    def needs_pilot(self) -> bool:
        """Whether the guidance gate or the filter takes its thresholds from unguided images."""
        return self.has_gate or (self.filter is not None and self.filter.energy_quantile is not None)

    @property
    def has_gate(self) -> bool:
        """Whether guidance has a gate."""
        return self.sampler.guidance is not None and self.sampler.guidance.gate == "pilot"

    def _sum_counts(self, counts: tuple[int, ...]) -> None:
        if not all(_whole(count, 0, MAX_IMAGES) for count in counts):
            raise ValueError(f"counts must be whole numbers from 0: {counts}")
        if self.images not in (DEFAULT_IMAGES, sum(counts)):
            raise ValueError(f"counts add up to {sum(counts)} images, images says {self.images}: leave images out")
        object.__setattr__(self, "counts", counts)
        object.__setattr__(self, "images", sum(counts))


def _whole(value: object, low: int, high: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def identity(config: SynthesisConfig) -> dict[str, Any]:
    """The part of a configuration that decides images, as plain JSON types.

    Left out is where things lie and what they are called: weights, classes and prompts enter the hash by content. Left
    out are options that came later, where they are off. And ``max_bad_rate`` and ``max_rejected``, which decide whether
    a run goes on, not what it makes: a stopped set can go on with a higher one. ``backend: auto`` has to be resolved
    before.
    """
    fields: dict[str, Any] = canonical(config)
    for name in _PLACES:
        del fields[name]
    del fields["prompts"]["file"], fields["prompts"]["token"], fields["sampler"]["tokens"]
    if not config.needs_pilot:
        del fields["pilot_images"]
    if config.filter is None:
        del fields["filter"]
    else:
        del fields["filter"]["max_rejected"], fields["filter"]["embedding"]
        if config.filter.min_cosine is None:
            del fields["filter"]["min_cosine"]
        if config.filter.keep == "first":
            del fields["filter"]["keep"]
    if config.sampler.image_to_image is None:
        del fields["sampler"]["image_to_image"]
    else:
        del fields["sampler"]["image_to_image"]["source"]
    if config.mix is None:
        del fields["mix"]
    if config.soft_top_k is None:
        del fields["soft_top_k"]
    if config.sampler.guidance is not None:
        guidance = fields["sampler"]["guidance"]
        del guidance["max_bad_rate"], guidance["student"], guidance["tiny"]
        for name, usual in LATER_OPTIONS.items():
            if guidance[name] == usual:
                del guidance[name]
    return fields
