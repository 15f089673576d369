"""The methods that the study compares: each is a recipe, what is searched for it, and what it needs made before."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any

from prism_fast.inversion.config import InversionConfig
from prism_fast.recipes import DISTILL, TOKENS, load_recipe, recipe_names
from prism_fast.recipes.fields import Fields, build, default_fields, lay_over
from prism_fast.study.preparations import Preparation, first_student, inverted_images, learned_words
from prism_fast.study.study_config import FULL, StudyConfig, world_of
from prism_fast.synthesis.config import SynthesisConfig
from prism_fast.tokens.config import TokensConfig

TRIALS = 6
"""Of every method that is tuned, docs/study/protocol.md."""
PRISM, PLAIN = "prism", "plain"
FAST = "prism-fast"
"""The recipe whose approximations all methods share."""


@dataclass(frozen=True, kw_only=True)
class Method:
    """One way to make a training set.

    Attributes:
        name: also its folder, and ``recipe`` in ``results.json``.
        about: one sentence.
        recipe: of which it is made; None: the one of its name.
        fields: laid over the recipe.
        grid: fields of each trial; empty: nothing is searched.
        follows: takes the values that were chosen for this method.
        scale: times the chosen guidance scale.
        exact: without the approximations that the others share.
        prepare: what has to be there before a set can be drawn; the same for every trial.
        own: how its paper trains the student, laid over the main table's training.
        chart: of an ablation, which chart it belongs to.
        caveat: what has to be known wherever its figures are shown.
    """

    name: str
    about: str
    recipe: str | None = None
    fields: Fields = field(default_factory=dict)
    grid: tuple[Fields, ...] = ()
    follows: str | None = None
    scale: float = 1.0
    exact: bool = False
    prepare: Preparation | None = None
    own: Fields | None = None
    chart: str | None = None
    caveat: str | None = None

    @property
    def made_of(self) -> str:
        """Name of the recipe."""
        return self.recipe or self.name


def _grid(*axes: tuple[str, Sequence[Any]]) -> tuple[Fields, ...]:
    """Every combination of dotted names and values, as nested fields."""
    return tuple(
        _nested(dict(zip((name for name, _ in axes), values, strict=True)))
        for values in product(*(values for _, values in axes))
    )


def _nested(dotted: Mapping[str, Any]) -> Fields:
    fields: Fields = {}
    for name, value in dotted.items():
        *groups, last = name.split(".")
        inner = fields
        for group in groups:
            inner = inner.setdefault(group, {})
        inner[last] = value
    return fields


_DM_KD = ("temperature", "loss", "optimizer", "lr", "schedule", "warmup", "weight_decay", "decay_norms", "ema")
"""What of DM-KD's training is its own; batch, steps, views and student stay the study's."""


def _dm_kd() -> Fields:
    return {name: value for name, value in load_recipe("dm-kd", DISTILL).items() if name in _DM_KD}


_DDA: Fields = {
    "temperature": 20.0,
    "loss": {"soft": 1.0, "hard": 1.0},
    "optimizer": "momentum",
    "lr": 0.1,
    "warmup": 0.0,
    "weight_decay": 1e-4,
    "decay_norms": True,
    "ema": 0.0,
}
"""Of the authors' code (github.com/SLGSP/DDA: datafree_kd.py, scripts/dda/dda_cifar10_wrn402_wrn161.sh): T² KL and the
cross-entropy with the label, SGD with momentum 0.9, cosine to 0. Their third term, 30 times the squared distance of the
last feature maps through a convolutional head, is left out: there is no such head here."""

_DIFFDFKD: Fields = {
    "temperature": 30.0,
    "loss": {"soft": 1.0, "hard": 0.0},
    "optimizer": "momentum",
    "lr": 0.1,
    "schedule": {"kind": "multistep", "milestones": [0.625, 0.75, 0.875], "rate": 0.1},
    "warmup": 0.0,
    "weight_decay": 5e-4,
    "decay_norms": True,
    "ema": 0.0,
}
"""Of the authors' script for CIFAR-10 (github.com/xhqi0109/DiffDFKD: script/distill/distill.sh, distill.py): T² KL
alone, SGD with momentum 0.9, the rate divided by 10 after 150, 180 and 210 of 240 epochs. Their rate of 0.2 for 256
images a step is the study's 0.1 for 128."""


