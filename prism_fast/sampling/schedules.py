"""diffusers' schedulers behind one face, and the one place that knows each one's α_t and σ_t.

All formulas below are variance preserving: x = α·x0 + σ·ε with α² + σ² = 1. DDIM, DDPM, PNDM and DPM-Solver++ keep x
itself as their sample; the Euler schedulers keep x/α (Karras et al. 2022: x0 + σ_k·ε with σ_k = σ/α), so their sample
times α is x. ``NoiseLevel.sample_scale`` is that factor.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor

from prism_fast.errors import UserError
from prism_fast.sampling.config import KARRAS_SCHEDULERS, SamplerConfig

# clip_sample and thresholding are for pixels: latents are not confined to [-1, 1].
_SCHEDULERS: dict[str, tuple[str, dict[str, Any]]] = {
    "pndm": ("PNDMScheduler", {"skip_prk_steps": True}),
    "ddim": ("DDIMScheduler", {"clip_sample": False, "thresholding": False}),
    "ddpm": ("DDPMScheduler", {"clip_sample": False, "thresholding": False, "variance_type": "fixed_small"}),
    "euler": ("EulerDiscreteScheduler", {}),
    "euler_a": ("EulerAncestralDiscreteScheduler", {}),
    "dpmsolver++": (
        "DPMSolverMultistepScheduler",
        {"algorithm_type": "dpmsolver++", "solver_order": 2, "solver_type": "midpoint", "thresholding": False},
    ),
}
_PREDICTIONS = ("epsilon", "v_prediction", "sample")
_NO_SAMPLE_PREDICTION = ("pndm", "euler_a")
_REFUSED: dict[str, tuple[Any, ...]] = {
    "use_exponential_sigmas": (True,),
    "use_beta_sigmas": (True,),
    "use_lu_lambdas": (True,),
    "use_flow_sigmas": (True,),
    "interpolation_type": ("log_linear",),
    "timestep_type": ("continuous",),
}
"""Options of a pipeline's scheduler configuration that are not supported, and the values that are refused."""


@dataclass(frozen=True, kw_only=True)
class NoiseLevel:
    """Where a step stands.

    Args:
        alpha: share of the clean latents in x.
        sigma: share of the noise; alpha² + sigma² = 1, sigma > 0 at every step.
        sample_scale: x = sample_scale · (the scheduler's own sample).
    """

    alpha: float
    sigma: float
    sample_scale: float = 1.0

    def split(self, prediction: Tensor, sample: Tensor, prediction_type: str) -> tuple[Tensor, Tensor]:
        """(x0, ε) behind a network's prediction for ``sample`` (the scheduler's own)."""
        x = sample * self.sample_scale
        if prediction_type == "epsilon":
            return (x - self.sigma * prediction) / self.alpha, prediction
        if prediction_type == "v_prediction":  # v = α·ε − σ·x0 (Salimans & Ho 2022)
            return self.alpha * x - self.sigma * prediction, self.alpha * prediction + self.sigma * x
        return prediction, (x - self.alpha * prediction) / self.sigma

    def shift(self, prediction: Tensor, delta: Tensor, prediction_type: str) -> Tensor:
        """The prediction that means x0 + delta instead of x0, for the same sample.

        From ε' = (x − α·x0')/σ: ε' = ε − (α/σ)·delta and v' = α·ε' − σ·x0' = v − delta/σ. Written as a change, so a
        delta of zero leaves the prediction bit for bit.
        """
        if prediction_type == "epsilon":
            return prediction - (self.alpha / self.sigma) * delta
        if prediction_type == "v_prediction":
            return prediction - delta / self.sigma
        return prediction + delta


CLEAN = NoiseLevel(alpha=1.0, sigma=0.0)


