"""prism_fast: data-free knowledge distillation with an energy-guided diffusion sampler."""

from __future__ import annotations

__version__ = "0.1.0"
