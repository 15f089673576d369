"""What decides how rows become images. Light to import: no torch."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Literal

from prism_fast.config import DTYPES
from prism_fast.sampling.image_to_image_config import ImageToImageConfig, first_step

Scheduler = Literal["pndm", "ddim", "ddpm", "euler", "euler_a", "dpmsolver++"]
Level = Literal["reference", "exact", "fast"]
Spacing = Literal["leading", "trailing", "linspace"]
TeacherBackend = Literal["auto", "eager", "compiled", "onnx", "tensorrt"]

LEVELS: tuple[Level, ...] = ("reference", "exact", "fast")
TEACHER_BACKENDS: tuple[TeacherBackend, ...] = ("auto", "eager", "compiled", "onnx", "tensorrt")
LATER_OPTIONS = {
    "entropy_weight": 0.0,
    "bn_weight": 0.0,
    "student_weight": 0.0,
    "backend": "eager",
    "bn_form": "squared",
    "student_where": "all",
    "student_after": 0,
    "step": "rms",
    "moves": "x0",
}
"""Options of the guidance that came after sets had been made. At these values they are what those sets are, and stay
out of a set's hash."""
KARRAS_SCHEDULERS = ("euler", "dpmsolver++")
_SCHEDULERS = ("pndm", "ddim", "ddpm", "euler", "euler_a", "dpmsolver++")


