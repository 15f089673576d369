"""What ``learn-tokens`` is asked for. Light to import: no torch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

from prism_fast.config import canonical, require, require_whole
from prism_fast.prompts.prompt_config import PromptConfig, SenseMode

_CHOICES = {
    "sense": ("name", "gloss"),
    "noise": ("new", "same"),
    "keep": ("last", "best"),
    "gradient_at": ("random", "last"),
    "bn_form": ("squared", "norm"),
}


@dataclass(frozen=True, kw_only=True)
class TokensConfig:
    """Words to learn, one for each class.

    Args:
        pipeline: text-to-image pipeline: a built-in name, a local folder or a hub id.
        teacher: classifier whose energy is minimised: a built-in name, a local folder, ``hf-hub:ORG/NAME``, timm's name
            or ``module:factory@WEIGHTS``; ``A+B`` or ``worst:A+B``: the mean or the worst of several.
        vocabulary: the classes: a built-in name, or a ``.csv``, ``.json`` or ``teacher.yaml`` file of names.
        classes: numbers of the classes; None: all.
        token: the placeholder, with ``{}`` for the number of the class, and words beside it, if any, as they stand in
            the prompt: ``a <class-{}>``.
        vectors: tokens that a placeholder stands for.
        sense: what stands behind the placeholder in the prompt: the bare ``name``, or with its ``gloss``.
        start: words from the mean of whose embeddings a word starts; None: the class's own.
        steps: of the optimiser (AdamW), at most, for each class.
        batch: images of a step.
        compute_batch: images that the networks see at once, whose gradients are added up; None: all of a step. Decides
            the last bits of a word, and how much memory learning takes.
        learning_rate: of AdamW, in units of the root mean square of the text encoder's embeddings.
        weight_decay: of AdamW; a step takes this share, times the learning rate in the embeddings' own units, off a
            word's embedding.
        noise: ``new`` at each step, or the ``same`` at all steps of a class.
        stop_at: a class has no further steps after one whose images the teacher takes for the class in at least this
            share, from above 0 to 1; None: it has all of them.
        keep: a word as it is after its ``last`` step, or after the one of least energy (``best``).
        denoising_steps: of DDIM from noise to image.
        gradient_at: the denoising step at which the gradient is taken: ``random``, drawn anew at each step of the
            optimiser, of the image that is predicted there; or ``last``, of the finished image.
        cfg_scale: of classifier-free guidance.
        guidance_scale: η of DDIS' guidance of the images on their way (``prism_fast/recipes/ddis.yaml``), at every
            denoising step before the one of the gradient; it needs a teacher with batch-norm layers. 0: none.
        class_weight: λ_c of the cross-entropy with the class.
        bn_weight: λ_b of the batch-norm statistics.
        bn_form: ``squared`` or ``norm``.
        seed: 0 <= seed < 2**63; of the noise.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        recipe: what was laid over the defaults; only a name here.
    """

    pipeline: str = "fashion"
    teacher: str = "fashion"
    vocabulary: str = "fashion"
    classes: tuple[int, ...] | None = None
    token: str = "<class-{}>"  # noqa: S105  a word
    vectors: int = 1
    sense: SenseMode = "name"
    start: str | None = None
    steps: int = 50
    batch: int = 8
    compute_batch: int | None = None
    learning_rate: float = 0.1
    weight_decay: float = 0.0
    noise: Literal["new", "same"] = "new"
    stop_at: float | None = None
    keep: Literal["last", "best"] = "last"
    denoising_steps: int = 6
    gradient_at: Literal["random", "last"] = "random"
    cfg_scale: float = 3.0
    guidance_scale: float = 0.0
    class_weight: float = 1.0
    bn_weight: float = 0.1
    bn_form: Literal["squared", "norm"] = "squared"
    seed: int = 0
    device: str = "auto"
    recipe: str | None = None

    def __post_init__(self) -> None:
        for name, high in (("vectors", 16), ("steps", 10**6), ("batch", 10**4), ("denoising_steps", 1000)):
            require_whole(self, name, 1, high)
        require_whole(self, "compute_batch", 1, 10**4)
        require_whole(self, "seed", 0, 2**63 - 1)
        if self.classes is not None:
            object.__setattr__(self, "classes", tuple(self.classes))
            whole = all(isinstance(c, int) and not isinstance(c, bool) and c >= 0 for c in self.classes or [None])
            distinct = len(set(self.classes)) == len(self.classes)
            require(whole and distinct, "classes", list(self.classes), "different whole numbers from 0")
        for name in ("learning_rate", "weight_decay", "cfg_scale", "guidance_scale", "class_weight", "bn_weight"):
            value = getattr(self, name)
            require(math.isfinite(value) and value >= 0, name, value, "a number from 0")
        require(self.class_weight + self.bn_weight > 0, "class_weight", 0, "above 0 where bn_weight is not")
        part = self.stop_at is None or 0 < self.stop_at <= 1
        require(part, "stop_at", self.stop_at, "a number above 0 and at most 1, or none for all steps")
        named = self.start is None or bool(self.start.strip())
        require(named, "start", self.start, "words that the text encoder knows, or none for the class's own")
        for name, choices in _CHOICES.items():
            require(getattr(self, name) in choices, name, getattr(self, name), " or ".join(choices))
        self.prompts()

    def prompts(self) -> PromptConfig:
        """The prompts that are learned with."""
        return PromptConfig(sense=self.sense, content="none", style="none", token=self.token)

    def identity(self) -> dict[str, Any]:
        """What decides a word, but for the content of what is named here by its place."""
        left_out = ("pipeline", "teacher", "vocabulary", "device", "classes", "recipe")
        return {name: value for name, value in canonical(self).items() if name not in left_out}
