"""A student learns from labelled images by distillation: losses, trainer, checkpoints."""

from __future__ import annotations
