"""How good images and students are: accuracy, agreement, and the overlap of feature distributions."""

from __future__ import annotations
