"""What "in distribution" means for a teacher: energy terms on its outputs."""

from __future__ import annotations
