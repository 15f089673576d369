"""Rows to images: noise, schedules, guidance and the loops of the exactness ladder.

Only the configuration is imported here; it is light. The loops are in their own modules (``sampling.reference``).
"""

from __future__ import annotations

from prism_fast.sampling.config import GuidanceConfig, SamplerConfig

__all__ = ["GuidanceConfig", "SamplerConfig"]
