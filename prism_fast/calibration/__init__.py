"""What each approximation of the fast sampler costs and saves on one's own pipeline and teacher."""

from __future__ import annotations