MAIN = (
    Method(name=PLAIN, about="bare class names, no guidance"),
    Method(
        name="plain-cfg",
        about="plain with tuned classifier-free guidance and steps",
        grid=_grid(("sampler.cfg_scale", (1.5, 3.0, 5.0)), ("sampler.steps", (12, 20))),
    ),
    Method(
        name="plain-reject",
        about="the best of n plain draws by the teacher's energy",
        grid=_grid(("filter.attempts", (2, 4)), ("sampler.cfg_scale", (1.5, 3.0, 5.0))),
    ),
    Method(name="oracle", about="prompts with the true attribute frequencies, no guidance", follows="plain-cfg"),
    Method(name="random-direction", about="bare names, moved as far in a random direction", follows=PRISM),
    Method(
        name="dm-kd",
        about="bare names, low classifier-free guidance, few steps",
        grid=_grid(("sampler.cfg_scale", (1.25, 1.5, 2.0)), ("sampler.steps", (6, 10))),
        exact=True,  # of so few steps none is there to be reused
        own=_dm_kd(),
    ),
    Method(
        name="dda-sdedit",
        about="image-to-image variations of inverted images",
        fields={"filter": {"attempts": 20}},  # so that no row is left without an image
        grid=_grid(("sampler.image_to_image.strengths", tuple([s] for s in (0.3, 0.4, 0.5, 0.6, 0.7, 0.8)))),
        exact=True,  # classifier-free guidance in the first 60 % would be none at all up to strength 0.4
        prepare=inverted_images(InversionConfig(per_class=10, steps=150)),
        own=_DDA,
    ),
    Method(
        name=PRISM,
        about="engineered prompts and energy guidance",
        grid=_grid(("sampler.guidance.scale", (0.15, 0.3)), ("sampler.cfg_scale", (1.0, 1.5, 2.0))),
        caveat="oracle-tuned: the range of its trials was moved after students were seen on split V of the real images",
    ),
)
"""In the order of the tables. One whose recipe is not there is named and left out."""

RIVALS = ("plain", "plain-cfg", "plain-reject", "dm-kd", "dda-sdedit")
"""Whom PRISM must beat."""
DECIDING = (PRISM, *RIVALS)
"""What the claims hang on."""


def _ablation(name: str, about: str, *, recipe: str = PRISM, **more: Any) -> Method:
    return Method(name=name, about=about, recipe=recipe, follows=PRISM, **more)


def _guided(**guidance: Any) -> dict[str, Any]:
    return {"fields": {"sampler": {"guidance": guidance}}}


def _prompted(**prompts: Any) -> dict[str, Any]:
    return {"fields": {"prompts": prompts}}


FURTHER = (
    Method(
        name="ddis",
        about="batch-norm guidance on the decoded noisy latent, a learned class token",
        exact=True,
        prepare=learned_words(TokensConfig(**load_recipe("ddis", TOKENS))),
    ),
    Method(
        name="diffdfkd",
        about="batch-norm, class and adversarial guidance, latent CutMix",
        exact=True,
        prepare=first_student(per_class=20, steps=300),
        own=_DIFFDFKD,
    ),
    _ablation("eda", "guidance alone", recipe="eda"),
    _ablation("dpe", "prompts alone", recipe="dpe"),
    _ablation("prism-bare-name", "PRISM without disambiguation", **_prompted(sense="name")),
    _ablation("prism-no-content", "PRISM without varied content", **_prompted(content="none")),
    _ablation("prism-no-style", "PRISM without a style", **_prompted(style="none")),
    _ablation("energy-free", "the free energy alone", **_guided(class_weight=0.0)),
    _ablation("energy-class", "the cross-entropy alone", **_guided(free_weight=0.0)),
    _ablation("energy-entropy", "with the entropy of the teacher's answer", **_guided(entropy_weight=1.0)),
    _ablation("energy-bn", "with the distance to batch-norm statistics", **_guided(bn_weight=0.1)),
    _ablation("no-gate", "images that are in distribution are moved too", **_guided(gate="none")),
    _ablation("interval", "guidance in the middle of the trajectory alone", **_guided(start=0.2, stop=0.6)),
    _ablation("scale-away", "led away from what the teacher knows", scale=-1.0, chart="scale"),
    _ablation("scale-half", "half of the chosen scale", scale=0.5, chart="scale"),
    _ablation("scale-double", "twice the chosen scale", scale=2.0, chart="scale"),
    Method(name="plain-exact", about="plain without the shared approximations", recipe=PLAIN, exact=True),
    _ablation("prism-exact", "PRISM without the shared approximations", exact=True),
)
"""What ``fashion-full`` adds."""

