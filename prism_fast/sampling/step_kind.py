"""What the steps of a trajectory do; steps that do the same share a captured graph."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from prism_fast.sampling.config import SamplerConfig
from prism_fast.sampling.guidance import cfg_steps, gradient_steps, guided_steps


@dataclass(frozen=True)
class StepKind:
    """What one step does; steps of a kind share a captured graph."""

    cfg: bool
    gradient: Literal["none", "new", "kept"]
    features: Literal["all", "new", "kept"]
    moved: bool = False
    """The gradient moves the sample, and the network is called on what was moved."""


def step_kinds(config: SamplerConfig, steps: int, first: int = 0) -> tuple[StepKind, ...]:
    """The kind of each of ``steps`` steps, from the ``first`` taken on."""
    cfg = cfg_steps(config, steps)
    guided = guided_steps(config.guidance, steps, first) if config.guidance is not None else ()
    fresh = gradient_steps(config.guidance, steps, first) if config.guidance is not None else ()
    kinds: list[StepKind] = []
    since = 0  # steps since the features were computed
    for index in range(first, steps):
        gradient: Literal["none", "new", "kept"] = "none"
        if index in guided:
            gradient = "new" if index in fresh else "kept"
        features: Literal["all", "new", "kept"] = "all"
        if config.reuse_features > 1:
            # features of the unconditional half exist only where the step that made them had one
            begins = index > first and index in cfg and index - 1 not in cfg
            features = "new" if since % config.reuse_features == 0 or begins else "kept"
            since = 1 if features == "new" else since + 1
        moved = gradient != "none" and config.guidance is not None and config.guidance.moves == "sample"
        kinds.append(StepKind(index in cfg, gradient, features, moved))
    return tuple(kinds)