def _choice(name: str, value: object, allowed: tuple[object, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(map(str, allowed))}, not {value!r}")


def _number(name: str, value: float, low: float, high: float = math.inf) -> None:
    if not (math.isfinite(value) and low <= value <= high):
        raise ValueError(f"{name} must be a number from {low} to {high}, not {value}")


def _count(name: str, value: object) -> None:
    if not (isinstance(value, int) and not isinstance(value, bool) and value >= 1):
        raise ValueError(f"{name} must be a whole number from 1, not {value!r}")


def _interval(name: str, start: float, stop: float) -> None:
    _number(f"{name}start", start, 0.0, 1.0)
    _number(f"{name}stop", stop, 0.0, 1.0)
    if start >= stop:
        raise ValueError(f"{name}start ({start}) must be below {name}stop ({stop})")


@dataclass(frozen=True, kw_only=True)
class GuidanceConfig:
    """EDA: every guided step moves the predicted clean latents x̂0 down the teacher's energy.

        x̂0' = x̂0 − s · w_t · gate · g / (rms(g) + δ),   g = ∂E/∂x̂0,   gate = sigmoid((E − τ_y)/δ_y)

    Args:
        scale: s, in standard deviations of the (scaled) latents; 0 guides nowhere, below 0 leads away from what the
            teacher knows (an ablation).
        free_weight: λ_f of −T·logsumexp(f/T) in E.
        class_weight: λ_c of the cross-entropy with the image's class in E.
        temperature: T, in units of logits.
        entropy_weight: λ_e of the entropy of softmax(f) in E.
        bn_weight: λ_b of the distance between an image's feature statistics and those that the teacher's batch-norm
            layers have kept.
        bn_form: how that distance is measured: ``squared``, in units of each channel's variance; ``norm``: the norms
            of DeepInversion, summed over the layers (``prism_fast.energy.batch_norm``).
        student_weight: λ_s of −KL(teacher ‖ student): images on which they disagree.
        student_where: ``all`` images, or those of whose first choice both ``agree``.
        student_after: images of each class that a distillation draws before its current student takes part.
        student: folder of the student's snapshot, or ``FOLDER@HASH`` with its fingerprint, which is then checked. Where
            a distillation draws its own images: ``current``, its student as it is when they are drawn.
        weighting: w_t: 1, σ_t or α_t (variance-preserving, both in [0, 1]).
        gate: ``pilot``: images whose energy is already as low as the unguided pilot's are left alone;
            ``none``: gate = 1.
        gate_quantile: τ_y is this quantile of class y's pilot energies.
        start: first guided step as a share of the trajectory, 0 being pure noise.
        stop: guidance ends before this share.
        every: the gradient is computed at every k-th step between them.
        reuse_gradient: the steps in between are guided too, along the last gradient (level ``fast``). The gate stays
            that gradient's; otherwise they are not guided.
        repeats: passes over a guided step, re-noised between (time travel); 1 = none.
        at: where g is taken: ``x0``: at x̂0; ``latent``: at x_t through the UNet; ``noisy``: at x_t, decoded as it is.
        moves: what the correction is added to: ``x0``: to x̂0, and the network's output follows; ``sample``: to x_t
            itself, and the network is called on what was moved (for ``at: noisy`` only then, otherwise once more).
        step: ``rms``: as above; ``plain``: without the division by rms(g), s being a learning rate.
        direction: ``energy``, or ``random``: a random direction of the same norm and gate (an ablation).
        decoder: what the teacher looks through: ``kl``, the pipeline's own; ``tiny``, an AutoencoderTiny; ``kl@N`` or
            ``tiny@N``, resized latents at N pixels; ``linear``, a fitted matrix. Level ``fast`` but for ``kl``.
        tiny: folder or hub id of the AutoencoderTiny; None: ``vae_tiny`` in the pipeline's folder.
        backend: what computes the teacher's gradient: ``eager``, ``compiled``, ``onnx``, ``tensorrt``, or ``auto``: the
            fastest that is usable, decided once a run and saved by name. Not at level ``reference`` (docs/teachers.md).
        max_bad_rate: share of dropped guidances (zero or non-finite energy or gradient) above which a run fails.
    """

    scale: float = 0.3
    free_weight: float = 1.0
    class_weight: float = 1.0
    temperature: float = 1.0
    entropy_weight: float = 0.0
    bn_weight: float = 0.0
    bn_form: Literal["squared", "norm"] = "squared"
    student_weight: float = 0.0
    student_where: Literal["all", "agree"] = "all"
    student_after: int = 0
    student: str | None = None
    weighting: Literal["constant", "sigma", "alpha"] = "constant"
    gate: Literal["pilot", "none"] = "pilot"
    gate_quantile: float = 0.25
    start: float = 0.0
    stop: float = 1.0
    every: int = 1
    reuse_gradient: bool = False
    repeats: int = 1
    at: Literal["x0", "latent", "noisy"] = "x0"
    moves: Literal["x0", "sample"] = "x0"
    step: Literal["rms", "plain"] = "rms"
    direction: Literal["energy", "random"] = "energy"
    decoder: str = "kl"
    tiny: str | None = None
    backend: TeacherBackend = "eager"
    max_bad_rate: float = 0.01

    def __post_init__(self) -> None:
        _number("guidance.scale", self.scale, -math.inf)
        weights = {
            name: getattr(self, name)
            for name in ("free_weight", "class_weight", "entropy_weight", "bn_weight", "student_weight")
        }
        for name, weight in weights.items():
            _number(f"guidance.{name}", weight, 0.0)
        if not any(weights.values()):
            raise ValueError(f"{', '.join(f'guidance.{name}' for name in weights)} are all 0: nothing guides")
        if (self.student is None) != (self.student_weight == 0):
            raise ValueError("guidance.student and a guidance.student_weight above 0 go together: give both or neither")
        _number("guidance.student_after", self.student_after, 0)
        if self.student_after and self.student not in (None, "current"):
            raise ValueError(f"guidance.student_after is for student: current, not for {self.student}: leave it out")
        if not (math.isfinite(self.temperature) and self.temperature > 0):
            raise ValueError(f"guidance.temperature must be positive, not {self.temperature}")
        _choice("guidance.weighting", self.weighting, ("constant", "sigma", "alpha"))
        _choice("guidance.gate", self.gate, ("pilot", "none"))
        _number("guidance.gate_quantile", self.gate_quantile, 0.0, 1.0)
        _interval("guidance.", self.start, self.stop)
        _count("guidance.every", self.every)
        _count("guidance.repeats", self.repeats)
        _choice("guidance.at", self.at, ("x0", "latent", "noisy"))
        _choice("guidance.bn_form", self.bn_form, ("squared", "norm"))
        _choice("guidance.student_where", self.student_where, ("all", "agree"))
        _choice("guidance.moves", self.moves, ("x0", "sample"))
        _choice("guidance.step", self.step, ("rms", "plain"))
        _choice("guidance.direction", self.direction, ("energy", "random"))
        if self.step == "plain" and self.direction == "random":
            raise ValueError("guidance.direction: random has the length of a normalised step: set guidance.step rms")
        if not re.fullmatch(r"(kl|tiny)(@[1-9]\d*)?|linear", self.decoder):
            raise ValueError(
                f"guidance.decoder must be kl, tiny, kl@PIXELS, tiny@PIXELS or linear, not {self.decoder!r}"
            )
        _choice("guidance.backend", self.backend, TEACHER_BACKENDS)
        _number("guidance.max_bad_rate", self.max_bad_rate, 0.0, 1.0)


@dataclass(frozen=True, kw_only=True)
class SamplerConfig:
    """One image's way from noise: scheduler, classifier-free guidance, precision, batch shape, guidance.

    Args:
        scheduler: ``pndm`` (without Runge-Kutta steps), ``ddim``, ``ddpm``, ``euler``, ``euler_a`` or
            ``dpmsolver++`` (2M).
        steps: denoising steps.
        cfg_scale: classifier-free guidance: ε = ε_u + c·(ε_c − ε_u); at 1 and below the unconditional half is skipped.
        cfg_start: classifier-free guidance begins at this share of the trajectory, 0 being pure noise (Kynkäänniemi et
            al. 2024, arXiv 2404.07724); outside its interval only the conditional half is computed.
        cfg_stop: it ends before this share.
        eta: DDIM's noise, 0 (deterministic) to 1; 0 for every other scheduler.
        spacing: which timesteps; ``None`` leaves it to the pipeline's scheduler configuration.
        karras: Karras et al.'s noise levels (``euler`` and ``dpmsolver++``).
        compute_batch: rows of every network call; decides the last bits of an image.
        dtype: of the networks. Latents and guidance are fp32.
        level: rung of the exactness ladder: ``reference``, ``exact`` (the same mathematics, fast) or ``fast``
            (approximations, each an option of its own).
        reuse_features: the UNet's inner blocks run at every k-th step, between them only its outermost ones (DeepCache,
            Ma et al. 2023, arXiv 2312.00858); 1 = everything at every step. Level ``fast``.
        attention: of the UNet, above ``reference``: ``sdpa``, as the pipeline has it (torch's fused attention unless
            somebody chose another), or ``xformers``.
        compile: torch.compile for the networks of the levels above ``reference``; ``auto`` is on for CUDA.
        tokens: safetensors file of learned words that prompts may name (``prism-fast learn-tokens``, or a textual
            inversion).
        guidance: EDA; ``None`` samples unguided.
        image_to_image: rows start from images of their classes (SDEdit); ``None`` starts from noise alone.
    """

    scheduler: Scheduler = "dpmsolver++"
    steps: int = 20
    cfg_scale: float = 3.0
    cfg_start: float = 0.0
    cfg_stop: float = 1.0
    eta: float = 0.0
    spacing: Spacing | None = None
    karras: bool = False
    compute_batch: int = 64
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    level: Level = "exact"
    reuse_features: int = 1
    attention: Literal["sdpa", "xformers"] = "sdpa"
    compile: Literal["auto", "on", "off"] = "auto"
    tokens: str | None = None
    guidance: GuidanceConfig | None = None
    image_to_image: ImageToImageConfig | None = None

    def __post_init__(self) -> None:
        _choice("scheduler", self.scheduler, _SCHEDULERS)
        _count("steps", self.steps)
        _number("cfg_scale", self.cfg_scale, 0.0)
        _number("eta", self.eta, 0.0, 1.0)
        if self.eta and self.scheduler != "ddim":
            raise ValueError(f"eta is DDIM's: {self.scheduler} has none")
        _choice("spacing", self.spacing, (None, "leading", "trailing", "linspace"))
        if self.karras and self.scheduler not in KARRAS_SCHEDULERS:
            raise ValueError(f"karras is for {' and '.join(KARRAS_SCHEDULERS)}, not {self.scheduler}")
        _count("compute_batch", self.compute_batch)
        _choice("dtype", self.dtype, DTYPES)
        _choice("level", self.level, LEVELS)
        _interval("cfg_", self.cfg_start, self.cfg_stop)
        _count("reuse_features", self.reuse_features)
        _choice("attention", self.attention, ("sdpa", "xformers"))
        _choice("compile", self.compile, ("auto", "on", "off"))
        self._check_level()
        for strength in self.image_to_image.strengths if self.image_to_image is not None else ():
            first_step(strength, self.steps)
        travels = self.guidance is not None and self.guidance.repeats > 1
        moves = self.guidance is not None and self.guidance.moves == "sample"
        if (travels or moves) and self.scheduler == "pndm":
            # PNDM's second call corrects a sample it kept from the first: there is no state to travel back to.
            option = "guidance.repeats > 1" if travels else "guidance.moves: sample"
            raise ValueError(f"{option} does not work with pndm: choose another scheduler")

    @property
    def approximations(self) -> tuple[str, ...]:
        """Names of the options in use that level ``fast`` alone has."""
        guidance = self.guidance or GuidanceConfig()
        options = {
            "reuse_features": self.reuse_features > 1,
            "guidance.decoder": guidance.decoder != "kl",
            "guidance.reuse_gradient": guidance.reuse_gradient,
        }
        return tuple(name for name, on in options.items() if on)

    def _check_level(self) -> None:
        """Approximations are asked for by name, and the plain loop stays plain."""
        guidance = self.guidance or GuidanceConfig()
        if self.approximations and self.level != "fast":
            raise ValueError(f"{' and '.join(self.approximations)}: an approximation, set level: fast (sampler.level)")
        if self.level != "reference" and (guidance.at == "latent" or guidance.repeats > 1):
            raise ValueError("guidance.at: latent and guidance.repeats > 1 exist at level: reference alone")
        if self.reuse_features > 1 and guidance.moves == "sample" and guidance.at != "noisy":
            raise ValueError(
                "reuse_features: guidance.moves: sample calls the whole UNet twice at a step: set reuse_features 1"
            )
        if self.level == "reference" and guidance.backend != "eager":
            raise ValueError(
                f"guidance.backend: {guidance.backend} exists above level: reference, whose teacher is eager: set "
                "backend: eager, or level: exact"
            )
