"""The study: the main job on the built-in world, arm by arm, and its report. Here alone real test images are read."""

from __future__ import annotations