COUNTED = (PLAIN, PRISM)
"""Of these two there are curves of accuracy over the number of images."""
_TIMES = (0.25, 0.5, 2.0, 4.0)


_IMAGENET: Mapping[str, tuple[Fields, ...]] = {
    "plain-cfg": _grid(("sampler.cfg_scale", (2.0, 4.0, 7.5)), ("sampler.steps", (20, 30))),
    "plain-reject": _grid(("filter.attempts", (2, 4)), ("sampler.cfg_scale", (2.0, 4.0, 7.5))),
    "dm-kd": _grid(("sampler.cfg_scale", (1.25, 1.5, 2.0)), ("sampler.steps", (10, 20))),
    PRISM: _grid(("sampler.guidance.scale", (0.15, 0.3)), ("sampler.cfg_scale", (1.5, 3.0, 5.0))),
}
"""What is searched where the generator is Stable Diffusion, which is drawn at higher guidance and with more steps."""
_FASHION_ALONE = ("oracle",)
"""Nobody knows how often the attributes of ImageNet's images are true."""


def counts(images: int, classes: int) -> tuple[int, ...]:
    """Numbers of images of these curves: a quarter to four times as many as in the other tables, in whole rounds of the
    classes."""
    return tuple(sorted({max(1, int(images * times) // classes) * classes for times in _TIMES} | {images}))


def suite(name: str, known: Sequence[str] | None = None) -> tuple[tuple[Method, ...], tuple[str, ...]]:
    """The methods of a suite whose recipes are there, and the names of those whose are not.

    Args:
        name: of the suite.
        known: recipes; None: the package's.
    """
    there = recipe_names() if known is None else known
    every = MAIN + (FURTHER if name.endswith(FULL) else ())
    if world_of(name) == "imagenet":
        every = tuple(
            replace(m, grid=_IMAGENET.get(m.name, m.grid), caveat=None) for m in every if m.name not in _FASHION_ALONE
        )
    return tuple(m for m in every if m.made_of in there), tuple(m.name for m in every if m.made_of not in there)


def synthesis_config(
    study: StudyConfig,
    method: Method,
    *,
    chosen: Fields,
    images: int,
    seed: int,
    prepared: Mapping[str, Any] | None = None,
) -> SynthesisConfig:
    """What a set of a method is drawn from.

    Args:
        study: the shared sizes.
        method: its recipe and fields.
        chosen: fields of a trial: its own, or of the method that it follows.
        images, seed: of the set.
        prepared: what the method's preparation said.
    """
    shared: Fields = {
        "pipeline": study.pipeline,
        "teacher": study.teacher,
        "vocabulary": study.vocabulary,
        "images": images,
        "seed": seed,
        "format": study.format,
        "device": study.device,
        "pilot_images": study.pilot_images,
        "sampler": {"steps": study.steps, "compute_batch": study.batch, "dtype": study.dtype},
    }
    recipe = load_recipe(method.made_of)
    guided = recipe["sampler"]["guidance"] is not None
    layers = [("study", shared), (f"recipe {method.made_of}", recipe)]
    if not method.exact:
        layers.append((f"recipe {FAST}", {"sampler": _unguided(load_recipe(FAST)["sampler"], guided)}))
        through = {"sampler": {"guidance": {"decoder": study.decoder, "tiny": study.tiny}}}
        layers += [("study", through)] if guided else []
    layers.append((f"method {method.name}", method.fields))
    values = dict(chosen)
    if "sampler" in values:
        values["sampler"] = _scaled(_unguided(values["sampler"], guided), method.scale)
    layers += [("chosen", values), ("prepared", dict(prepared or {})), ("study", {"recipe": method.made_of})]
    fields = default_fields(SynthesisConfig)
    for source, above in layers:
        fields = lay_over(SynthesisConfig, fields, above, source)
    return build(SynthesisConfig, fields)


def _unguided(sampler: Mapping[str, Any], guided: bool) -> Fields:
    """Settings of a sampler, less those of guidance where there is none."""
    return {name: value for name, value in sampler.items() if guided or name != "guidance"}


def _scaled(sampler: Fields, factor: float) -> Fields:
    guidance = sampler.get("guidance")
    if factor == 1 or guidance is None:
        return sampler
    return {**sampler, "guidance": {**guidance, "scale": factor * guidance["scale"]}}
