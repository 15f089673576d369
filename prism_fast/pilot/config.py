"""What ``pilot`` is asked for. Light to import: no torch."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from prism_fast.prompts.prompt_config import PromptConfig
from prism_fast.sampling.config import GuidanceConfig, SamplerConfig
from prism_fast.synthesis.config import DEFAULT_IMAGES, SynthesisConfig


@dataclass(frozen=True, kw_only=True)
class PilotConfig:
    """A pilot: the synthesis that is planned, and how much of it is looked at first.

    Args:
        pipeline: text-to-image pipeline: a built-in name, a local folder or a hub id.
        teacher: classifier that guides: a built-in name, a local folder, ``hf-hub:ORG/NAME``, timm's name or
            ``module:factory@WEIGHTS``.
        vocabulary: the classes: a built-in name, or a ``.csv``, ``.json`` or ``teacher.yaml`` file of names.
        recipe: name of the published method that the other fields follow; for the record only.
        images: how many the synthesis is to have; decides hours and cost, not what is drawn here.
        classes: which classes to look at, as indices, ranges or names: ``0-99`` or ``3,7,coat``; all where left out.
        seed: 0 <= seed < 2**63; of the images and of the order of the prompts.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        prompts: which prompts to make, or a file of them.
        sampler: the sampler of the synthesis, guidance included.
        pilot_images: unguided images of each class.
        guided_images: how many of them are drawn again at each of ``scales``.
        scales: guidance scales to try, above 0; none where the list is empty.
        judge: a second classifier with the same classes, which has a say in the scale; it never guides.
        price_per_hour: of the machine, in any currency.
    """

    pipeline: str = "fashion"
    teacher: str = "fashion"
    vocabulary: str = "fashion"
    recipe: str = "prism"
    images: int = DEFAULT_IMAGES
    classes: str | None = None
    seed: int = 0
    device: str = "auto"
    prompts: PromptConfig = field(default_factory=PromptConfig)
    sampler: SamplerConfig = field(default_factory=lambda: SamplerConfig(guidance=GuidanceConfig()))
    pilot_images: int = 16
    guided_images: int = 128
    scales: tuple[float, ...] = (0.1, 0.2, 0.3, 0.45)
    judge: str | None = None
    price_per_hour: float | None = None

    def __post_init__(self) -> None:
        scales = tuple(sorted({float(scale) for scale in self.scales}))
        if not all(math.isfinite(scale) and scale > 0 for scale in scales):
            raise ValueError(f"scales must be numbers above 0, not {list(self.scales)}")
        object.__setattr__(self, "scales", scales)
        if isinstance(self.guided_images, bool) or not self.guided_images >= 1:
            raise ValueError(f"guided_images must be a whole number from 1, not {self.guided_images}")
        price = self.price_per_hour
        if price is not None and not (math.isfinite(price) and price >= 0):
            raise ValueError(f"price_per_hour must be a number from 0, not {price}")
        self.planned()

    @property
    def guidance(self) -> GuidanceConfig:
        """The guidance of the synthesis; the defaults where it has none."""
        return self.sampler.guidance or GuidanceConfig()

    def planned(self) -> SynthesisConfig:
        """The synthesis."""
        return SynthesisConfig(images=self.images, **self._shared())

    def drawn(self, chosen: frozenset[int], num_classes: int) -> SynthesisConfig:
        """The same with images of the chosen classes alone. Rows of its pilot are those of the synthesis's pilot."""
        return SynthesisConfig(counts=tuple(int(c in chosen) for c in range(num_classes)), **self._shared())

    def _shared(self) -> dict[str, Any]:
        names = ("pipeline", "teacher", "vocabulary", "recipe", "seed", "device", "prompts", "sampler", "pilot_images")
        return {name: getattr(self, name) for name in names}
