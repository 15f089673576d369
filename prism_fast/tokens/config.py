"""What ``learn-tokens`` is asked for. Light to import: no torch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

from prism_fast.config import canonical, require, require_whole
from prism_fast.prompts.prompt_config import PromptConfig, SenseMode


@dataclass(frozen=True, kw_only=True)
class TokensConfig:
    """Words to learn, one for each class.

    Args:
        pipeline: text-to-image pipeline: a built-in name, a local folder or a hub id.
        teacher: classifier whose energy is minimised: a built-in name, a local folder, ``hf-hub:ORG/NAME``, timm's name
            or ``module:factory@WEIGHTS``; ``A+B`` or ``worst:A+B``: the mean or the worst of several.
        vocabulary: the classes: a built-in name, or a ``.csv``, ``.json`` or ``teacher.yaml`` file of names.
        classes: numbers of the classes; None: all.
        token: the placeholder, with ``{}`` for the number of the class.
        vectors: tokens that a placeholder stands for.
        sense: what stands behind the placeholder in the prompt: the bare ``name``, or with its ``gloss``.
        steps: of the optimiser (Adam), for each class.
        batch: images of a step.
        learning_rate: of Adam, in units of the root mean square of the text encoder's embeddings.
        denoising_steps: of DDIM from noise to image; the gradient is taken at one of them, drawn anew at each step.
        cfg_scale: of classifier-free guidance.
        class_weight: λ_c of the cross-entropy with the class.
        bn_weight: λ_b of the batch-norm statistics.
        bn_form: ``squared`` or ``norm``.
        seed: 0 <= seed < 2**63; of the noise.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
    """

    pipeline: str = "fashion"
    teacher: str = "fashion"
    vocabulary: str = "fashion"
    classes: tuple[int, ...] | None = None
    token: str = "<class-{}>"  # noqa: S105  a word
    vectors: int = 1
    sense: SenseMode = "name"
    steps: int = 50
    batch: int = 8
    learning_rate: float = 0.1
    denoising_steps: int = 6
    cfg_scale: float = 3.0
    class_weight: float = 1.0
    bn_weight: float = 0.1
    bn_form: Literal["squared", "norm"] = "squared"
    seed: int = 0
    device: str = "auto"

    def __post_init__(self) -> None:
        for name, high in (("vectors", 16), ("steps", 10**6), ("batch", 10**4), ("denoising_steps", 1000)):
            require_whole(self, name, 1, high)
        require_whole(self, "seed", 0, 2**63 - 1)
        if self.classes is not None:
            object.__setattr__(self, "classes", tuple(self.classes))
            whole = all(isinstance(c, int) and not isinstance(c, bool) and c >= 0 for c in self.classes or [None])
            distinct = len(set(self.classes)) == len(self.classes)
            require(whole and distinct, "classes", list(self.classes), "different whole numbers from 0")
        for name in ("learning_rate", "cfg_scale", "class_weight", "bn_weight"):
            value = getattr(self, name)
            require(math.isfinite(value) and value >= 0, name, value, "a number from 0")
        require(self.class_weight + self.bn_weight > 0, "class_weight", 0, "above 0 where bn_weight is not")
        require(self.bn_form in ("squared", "norm"), "bn_form", self.bn_form, "squared or norm")
        require(self.sense in ("name", "gloss"), "sense", self.sense, "name or gloss")
        self.prompts()

    def prompts(self) -> PromptConfig:
        """The prompts that are learned with."""
        return PromptConfig(sense=self.sense, content="none", style="none", token=self.token)

    def identity(self) -> dict[str, Any]:
        """What decides a word, but for the content of what is named here by its place."""
        left_out = ("pipeline", "teacher", "vocabulary", "device", "classes")
        return {name: value for name, value in canonical(self).items() if name not in left_out}