class Schedule:
    """One trajectory: timesteps, noise levels and the scheduler's step. Make a new one for every batch.

    Attributes:
        first: the first step that is taken; the steps before it are those of the whole trajectory.
        timesteps: what the network is told at each step; PNDM has one more than ``steps``.
        levels: of each step.
        prediction_type: of the network.
        draws: how many times the scheduler draws noise along the trajectory.
        scheduler: diffusers' own, for what reads its constants (``sampling.tables``).
        config: the one it was built for.
    """

    def __init__(self, scheduler: Any, config: SamplerConfig, device: torch.device, first: int = 0) -> None:
        trained = int(scheduler.config.num_train_timesteps)
        if config.steps > trained:
            raise UserError(f"{config.steps} steps, but the pipeline was trained on {trained} timesteps: take fewer")
        scheduler.set_timesteps(config.steps, device=device)
        if hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(first)
        self.timesteps: Tensor = scheduler.timesteps
        self.prediction_type = str(scheduler.config.prediction_type)
        self.scheduler = scheduler
        self.config = config
        self.first = first
        _check_timesteps(scheduler, config)
        self.levels = tuple(_level(scheduler, config.scheduler, index) for index in range(len(self.timesteps)))
        self.draws = _noise_draws(config, self.timesteps[first:])

    def __len__(self) -> int:
        return len(self.timesteps)

    def start(self, noise: Tensor) -> Tensor:
        """Unit Gaussian noise as the scheduler's first sample."""
        started: Tensor = noise * self.scheduler.init_noise_sigma
        return started

    def start_from(self, latents: Tensor, noise: Tensor) -> Tensor:
        """Clean latents with unit Gaussian noise, as the scheduler's sample at the first step that is taken."""
        noised: Tensor = self.scheduler.add_noise(latents, noise, self.timesteps[self.first : self.first + 1])
        return noised

    def network_input(self, sample: Tensor, index: int) -> Tensor:
        """What the network sees of the scheduler's ``sample`` at step ``index``."""
        scaled: Tensor = self.scheduler.scale_model_input(sample, self.timesteps[index])
        return scaled

    def step(self, prediction: Tensor, index: int, sample: Tensor, generators: list[Generator]) -> Tensor:
        """The next sample. Steps must be taken in order: multistep schedulers keep a history of predictions."""
        options: dict[str, Any] = {"generator": generators} if self.draws else {}
        if self.config.scheduler == "ddim":
            options["eta"] = self.config.eta
        following: Tensor = self.scheduler.step(
            prediction, self.timesteps[index], sample, return_dict=False, **options
        )[0]
        return following

    def travel_back(self, x0: Tensor, epsilon: Tensor, index: int, noise: Tensor) -> Tensor:
        """Time travel: one deterministic move to the next level and fresh noise back to level ``index``.

        x_next = α_n·x0 + σ_n·ε, then x = r·x_next + √(σ² − r²σ_n²)·noise with r = α/α_n (FreeDoM, arXiv 2303.09833,
        with a DDIM move so that no scheduler's history is touched).
        """
        level = self.levels[index]
        following = self.levels[index + 1] if index + 1 < len(self.levels) else CLEAN
        ratio = level.alpha / following.alpha
        fresh = math.sqrt(max(level.sigma**2 - (ratio * following.sigma) ** 2, 0.0))
        x = ratio * (following.alpha * x0 + following.sigma * epsilon) + fresh * noise
        return x / level.sample_scale


def build_schedule(base: Any, config: SamplerConfig, device: torch.device, first: int = 0) -> Schedule:
    """The schedule ``config`` asks for, on the betas and prediction type of the pipeline's own scheduler ``base``.

    Args:
        base: the pipeline's.
        config: which one.
        device: of the timesteps.
        first: the first step that is taken.

    Raises:
        UserError: the combination is not supported, or too many steps; the message names what to change.
    """
    import diffusers

    class_name, overrides = _SCHEDULERS[config.scheduler]
    overrides = dict(overrides)
    if config.scheduler in KARRAS_SCHEDULERS:
        overrides["use_karras_sigmas"] = config.karras
    if config.spacing is not None:
        overrides["timestep_spacing"] = config.spacing
    _check_config(base.config, config)
    return Schedule(getattr(diffusers, class_name).from_config(base.config, **overrides), config, device, first)


def own_scheduler(base: Any) -> dict[str, Any]:
    """The fields of :class:`SamplerConfig` that make a pipeline's scheduler ``base``: ``scheduler`` and ``karras``.

    Raises:
        UserError: another class, or with options that are not supported.
    """
    kind = type(base).__name__
    names = {class_name: name for name, (class_name, _) in _SCHEDULERS.items()}
    if kind not in names:
        raise UserError(f"the pipeline's scheduler is a {kind}; supported are {', '.join(names)}: set one of them")
    for key, value in _SCHEDULERS[names[kind]][1].items():
        if base.config.get(key) != value:
            raise UserError(
                f"the pipeline's {kind} has {key}={base.config.get(key)!r}, supported is {value!r}: set "
                f"pipe.scheduler = {kind}.from_config(pipe.scheduler.config, {key}={value!r})"
            )
    return {"scheduler": names[kind], "karras": bool(base.config.get("use_karras_sigmas"))}


def _check_config(base: Any, config: SamplerConfig) -> None:
    for key, values in _REFUSED.items():
        if base.get(key) in values:
            raise UserError(f"the pipeline's scheduler has {key}={base[key]!r}, which is not supported: change it")
    prediction = base.get("prediction_type", "epsilon")
    if prediction not in _PREDICTIONS or (prediction == "sample" and config.scheduler in _NO_SAMPLE_PREDICTION):
        usable = [name for name in _SCHEDULERS if name not in _NO_SAMPLE_PREDICTION]
        raise UserError(
            f"scheduler {config.scheduler} cannot use a network that predicts {prediction!r}: "
            f"take one of {', '.join(usable)} with one of {', '.join(_PREDICTIONS)}"
        )
    if base.get("rescale_betas_zero_snr") and prediction == "epsilon":
        raise UserError(
            "the pipeline predicts epsilon at zero signal-to-noise ratio (rescale_betas_zero_snr): x0 is lost"
        )


def _check_timesteps(scheduler: Any, config: SamplerConfig) -> None:
    trained = int(scheduler.config.num_train_timesteps)
    timesteps = scheduler.timesteps
    in_range = bool((timesteps >= 0).all()) and bool((timesteps <= trained - 1).all())
    levels = scheduler.sigmas if hasattr(scheduler, "sigmas") else timesteps.cpu()[2 * (config.scheduler == "pndm") :]
    falling = bool((levels[1:] < levels[:-1]).all())
    if in_range and not falling and scheduler.config.get("final_sigmas_type") == "sigma_min":
        raise UserError(
            "the pipeline's scheduler has final_sigmas_type='sigma_min' and ends at the noise of its last step, "
            "which is not supported: change it to 'zero'"
        )
    if not (in_range and falling):
        raise UserError(f"{config.steps} steps are too many for {config.scheduler} on {trained} training timesteps")


def _level(scheduler: Any, name: str, index: int) -> NoiseLevel:
    if hasattr(scheduler, "sigmas"):  # σ_k = σ/α, the Euler schedulers and DPM-Solver++
        ratio = float(scheduler.sigmas[index])
        alpha = 1.0 / math.sqrt(ratio**2 + 1.0)
        return NoiseLevel(alpha=alpha, sigma=ratio * alpha, sample_scale=1.0 if name == "dpmsolver++" else alpha)
    alpha_squared = float(scheduler.alphas_cumprod[int(scheduler.timesteps[index])])
    return NoiseLevel(alpha=math.sqrt(alpha_squared), sigma=math.sqrt(1.0 - alpha_squared))


def _noise_draws(config: SamplerConfig, timesteps: Tensor) -> int:
    if config.scheduler == "euler_a" or (config.scheduler == "ddim" and config.eta > 0):
        return len(timesteps)  # the last step draws too, with weight zero
    return int((timesteps > 0).sum()) if config.scheduler == "ddpm" else 0
